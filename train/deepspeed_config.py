"""DeepSpeed's configuration, derived from a recipe: ZeRO 1, 2 or 3 (arXiv 1910.02054), with or without CPU offload.

What a recipe holds already (batch, accumulation, clipping, precision) is ``auto``: transformers fills it in. Optimizer
and schedule are the recipe's own, the same as without DeepSpeed.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from datetime import timedelta
from typing import Any

from mobillama_v.errors import MissingExtraError

_NEVER = 1 << 40  # steps


def init_processes(*, accelerator: bool, timeout: float) -> dict[str, Any]:
    """Let the processes of a DeepSpeed training find each other; one alone, without a launcher, is a training of one.

    Args:
        accelerator: whether there is one.
        timeout: seconds after which a process that waits for another gives up.

    Returns:
        What transformers' arguments need besides the configuration.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        alone = {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 1,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": free.getsockname()[1],
        }
    for name, value in alone.items():
        os.environ.setdefault(name, str(value))
    if accelerator:
        return {}
    # With use_cpu, accelerate ignores DeepSpeed silently. A state that is configured already is used as it is.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    import deepspeed.ops
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    # Its shared-memory collectives would be compiled at the first start, which takes minutes; gloo's do as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=False, backend="gloo", timeout=timedelta(seconds=timeout))
    return {"accelerator_config": {"use_configured_state": True}}


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
