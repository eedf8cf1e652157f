"""The whole model as one plain torch module, for answering: no transformers, and for the hybrid tower no open_clip.

Importing transformers costs seconds that a `describe` does not have. Tensor names are those of
:class:`~mobillama_v.hf.modeling.MobiLlamaVForConditionalGeneration`, which is built from the same parts, here defined.

Shapes: B rows, T positions, N images, S image side, E+P tower features an image of width Dv, P' visual tokens an image,
D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mobillama_v.checkpoint import load_weights
from mobillama_v.config import ModelConfig
from mobillama_v.errors import PromptError
from mobillama_v.model.decoder import Decoder, causal_mask, position_ids_from_mask
from mobillama_v.model.vision.clip import build_tower
from mobillama_v.projector.module import ProjectorModule


class VisionLanguage(nn.Module):
    """The four parts of a MobiLlama-V and the way from pixels to visual tokens; the base of both forms of the model."""

    vision_tower: nn.Module
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
        return self.project(self.vision_tower(pixel_values.to(self.lm_head.weight.dtype)))

    def project(self, image_features: Tensor) -> Tensor:
        """Project the tower's output [N,E+P,Dv] to visual tokens [N,P',D]."""
        return self.projector(image_features.to(self.lm_head.weight.dtype), extra=self.vision_tower.extra)


class Network(VisionLanguage):
    """CLIP image tower, projector and MobiLlama decoder; :mod:`mobillama_v.generate` answers with it."""

    def __init__(self, spec: ModelConfig, *, sketch: bool = False) -> None:
        """Make the model at random; a ``sketch`` has no memory for what the spec's numbers size."""
        super().__init__()
        self.spec = spec
        self.add_tower(spec)
        with torch.device("meta") if sketch else nullcontext():
            self.add_language_parts(spec)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,T,V] at every position.

        Args:
            input_ids: [B,T]; any valid id stands at image slots.
            pixel_values: [N,3,S,S], the images of all rows in order.
            image_mask: [B,T] boolean, True at image slots.
            attention_mask: [B,T], 1 where a position exists; None means everywhere.

        Raises:
            PromptError: image slots and images disagree.
        """
        embeds = self.language_model.embed_tokens(input_ids)
        if (pixel_values is None) != (image_mask is None):
            raise PromptError("pixel_values and image_mask go together: one was given without the other.")
        if pixel_values is not None and image_mask is not None:
            embeds = place_image_features(embeds, image_mask, self.get_image_features(pixel_values))
        exists = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = None if attention_mask is None else causal_mask(exists, input_ids.shape[1])
        return self.lm_head(self.language_model(embeds, position_ids=position_ids_from_mask(exists), mask=mask))


def place_image_features(inputs_embeds: Tensor, image_mask: Tensor, features: Tensor) -> Tensor:
    """Put projected features [N,P',D] at the True positions of ``image_mask`` [B,T], in order.

    Raises:
        PromptError: a row whose slots are no whole number of images, or another number of images than given.
    """
    images, per_image, _ = features.shape
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
    return inputs_embeds.masked_scatter(image_mask[..., None].to(inputs_embeds.device), features.to(inputs_embeds))


class TorchVisionEncoder:
    """What sees for an assistant: a network's tower and projector, where they are."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.tokens_per_image = network.tokens_per_image
        self._device = next(network.vision_tower.parameters()).device
        self.device = str(self._device)

    @torch.inference_mode()
    def encode_image(self, pixel_values: Any) -> Tensor:
        """Visual tokens [P',D] of an image's pixels [3,S,S], an array."""
        pixels = torch.from_numpy(pixel_values)[None].to(self._device)
        features = self.network.get_image_features(pixels)[0]
        if self._device.type == "cuda":  # so that its time is not counted to the next step
            torch.cuda.synchronize(self._device)
        return features


def load_network(
    folder: Path,
    spec: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    decoder: bool = True,
    prepare: Callable[[Network], None] | None = None,
) -> Network:
    """Read the model of ``folder``, in evaluation mode and without gradients.

    Names and shapes are checked against a sketch before the memory for what the configuration asks is taken. Without
    ``decoder`` the folder holds tower and projector alone, and the decoder and its head stay without memory.
    ``prepare`` may give the sketch other layers than those that the spec makes.

    Raises:
        ConfigError: the spec names a tower that cannot be built.
        CheckpointError: missing, extra or mis-shaped tensors, named; damaged files.
    """
    with SkipInit():
        network = Network(spec, sketch=True)
    if prepare is not None:
        prepare(network)
    sketched = [network.projector, *((network.language_model, network.lm_head) if decoder else ())]
    sight = nn.ModuleDict({"vision_tower": network.vision_tower, "projector": network.projector})
    wanted = network if decoder else sight
    load_weights(wanted, folder, fill=False)
    network.to(dtype=dtype)
    network.vision_tower.to(device=device)
    for part in sketched:  # its own to_empty() imports sympy, for half a second
        room = {
            name: torch.empty(like.shape, dtype=dtype if like.is_floating_point() else like.dtype, device=device)
            for name, like in part.state_dict().items()
        }
        part.load_state_dict(room, assign=True)
    load_weights(wanted, folder)
    return network.eval().requires_grad_(False)


def fill_decoder(network: Network, state: dict[str, Tensor], head: Tensor) -> None:
    """Give a network without memory for them its decoder and head."""
    where = next(network.vision_tower.parameters())
    decoder = {name: tensor.to(where) for name, tensor in state.items()}
    network.language_model.load_state_dict(decoder, assign=True)
    network.lm_head.load_state_dict({"weight": head.to(where)}, assign=True)
    network.eval().requires_grad_(False)


def drop_decoder(network: Network) -> None:
    """Take the memory of decoder and head back; their types and shapes stay."""
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
