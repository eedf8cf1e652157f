"""The models' own code in a model folder, for ``trust_remote_code=True`` where this package is not installed.

One file holds the modules that model and processor import, as they are, and imports them from there. An installed
package takes their place. Folders of several versions in one process share the code that was imported first.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "modeling_mobillama_v.py"
_ROOTS = ("mobillama_v.hf.modeling", "mobillama_v.hf.processing")
_CLASSES = {
    "AutoConfig": "MobiLlamaVConfig",
    "AutoModelForImageTextToText": "MobiLlamaVForConditionalGeneration",
    "AutoModelForMultimodalLM": "MobiLlamaVForConditionalGeneration",
    "AutoModelForCausalLM": "MobiLlamaVForConditionalGeneration",
    "AutoProcessor": "MobiLlamaVProcessor",
}
_QUOTES = "'''"
_TEXT = '''"""MobiLlama-V VERSION for transformers with trust_remote_code=True, where mobillama_v is not installed.

SOURCES are the package's modules, unchanged; below them stands how they are imported. Written by that package.
"""

import importlib.abc
import importlib.util
import sys

PACKAGES = set("""
NAMES
""".split())
SOURCES = {
TEXTS}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from SOURCES."""

    def find_spec(self, name, path, target=None):
        if name in SOURCES:
            return importlib.util.spec_from_loader(name, self, is_package=name in PACKAGES)

    def is_package(self, name):
        return name in PACKAGES

    def get_source(self, name):
        return SOURCES[name]

    def exec_module(self, module):
        module.__file__ = __file__
        exec(self.source_to_code(SOURCES[module.__name__], module.__name__), module.__dict__)


if importlib.util.find_spec("mobillama_v") is None:
    sys.meta_path.append(Finder())
try:  # transformers asks for the packages that are imported outside of such a block
    from mobillama_v import MobiLlamaVConfig, MobiLlamaVForConditionalGeneration, MobiLlamaVProcessor
except ImportError:
    raise

for each in (MobiLlamaVConfig, MobiLlamaVForConditionalGeneration, MobiLlamaVProcessor):
    each.register_for_auto_class = classmethod(lambda cls, auto_class=None: None)  # it would copy a file of theirs
'''


def write_remote_code(folder: Path) -> None:
    """Write :data:`FILE` to a model folder, and name its classes in the folder's configurations."""
    from mobillama_v import __version__

    found = sorted(_sources())
    packages = "\n".join(name for name, _, is_package in found if is_package)
    texts = "".join(f"    {name!r}: {_quoted(text)},\n" for name, text, _ in found)
    whole = _TEXT.replace("VERSION", __version__).replace("NAMES", packages).replace("TEXTS", texts)
    (folder / FILE).write_text(whole, encoding="utf-8")
    name_remote_code(folder)


def name_remote_code(folder: Path) -> None:
    """Name the classes in ``config.json`` and ``processor_config.json``, whichever is there, if the code is."""
    for file, classes in (("config.json", _CLASSES), ("processor_config.json", ["AutoProcessor"])):
        path = folder / file
        if (folder / FILE).is_file() and path.is_file():
            names = {auto: f"{Path(FILE).stem}.{_CLASSES[auto]}" for auto in classes}
            found = json.loads(path.read_text(encoding="utf-8")) | {"auto_map": names}
            path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sources() -> Iterator[tuple[str, str, bool]]:
    """The modules of this package that the models import, at once or later: names, texts, whether they are packages."""
    waiting, seen = list(_ROOTS), set[str]()
    while waiting:
        name = waiting.pop()
        spec = None if name in seen else _spec(name)
        seen.add(name)
        if spec is None:
            continue
        text = spec.loader.get_source(name)
        yield name, text, spec.submodule_search_locations is not None
        waiting += [name.rpartition(".")[0]] * ("." in name)
        waiting += _imported(ast.parse(text))


def _spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a class in a module, say
        return None


def _imported(tree: ast.AST) -> Iterator[str]:
    """What may be modules of this package among the names that are imported, except for type checkers."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return
    if isinstance(tree, ast.Import | ast.ImportFrom):
        names = [each.name for each in tree.names]
        if isinstance(tree, ast.ImportFrom):
            names = [str(tree.module), *(f"{tree.module}.{each}" for each in names)]
        yield from (each for each in names if each.partition(".")[0] == "mobillama_v")
    for child in ast.iter_child_nodes(tree):
        yield from _imported(child)


def _quoted(text: str) -> str:
    """A literal that reads as the text does, where that can be."""
    plain = _QUOTES not in text and not text.endswith(("'", "\\"))
    return f"r{_QUOTES}{text}{_QUOTES}" if plain else repr(text)
