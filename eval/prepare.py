"""What a benchmark needs, and what of it is there; nothing is downloaded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks import registry
from mobillama_v.eval.benchmarks.base import Benchmark
from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder, some


@dataclass(frozen=True)
class Prepared:
    """``lines`` to read, and whether the benchmark can be run."""

    lines: tuple[str, ...]
    ready: bool


def prepare(benchmark: Benchmark, data: Path) -> Prepared:
    """Say what to get from where, and check what is there: files, numbers of questions, pictures."""
    folder = _folder(benchmark, data)
    lines = [f"{benchmark.title}: {folder}"]
    lines += [f"  {line}" for line in _needed(benchmark, folder)]
    if not folder.exists():
        return Prepared((*lines, "  not ready: the folder does not exist."), False)
    try:
        examples = benchmark.load(folder)
    except DataError as error:
        return Prepared((*lines, f"  not ready: {error}"), False)
    expected = benchmark.official_count
    lines.append(f"  questions: {len(examples):,}" + (f" of {expected:,}" if expected else ""))
    images = list(dict.fromkeys(image for example in examples for image in example.images))
    absent = [image for image in images if not image.is_file()]
    lines.append(f"  images: {len(images) - len(absent):,} of {len(images):,}")
    if absent:
        lines.append(f"  not ready: {len(absent):,} images are missing, the first is {str(absent[0])!r}.")
        return Prepared(tuple(lines), False)
    if expected and len(examples) != expected:
        lines.append("  ready, but not the owners' whole set: scores cannot be compared with published ones.")
    else:
        lines.append("  ready.")
    return Prepared(tuple(lines), True)


def _folder(benchmark: Benchmark, data: Path) -> Path:
    """The folder of one benchmark: its own below ``data``, or ``data`` itself where something else than folders of
    benchmarks lies in it."""
    known = {*registry.public(), benchmark.name}
    if data.is_file() or (data.is_dir() and any(each.name.lower() not in known for each in data.iterdir())):
        return benchmark_folder(data, benchmark.name)
    own = benchmark_folder(data, benchmark.name) if data.exists() else data
    return data / benchmark.name if own == data else own


def _needed(benchmark: Benchmark, folder: Path) -> Iterator[str]:
    if files := benchmark.hub_files():
        size = f"  # {benchmark.hub_size}" if benchmark.hub_size else ""
        yield (
            f"hf download {benchmark.hub_id} --repo-type dataset --include {shlex.quote(files)} --local-dir "
            f"{shlex.quote(str(folder))}{size}"
        )
        yield "or what its owners publish:"
    sources = benchmark.sources()
    urls = {source.url for source in sources}
    if len(urls) == 1 and len(sources) > 1:  # MME's categories
        yield f"needs {some(source.path for source in sources)}"
        yield f"  from {sources[0].url}"
    else:
        for source in sources:
            yield f"{'may have' if source.optional else 'needs'} {source.path}"
            yield f"  from {source.url}"
