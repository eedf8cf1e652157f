"""GPUs by name: memory and peak arithmetic as their makers' data sheets give them, dense (without sparsity)."""

from __future__ import annotations

from dataclasses import dataclass

from mobillama_v.errors import RecipeError


@dataclass(frozen=True)
class Gpu:
    """One kind: ``memory`` in GB (1e9 bytes), ``bf16`` (tensor cores, fp32 sums) and ``fp32`` in TFLOP/s."""

    name: str
    memory: float
    bf16: float
    fp32: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10", 24, 125, 31.2),
        Gpu("a100-40gb", 40, 312, 19.5),
        Gpu("a100-80gb", 80, 312, 19.5),
        Gpu("h100", 80, 989, 67),  # SXM
        Gpu("h200", 141, 989, 67),
        Gpu("l4", 24, 121, 30.3),
        Gpu("l40s", 48, 362, 91.6),
        Gpu("rtx-4090", 24, 165.2, 82.6),
    )
}


def gpu(name: str) -> Gpu:
    """The GPU of that name; case, spaces and hyphens do not matter.

    Raises:
        RecipeError: there is none.
    """
    plain = {key.replace("-", ""): kind for key, kind in GPUS.items()}
    wanted = name.lower().replace("-", "").replace(" ", "").replace("_", "")
    if wanted not in plain:
        raise RecipeError(f"there is no GPU {name!r} in the table; choose one of {', '.join(GPUS)}.")
    return plain[wanted]
