"""The trainer: transformers' own, thinly extended.

Added are learning rates by part, an order of samples that resuming cannot disturb, the count of tokens, and checkpoints
that are model folders, complete or not there at all. The loss is normalized as :mod:`mobillama_v.train.loss` says.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from mobillama_v import distributed
from mobillama_v.errors import RecipeError
from mobillama_v.hf.folder import describe_folder
from mobillama_v.train import checkpoints, lora
from mobillama_v.train.build import Setup, parameter_groups, start_folder
from mobillama_v.train.data.collate import Collator, PackCollator
from mobillama_v.train.data.dataset import PackedSet, TrainingSet
from mobillama_v.train.data.parallel import cores
from mobillama_v.train.data.sampler import TrainingSampler
from mobillama_v.train.deepspeed_config import deepspeed_config, init_processes
from mobillama_v.train.loss import scaled_loss, supervised_tokens
from mobillama_v.train.monitor.log import Progress
from mobillama_v.train.monitor.loss_monitor import IN_SUCCESSION, LossMonitor, divergence_error
from mobillama_v.train.monitor.reporters import reporters
from mobillama_v.train.monitor.validation import Validation
from mobillama_v.train.muon import Muon
from mobillama_v.train.recipe import Recipe
from mobillama_v.train.recipe_files import to_yaml

STATE = "training.json"
"""In a checkpoint: what a resumed training must share with it."""
_TIMEOUT = 24 * 3600  # seconds that processes wait for the first one, which may be computing features
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


class StageTrainer(Trainer):
    """transformers' Trainer for one recipe."""

    optimizer: Any
    control: Any

    def __init__(
        self,
        setup: Setup,
        dataset: TrainingSet,
        progress: Progress,
        args: TrainingArguments,
        *,
        validation: Validation | None,
        loss_monitor: LossMonitor,
    ) -> None:
        self.setup, self.progress, self.validation, self.loss_monitor = setup, progress, validation, loss_monitor
        self._passes: deque[tuple[int, list[Tensor]]] = deque(maxlen=IN_SUCCESSION)  # losses of the last steps
        # Every process must run the same parts of the model. Otherwise those that wait for the weights or gradients of
        # a part never go on. A batch of text alone gets a blank image from which nothing is learned.
        blank = dataset.blank(setup.model.tokens_per_image) if args.world_size > 1 else None
        packs = setup.packs
        super().__init__(
            model=setup.model,
            args=args,
            data_collator=Collator(setup.tokenizer.pad_id, blank) if packs is None else PackCollator(blank),
            train_dataset=dataset if packs is None else PackedSet(dataset, packs),
            eval_dataset=None if validation is None else validation.dataset,
            callbacks=[progress, *reporters(setup.recipe, resumed_step=progress.resumed_step)],
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        train, samples = self.setup.recipe.train, self.setup.samples
        if self.setup.packs is not None:  # they are in the order in which they are learned from
            return SequentialSampler(self.setup.packs)
        return TrainingSampler(
            len(samples),
            total=self.setup.plan.samples,
            batch_size=self.setup.plan.per_step,
            seed=train.seed,
            lengths=samples.sort_keys if train.group_by_length else None,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The batches of one optimizer step, and what their losses are divided by."""
        batches = list(islice(epoch_iterator, num_batches))
        return batches, supervised_tokens(batches, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Keep a frozen tower in evaluation mode (transformers puts the whole model in training mode), count tokens."""
        if self.setup.recipe.train.modules.tower is None:
            self.setup.model.vision_tower.eval()
        exists = inputs.get("attention_mask")
        self.progress.tokens += inputs["input_ids"].numel() if exists is None else int(exists.sum())
        loss = scaled_loss(model(**inputs, num_items_in_batch=num_items_in_batch).loss)
        # Text alone teaches a projector nothing: such a batch has no gradient, and leaves every weight as it is.
        return loss if loss.requires_grad else loss.requires_grad_()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A forward and a backward pass; the last one of a step is also judged by its loss.

        Raises:
            DataError: the training has gone wrong.
        """
        step = self.state.global_step + 1
        if not self._passes or self._passes[-1][0] != step:
            self._passes.append((step, []))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._passes[-1][1].append(loss)
        if self.accelerator.sync_gradients:
            total = float(self.accelerator.reduce(torch.stack(self._passes[-1][1]).sum(), "mean"))
            self._stop_if(self.loss_monitor.wrong(total))
        return loss

    def _stop_if(self, reason: str | None) -> None:
        """End the training for ``reason``, if there is one; names the records of its last steps."""
        if reason is None:
            return
        loader: Any = self.callback_handler.train_dataloader  # of this process
        accumulation, packs, rows = self.setup.plan.accumulation, self.setup.packs, []
        for step, losses in self._passes:
            samples = islice(loader.batch_sampler, (step - 1) * accumulation, (step - 1) * accumulation + len(losses))
            for number, (loss, batch) in enumerate(zip(map(float, losses), samples, strict=True), 1):
                found = {"step": step, "device": self.args.process_index, "pass": number}
                found["loss"] = loss if math.isfinite(loss) else None
                learned = batch if packs is None else [sample for each in batch for sample in packs[each]]
                rows += [found | self.setup.samples.name(sample) for sample in learned]
        raise divergence_error(reason, rows, Path(str(self.args.output_dir)))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation of the recipe."""
        assert self.validation is not None
        metrics = self.validation.run(self)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_learning_rate(self) -> float:
        """The largest of all parts: transformers reports the first group's, and all follow one schedule."""
        scheduler: Any = self.lr_scheduler
        return float(max(scheduler.get_last_lr()))

    def floating_point_ops(self, inputs: dict[str, Tensor | Any]) -> int:
        """Not counted: transformers walks all parameters for it, at every step."""
        return 0

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers writes a checkpoint: aside, until it is whole."""
        return str(Path(str(self.args.output_dir)) / checkpoints.PARTIAL)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.loss_monitor.high:  # perhaps a spike: the checkpoint before it stays the last one
            return
        self._stop_if(None if all(distributed.all_gather(_is_finite(self.setup.model))) else "weights are not finite")
        output = Path(str(self.args.output_dir))
        distributed.on_rank0(lambda: checkpoints.partial_folder(output))
        super()._save_checkpoint(model, trial)
        distributed.barrier()
        distributed.on_rank0(lambda: self._publish(output, f"checkpoint-{self.state.global_step}"))

    def _publish(self, output: Path, name: str) -> None:
        written = output / checkpoints.PARTIAL / name
        state = self.setup.fingerprint() | {"losses": list(self.loss_monitor.losses)}
        (written / STATE).write_text(json.dumps(state), encoding="utf-8")
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


def _is_finite(model: nn.Module) -> bool:
    """Whether all weights that learn are, or with ZeRO-3 this process's part of them."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return all(bool(torch.isfinite(getattr(each, "ds_tensor", each)).all()) for each in learning)


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
    shutil.copyfile(start_folder(setup.recipe) / "tokenizer.json", folder / "tokenizer.json")
    describe_folder(folder)
    (folder / "recipe.yaml").write_text(to_yaml(setup.recipe), encoding="utf-8")


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """transformers' arguments, whose making also lets the processes of a training find each other.

    Nothing is reported by them, and all passes are one epoch of :class:`TrainingSampler`. The steps of warm-up are
    still to be set.

    Raises:
        RecipeError: a global batch that the processes cannot share, or a precision that they cannot train in.
        MissingExtraError: the recipe needs DeepSpeed, which is not installed.
    """
    train = recipe.train
    accelerator = torch.accelerator.is_available()
    options: dict[str, Any] = {}
    if train.deepspeed is not None:
        if train.precision == "bf16" and not accelerator:
            raise RecipeError("DeepSpeed trains in fp32 on a CPU; set train.precision=fp32 or train.deepspeed=null.")
        options["deepspeed"] = deepspeed_config(train.deepspeed, accelerator=accelerator)
        options |= init_processes(accelerator=accelerator, timeout=_TIMEOUT)
    elif not accelerator and distributed.world_size() > 1:
        options["ddp_backend"] = "gloo"
    args = TrainingArguments(
        output_dir=recipe.output,
        use_cpu=not accelerator and train.deepspeed is None,
        per_device_train_batch_size=train.batch_size if train.pack_tokens is None else 1,  # one pack
        gradient_accumulation_steps=recipe.accumulation(distributed.world_size()),
        num_train_epochs=1,
        lr_scheduler_type=_SCHEDULES[train.schedule],
        ddp_timeout=_TIMEOUT,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16" or (train.precision == "auto" and accelerator),
        seed=train.seed,
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.save_steps,
        dataloader_num_workers=min(train.dataloader_workers, cores()),
        dataloader_persistent_workers=train.dataloader_workers > 0,
        dataloader_pin_memory=accelerator,
        eval_strategy="steps" if recipe.validation.json else "no",
        eval_steps=recipe.validation.steps,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    # A process trains on one device. torch's DataParallel, which transformers would take for several, splits a batch
    # by rows, and images are not one for each row.
    args._n_gpu = min(args.n_gpu, 1)
    return args


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass, without re-entering autograd."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.2x; before it, the other name
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
