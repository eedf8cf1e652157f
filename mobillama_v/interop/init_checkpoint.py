"""A model folder to start a training from: an imported or fresh decoder, an open_clip tower, a fresh projector.

Shapes are those of :class:`~mobillama_v.config.ModelConfig`; tensors keep the precision that they were published in.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobillama_v.checkpoint import iterate_tensors, weight_files
from mobillama_v.config import DecoderConfig, ModelConfig, ProjectorConfig, TowerConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.hub import find_checkpoint
from mobillama_v.images import ImageTransform
from mobillama_v.interop.llama import Imported, Sharing, import_decoder
from mobillama_v.model.vision import HYBRID, build_tower
from mobillama_v.model.vision.image_tower import ImageTower
from mobillama_v.presets import preset
from mobillama_v.tokenization import TextTokenizer

FRESH = "fresh:"
"""Before the name of a preset: its decoder at random, instead of an imported one."""
ORIGIN = "origin.json"
"""In a start folder: what it was made from, what was noticed, and the errors of a fold."""


@dataclass(frozen=True)
class Start:
    """What a start folder was made of."""

    spec: ModelConfig
    decoder: Imported
    tensors: int


def write_start(
    out: Path,
    *,
    decoder: str,
    tower: TowerConfig,
    projector: ProjectorConfig,
    image_mode: str = "pad",
    image_size: int | None = None,
    sharing: Sharing = "auto",
    tokenizer: Path | None = None,
    seed: int = 0,
) -> Start:
    """Make the folder ``out``: ``config.json``, ``model.safetensors``, ``tokenizer.json`` and ``origin.json``.

    Every tensor is read back and compared before the folder gets its name.

    Args:
        out: must not be there yet.
        decoder: a checkpoint's folder or Hugging Face id, or ``fresh:PRESET``.
        tower: with ``pretrained`` the weights to start from; None leaves them random.
        projector: made by ``seed``.
        image_mode: of :class:`~mobillama_v.images.ImageTransform`.
        image_size: side in pixels; None means the tower's own.
        sharing: as of :func:`~mobillama_v.interop.llama.import_decoder`.
        tokenizer: a ``tokenizer.json``; None means the decoder's.
        seed: of all random weights.

    Raises:
        MobiLlamaVError: what is named is not there, does not fit, or is damaged.
    """
    if out.exists():
        raise CheckpointError(f"{out} is there already; name a new folder.")
    image = _image(tower, image_size, image_mode)  # first: what cannot be is said before gigabytes are read
    torch.manual_seed(seed)
    source = None if decoder.startswith(FRESH) else find_checkpoint(decoder)
    imported = _fresh(decoder) if source is None else import_decoder(source, sharing=sharing)
    vocabulary = tokenizer or (source / "tokenizer.json" if source is not None else None)
    _check_tokenizer(vocabulary, imported.spec, decoder)
    made = build_tower(tower, image_size=image.size, pretrained=tower.pretrained is not None)
    spec = ModelConfig(
        decoder=imported.spec, tower=dataclasses.replace(tower, pretrained=None), projector=projector, image=image
    )
    tensors = _tensors(imported, made, projector)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(partial, spec, tensors)
        assert vocabulary is not None
        shutil.copyfile(vocabulary, partial / "tokenizer.json")
        origin = {
            "decoder": decoder,
            "tower": dataclasses.asdict(tower),
            "seed": seed,
            "notes": imported.notes,
            "folded": [dataclasses.asdict(each) for each in imported.folded],
        }
        (partial / ORIGIN).write_text(json.dumps(origin, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Start(spec, imported, len(tensors))


def _fresh(name: str) -> Imported:
    """A preset's decoder at random, as this project's models are initialized."""
    from mobillama_v.hf.configuration import MobiLlamaConfig
    from mobillama_v.hf.modeling import MobiLlamaForCausalLM

    spec = preset(name.removeprefix(FRESH)).decoder
    state = MobiLlamaForCausalLM(MobiLlamaConfig(**dataclasses.asdict(spec))).state_dict()
    head = state.pop("lm_head.weight")
    return Imported(spec, {name.removeprefix("model."): tensor for name, tensor in state.items()}, head, ())


def _check_tokenizer(path: Path | None, spec: DecoderConfig, decoder: str) -> None:
    if path is None or not path.is_file():
        raise CheckpointError(f"{decoder} comes without a tokenizer.json; give one with --tokenizer.")
    TextTokenizer.of_decoder(path, spec)


def _image(tower: TowerConfig, size: int | None, mode: str) -> ImageTransform:
    """The transform that the tower's weights were trained with, in LLaVA's geometry unless another is asked for."""
    options: dict[str, Any] = {"mode": mode}
    if tower.model == HYBRID:
        raise ConfigError(
            f"tower {HYBRID} is trained with its decoder; start from the embedded model's folder instead."
        )
    import open_clip

    config = open_clip.get_model_config(tower.model)
    if config is None:
        raise ConfigError(f"open_clip has no model {tower.model!r}; `open_clip.list_models()` names those it has.")
    own = config.get("vision_cfg", {}).get("image_size", 224)
    own = own if isinstance(own, int) else own[0]
    tag = open_clip.get_pretrained_cfg(tower.model, tower.pretrained) if tower.pretrained else None
    for name in ("mean", "std"):
        if tag and tag.get(name) is not None:
            options[name] = tuple(tag[name])
    return ImageTransform(size=size or own, **options)


def _tensors(imported: Imported, tower: ImageTower, spec: ProjectorConfig) -> dict[str, Tensor]:
    projector = spec.build(tower_width=tower.width, decoder_width=imported.spec.hidden_size)
    for module in projector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=imported.spec.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    parts = {
        "vision_tower": tower.state_dict(),
        "projector": projector.state_dict(),
        "language_model": imported.decoder,
        "lm_head": {"weight": imported.head},
    }
    return {
        f"{part}.{name}": tensor.detach().contiguous()
        for part, state in parts.items()
        for name, tensor in state.items()
    }


def _write(folder: Path, spec: ModelConfig, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    from mobillama_v.hf.configuration import MobiLlamaVConfig

    config = MobiLlamaVConfig.from_spec(spec).to_dict() | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = (item for path in weight_files(folder) for item in iterate_tensors(path))
    same = {name for name, tensor in found if name in tensors and torch.equal(tensors[name], tensor)}
    if differing := sorted(tensors.keys() - same):
        raise CheckpointError(f"{folder} does not hold what was written to it ({differing[:3]}); check the disk.")
