"""A hook of MkDocs: gives mkdocstrings the package as users import it (see ``.ci/types``), with Markdown docstrings."""

import re
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).parent.parent
FOLDERS = {"mobillama_v": ".", "projector": "projector", "train": "train", "eval": "eval", "demo": "demo"}
TREE = tempfile.TemporaryDirectory(prefix="mobillama-v-docs-")  # removed when MkDocs ends


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: Any) -> Any:
    """Copy the modules into a tree with the installed layout, and document that."""
    for folder, place in FOLDERS.items():
        for source in (ROOT / folder).rglob("*.py"):
            target = Path(TREE.name, "mobillama_v", place, source.relative_to(ROOT / folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            text = re.sub(
                r":(?:class|func|meth|data|mod|attr):`~?([^`]+)`", r"`\1`", source.read_text(encoding="utf-8")
            )
            target.write_text(re.sub(r"::\n\n(?=    )", ":\n\n", text), encoding="utf-8")
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [TREE.name]
    return config
