"""A model as three ONNX graphs, which onnxruntime runs in any language and in browsers.

- ``vision_encoder.onnx``: ``pixel_values`` [1,3,S,S] to ``image_features`` [1,P',D];
- ``embed_tokens.onnx``: ``input_ids`` [B,T] to ``inputs_embeds`` [B,T,D];
- ``decoder_model_merged.onnx``: ``inputs_embeds``, ``attention_mask`` [B,P+T] and ``position_ids`` [B,T], and of each
  layer i ``past_key_values.i.key`` and ``.value`` [B,K,P,C], to ``logits`` [B,T,V], ``present.i.key`` and ``.value``
  [B,K,P+T,C].

File names and names of inputs are those of transformers.js. P past positions may be none. The shared feed-forward
network is held once. The folder gets its name after onnxruntime has given the model's own logits.
"""

from __future__ import annotations

import importlib
import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError, ConfigError, needs
from mobillama_v.interop.formats import Exporter

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama_v.model.vlm import VisionLanguageModel

VISION, EMBED, DECODER = "vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"
_OPSET = 18
_TOLERANCE = 1e-4  # of the greatest logit


class OnnxExporter(Exporter):
    """See the module."""

    help = """Write a model as ONNX graphs: image encoder, embeddings, and decoder with its cache.

    onnxruntime runs them without this package. Pictures and prompts are made by the one who calls.
    """
    suffix = ""
    types = ("f32",)
    default_type = "f32"

    def check(self, spec: ModelConfig, kind: str) -> None:
        """See that the packages are installed.

        Raises:
            ConfigError: an unknown type.
            MissingExtraError: a package is not installed.
        """
        if kind not in self.types:
            raise ConfigError(f"ONNX is written in f32, not {kind}.")
        with needs("ONNX", "onnx"):
            for name in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(name)

    def write(
        self, path: Path, network: VisionLanguageModel, spec: ModelConfig, *, kind: str, folder: Path
    ) -> tuple[str, ...]:
        """Graphs, configuration and tokenizer.

        Raises:
            CheckpointError: onnxruntime's logits are others than the model's.
        """
        path.mkdir()
        export_graphs(path, network)
        for name in ("config.json", "tokenizer.json"):
            shutil.copyfile(folder / name, path / name)
        compare(path, network)
        return ()


class _Past:
    """A cache of tensors that grows."""

    def __init__(self, past: list[Tensor]) -> None:
        self.past, self.present = past, list[Any]()

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        import torch

        old_keys, old_values = self.past[2 * layer_idx : 2 * layer_idx + 2]
        grown = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        self.present += grown
        return grown


def _graphs(network: VisionLanguageModel) -> dict[str, Any]:
    """The modules of the three graphs."""
    from torch import nn

    from mobillama_v.model.decoder import causal_mask

    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, self.projector = network.vision_tower, network.projector

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.projector(self.tower(pixel_values), extra=self.tower.extra)

    class Decode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.head = network.language_model, network.lm_head

        def forward(
            self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
        ) -> tuple[Tensor, ...]:
            cache = _Past(past)
            mask = causal_mask(attention_mask, inputs_embeds.shape[1])
            hidden = self.decoder(inputs_embeds, position_ids=position_ids, mask=mask, cache=cache)
            return (self.head(hidden), *cache.present)

    return {VISION: Vision().eval(), EMBED: network.language_model.embed_tokens, DECODER: Decode().eval()}


def _names(network: VisionLanguageModel, prefix: str) -> list[str]:
    layers = range(network.spec.decoder.num_hidden_layers)
    return [f"{prefix}.{i}.{part}" for i, part in itertools.product(layers, ("key", "value"))]


def export_graphs(folder: Path, network: VisionLanguageModel) -> None:
    """Write the three graphs of a model on the CPU in fp32."""
    import torch
    from onnx_ir.passes.common import DeduplicateInitializersPass
    from torch.export import Dim

    spec = network.spec.decoder
    side = network.spec.image.size
    cache = [torch.zeros(2, spec.num_key_value_heads, 3, spec.head_dim) for _ in _names(network, "past")]
    examples: dict[str, tuple[Any, ...]] = {
        VISION: (torch.zeros(1, 3, side, side),),
        EMBED: (torch.zeros(2, 5, dtype=torch.long),),
        DECODER: (
            torch.zeros(2, 5, spec.hidden_size),
            torch.ones(2, 8, dtype=torch.long),
            torch.arange(3, 8).expand(2, 5).contiguous(),
            cache,
        ),
    }
    auto = Dim.AUTO
    shapes: dict[str, tuple[Any, ...]] = {
        VISION: (None,),  # one picture: the hybrid tower counts them in Python
        EMBED: ({0: auto, 1: auto},),
        DECODER: ({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto, 1: auto}, [{0: auto, 2: auto} for _ in cache]),
    }
    names = {
        VISION: (["pixel_values"], ["image_features"]),
        EMBED: (["input_ids"], ["inputs_embeds"]),
        DECODER: (
            ["inputs_embeds", "attention_mask", "position_ids", *_names(network, "past_key_values")],
            ["logits", *_names(network, "present")],
        ),
    }
    for file, module in _graphs(network).items():
        inputs, outputs = names[file]
        program = torch.onnx.export(
            module,
            examples[file],
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes[file],
        )
        assert program is not None
        # The shared network is written once a layer, turned as products take it; these copies are equal.
        DeduplicateInitializersPass(size_limit=1 << 31)(program.model)
        program.save(str(folder / file), external_data=False)


def compare(folder: Path, network: VisionLanguageModel) -> None:
    """Run the graphs in onnxruntime: a picture, some tokens in one pass, then two more one by one.

    Raises:
        CheckpointError: their logits are others than the network's.
    """
    import numpy as np
    import onnxruntime
    import torch

    spec, side, generator = network.spec.decoder, network.spec.image.size, torch.Generator().manual_seed(0)
    sessions = {
        name: onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for name in (VISION, EMBED, DECODER)
    }
    pixels = torch.randn(1, 3, side, side, generator=generator)
    ids = torch.randint(0, spec.vocab_size, (1, 10), generator=generator)
    features = sessions[VISION].run(None, {"pixel_values": pixels.numpy()})[0]
    embeds = np.concatenate((features, sessions[EMBED].run(None, {"input_ids": ids.numpy()})[0]), axis=1)
    with torch.inference_mode():
        given = torch.cat((network.get_image_features(pixels), network.language_model.embed_tokens(ids)), dim=1)
        hidden = network.language_model(given, position_ids=torch.arange(given.shape[1])[None])
        expected = network.lm_head(hidden)[0].numpy()
    past = {
        name: np.zeros((1, spec.num_key_value_heads, 0, spec.head_dim), np.float32)
        for name in _names(network, "past_key_values")
    }
    found, at = [], 0
    for until in (embeds.shape[1] - 2, embeds.shape[1] - 1, embeds.shape[1]):
        inputs = {
            "inputs_embeds": embeds[:, at:until],
            "attention_mask": np.ones((1, until), np.int64),
            "position_ids": np.arange(at, until)[None],
        }
        logits, *present = sessions[DECODER].run(None, inputs | past)
        past, at = dict(zip(past, present, strict=True)), until
        found.append(logits[0])
    apart, largest = float(np.abs(np.concatenate(found) - expected).max()), float(np.abs(expected).max())
    if not apart <= _TOLERANCE * max(1.0, largest):
        raise CheckpointError(
            f"onnxruntime's logits of the exported model are up to {apart:.3g} from its own, whose largest is "
            f"{largest:.3g}; please report this with the model's config.json."
        )
