"""DeepSpeed's configuration, derived from a recipe: ZeRO 1, 2 or 3 (arXiv 1910.02054), with or without CPU offload.

What a recipe says already (batch, accumulation, clipping, precision) is ``auto``: transformers fills it in. Optimizer
and schedule are the recipe's own, the same as without DeepSpeed.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from mobillama_v.errors import MissingExtraError

_NEVER = 1 << 40  # steps


def deepspeed_config(kind: str, *, accelerator: bool) -> dict[str, Any]:
    """The configuration of ``zero1`` to ``zero3``, or of ``zero2-offload`` and ``zero3-offload``.

    Args:
        kind: a value of the recipe's ``train.deepspeed``.
        accelerator: whether there is one; without, nothing can overlap or be pinned.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError("train.deepspeed needs DeepSpeed; pip install 'mobillama-v[deepspeed]'.")
    if not accelerator:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    name, _, offload = kind.partition("-")
    stage = int(name.removeprefix("zero"))
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": accelerator, "contiguous_gradients": True}
    if stage == 3:
        zero |= {
            "stage3_gather_16bit_weights_on_model_save": True,  # checkpoints are whole model folders
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        }
    if offload:
        place = {"device": "cpu", "pin_memory": accelerator}
        zero |= {"offload_optimizer": place} | ({"offload_param": place} if stage == 3 else {})
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": _NEVER,
    }
