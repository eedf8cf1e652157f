"""A model folder to train from: a decoder, imported or random, a tower of open_clip or of a model, a random projector.

Shapes are those of :class:`~mobillama_v.config.ModelConfig`; tensors keep the precision that they were published in.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobillama_v.checkpoint import iterate_tensors, weight_files
from mobillama_v.config import ModelConfig, ProjectorConfig, TowerConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.hf.folder import describe_folder
from mobillama_v.hub import find_checkpoint, read_spec
from mobillama_v.images import ImageTransform
from mobillama_v.interop.formats import FFN, ImportedDecoder, import_decoder
from mobillama_v.model.vision import HYBRID, build_tower
from mobillama_v.model.vision.image_tower import ImageTower
from mobillama_v.model.vlm import load_network
from mobillama_v.output import refuse_existing, require_space, written_whole
from mobillama_v.presets import preset
from mobillama_v.tokenization import TextTokenizer

RANDOM = "random:"
"""Before the name of a preset: a decoder of its shape with random weights, in place of an imported one."""
ORIGIN = "origin.json"
"""In the new folder: what it was made from, what was noticed, and how far an average is from each layer."""


@dataclass(frozen=True)
class InitialModel:
    """What a folder to train from was made of."""

    spec: ModelConfig
    decoder: ImportedDecoder
    tensors: int


def write_initial_model(
    out: Path,
    *,
    decoder: str,
    tower: TowerConfig | Path,
    projector: ProjectorConfig,
    image_mode: str | None = None,
    image_size: int | None = None,
    ffn: FFN = "auto",
    tokenizer: Path | None = None,
    seed: int = 0,
) -> InitialModel:
    """Make the folder ``out``: ``config.json``, ``model.safetensors``, ``tokenizer.json`` and ``origin.json``.

    Every tensor is read back and compared before the folder gets its name.

    Args:
        out: must not be there yet.
        decoder: a checkpoint's folder, ``.gguf`` file or Hugging Face id, or ``random:PRESET``.
        tower: with ``pretrained`` the weights to start from; None leaves them random. Or the folder of a model whose
            tower is taken, with the features and pictures that it is used with.
        projector: its weights are random.
        image_mode: of :class:`~mobillama_v.images.ImageTransform`; None means ``pad``, or the model's.
        image_size: side in pixels; None means the tower's own.
        ffn: as of :func:`~mobillama_v.interop.formats.import_decoder`.
        tokenizer: a ``tokenizer.json``; None means the decoder's.
        seed: of all random weights.

    Raises:
        MobiLlamaVError: what is named is not there, does not fit, or is damaged.
    """
    refuse_existing(out, parents=True)
    folder = tower if isinstance(tower, Path) else None
    if isinstance(tower, Path):
        tower, image = _of_model(tower, image_mode, image_size)
    else:
        image = _image(tower, image_size, image_mode or "pad")  # before gigabytes are read
    torch.manual_seed(seed)
    source = None if decoder.startswith(RANDOM) else find_checkpoint(decoder)
    imported = _random_decoder(decoder) if source is None else import_decoder(source, ffn=ffn)
    vocabulary = _tokenizer(tokenizer, source, imported, decoder)
    if folder is not None:
        vision = load_network(folder, read_spec(folder)).vision_tower
    else:
        vision = build_tower(tower, image_size=image.size, pretrained=tower.pretrained is not None)
    spec = ModelConfig(
        decoder=imported.spec,
        tower=dataclasses.replace(tower, pretrained=None),
        projector=projector,
        image=image,
        template=imported.template,
    )
    tensors = _tensors(imported, vision, projector)
    require_space(out, sum(tensor.nbytes for tensor in tensors.values()))
    origin = {
        "decoder": decoder,
        "tower": str(folder) if folder else dataclasses.asdict(tower),
        "seed": seed,
        "notes": imported.notes,
        "folded": [dataclasses.asdict(each) for each in imported.averaged],
    }
    with written_whole(out, parents=True) as made:
        made.mkdir()
        _write(made, spec, tensors)
        (made / "tokenizer.json").write_text(vocabulary, encoding="utf-8")
        describe_folder(made)
        (made / ORIGIN).write_text(json.dumps(origin, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return InitialModel(spec, imported, len(tensors))


def _random_decoder(name: str) -> ImportedDecoder:
    """A preset's decoder with random weights, as this project's models are initialized."""
    from mobillama_v.hf.configuration import MobiLlamaConfig
    from mobillama_v.hf.modeling import MobiLlamaForCausalLM

    spec = preset(name.removeprefix(RANDOM)).decoder
    state = MobiLlamaForCausalLM(MobiLlamaConfig(**dataclasses.asdict(spec))).state_dict()
    head = state.pop("lm_head.weight")
    return ImportedDecoder(spec, {name.removeprefix("model."): tensor for name, tensor in state.items()}, head)


def _tokenizer(given: Path | None, source: Path | None, imported: ImportedDecoder, decoder: str) -> str:
    """The ``tokenizer.json``: the one that was given, the one that the format holds, or the checkpoint's."""
    if given is None and imported.tokenizer is not None:
        return imported.tokenizer
    path = given or (source / "tokenizer.json" if source is not None else None)
    if path is None or not path.is_file():
        raise CheckpointError(f"{decoder} comes without a tokenizer.json; give one with --tokenizer.")
    TextTokenizer.of_decoder(path, imported.spec)
    return path.read_text(encoding="utf-8")


def _of_model(folder: Path, mode: str | None, size: int | None) -> tuple[TowerConfig, ImageTransform]:
    """The tower of a model, and how it takes pictures."""
    spec = read_spec(folder)
    for asked, own in ((mode, spec.image.mode), (size, spec.image.size)):
        if asked not in (None, own):
            raise ConfigError(f"the tower of {folder} was trained with pictures of {own!r}, not {asked!r}.")
    return spec.tower, spec.image


def _image(tower: TowerConfig, size: int | None, mode: str) -> ImageTransform:
    """The transform that the tower's weights were trained with, in LLaVA's geometry unless another is asked for."""
    options: dict[str, Any] = {"mode": mode}
    if tower.model == HYBRID:
        raise ConfigError(f"tower {HYBRID} has weights only in a model; name the model, such as nano, as the tower.")
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


def _tensors(imported: ImportedDecoder, tower: ImageTower, spec: ProjectorConfig) -> dict[str, Tensor]:
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
