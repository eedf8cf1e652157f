"""Model name to model folder: an embedded model, a folder, or an id of the Hugging Face Hub; and the spec in a folder.

Nothing heavy is imported, so that a mistyped name is answered at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError, ModelNotFoundError
from mobillama_v.fields import parse_json

DEFAULT = "nano"
_EMBEDDED = Path(__file__).parent / "weights"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Weights that can run code are not fetched, and nothing but what a model folder needs.
_HUB_FILES = ["*.safetensors", "*.json"]
# What an import reads: it takes from .bin files nothing but tensors.
_IMPORT_FILES = [*_HUB_FILES, "*.bin"]


def embedded_models() -> dict[str, Path]:
    """Name and folder of the models that are installed with the package."""
    return {path.parent.name: path.parent for path in sorted(_EMBEDDED.glob("*/config.json"))}


def find_model(name: str) -> Path:
    """The folder of the model ``name``, downloaded where it is a Hugging Face id that is not in the local cache.

    An embedded name comes before a folder of that name; write ``./name`` for the folder.

    Raises:
        ModelNotFoundError: nothing of that name, or the hub does not give it.
    """
    embedded = embedded_models()
    if name in embedded:
        return embedded[name]
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):  # pathlib's raises for a name that is too long
        return Path(folder)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name, _HUB_FILES)
    import difflib

    from mobillama_v.presets import PRESETS

    if name in PRESETS:
        raise ModelNotFoundError(
            f"{name!r} is a preset, the shape of a model to train, and has no weights here: {_choices()}."
        )
    near = difflib.get_close_matches(name.lower(), embedded, n=1)
    raise ModelNotFoundError(
        f"there is no model {name!r}{f'; did you mean {near[0]!r}?' if near else ':'} {_choices()}."
    )


def find_checkpoint(name: str) -> Path:
    """The place of a checkpoint: a folder, a ``.gguf`` file, or a Hugging Face id, which is downloaded if need be.

    Raises:
        ModelNotFoundError: neither, or the hub does not give it.
    """
    folder = os.path.expanduser(name)
    if os.path.isdir(folder) or (folder.endswith(".gguf") and os.path.isfile(folder)):
        return Path(folder)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name, _IMPORT_FILES)
    raise ModelNotFoundError(
        f"there is no checkpoint {name!r}: give a folder, a .gguf file or a Hugging Face id such as owner/name."
    )


def read_spec(folder: Path) -> ModelConfig:
    """The spec in the ``config.json`` of a model folder.

    Raises:
        CheckpointError: no such file, or it is not a JSON mapping.
        ConfigError: another model type, an unknown key or an impossible value.
    """
    path = folder / "config.json"
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{str(path)!r} is missing: give a folder that holds a model.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as JSON ({error}): copy it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} is not a JSON mapping: copy it again.")
    return ModelConfig.from_dict(config, str(path))


def _choices() -> str:
    embedded = "".join(f"{name} (embedded), " for name in embedded_models())
    return f"a model is {embedded}a folder that holds a config.json, or a Hugging Face id such as owner/name"


def _from_hub(name: str, files: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=files))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise ModelNotFoundError(
            f"there is no folder {name!r}, and the Hugging Face Hub has no model of that id that you may read (private "
            f"ones need `hf auth login`): {_choices()}."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no folder {name!r}, and the Hugging Face Hub cannot be reached to download a model of that id: "
            f"{_choices()}."
        ) from error
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(f"the model {name!r} cannot be downloaded ({reason}): {_choices()}.") from error
