"""Folders of the embedded model between its trainings: a fresh decoder, the tower before it, half precision."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobillama_v import MobiLlamaVConfig, MobiLlamaVForConditionalGeneration
from mobillama_v.config import ModelConfig
from mobillama_v.model.vision.hybrid_lite0 import HybridTrunk
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.data.features import FeatureStore
from nano import recognize, tower
from nano.scenes import Scene
from nano.stem import load_stem
from nano.stemcache import StemCache

_BATCH = 64
_SAMPLE = 1024  # pictures over which the patch part is standardized


def write_start(folder: Path, spec: ModelConfig, tokenizer: Path, *, seed: int) -> Path:
    """A fresh model whose head starts as its embeddings, so that saying a word that was read is easy from the start."""
    torch.manual_seed(seed)
    model = MobiLlamaVForConditionalGeneration(MobiLlamaVConfig.from_spec(spec))
    with torch.no_grad():
        model.lm_head.weight.copy_(model.language_model.embed_tokens.weight)
    model.save_pretrained(folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    return folder


@dataclass(frozen=True)
class Drawn:
    """Drawn pictures: their names in a stem's cache, and what they show."""

    cache: StemCache
    names: list[str]
    scenes: list[Scene]


def assemble(
    language: Path,
    cache: StemCache,
    drawn: list[Drawn],
    labels: np.ndarray,
    crops: list[str],
    folder: Path,
    structured_epochs: int,
    **options: Any,
) -> None:
    """Write the model that the two stages start from: a trained tower, a fresh projector, the trained decoder.

    Args:
        language: folder of a model whose decoder has learnt the language.
        cache: the stem's view of photographs and of ``drawn[0]``.
        drawn: pictures from which the tower learns to find shapes and to read.
        labels: of the cells of ``drawn[0]``, [N,14,14,L].
        crops: names of photographs.
        folder: where to write.
        structured_epochs: passes over ``drawn``.
        options: of :func:`tower.pretrain`.
    """
    model = MobiLlamaVForConditionalGeneration.from_pretrained(language)
    trunk = _trunk(model)
    trunk.patch_embed.stem.load_state_dict(load_stem().state_dict())
    probe = tower.pretrain(trunk, cache, drawn[0].names, labels, crops, **options)
    tokenizer = TextTokenizer.from_file(language / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)
    embeddings = model.language_model.embed_tokens.weight
    words = tower.Words(embeddings, tokenizer)
    sample = np.linspace(0, len(cache.names) - 1, min(_SAMPLE, len(cache.names))).astype(int)
    tower.start_cell_words(trunk, probe, cache.cells[sample], words)
    tower.start_structured_tokens(trunk.account, words)
    features = torch.cat([recognize.patch_features(trunk, each.cache, each.names) for each in drawn])
    cells = np.concatenate([each.cache.cells[[each.cache.row[name] for name in each.names]] for each in drawn])
    scenes = [scene for each in drawn for scene in each.scenes]
    recognize.learn_structured_tokens(
        trunk.account, cells, features, scenes, epochs=structured_epochs, seed=options["seed"]
    )
    tower.start_projector(model.projector, float(embeddings.detach().pow(2).mean().sqrt()))
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    shutil.copyfile(language / "tokenizer.json", partial / "tokenizer.json")
    partial.rename(folder)


def _trunk(model: MobiLlamaVForConditionalGeneration) -> HybridTrunk:
    return model.vision_tower.visual.trunk  # type: ignore[no-any-return]


def write_features(
    start: Path,
    caches: list[StemCache],
    names: list[str],
    probabilities: np.ndarray,
    alone: list[str],
    root: Path,
    folder: Path,
) -> None:
    """Fill a feature store for every picture of the stem's caches, without running the stem again.

    Args:
        start: folder of the model with the trained tower.
        caches: the stem's views; the photographs are in the first.
        names: ``<image>#permuted`` names, whose class part is made of ``probabilities`` [M,1000] instead.
        probabilities: see ``names``.
        alone: ``<image>#tokens`` names, whose patches are zero.
        root: what names are relative to.
        folder: of the feature store.
    """
    done = folder / "complete"
    if done.exists():
        return
    model = MobiLlamaVForConditionalGeneration.from_pretrained(start)
    trunk, extra, store = _trunk(model), model.vision_tower.extra, FeatureStore.of(model, folder)
    every = [*(name for cache in caches for name in cache.names), *names]
    seen = [(cache.cells, i, cache.probabilities, i) for cache in caches for i in range(len(cache.names))]
    seen += [(caches[0].cells, caches[0].row[name.split("#")[0]], probabilities, i) for i, name in enumerate(names)]
    wanted = {name.split("#")[0]: name for name in alone}
    with store.shard() as shard:
        for first in range(0, len(seen), _BATCH):
            batch = seen[first : first + _BATCH]
            cells = np.stack([source[i] for source, i, _, _ in batch])
            shares = np.stack([source[i] for _, _, source, i in batch])
            with torch.inference_mode():
                found = tower.features(trunk, cells, shares).numpy()
            rows = dict(zip(every[first : first + _BATCH], found, strict=True))
            for name in [each for each in rows if each in wanted]:
                rows[wanted[name]] = np.concatenate([rows[name][:extra], np.zeros_like(rows[name][extra:])])
            # Not found by their pictures: these are views of the stem, and of some there is no picture.
            keys = store.pictures.name({root / name: row.tobytes() for name, row in rows.items()})
            shard.add(keys, np.stack(list(rows.values())))
    done.touch()


def write_half(trained: Path, folder: Path) -> None:
    """``model.safetensors`` of a trained model in half precision.

    Raises:
        ValueError: a value that half precision cannot hold.
    """
    from safetensors.torch import load_file, save_file

    state = {name: tensor.half() for name, tensor in load_file(trained / "model.safetensors").items()}
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} does not fit half precision")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
