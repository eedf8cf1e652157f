"""The whole model as one plain torch module, for answering: no transformers, and for the hybrid tower no open_clip.

Importing transformers costs seconds that a `describe` does not have. Tensor names are those of
:class:`~mobillama_v.hf.modeling.MobiLlamaVForConditionalGeneration`, which is built from the same parts, here defined.

Shapes: B rows, T positions, N images, S image side, E+P tower features an image of width Dv, P' visual tokens an image,
D decoder width, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mobillama_v.checkpoint import load_weights
from mobillama_v.config import ModelConfig
from mobillama_v.errors import PromptError
from mobillama_v.model.decoder import Decoder
from mobillama_v.model.vision import build_tower
from mobillama_v.model.vision.image_tower import ImageTower
from mobillama_v.projector.module import ProjectorModule


class VisionLanguage(nn.Module):
    """The four parts of a MobiLlama-V and the way from pixels to visual tokens; the base of both forms of the model."""

    vision_tower: ImageTower
    projector: ProjectorModule
    language_model: Decoder
    lm_head: nn.Linear

    def add_tower(self, spec: ModelConfig) -> None:
        """Make the image tower at random, on torch's default device.

        Raises:
            ConfigError: an unknown tower.
        """
        self.vision_tower = build_tower(spec.tower, image_size=spec.image.size)

    def add_language_parts(self, spec: ModelConfig) -> None:
        """Make the rest, at random, on torch's default device; its size is what the spec's numbers ask for."""
        self.projector = spec.projector.build(
            tower_width=self.vision_tower.width, decoder_width=spec.decoder.hidden_size
        )
        self.language_model = Decoder(spec.decoder)
        self.lm_head = nn.Linear(spec.decoder.hidden_size, spec.decoder.vocab_size, bias=False)

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens P' that one image makes."""
        tower: Any = self.vision_tower
        return self.projector.kind.num_tokens(tower.extra, tower.patches)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode and project images [N,3,S,S] to visual tokens [N,P',D]."""
        return self.project(self.vision_tower(pixel_values))

    def project(self, image_features: Tensor) -> Tensor:
        """Project the tower's output [N,E+P,Dv] to visual tokens [N,P',D]."""
        return self.projector(image_features.to(self.lm_head.weight.dtype), extra=self.vision_tower.extra)


class VisionLanguageModel(VisionLanguage):
    """Image tower, projector and MobiLlama decoder; :mod:`mobillama_v.generate` answers with it."""

    def __init__(self, spec: ModelConfig, *, meta: bool = False) -> None:
        """Make the model at random; with ``meta`` all but the tower is on the meta device, without memory."""
        super().__init__()
        self.spec = spec
        self.add_tower(spec)
        with torch.device("meta") if meta else nullcontext():
            self.add_language_parts(spec)


def place_image_features(inputs_embeds: Tensor, image_mask: Tensor, features: Tensor) -> Tensor:
    """Put projected features [N,P',D] at the True positions of ``image_mask`` [B,T], in order.

    Raises:
        PromptError: a row whose slots are no whole number of images, or another number of images than given.
    """
    if not torch.compiler.is_compiling():  # a graph cannot look at values
        _check_slots(image_mask, *features.shape[:2])
    return inputs_embeds.masked_scatter(image_mask[..., None].to(inputs_embeds.device), features.to(inputs_embeds))


def _check_slots(image_mask: Tensor, images: int, per_image: int) -> None:
    slots = image_mask.sum(-1)
    wrong = slots % per_image
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise PromptError(
            f"row {row} has {int(slots[row])} image slots, which is no multiple of the {per_image} visual tokens "
            "that one image makes; build prompts with this model's own processor."
        )
    if int(slots.sum()) != images * per_image:
        raise PromptError(
            f"the prompts hold slots for {int(slots.sum()) // per_image} images and {images} images were given."
        )


class TorchVisionEncoder:
    """Image tower and projector of a model in torch, on its device."""

    def __init__(self, network: VisionLanguageModel) -> None:
        self.network = network
        self.tokens_per_image = network.tokens_per_image
        self._device = next(network.vision_tower.parameters()).device
        self.device = str(self._device)
        _survive_forks()

    @torch.inference_mode()
    def encode_image(self, pixel_values: Any) -> Tensor:
        """Visual tokens [P',D] of an image's pixels [3,S,S], an array."""
        pixels = torch.from_numpy(pixel_values)[None].to(self._device)
        features = self.network.get_image_features(pixels)[0]
        if self._device.type == "cuda":  # so that its time is not counted to the next step
            torch.cuda.synchronize(self._device)
        return features


@lru_cache(maxsize=1)
def _survive_forks() -> None:
    """Let torch compute with one thread in processes that are forked from this one.

    OpenMP's threads stay behind in a fork, and whoever hands them work there waits for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def load_network(
    folder: Path,
    spec: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    decoder: bool = True,
    prepare: Callable[[VisionLanguageModel], None] | None = None,
) -> VisionLanguageModel:
    """Read the model of ``folder``, in evaluation mode and without gradients.

    The model is made on the meta device, and memory is allocated once names and shapes have been checked. Without
    ``decoder`` the folder holds tower and projector alone, and the decoder and its head stay on the meta device.
    ``prepare`` may give the model other layers than those that the spec makes.

    Raises:
        ConfigError: the spec names a tower that cannot be built.
        CheckpointError: missing, extra or mis-shaped tensors, named; damaged files.
    """
    with SkipInit():
        network = VisionLanguageModel(spec, meta=True)
    if prepare is not None:
        prepare(network)
    on_meta = [network.projector, *((network.language_model, network.lm_head) if decoder else ())]
    vision = nn.ModuleDict({"vision_tower": network.vision_tower, "projector": network.projector})
    wanted = network if decoder else vision
    load_weights(wanted, folder, fill=False)
    network.to(dtype=dtype)
    network.vision_tower.to(device=device)
    for part in on_meta:  # its own to_empty() imports sympy, for half a second
        allocated = {
            name: torch.empty(like.shape, dtype=dtype if like.is_floating_point() else like.dtype, device=device)
            for name, like in part.state_dict().items()
        }
        part.load_state_dict(allocated, assign=True)
    load_weights(wanted, folder)
    return network.eval().requires_grad_(False)


def fill_decoder(network: VisionLanguageModel, state: dict[str, Tensor], head: Tensor) -> None:
    """Load decoder and head of a model that has them on the meta device."""
    where = next(network.vision_tower.parameters())
    decoder = {name: tensor.to(where) for name, tensor in state.items()}
    network.language_model.load_state_dict(decoder, assign=True)
    network.lm_head.load_state_dict({"weight": head.to(where)}, assign=True)
    network.eval().requires_grad_(False)


def drop_decoder(network: VisionLanguageModel) -> None:
    """Move decoder and head to the meta device, which frees their memory; types and shapes stay."""
    network.language_model.to("meta")
    network.lm_head.to("meta")


class SkipInit(TorchFunctionMode):
    """Leaves out the random values that are about to be overwritten.

    Without memory they would take no time themselves, but at the first of them torch imports its compiler, for over a
    second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_FILLERS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)
