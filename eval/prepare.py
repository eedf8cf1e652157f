"""What a benchmark needs, and what of it is there; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.base import Benchmark
from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder, some


@dataclass(frozen=True)
class Prepared:
    """``lines`` to read, and whether the benchmark can be run."""

    lines: tuple[str, ...]
    ready: bool


def prepare(benchmark: Benchmark, data: Path) -> Prepared:
    """Say what to get from where, and check what is there: files, numbers of questions, pictures."""
    folder = benchmark_folder(data, benchmark.name) if data.exists() else data
    lines = [f"{benchmark.title}: {folder}"]
    lines += [f"  {line}" for line in _needed(benchmark, folder)]
    if not data.exists():
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


def _needed(benchmark: Benchmark, folder: Path) -> Iterator[str]:
    sources = benchmark.sources()
    urls = {source.url for source in sources}
    if len(urls) == 1 and len(sources) > 1:  # MME's categories
        yield f"needs {some(source.path for source in sources)}"
        yield f"  from {sources[0].url}"
    else:
        for source in sources:
            yield f"{'may have' if source.optional else 'needs'} {source.path}"
            yield f"  from {source.url}"
    if benchmark.hub_id:
        yield f"or the dataset: hf download --repo-type dataset {benchmark.hub_id} --local-dir {folder}"
