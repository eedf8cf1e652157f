"""Recipes as YAML files, whose keys are the fields of :class:`Recipe`, with overrides from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from mobillama_v.errors import MissingExtraError, RecipeError
from mobillama_v.fields import is_finite, is_text, is_whole, shown
from mobillama_v.train.recipe import DataFile, Recipe, require

T = TypeVar("T")
_MOST = 1 << 32
"""What a whole number must stay below: transformers takes no larger seed."""
RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Load a packaged recipe by its name, or a YAML file, and apply ``section.key=value`` overrides.

    Raises:
        RecipeError: no such recipe, not YAML, an unknown key (the nearest one is suggested), or a value that cannot be.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{name_or_path}.yaml"
        require(
            name_or_path in recipe_names(),
            f"there is no recipe {name_or_path!r}{_suggest(name_or_path, recipe_names())}; give a .yaml file or "
            f"one of: {', '.join(recipe_names())}.",
        )
    try:
        tree = _yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read ({error}); check its path.") from error
    require(isinstance(tree, dict), f"recipe {path} is no mapping of sections; see the recipes of the package.")
    for override in overrides or []:
        _apply(tree, override)
    return typing.cast(Recipe, _convert(Recipe, tree, ""))


def key_help() -> str:
    """Every key of a recipe with its default and what it means, a line each."""
    rows: list[tuple[str, str, str]] = []

    def walk(kind: Any, prefix: str) -> None:
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            hint = hints[item.name]
            if not dataclasses.is_dataclass(hint):
                default = "" if item.default is dataclasses.MISSING else str(_plain(item.default))
                rows.append((f"{prefix}{item.name}", default.replace("None", "null"), item.metadata["help"]))
            for section in (hint, *typing.get_args(hint)):  # a section that may be null is both
                if dataclasses.is_dataclass(section) and section is not DataFile:
                    walk(section, f"{prefix}{item.name}.")

    walk(Recipe, "")
    key_width, default_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{key:<{key_width}}  {default:<{default_width}}  {text}" for key, default, text in rows)


def to_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; :func:`load_recipe` reads it back."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("training needs PyYAML; pip install 'mobillama-v[train]'.") from None

    class Loader(yaml.SafeLoader):
        """Without aliases of lists and sections: a few lines of them mean gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None
            node = super().compose_node(parent, index)
            if alias is not None and not isinstance(node, yaml.ScalarNode):
                raise yaml.composer.ComposerError(
                    None, None, f"*{alias.anchor} stands for a list or a section; write that out", alias.start_mark
                )
            return node

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that cannot be
        raise RecipeError(f"{where} is not valid YAML ({' '.join(str(error).split())}).") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    require(bool(equals and key), f"override {override!r} is not of the form section.key=value.")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = _yaml(text, f"override {override!r}")


def _suggest(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Make ``value``, as YAML gives it, the type ``kind``; ``where`` is its dotted key."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_section(typing.cast(type, kind), value, where)
    if origin in (Union, types.UnionType):  # only "or None" occurs
        return None if value is None else _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is Literal:
        require(value in args, f"{where} must be one of {', '.join(args)}, not {shown(value)}.")
        return value
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        if args[-1] is Ellipsis:
            return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
        require(len(items) == len(args), f"{where} must be {len(args)} values, not {shown(value)}.")
        return tuple(_convert(arg, item, where) for arg, item in zip(args, items, strict=True))
    return _convert_scalar(kind, value, where)


def _convert_section(kind: type[T], value: Any, where: str) -> T:
    if kind is DataFile and isinstance(value, str):
        value = {"path": value}
    if value is None:
        value = {}
    require(isinstance(value, dict), f"{where} must be a section of keys, not {shown(value)}.")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in value:
        name = key if isinstance(key, str) else shown(key)
        require(key in hints, f"recipe key {prefix}{name} is unknown{_suggest(name, list(hints))}.")
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        require(not required or item.name in value, f"recipe key {prefix}{item.name} is missing.")
    return kind(**{key: _convert(hints[key], item, f"{prefix}{key}") for key, item in value.items()})


def _convert_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML reads 1e-3 as text
    if kind is float and is_whole(value) and is_finite(value):
        value = float(value)
    if kind is str and is_finite(value):
        value = str(value)
    require(type(value) is kind, f"{where} must be a value of type {kind.__name__}, not {shown(value)}.")
    require(kind is not float or is_finite(value), f"{where} must be a finite number, not {shown(value)}.")
    require(kind is not int or abs(value) < _MOST, f"{where} must be below {_MOST}, not {shown(value)}.")
    require(kind is not str or is_text(value), f"{where} must be a text without NUL and half characters.")
    return value
