"""Validation on held-out records while a training runs: the loss, and the share of right answers.

Nothing here touches what the training depends on: no random number is drawn from its generators, no weight and no
optimizer state changes. Every process takes its share; with ZeRO-3, whose processes hold parts of the weights only, the
first process does all of it with a copy of the whole model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mobillama_v import distributed
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.chat_templates import get_template
from mobillama_v.generate import Prompt, Sampling, generate
from mobillama_v.prompt import IGNORE_INDEX, SYSTEM, Encoded
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train import checkpoints
from mobillama_v.train.build import Setup, encoding_of, unusable_images
from mobillama_v.train.data.collate import Collator
from mobillama_v.train.data.dataset import Samples, TrainingSet, load_samples
from mobillama_v.train.data.encoding import IMAGE, SUPERVISED
from mobillama_v.train.lora import add_adapters
from mobillama_v.train.monitor.val_samples import Answer, append_answers, write_page
from mobillama_v.train.recipe import DataFile, LoraSection

SCORES = "validation.json"
"""In ``best/``: what made it the best, and on what."""


@dataclass(frozen=True)
class Question:
    """The first question of a sample: the ``length`` tokens before its answer, with ``images``, and both as text."""

    sample: int
    length: int
    images: int
    prompt: str
    answer: str

    @classmethod
    def of(cls, samples: Samples, sample: int, tokenizer: TextTokenizer, tokens_per_image: int) -> Question:
        """That of the sample."""
        span = slice(samples.offsets[sample], samples.offsets[sample + 1])
        ids, flags = samples.ids[span], samples.flags[span]
        learned, slots = (flags & SUPERVISED) != 0, (flags & IMAGE) != 0
        start = int(learned.argmax())
        end = start + int((~np.append(learned[start:], False)).argmax())
        prompt = tokenizer.decode(ids[:start][~slots[:start]].tolist())
        return cls(
            sample,
            start,
            int(slots[:start].sum()) // tokens_per_image,
            prompt.strip().removeprefix(SYSTEM).strip(),
            tokenizer.decode(ids[start:end].tolist()).strip(),
        )


class Validation:
    """The ``validation`` section of a recipe, ready to run; ``dataset`` holds the records of all its files."""

    def __init__(self, setup: Setup, samples: Samples, image_root: Path, *, skipped: int = 0) -> None:
        recipe, section = setup.recipe, setup.recipe.validation
        self.setup, self.output, self.skipped = setup, Path(recipe.output), skipped
        self.dataset = TrainingSet(samples, image_root=image_root, transform=setup.model.config.spec.image)
        self.samples = np.random.default_rng(recipe.train.seed).permutation(len(samples))[: section.samples].tolist()
        per_image = setup.model.tokens_per_image
        self.questions = [
            Question.of(samples, sample, setup.tokenizer, per_image) for sample in self.samples[: section.answers]
        ]
        self.fingerprint = dataclasses.asdict(section) | {"data": samples.digest(), "seed": recipe.train.seed}

    @classmethod
    def of(cls, setup: Setup) -> Validation | None:
        """That of the recipe, if it has one.

        Raises:
            MobiLlamaVError: records that cannot be used, and the recipe does not say to leave such out.
        """
        section, data = setup.recipe.validation, setup.recipe.data
        if not section.json:
            return None
        root = data.image_root if section.image_root is None else section.image_root
        held_out = dataclasses.replace(data, image_root=root, features=None)
        samples, skipped = load_samples(
            [DataFile(path) for path in section.json],
            encoding_of(setup.recipe, setup.model.config.spec),
            images=lambda paths: distributed.on_rank0(lambda: unusable_images(held_out, paths)),
            skip_bad=data.skip_bad,
            skip_empty=data.empty_answers == "skip",
            keep_duplicates=True,
        )
        return cls(setup, samples, Path(root), skipped=len(skipped))

    def describe(self) -> str:
        """What is measured and when, as a line of text."""
        section = self.setup.recipe.validation
        without = f" ({self.skipped:,} bad records left out)" if self.skipped else ""
        return (
            f"validate every {section.steps:,} steps on {len(self.samples):,} samples{without}, "
            f"{len(self.questions):,} questions answered; the best by {section.best.replace('_', ' ')} is saved"
        )

    def run(self, trainer: Any) -> dict[str, float]:
        """Try the model of a :class:`~mobillama_v.train.trainer.StageTrainer` as it is; keep it if it is the best.

        Returns:
            On every process ``eval_loss`` (nats a supervised token), ``eval_exact_match`` (share of answers, blanks
            around them left out) where questions are answered, ``eval_best`` and ``eval_seconds``.
        """
        started = time.monotonic()
        zero3 = (self.setup.recipe.train.deepspeed or "").startswith("zero3")
        model = _whole_copy(trainer, self.setup.recipe.train.lora) if zero3 else trainer.model
        shares = 1 if zero3 else distributed.world_size()
        found = (0.0, 0, {}) if model is None else self._try(model, trainer, shares)
        total, count = 0.0, 0
        replies: dict[int, str] = {}
        for loss, tokens, texts in distributed.all_gather(found):
            total, count = total + loss, count + tokens
            replies |= texts
        answers = [self._answer(i, replies[i], trainer.state.global_step) for i in range(len(self.questions))]
        metrics = {"eval_loss": total / max(count, 1)}
        if answers:
            metrics["eval_exact_match"] = sum(answer.right for answer in answers) / len(answers)
        best = distributed.on_rank0(lambda: self._is_best(metrics))
        if best:
            self._keep(trainer, metrics)
        if answers and distributed.rank() == 0:
            append_answers(self.output, answers)
            write_page(self.output, answers[0].step, metrics, self.dataset.image_root, self.dataset.transform)
        return metrics | {"eval_best": float(best), "eval_seconds": time.monotonic() - started}

    def _try(self, model: Any, trainer: Any, shares: int) -> tuple[float, int, dict[int, str]]:
        """This process's part: summed loss, supervised tokens, and texts by question."""
        was_training, size = model.training, self.setup.recipe.train.batch_size
        rank = trainer.args.process_index % shares
        model.eval()
        try:
            with torch.no_grad():
                sort_keys = self.dataset.samples.sort_keys
                ordered = sorted(self.samples, key=lambda sample: int(sort_keys[sample]))
                total, count = self._loss(model, trainer, _chunks(ordered, size)[rank::shares])
                numbers = sorted(range(len(self.questions)), key=lambda i: self.questions[i].length)
                replies: dict[int, str] = {}
                for batch in _chunks(numbers, size)[rank::shares]:
                    replies |= zip(batch, self._answers(model, [self.questions[i] for i in batch]), strict=True)
        finally:
            model.train(was_training)
        return total, count, replies

    def _loss(self, model: Any, trainer: Any, batches: list[list[int]]) -> tuple[float, int]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=Collator(self.setup.tokenizer.pad_id),
            num_workers=self.setup.recipe.train.dataloader_workers,
            generator=torch.Generator(),  # else its workers' seeds would come from the training's
        )
        total, count = 0.0, 0
        for batch in loader:
            inputs = trainer._prepare_inputs(batch)
            total += float(model(**inputs, num_items_in_batch=1, use_cache=False, logits_to_keep=1).loss)
            count += int((batch["labels"] != IGNORE_INDEX).sum())
        return total, count

    def _answers(self, model: Any, questions: list[Question]) -> list[str]:
        """Greedy answers to B questions at once."""
        tokenizer, template = self.setup.tokenizer, self.setup.recipe.data.template
        items = [self.dataset[question.sample] for question in questions]
        pixels = [item["pixel_values"][: q.images] for item, q in zip(items, questions, strict=True) if q.images]
        features = iter(model.get_image_features(torch.cat(pixels).to(model.lm_head.weight.device)) if pixels else ())
        prompts = []
        for item, question in zip(items, questions, strict=True):
            span = slice(question.length)
            encoded = Encoded(item["input_ids"][span].tolist(), [], item["image_mask"][span].tolist())
            prompts.append(Prompt(encoded, [next(features) for _ in range(question.images)]))
        section = self.setup.recipe.validation
        sampling = Sampling(max_new_tokens=section.max_new_tokens, stop=get_template(template).stop)
        found = generate(TorchEngine(model), tokenizer, prompts, sampling)
        return [completion.text.strip() for completion in found]

    def _answer(self, number: int, text: str, step: int) -> Answer:
        question = self.questions[number]
        source, record = self.dataset.samples.records[question.sample]
        images = self.dataset.samples.images[question.sample][: question.images]
        return Answer(step, source, record, images, question.prompt, question.answer, text)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Whether no earlier model was as good by the recipe's measure; the loss decides between equal answers."""
        if not math.isfinite(metrics["eval_loss"]):
            return False
        try:
            before = json.loads((self.output / checkpoints.BEST / SCORES).read_text(encoding="utf-8"))
            if before["fingerprint"] != json.loads(json.dumps(self.fingerprint)):
                return True  # it was the best at something else
            return self._rank(metrics) < self._rank(before["metrics"])
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def _rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        exact = -metrics["eval_exact_match"] if self.setup.recipe.validation.best == "exact_match" else 0.0
        return exact, metrics["eval_loss"]

    def _keep(self, trainer: Any, metrics: dict[str, float]) -> None:
        partial = distributed.on_rank0(lambda: checkpoints.partial_folder(self.output))
        trainer.save_model(str(partial / checkpoints.BEST), _internal_call=True)
        distributed.barrier()
        distributed.on_rank0(lambda: self._publish(partial / checkpoints.BEST, trainer.state.global_step, metrics))

    def _publish(self, written: Path, step: int, metrics: dict[str, float]) -> None:
        scores = {"step": step, "metrics": metrics, "fingerprint": self.fingerprint}
        (written / SCORES).write_text(json.dumps(scores, indent=1), encoding="utf-8")
        checkpoints.publish(written, self.output / checkpoints.BEST)


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _whole_copy(trainer: Any, lora: LoraSection | None) -> Any:
    """A copy of the model whose weights the processes share out, on the first process; None on the others."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if distributed.rank() > 0:
        return None
    with torch.random.fork_rng():  # the weights that are about to be overwritten are drawn at random
        copy = type(trainer.model)(trainer.model.config)
        if lora is not None:
            add_adapters(copy, lora)
    copy.load_state_dict(state)
    return copy.to(trainer.args.device, next(iter(state.values())).dtype)
