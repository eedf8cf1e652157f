"""TensorBoard and Weights & Biases beside ``metrics.jsonl``, by transformers' own callbacks, on the first process.

Both write below the output and send nothing anywhere: ``wandb sync`` uploads what lies in ``wandb/``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mobillama_v import distributed
from mobillama_v.errors import MissingExtraError
from mobillama_v.train.recipe import Recipe

_TITLES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}


def require_reporters(recipe: Recipe) -> None:
    """Refuse a recipe that reports to what is not there.

    Raises:
        MissingExtraError: a reporter is not installed.
    """
    for name in recipe.train.report:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"train.report names {name} and {_TITLES[name]} is not installed; pip install 'mobillama-v[{name}]'."
            )


def reporters(recipe: Recipe, *, resumed_step: int) -> list[Any]:
    """The callbacks of the reporters that the recipe names; steps after ``resumed_step`` are reported again."""
    make = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [make[name](recipe, resumed_step) for name in recipe.train.report] if distributed.rank() == 0 else []


def _tensorboard(recipe: Recipe, resumed_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    folder = Path(recipe.output) / "tensorboard"
    return TensorBoardCallback(SummaryWriter(str(folder), purge_step=resumed_step + 1))


def _wandb(recipe: Recipe, resumed_step: int) -> Any:
    import wandb
    from transformers.integrations import WandbCallback

    class Offline(WandbCallback):
        """transformers' callback for a run that is there already, and ends with the training."""

        def on_train_end(self, *args: Any, **options: Any) -> None:
            super().on_train_end(*args, **options)
            wandb.finish()

    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    wandb.init(
        mode="offline",
        dir=str(output),
        project="mobillama-v",
        name=recipe.name,
        group=output.name,
        notes=f"from step {resumed_step + 1}",
        settings=wandb.Settings(console="off", silent=True),
    )
    return Offline()
