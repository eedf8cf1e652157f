"""The benchmarks by name."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

from mobillama_v.errors import ConfigError
from mobillama_v.eval import benchmarks
from mobillama_v.eval.benchmarks.base import REGISTERED, Benchmark

_FIRST = ("gqa", "scienceqa", "textvqa", "mme")  # the paper's, in the order of its table


def classes() -> dict[str, type[Benchmark]]:
    """Every benchmark's class by name: all that a module of this folder registers, the paper's first.

    ``custom`` is a user's own question file.
    """
    for module in pkgutil.iter_modules(benchmarks.__path__):
        importlib.import_module(f"{benchmarks.__name__}.{module.name}")
    return {name: REGISTERED[name] for name in dict.fromkeys((*_FIRST, *REGISTERED))}


def public() -> list[str]:
    """The benchmarks that ``eval run all`` runs, in the order of the paper's table."""
    return [name for name, made in classes().items() if made.in_all]


def find(name: str) -> type[Benchmark]:
    """The class of a benchmark; that of any benchmark where a run is of one that is not known here."""
    return classes().get(name, Benchmark)


def get(name: str, **options: Any) -> Benchmark:
    """Make a benchmark; the options are the fields of its class.

    Raises:
        ConfigError: an unknown name or option, or a value that an option does not take.
    """
    known = classes()
    if name not in known:
        raise ConfigError(f"there is no benchmark {name!r}; use one of {', '.join(known)}.")
    fields = {field.name for field in dataclasses.fields(known[name])}
    for option in options:
        if option not in fields:
            takes = ", ".join(sorted(fields))
            raise ConfigError(f"the benchmark {name} has no option {option!r}; its options are: {takes}.")
    return known[name](**options)
