"""Ask a model every question of a benchmark: in batches, each image encoded once, and after a kill from where it was.

Answers are greedy, and those that a question would get alone. Where an image has many questions, what comes before them
is run once: by the native engine of itself, for torch by :mod:`mobillama_v.eval.prefix`. What was answered is with the
system before the next batch begins, and is not asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v import __version__
from mobillama_v.errors import DataError, ImageError
from mobillama_v.eval.batching import batches, windows
from mobillama_v.eval.benchmarks.base import Benchmark, Example
from mobillama_v.eval.distributed import World
from mobillama_v.eval.ocr import asks_for_tokens, read_pictures
from mobillama_v.eval.progress_line import Progress
from mobillama_v.eval.store import Shard, Store

if TYPE_CHECKING:
    from mobillama_v.assistant import Assistant, EncodedImage
    from mobillama_v.eval.prefix import PrefixReader, Row
    from mobillama_v.prompt import Encoded

MAX_NEW_TOKENS: Mapping[str, int] = {"gqa": 24, "scienceqa": 32, "textvqa": 48, "mme": 16}
"""The longest answer of each benchmark, in tokens; MME's rule looks at four characters, and a letter is two tokens."""
_LONGEST = 64  # of any other benchmark
_WINDOW = 8  # batches whose questions are sorted by length together
_FEATURE_BYTES = 256 << 20  # of encoded images that are kept at once
_PREFIX_BYTES = 1 << 30  # of encoded images with their keys and values
_MANY = 4  # questions an image, from which what comes before the question is run once
_SHOWN = 3

TOO_LONG = "prompt_too_long"
"""The ``finish_reason`` of a question that does not fit the model's context: it has no answer and counts as wrong."""


@dataclass(frozen=True)
class Run:
    """A finished run of one benchmark: its folder, what was asked, the answers by question id, and :func:`describe`."""

    store: Store
    examples: list[Example]
    answers: dict[str, dict[str, Any]]
    about: dict[str, Any]

    @property
    def texts(self) -> dict[str, str]:
        """The answers' texts by question id, as benchmarks score them."""
        return {name: answer["text"] for name, answer in self.answers.items()}


def longest_answer(benchmark: str) -> int:
    """How many tokens an answer may have in a benchmark, where nothing else is asked for."""
    return MAX_NEW_TOKENS.get(benchmark, _LONGEST)


@dataclass
class Model:
    """A model by name, its device and its engine, as for :func:`mobillama_v.load`; it is loaded when first asked."""

    name: str
    device: str = "auto"
    engine: str = "auto"

    @cached_property
    def assistant(self) -> Assistant:
        """The loaded model.

        Raises:
            MobiLlamaVError: as :func:`mobillama_v.load`.
        """
        from mobillama_v.loading import load

        return load(self.name, device=self.device, engine=self.engine)

    @cached_property
    def precision(self) -> str:
        """What the decoder computes with; errors as :func:`mobillama_v.loading.precision`."""
        from mobillama_v.loading import precision

        return precision(self.name, device=self.device, engine=self.engine)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of configuration, tokenizer and weights.

        Raises:
            MobiLlamaVError: there is no such model, or a file of it cannot be read.
        """
        from mobillama_v.backends.native.packed_format import weight_files_of
        from mobillama_v.hub import find_model

        folder, digest = find_model(self.name), hashlib.sha256()
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
    world: World | None = None,
) -> Run:
    """Answer what has no answer yet, and merge all answers in the order of the questions.

    Args:
        benchmark: whose questions they are.
        examples: all its questions.
        folder: where answers go; a run that was broken off there goes on.
        model: is asked; it is not loaded where nothing is left to ask.
        batch_size: questions that are asked at once.
        max_new_tokens: by default :func:`longest_answer`.
        world: the processes that share the questions; this one alone by default.

    Raises:
        DataError: the folder holds another run; an image cannot be read, in which case everything else is answered
            and kept.
        MobiLlamaVError: as :class:`Model`.
    """
    world = world or World()
    store = Store(folder)
    tokens = max_new_tokens or longest_answer(benchmark.name)
    about = describe(benchmark, examples, model=model, max_new_tokens=tokens)
    with store.claimed(about) if world.rank == 0 else contextlib.nullcontext():
        world.gather(None)  # the first process has made the folder ready
        known = store.answered()
        world.gather(None)  # and nobody writes before all have read
        if asks_for_tokens(benchmark):
            examples = read_pictures(examples, store, world)
        failed: list[str] = []
        if any(example.id not in known for example in examples):
            asker = Evaluator(model.assistant, batch_size=batch_size, max_new_tokens=tokens)
            mine = asker.share(examples, world)
            todo = sum(each.id not in known for window in mine for each in window)
            progress = Progress(benchmark.name, total=todo, world=world)
            with store.shard(world.rank) as shard:
                failed = asker.answer(mine, known, shard, progress)
        _refuse([each for part in world.gather(failed) for each in part], len(examples), folder)
        if world.rank == 0:
            store.merge(example.id for example in examples)
        world.gather(None)
    return Run(store, examples, store.answered(), about)


class Evaluator:
    """Asks a loaded model questions."""

    def __init__(self, assistant: Assistant, *, batch_size: int, max_new_tokens: int) -> None:
        from mobillama_v.backends.torch import TorchEngine
        from mobillama_v.generate import Sampling

        self.assistant, self.batch_size = assistant, batch_size
        self._sampling = Sampling(max_new_tokens=max_new_tokens)
        self._seen: dict[Path, EncodedImage] = {}
        self._torch = isinstance(assistant.engine, TorchEngine)
        self._prefixes: PrefixReader | None = None

    def share(self, examples: Sequence[Example], world: World) -> list[list[Example]]:
        """The windows of a process; no two processes encode the same image.

        Where images have many questions each, :meth:`ask` will run what comes before the question once an image.
        """
        from mobillama_v.eval.prefix import PrefixReader

        pictured = [each for each in examples if each.images]
        many = self._torch and len(pictured) >= _MANY * len({each.images for each in pictured}) > 0
        self._prefixes = PrefixReader(self.assistant, self._sampling.max_new_tokens) if many else None
        every = windows(examples, questions=_WINDOW * self.batch_size, images=self._images_at_once(pictured))
        return [window for i, window in enumerate(every) if i % world.size == world.rank]

    def _images_at_once(self, pictured: Sequence[Example]) -> int:
        decoder = self.assistant.spec.decoder
        size = self.assistant.network.lm_head.weight.element_size() if self._torch else 4
        image = self.assistant.vision.tokens_per_image * decoder.hidden_size * size
        if self._prefixes is None:
            return max(self.batch_size, _FEATURE_BYTES // max(1, image))
        common = self._row(pictured[0], []).common
        position = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * size
        return max(1, _PREFIX_BYTES // (image + common * position))

    def answer(
        self, mine: list[list[Example]], known: Mapping[str, Any], shard: Shard, progress: Progress
    ) -> list[str]:
        """Ask what is not known, and add it to the shard; a message for every question whose image cannot be read."""
        failed: list[str] = []
        for window in mine:
            for batch in self.batches(window):
                missing = [example for example in batch if example.id not in known]
                if missing:
                    answers = self.ask(missing, failed)
                    shard.add(answers)
                    progress.advance(len(missing))
            self._seen.clear()
            if self._prefixes:
                self._prefixes.forget()
        progress.end()
        return failed

    def batches(self, window: list[Example]) -> Iterator[list[Example]]:
        """The batches of a window; those that do not depend on what was answered before.

        The native engine pads nothing, and shares what prompts of a batch begin with: there an image's come together.
        """
        lengths = [self._length(example) for example in window]
        roomy = self.assistant.context - self._sampling.max_new_tokens
        for batch in batches(lengths, size=self.batch_size, roomy=roomy, by_length=self._torch):
            yield [window[i] for i in batch]

    def ask(self, examples: Sequence[Example], failed: list[str]) -> list[dict[str, Any]]:
        """Answers to those of some questions that can be asked; messages about the others are added to ``failed``."""
        answers: list[dict[str, Any]] = []
        asked: dict[int, list[tuple[Example, list[EncodedImage]]]] = {}  # by how many images they have
        for example in examples:
            if self._length(example) >= self.assistant.context:
                answers.append(self._answer(example, "", TOO_LONG))
                continue
            try:
                seen = [self._see(path) for path in example.images]
                asked.setdefault(len(seen) if self._prefixes else 0, []).append((example, seen))
            except ImageError as error:
                failed.append(f"{example.id!r}: {error}")
        for images, group in asked.items():
            if self._prefixes and images:
                replies = self._prefixes.answer([self._row(example, seen) for example, seen in group])
            else:
                prompts = [(seen, example.prompt) for example, seen in group]
                replies = [(r.text, r.finish_reason) for r in self.assistant.ask_batch(prompts, self._sampling)]
            answers += [self._answer(each, *reply) for (each, _), reply in zip(group, replies, strict=True)]
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
        return len(self._encode(example).input_ids)

    def _row(self, example: Example, seen: Sequence[EncodedImage]) -> Row:
        from mobillama_v.eval.prefix import Row

        return Row(example.images, self._encode(example), [image.features for image in seen])

    def _encode(self, example: Example) -> Encoded:
        from mobillama_v.prompt import get_template, user

        return get_template(self.assistant.spec.template).encode(
            [user(example.prompt, images=len(example.images))],
            self.assistant.tokenizer,
            tokens_per_image=self.assistant.vision.tokens_per_image,
        )


def describe(benchmark: Benchmark, examples: Sequence[Example], *, model: Model, max_new_tokens: int) -> dict[str, Any]:
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
        "precision": model.precision,
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


def _refuse(failed: list[str], questions: int, folder: Path) -> None:
    if failed:
        shown = "; ".join(failed[:_SHOWN]) + ("; …" if len(failed) > _SHOWN else "")
        raise DataError(
            f"{len(failed)} of {questions} questions could not be asked: {shown}. The other answers are kept in "
            f"{str(folder)!r}: mend the images and run the same command again."
        )
