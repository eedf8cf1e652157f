"""Training on the mixture of :mod:`nano.mixture`, over cached maps of the stem, in several processes of one machine.

The decoder learns, and what the tower makes of the stem's last map; the words that it finds stay. The rest of the tower
and the projector stay: names of classes are read through them, and are lost where they move.

A step's samples depend on the seed and its number alone, so a killed training goes on as if nothing had happened.
"""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v import MobiLlamaVForConditionalGeneration
from mobillama_v.model.vision.hybrid_lite0 import HybridTrunk
from mobillama_v.model.vision.lite0 import CLASSES, GATHERED, GRID
from mobillama_v.model.vision.structured_tokens import WORDS
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.muon import Muon
from nano import tower
from nano.branches import Batch, BranchEncoder, collate, run_decoder
from nano.mixture import VISUAL_TOKENS, Mixture, Sample

_HAS_TILES = torch.cpu._is_amx_tile_supported()
_TOKENS = 45  # about how many are learnt of a sample: the loss of a batch is divided by them
_RATES = {"hidden": 1.0, "small": 0.2, "words": 0.15}
_EPS = {"hidden": 1e-8, "small": 1e-8, "words": 1e-5}
"""AdamW's. A word that hardly anybody says gets tiny gradients, all one way; divided by their own size they would push
it out of the vocabulary, and names of classes are such words."""
_SAVE_EVERY = 100


@dataclass(frozen=True)
class Stage:
    """One stretch of training: what is learnt from, and how fast."""

    name: str
    steps: int
    rate: float
    """Learning rate of the decoder's matrices, by Muon; of other parts see ``_RATES``."""
    mix: dict[str, float]
    """Kinds of :class:`~nano.mixture.Mixture` and their shares; ``own`` are questions about what the model
    itself said of photographs before this stage."""
    decay: bool = False
    """Let the rate fall to nothing, linearly."""


class Learner:
    """The model in training.

    Args:
        folder: of the model to start from.
        tokenizer: its ``tokenizer.json``.
    """

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.model = MobiLlamaVForConditionalGeneration.from_pretrained(folder)
        self.tokenizer_file = tokenizer
        self.tokenizer = TextTokenizer.from_file(tokenizer, bos_id=1, eos_id=2, pad_id=0)
        self.encoder = BranchEncoder(self.tokenizer)
        self.trunk: HybridTrunk = self.model.vision_tower.visual.trunk
        self.prefix = torch.tensor(self.encoder.prefix)
        self.groups = _groups(self.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for _, parameters in self.groups.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.parameters = [each for _, group in self.groups.values() for each in group]

    def visual(self, samples: list[Sample], stems: dict[str, Any]) -> Tensor:
        """Visual tokens [N,84,D] of those samples that have a picture."""
        seen = pictures(samples, stems)
        if not len(seen[0]):
            return torch.zeros(0, VISUAL_TOKENS, self.model.lm_head.in_features)
        return self.model.projector(tower.features(self.trunk, *seen), extra=self.model.vision_tower.extra)

    def save(self, folder: Path) -> None:
        """Write the model, whole or not at all."""
        partial = folder.with_name(f"{folder.name}.partial")
        self.model.save_pretrained(partial)
        shutil.copyfile(self.tokenizer_file, partial / "tokenizer.json")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def loss(self, batch: Batch, visual: Tensor) -> Tensor:
        """Cross-entropy of every learnt token [S], given the visual tokens [N,84,D] of the samples with pictures."""
        decoder = self.model.language_model
        with halved():
            embeds = decoder.embed_tokens(batch.ids).clone()
            embeds[batch.pictures, :VISUAL_TOKENS] = visual
            hidden = run_decoder(decoder, self.prefix, embeds, batch.positions, batch.mask).flatten(0, 1)
            logits = self.model.lm_head(hidden[batch.sources])
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")


def halved() -> torch.autocast:
    """Matrix products in bfloat16 where the processor multiplies tiles of it (AMX): eight times as fast as in fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=_HAS_TILES)


def _groups(model: Any) -> dict[str, tuple[bool, list[nn.Parameter]]]:
    """The decoder's parameters by how fast they learn, and whether they are Muon's matrices."""
    decoder, trunk = model.language_model, model.vision_tower.visual.trunk
    photo, words = trunk.photo_patches, trunk.account.words
    inner = [*decoder.layers.parameters(), *decoder.feed_forward.parameters(), decoder.norm.weight, *photo.parameters()]
    return {
        "hidden": (True, [each for each in inner if each.ndim == 2]),
        "small": (False, [each for each in inner if each.ndim != 2]),
        "words": (False, [model.lm_head.weight, decoder.embed_tokens.weight, words.table, words.sure]),
    }


def pictures(samples: list[Sample], stems: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps of the stem [N,P,GATHERED], probabilities of classes [N,1000] and of words [N,WORDS] (no numbers where the
    tower gives them) of those samples that have a picture."""
    shown = [(each, stems[each.stem]) for each in samples if each.picture is not None]
    rows = [(each, cache, cache.row[each.picture]) for each, cache in shown]
    cells = [cache.cells[row] for _, cache, row in rows]
    shares = [c.probabilities[row] if each.probabilities is None else each.probabilities for each, c, row in rows]
    unknown = np.full(WORDS, np.nan, np.float16)
    words = [unknown if cache.words is None else cache.words[row] for _, cache, row in rows]
    shapes = (GRID * GRID, GATHERED), (CLASSES,), (WORDS,)
    cells, shares, words = (
        np.array(each).reshape(len(rows), *shape) for each, shape in zip((cells, shares, words), shapes, strict=True)
    )
    return cells, shares, words


class Trainer:
    """Runs a stage in one of several processes.

    Args:
        learner: the model.
        mixture: of samples.
        stems: the stem's caches by name.
        seed: of everything that is drawn.
        batch: samples a step in each process.
        rank, world: of the process.
    """

    def __init__(
        self,
        learner: Learner,
        mixture: Mixture,
        stems: dict[str, Any],
        *,
        seed: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.learner, self.mixture, self.stems = learner, mixture, stems
        self.seed, self.batch, self.rank, self.world = seed, batch, rank, world
        self._shares = _split([each for hidden, g in learner.groups.values() if hidden for each in g], world)
        mine = set(self._shares[rank])
        groups = []
        for name, (hidden, parameters) in learner.groups.items():
            chosen = [each for each in parameters if not hidden or each in mine]
            decay = 0.01 if hidden else 0.0
            groups.append({"params": chosen, "lr": 0.0, "hidden": hidden, "weight_decay": decay, "rate": _RATES[name]})
            groups[-1]["eps"] = _EPS[name]
        self.optimizer = Muon(groups, betas=(0.9, 0.95))
        self.shown: dict[str, float] = {}

    def step(self, stage: Stage, number: int) -> None:
        """One step of a stage."""
        left = 1 - number / stage.steps if stage.decay else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * stage.rate * min(1.0, number / 30) * max(0.03, left)
        rng = random.Random(f"{stage.name}:{self.seed}:{number}:{self.rank}")
        torch.manual_seed(rng.getrandbits(32))
        names = rng.choices(list(stage.mix), list(stage.mix.values()), k=self.batch)
        samples = [self.mixture.kinds[name](rng) for name in names]
        shown = [(VISUAL_TOKENS * (each.picture is not None), each.branches) for each in samples]
        batch = collate(shown, len(self.learner.prefix))
        losses = self.learner.loss(batch, self.learner.visual(samples, self.stems))
        self.optimizer.zero_grad()
        (losses.sum() / (self.batch * _TOKENS)).backward()
        average_gradients(self.learner.parameters, self.world)
        nn.utils.clip_grad_norm_(self.learner.parameters, 1.0)
        with halved():
            self.optimizer.step()
        self._share()
        for i, name in enumerate(names):
            mine = losses.detach()[batch.owners == i]
            if len(mine):
                self._show(name, float(mine.mean()))

    def _show(self, name: str, value: float) -> None:
        self.shown[name] = 0.95 * self.shown.get(name, value) + 0.05 * value

    @torch.no_grad()
    def _share(self) -> None:
        """Give every process the matrices that another one has orthogonalized."""
        if self.world == 1:
            return
        for rank, share in enumerate(self._shares):
            flat = torch.cat([each.reshape(-1) for each in share])
            dist.broadcast(flat, rank)
            for parameter, part in zip(share, flat.split([each.numel() for each in share]), strict=True):
                parameter.copy_(part.view_as(parameter))

    def run(self, stage: Stage, folder: Path) -> Path:
        """Run a stage to its end, from where it was; the folder of the trained model."""
        final, state = folder / "final", folder / f"state-{self.rank}.pt"
        first = 0
        if state.exists():
            kept = torch.load(state, weights_only=True)
            first = kept["step"]
            self.learner.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
        folder.mkdir(parents=True, exist_ok=True)
        began = time.time()
        for number in range(first + 1, stage.steps + 1):
            self.step(stage, number)
            if number % 20 == 0 and self.rank == 0:
                told = ", ".join(f"{name} {value:.2f}" for name, value in sorted(self.shown.items()))
                rate = (time.time() - began) / (number - first)
                print(f"{stage.name}: step {number} of {stage.steps}, {rate:.1f} s each: {told}", flush=True)
            if number % _SAVE_EVERY == 0 or number == stage.steps:
                self._keep(state, number)
        if self.rank == 0:
            self.learner.save(final)
        if self.world > 1:
            dist.barrier()
        return final

    def _keep(self, path: Path, number: int) -> None:
        if self.world > 1:
            dist.barrier()  # all of one step, or of none
        partial = path.with_suffix(".partial")
        torch.save(
            {"step": number, "model": self.learner.model.state_dict(), "optimizer": self.optimizer.state_dict()},
            partial,
        )
        partial.replace(path)


def average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Give every process the mean of all processes' gradients."""
    if world == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([each.reshape(-1) for each in gradients])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, (flat / world).split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def _split(parameters: list[nn.Parameter], world: int) -> list[list[nn.Parameter]]:
    """Matrices for each process to orthogonalize, of about the same cost."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(world)]
    loads = [0] * world
    for each in sorted(parameters, key=lambda p: -p.numel() * min(p.shape)):
        rank = loads.index(min(loads))
        shares[rank].append(each)
        loads[rank] += each.numel() * min(each.shape)
    return shares
