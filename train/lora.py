"""LoRA (arXiv 2106.09685) by PEFT: the decoder's weights stay, and a product of two thin matrices beside each learns.

A module has one adapter. The shared feed-forward network is one module, so its adapter is shared too: it is applied in
every layer, and its gradient is the sum over all of them.

A checkpoint holds the weights with the adapters merged into them, so that it loads like any other model folder, and
``adapter/`` with the adapters alone, as PEFT lays them out. Training goes on from the latter and ``model.start``:
merging rounds.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobillama_v.checkpoint import iterate_tensors, refuse_misfits
from mobillama_v.errors import CheckpointError, MissingExtraError
from mobillama_v.train.recipe import LoraSection

ADAPTER = "adapter"
"""In a checkpoint: the folder that ``peft.PeftModel.from_pretrained`` takes."""
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's, before a tensor's name in its files
_NAME = "default"  # PEFT's name of an only adapter, in the model and not in its files


def add_adapters(model: nn.Module, lora: LoraSection) -> None:
    """Put an adapter beside each target of the decoder, in place; nothing else of the decoder learns from here on.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("train.lora needs PEFT; pip install 'mobillama-v[lora]'.")
    from peft import LoraConfig, inject_adapter_in_model

    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    inject_adapter_in_model(LoraConfig(**_peft_options(lora)), model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():  # PEFT freezes whatever is no adapter
        if name in learning and not name.startswith(("language_model.", "lm_head.")):
            parameter.requires_grad_(True)


def _peft_options(lora: LoraSection) -> dict[str, Any]:
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": rf"language_model\..*\.({'|'.join(lora.targets)})",
        "bias": "none",
    }


def merged(state: dict[str, Tensor], lora: LoraSection) -> dict[str, Tensor]:
    """The weights of a plain model: those of ``state`` with every adapter's product added; sums are made in fp32."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        stem, _, rest = name.partition(".base_layer.")
        if rest:
            down, up = (state[f"{stem}.lora_{side}.{_NAME}.weight"].float() for side in "AB")  # [r,in], [out,r]
            tensor = (tensor.float() + lora.alpha / lora.rank * (up @ down)).to(tensor.dtype)
            name = f"{stem}.{rest}"
        plain[name] = tensor
    return plain


def save_adapters(state: dict[str, Tensor], lora: LoraSection, folder: Path, *, learning: set[str]) -> None:
    """Write ``folder`` in PEFT's layout.

    Args:
        state: of the model with its adapters.
        lora: what they are.
        folder: made here.
        learning: parts that learn whole beside the decoder's adapters, such as the projector.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    modules = [{"tower": "vision_tower"}.get(part, part) for part in sorted(learning)]
    whole = tuple(f"{module}." for module in modules)
    chosen = {name: tensor for name, tensor in state.items() if ".lora_" in name or name.startswith(whole)}
    tensors = {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor.detach().cpu().contiguous() for name, tensor in chosen.items()
    }
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(**_peft_options(lora), modules_to_save=modules or None, inference_mode=True)
    config.save_pretrained(str(folder))


def load_adapters(model: nn.Module, checkpoint: Path) -> None:
    """Fill adapters and whatever learns beside them from a checkpoint, bit for bit.

    Raises:
        CheckpointError: no adapters there, or others than the model's.
    """
    path = checkpoint / ADAPTER / _WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} holds no {ADAPTER}/{_WEIGHTS}; it is no checkpoint of a LoRA training.")
    expected = {
        _PREFIX + name.replace(f".{_NAME}.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    extra, wrong, seen = [], [], set()
    for name, tensor in iterate_tensors(path):
        seen.add(name)
        if name not in expected:
            extra.append(name)
        elif expected[name].shape != tensor.shape:
            wrong.append(f"{name} is {list(tensor.shape)} and must be {list(expected[name].shape)}")
        else:
            with torch.no_grad():
                expected[name].copy_(tensor)
    refuse_misfits(path, missing=[name for name in expected if name not in seen], extra=extra, wrong=wrong)
