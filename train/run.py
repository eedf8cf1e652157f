"""One training from its recipe to its folder: checks, the plan, the trainer, and what resuming must find unchanged."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mobillama_v import distributed
from mobillama_v.errors import CheckpointError, MissingExtraError, MobiLlamaVError
from mobillama_v.output import require_space
from mobillama_v.train import checkpoints
from mobillama_v.train.build import Setup
from mobillama_v.train.data.check import write_records
from mobillama_v.train.data.dataset import BadRecordsError, list_problems
from mobillama_v.train.data.preprocess import Problem
from mobillama_v.train.monitor.log import Progress
from mobillama_v.train.monitor.loss_monitor import SUSPECTS, LossMonitor
from mobillama_v.train.monitor.reporters import require_reporters
from mobillama_v.train.monitor.val_samples import drop_answers_after
from mobillama_v.train.monitor.validation import Validation
from mobillama_v.train.planner.plan import checkpoint_bytes
from mobillama_v.train.recipe import Recipe
from mobillama_v.train.trainer import STATE, StageTrainer, enable_gradient_checkpointing, training_arguments

T = TypeVar("T")
BAD_RECORDS = "bad-records.jsonl"
"""In an output folder: the records that cannot be learned from, an object a line."""


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
    require_reporters(recipe)
    setup = _set_up(recipe, output / BAD_RECORDS)
    validation = _listing(lambda: Validation.of(setup), output / BAD_RECORDS)
    args.warmup_steps = setup.plan.warmup_steps
    _print(setup.describe())
    if validation is not None:
        _print(validation.describe())
    last, losses = found[-1] if found else None, []
    if last is not None:
        losses = _check_same_training(setup, last).get("losses", [])
        _print(f"resuming from {last}")
    folder, checkpoint = checkpoint_bytes(recipe, setup.model.config.spec)
    needed = (1 + max(0, recipe.train.save_total_limit - len(found))) * checkpoint + folder
    require_space(output, needed)
    dataset = setup.dataset()
    if recipe.train.gradient_checkpointing:
        enable_gradient_checkpointing(setup.model)
    partial = distributed.on_rank0(lambda: _clear(output, resumed_step=_step(last)))
    trainer = StageTrainer(
        setup,
        dataset,
        Progress(output, resumed_step=_step(last)),
        args,
        validation=validation,
        loss_monitor=LossMonitor(recipe.train.spike_factor, losses),
    )
    with checkpoints.writing(output):
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except MobiLlamaVError as error:
            raise _without_traceback(error) from None
        trainer.save_model(str(partial / checkpoints.FINAL), _internal_call=True)
        distributed.barrier()
        distributed.on_rank0(lambda: checkpoints.publish(partial / checkpoints.FINAL, final))
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    _print(f"trained model in {final}")
    return final


def _clear(output: Path, *, resumed_step: int) -> Path:
    """Remove what this training leaves behind or does again; the empty folder for unfinished work."""
    partial = checkpoints.partial_folder(output)
    (output / SUSPECTS).unlink(missing_ok=True)
    if resumed_step == 0:
        checkpoints.remove(output / checkpoints.BEST)
    drop_answers_after(output, after=resumed_step)
    return partial


def _print(text: str) -> None:
    if distributed.rank() == 0:
        print(text, flush=True)


def _set_up(recipe: Recipe, bad_records: Path) -> Setup:
    """The setup; records that cannot be learned from are listed in a file, whether they end the training or not."""
    setup = _listing(lambda: Setup.of(recipe), bad_records)
    if setup.skipped:
        _report(setup.skipped, bad_records)
    return setup


def _listing(build: Callable[[], T], bad_records: Path) -> T:
    try:
        return build()
    except BadRecordsError as error:
        _report(error.problems, bad_records)
        raise


def _report(problems: list[Problem], path: Path) -> None:
    if distributed.rank() == 0:
        write_records(path, (json.dumps(dataclasses.asdict(each), ensure_ascii=False) for each in problems))
        _print(list_problems(problems, path))


def _without_traceback(error: MobiLlamaVError) -> MobiLlamaVError:
    """The error as it was raised: one from a worker process comes with that process's traceback as its text."""
    last = str(error).strip().splitlines()[-1]
    return type(error)(last.partition(f"{type(error).__name__}: ")[2] or last)


def _step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _check_same_training(setup: Setup, checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint holds of the training besides transformers' own state."""
    try:
        before = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} is no checkpoint of this trainer ({error}); remove it.") from error
    now = json.loads(json.dumps(setup.fingerprint()))
    if changed := _differences(before["recipe"], now["recipe"]):
        raise CheckpointError(
            f"{checkpoint} was trained by a recipe that differs in {', '.join(changed)}; resume with the same recipe, "
            "or start another training from that folder with model.start."
        )
    if now["data"] != before["data"]:
        raise CheckpointError(f"{checkpoint} was trained on other data than data.json now holds; restore them.")
    return before


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """The keys in which two recipes differ; one that is not there is null, as checkpoints have left such out."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [where]
    keys = dict.fromkeys([*before, *now])
    nested = (_differences(before.get(k), now.get(k), f"{where}.{k}" if where else str(k)) for k in keys)
    return [name for names in nested for name in names]
