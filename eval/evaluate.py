"""Ask a model every question of a benchmark: in batches, each image encoded once, and after a kill from where it was.

Answers are greedy, and those that a question would get alone. Questions on one image are asked together, and the engine
runs what comes before them once. Answers are on the disk before the next batch begins, and are not asked for again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v import __version__, distributed
from mobillama_v.errors import DataError, ImageError
from mobillama_v.eval.batching import batches, windows
from mobillama_v.eval.benchmarks.base import Benchmark, Example
from mobillama_v.eval.ocr import asks_for_tokens, read_pictures
from mobillama_v.eval.store import Shard, Store
from mobillama_v.output import require_space
from mobillama_v.progress import Progress
from mobillama_v.prompt import user

if TYPE_CHECKING:
    from mobillama_v.assistant import Assistant
    from mobillama_v.backends.select import BackendPlan
    from mobillama_v.reply import EncodedImage

_WINDOW = 8  # batches whose questions are sorted by length together
_FEATURE_BYTES = 256 << 20  # of encoded images that are kept at once, in fp32
_REPORT_BYTES = 10 << 20
_SHOWN = 3

TOO_LONG = "prompt_too_long"
"""The ``finish_reason`` of a question that does not fit the model's context: it has no answer and counts as wrong."""


@dataclass(frozen=True)
class Run:
    """A finished run of one benchmark: its folder, what was asked, answers by question id, and :func:`provenance`."""

    store: Store
    examples: list[Example]
    answers: dict[str, dict[str, Any]]
    about: dict[str, Any]

    @property
    def texts(self) -> dict[str, str]:
        """The answers' texts by question id, as benchmarks score them."""
        return {name: answer["text"] for name, answer in self.answers.items()}


@dataclass
class Model:
    """A model by name, its device and its engine, as for :func:`mobillama_v.load`; it is loaded when first asked."""

    name: str
    device: str = "auto"
    engine: str = "auto"

    @cached_property
    def folder(self) -> Path:
        """Where its files are.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        from mobillama_v.hub import find_model

        return find_model(self.name)

    @cached_property
    def plan(self) -> BackendPlan:
        """What runs it; errors as :func:`mobillama_v.load`."""
        from mobillama_v.backends.select import select_backend
        from mobillama_v.hub import read_spec

        return select_backend(read_spec(self.folder), self.folder, device=self.device, engine=self.engine)

    @cached_property
    def assistant(self) -> Assistant:
        """The loaded model; errors as :func:`mobillama_v.load`."""
        from mobillama_v.hub import read_spec
        from mobillama_v.loading import load_plan

        return load_plan(self.name, self.folder, read_spec(self.folder), self.plan)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of configuration, tokenizer and weights.

        Raises:
            MobiLlamaVError: there is no such model, or a file of it cannot be read.
        """
        from mobillama_v.backends.native.packed_format import weight_files_of

        folder, digest = self.folder, hashlib.sha256()
        for path in [folder / "config.json", folder / "tokenizer.json", *weight_files_of(folder)]:
            try:
                with open(path, "rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); copy the model again.") from None
        return digest.hexdigest()


def run(
    benchmark: Benchmark,
    examples: list[Example],
    folder: Path,
    *,
    model: Model,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    allow_missing: bool = False,
) -> Run:
    """Answer what has no answer yet, and merge all answers in the order of the questions.

    Args:
        benchmark: whose questions they are.
        examples: all its questions.
        folder: where answers go; a run that was broken off there goes on.
        model: is asked; it is not loaded where nothing is left to ask.
        batch_size: questions that are asked at once.
        max_new_tokens: by default the benchmark's.
        allow_missing: leave questions whose image cannot be read without an answer, which counts as wrong.

    Raises:
        DataError: the folder holds another run, or cannot be written; an image cannot be read, and not
            ``allow_missing``. What is answered is kept.
        MobiLlamaVError: as :class:`Model`.
    """
    store = Store(folder)
    tokens = max_new_tokens or benchmark.max_new_tokens
    about = provenance(benchmark, examples, model=model, max_new_tokens=tokens)
    # An answer, its copy in the merged file and as it was judged, each with its prompt; and the report.
    needed = 3 * sum(len(each.prompt) + 8 * tokens + 500 for each in examples) + _REPORT_BYTES
    require_space(folder, needed)
    with store.claimed(about) if distributed.rank() == 0 else contextlib.nullcontext():
        distributed.barrier()  # the first process has made the folder ready
        known = store.answered()
        distributed.barrier()  # and nobody writes before all have read
        if asks_for_tokens(benchmark):
            examples = read_pictures(examples, store)
        failed: dict[str, str] = {}
        if any(example.id not in known for example in examples):
            evaluator = Evaluator(model.assistant, batch_size=batch_size, max_new_tokens=tokens)
            mine = evaluator.share(examples)
            todo = sum(each.id not in known for window in mine for each in window)
            with store.shard(distributed.rank()) as shard, Progress("questions") as progress:
                tell = functools.partial(progress, benchmark.name, total=todo)
                failed = evaluator.answer(mine, known, shard, tell)
        everyones = {name: why for part in distributed.all_gather(failed) for name, why in part.items()}
        _report(everyones, len(examples), folder, allow_missing=allow_missing)
        if distributed.rank() == 0:
            store.merge(example.id for example in examples if example.id not in everyones)
        distributed.barrier()
    return Run(store, examples, store.answered(), about)


class Evaluator:
    """Asks a loaded model questions."""

    def __init__(self, assistant: Assistant, *, batch_size: int, max_new_tokens: int) -> None:
        from mobillama_v.generate import Sampling

        self.assistant, self.batch_size = assistant, batch_size
        self._sampling = Sampling(max_new_tokens=max_new_tokens)
        self._seen: dict[Path, EncodedImage] = {}

    def share(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The windows of a process; no two processes encode the same image."""
        image = 4 * self.assistant.vision.tokens_per_image * self.assistant.spec.decoder.hidden_size
        images = max(self.batch_size, _FEATURE_BYTES // max(1, image))
        every = windows(examples, questions=_WINDOW * self.batch_size, images=images)
        return [window for i, window in enumerate(every) if i % distributed.world_size() == distributed.rank()]

    def answer(
        self, mine: list[list[Example]], known: Mapping[str, Any], shard: Shard, tell: Callable[[int], None]
    ) -> dict[str, str]:
        """Ask what is not known, and add it to the shard; a message by id for questions whose image cannot be read."""
        failed: dict[str, str] = {}
        done = 0
        for window in mine:
            for batch in self.batches(window):
                missing = [example for example in batch if example.id not in known]
                if missing:
                    answers = self.ask(missing, failed)
                    shard.add(answers)
                    done += len(missing)
                    tell(done)
            self._seen.clear()
        return failed

    def batches(self, window: list[Example]) -> Iterator[list[Example]]:
        """The batches of a window; they do not depend on what was answered before."""
        return batches(window, [self._length(example) for example in window], size=self.batch_size)

    def ask(self, examples: Sequence[Example], failed: dict[str, str]) -> list[dict[str, Any]]:
        """Answers to those of some questions that can be asked; messages about the others are added to ``failed``."""
        answers: list[dict[str, Any]] = []
        asked: list[tuple[Example, list[EncodedImage]]] = []
        for example in examples:
            if self._length(example) >= self.assistant.context:
                answers.append(self._answer(example, "", TOO_LONG))
                continue
            try:
                asked.append((example, [self._see(path) for path in example.images]))
            except ImageError as error:
                failed[example.id] = str(error)
        replies = self.assistant.ask_batch([(seen, example.prompt) for example, seen in asked], self._sampling)
        for (example, _), reply in zip(asked, replies, strict=True):
            answers.append(self._answer(example, reply.text, reply.finish_reason))
        return answers

    def _answer(self, example: Example, text: str, finish_reason: str) -> dict[str, Any]:
        return {
            "question_id": example.id,
            "prompt": example.prompt,
            "text": text,
            "finish_reason": finish_reason,
            "model": self.assistant.name,
        }

    def _see(self, path: Path) -> EncodedImage:
        if path not in self._seen:
            self._seen[path] = self.assistant.encode_image(path)
        return self._seen[path]

    def _length(self, example: Example) -> int:
        """Tokens of the prompt, those of its images included."""
        return len(self.assistant.encode_messages([user(example.prompt, images=len(example.images))]).input_ids)


def provenance(
    benchmark: Benchmark, examples: Sequence[Example], *, model: Model, max_new_tokens: int
) -> dict[str, Any]:
    """What makes answers comparable; runs that differ in it must not be mixed (:meth:`Store.claimed`).

    Raises:
        MobiLlamaVError: there is no such model or device.
    """
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "settings": benchmark.settings(),
        "questions": len(examples),
        "official_questions": benchmark.official_count,
        "questions_sha256": _digest_questions(examples),
        "model": model.name,
        "weights_sha256": model.digest,
        "precision": model.plan.precision,
        "max_new_tokens": max_new_tokens,
        "version": __version__,
    }


def _digest_questions(examples: Sequence[Example]) -> str:
    """Of what is asked, in its order; not of where the data lie, nor of words that are read in the pictures."""
    digest = hashlib.sha256()
    for example in examples:
        images = ["/".join(path.parts[-2:]) for path in example.images]
        digest.update(json.dumps([example.id, example.prompt, images]).encode())
    return digest.hexdigest()


def _report(failed: Mapping[str, str], questions: int, folder: Path, *, allow_missing: bool) -> None:
    """Name the questions whose images cannot be read, as an error or a warning."""
    if not failed:
        return
    shown = "; ".join(f"{name!r}: {why.rstrip('.')}" for name, why in islice(failed.items(), _SHOWN))
    text = f"{len(failed)} of {questions} questions could not be asked: {shown}{'; …' * (len(failed) > _SHOWN)}. "
    if not allow_missing:
        raise DataError(
            f"{text}The other answers are kept in {str(folder)!r}: mend the images and run the same command again, or "
            "add --allow-missing to count these questions as wrong."
        )
    if distributed.rank() == 0:
        print(f"warning: {text}They count as wrong.", file=sys.stderr, flush=True)
