"""The trainer: transformers' own, thinly extended.

Added are learning rates by part, an order of samples that resuming cannot disturb, the count of tokens, and checkpoints
that are model folders, complete or not there at all. The loss is normalised by the supervised tokens of a whole
optimizer step, over accumulation and ranks: transformers counts them and the model divides by them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from mobillama_v.errors import CheckpointError, MissingExtraError, MobiLlamaVError, RecipeError
from mobillama_v.train import checkpoints, lora, ranks
from mobillama_v.train.check import write_records
from mobillama_v.train.collate import Collator
from mobillama_v.train.dataset import BadRecordsError, TrainingSet, list_problems
from mobillama_v.train.muon import Muon
from mobillama_v.train.order import TrainingOrder
from mobillama_v.train.progress import Progress
from mobillama_v.train.recipe import Recipe, to_yaml
from mobillama_v.train.scan import Problem
from mobillama_v.train.setup import Setup, parameter_groups
from mobillama_v.train.zero import deepspeed_config, join

BAD_RECORDS = "bad-records.jsonl"
"""In an output folder: the records that cannot be learnt from, an object a line."""
_STATE = "training.json"  # in a checkpoint: what a resumed training must share with it
_PATIENCE = 24 * 3600  # seconds that processes wait for the first one, which may be computing features
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class StageTrainer(Trainer):
    """transformers' Trainer for one recipe."""

    optimizer: Any

    def __init__(self, setup: Setup, dataset: TrainingSet, progress: Progress, args: TrainingArguments) -> None:
        self.setup, self.progress = setup, progress
        # Every process must run the same parts of the model, or those that wait for a part's weights or gradients wait
        # for ever: a batch of text alone gets a blank image from which nothing is learnt.
        blank = dataset.blank(setup.model.tokens_per_image) if args.world_size > 1 else None
        super().__init__(
            model=setup.model,
            args=args,
            data_collator=Collator(setup.tokenizer.pad_id, blank=blank),
            train_dataset=dataset,
            callbacks=[progress],
        )
        self.remove_callback(PrinterCallback)
        if self.is_deepspeed_enabled != (setup.recipe.train.deepspeed is not None):
            raise RecipeError("train.deepspeed has no effect with these versions of transformers and accelerate.")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer, with groups for each part."""
        if self.optimizer is None:
            train = self.setup.recipe.train
            groups = parameter_groups(self.setup.model, train.modules, train.weight_decay)
            if train.optimizer == "muon":
                self.optimizer = Muon(groups, betas=train.betas)
            else:
                self.optimizer = torch.optim.AdamW(groups, betas=train.betas, fused=True)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> TrainingOrder:
        train, samples = self.setup.recipe.train, self.setup.samples
        return TrainingOrder(
            len(samples),
            total=self.setup.plan.samples,
            batch_size=self.setup.plan.per_step,
            seed=train.seed,
            lengths=samples.likeness if train.group_by_length else None,
        )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Keep a frozen tower in evaluation mode (transformers puts the whole model in training mode), count tokens."""
        if self.setup.recipe.train.modules.tower is None:
            self.setup.model.vision_tower.eval()
        self.progress.tokens += int(inputs["attention_mask"].sum())
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        # Text alone teaches a projector nothing: such a batch has no gradient, and leaves every weight as it is.
        return loss if loss.requires_grad else loss.requires_grad_()

    def _get_learning_rate(self) -> float:
        """The largest of all parts: transformers tells the first group's, and all follow one schedule."""
        return float(max(self.lr_scheduler.get_last_lr()))

    def floating_point_ops(self, inputs: dict[str, Tensor | Any]) -> int:
        """Not counted: transformers walks all parameters for it, at every step."""
        return 0

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers writes a checkpoint: aside, until it is whole."""
        return str(Path(self.args.output_dir) / checkpoints.PARTIAL)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output = Path(self.args.output_dir)
        ranks.on_first(lambda: checkpoints.partial_folder(output))
        super()._save_checkpoint(model, trial)
        ranks.wait()
        ranks.on_first(lambda: self._publish(output, f"checkpoint-{self.state.global_step}"))

    def _publish(self, output: Path, name: str) -> None:
        written = output / checkpoints.PARTIAL / name
        (written / _STATE).write_text(json.dumps(self.setup.fingerprint()), encoding="utf-8")
        checkpoints.publish(written, output / name)
        checkpoints.rotate(output, self.setup.recipe.train.save_total_limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.setup.recipe.train.lora is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            lora.load_adapters(self.setup.model, Path(resume_from_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A model folder: weights, config, tokenizer, recipe. transformers would add a pickle of its arguments."""
        assert output_dir is not None
        if self.args.should_save:
            save_model_folder(self.setup, Path(output_dir), state_dict)


def save_model_folder(setup: Setup, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
    """Write a folder that can be loaded, described with, and trained on, as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    adapters = setup.recipe.train.lora
    if adapters is not None:
        state = setup.model.state_dict() if state_dict is None else state_dict
        learning = set(setup.recipe.train.modules.learning()) - {"decoder"}
        lora.save_adapters(state, adapters, folder / lora.ADAPTER, learning=learning)
        state_dict = lora.merged(state, adapters)
    logging.disable_progress_bar()  # transformers draws one for the shards
    setup.model.save_pretrained(folder, state_dict=state_dict)
    logging.enable_progress_bar()
    shutil.copyfile(Path(setup.recipe.model.start) / "tokenizer.json", folder / "tokenizer.json")
    (folder / "recipe.yaml").write_text(to_yaml(setup.recipe), encoding="utf-8")


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """transformers' arguments, whose making also lets the processes of a training find each other.

    Nothing is reported anywhere, and all passes are one epoch of :class:`TrainingOrder`. The steps of warm-up are
    still to be set.

    Raises:
        RecipeError: a global batch that the processes cannot share, or a precision that they cannot train in.
        MissingExtraError: DeepSpeed is asked for and not installed.
    """
    train = recipe.train
    accelerator = torch.accelerator.is_available()
    options: dict[str, Any] = {}
    if train.deepspeed is not None:
        if train.precision != "fp32" and not accelerator:
            raise RecipeError("DeepSpeed trains in fp32 on a CPU; set train.precision=fp32 or train.deepspeed=null.")
        options["deepspeed"] = deepspeed_config(train.deepspeed, accelerator=accelerator)
        options |= join(accelerator=accelerator, patience=_PATIENCE)
    elif not accelerator and ranks.size() > 1:
        options["ddp_backend"] = "gloo"
    return TrainingArguments(
        output_dir=recipe.output,
        use_cpu=not accelerator and train.deepspeed is None,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=recipe.accumulation(ranks.size()),
        num_train_epochs=1,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        ddp_timeout=_PATIENCE,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        seed=train.seed,
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.save_steps,
        dataloader_num_workers=train.dataloader_workers,
        dataloader_persistent_workers=train.dataloader_workers > 0,
        dataloader_pin_memory=accelerator,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        **options,
    )


def run(recipe: Recipe, *, resume: bool = False) -> Path:
    """Train by ``recipe``; prints the plan and the progress.

    Args:
        recipe: what to do.
        resume: go on from the last complete checkpoint in ``output``, or start where there is none.

    Returns:
        The folder of the trained model, ``output/final``.

    Raises:
        MobiLlamaVError: what the recipe names is not there or cannot be; an output that holds a training already; a
            checkpoint of another recipe or of other data.
    """
    recipe.require_paths()
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError("training needs accelerate; pip install 'mobillama-v[train]'.")
    output = Path(recipe.output)
    final, found = output / checkpoints.FINAL, checkpoints.checkpoints(output)
    if (found or final.exists()) and not resume:
        raise CheckpointError(f"{output} holds a training already; continue it with --resume or choose another output.")
    args = training_arguments(recipe)
    setup = _set_up(recipe, output / BAD_RECORDS)
    args.warmup_steps = setup.plan.warmup_steps
    _say(setup.describe())
    last = found[-1] if found else None
    if last is not None:
        _check_same_training(setup, last)
        _say(f"resuming from {last}")
    dataset = setup.dataset()
    if recipe.train.gradient_checkpointing:
        enable_gradient_checkpointing(setup.model)
    partial = ranks.on_first(lambda: checkpoints.partial_folder(output))
    trainer = StageTrainer(setup, dataset, Progress(output, resumed_step=_step(last)), args)
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except MobiLlamaVError as error:
        raise _without_traceback(error) from None
    trainer.save_model(str(partial / checkpoints.FINAL), _internal_call=True)
    ranks.wait()
    ranks.on_first(lambda: checkpoints.publish(partial / checkpoints.FINAL, final))
    if ranks.is_first():
        shutil.rmtree(partial, ignore_errors=True)
    _say(f"trained model in {final}")
    return final


def _say(text: str) -> None:
    if ranks.is_first():
        print(text, flush=True)


def _set_up(recipe: Recipe, bad_records: Path) -> Setup:
    """The setup; records that cannot be learnt from are listed in a file, whether they end the training or not."""
    try:
        setup = Setup.of(recipe)
    except BadRecordsError as error:
        _report(error.problems, bad_records)
        raise
    if setup.skipped:
        _report(setup.skipped, bad_records)
    return setup


def _report(problems: list[Problem], path: Path) -> None:
    if ranks.is_first():
        write_records(path, (json.dumps(dataclasses.asdict(each), ensure_ascii=False) for each in problems))
        _say(list_problems(problems, path))


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass, without re-entering autograd."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.2x; before it, the other name
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _without_traceback(error: MobiLlamaVError) -> MobiLlamaVError:
    """The error as it was raised: one from a worker process comes with that process's traceback as its text."""
    last = str(error).strip().splitlines()[-1]
    return type(error)(last.partition(f"{type(error).__name__}: ")[2] or last)


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _check_same_training(setup: Setup, checkpoint: Path) -> None:
    try:
        before = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} is no checkpoint of this trainer ({error}); remove it.") from error
    now = json.loads(json.dumps(setup.fingerprint()))
    if now["recipe"] != before["recipe"]:
        changed = ", ".join(_differences(before["recipe"], now["recipe"]))
        raise CheckpointError(
            f"{checkpoint} was trained by a recipe that differs in {changed}; resume with the same recipe, or start "
            "another training from that folder with model.start."
        )
    if now["data"] != before["data"]:
        raise CheckpointError(f"{checkpoint} was trained on other data than data.json now holds; restore them.")


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [where]
    keys = dict.fromkeys([*before, *now])
    nested = (_differences(before.get(k), now.get(k), f"{where}.{k}" if where else str(k)) for k in keys)
    return [name for names in nested for name in names]
