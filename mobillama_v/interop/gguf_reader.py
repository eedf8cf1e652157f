"""GGUF files of Llamas as decoders: the other direction of :mod:`mobillama_v.interop.gguf`.

Matrices of every type that the package ``gguf`` can decode are read: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K and
others. They become fp32, which holds the very numbers that the codes mean; F16 stays as it is. The tokenizer in the
file becomes a ``tokenizer.json`` (:mod:`mobillama_v.interop.gguf_tokenizer`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobillama_v.errors import CheckpointError
from mobillama_v.interop.formats import FFN, GGUF, ImportedDecoder, Importer, template_of
from mobillama_v.interop.gguf import library
from mobillama_v.interop.gguf_tokenizer import tokenizer_json
from mobillama_v.interop.llama import assemble

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
} | {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"}
_NAMES |= {f"attn_{part}_norm": f"self_attn.{part}_norm" for part in "qk"}
_NAMES |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_FIELDS = {
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
}
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


class GGUFImporter(Importer):
    """``.gguf`` files of the architectures ``llama``, ``qwen2`` and ``qwen3``."""

    title = "a GGUF file of a Llama"

    def detect(self, config: dict[str, Any]) -> bool:
        """By the file's name."""
        return config == GGUF

    def load(self, folder: Path, config: dict[str, Any], *, ffn: FFN) -> ImportedDecoder:
        """Read the decoder and the tokenizer in the file ``folder``.

        Raises:
            CheckpointError: a damaged file, another architecture, or something that this decoder does not have; named.
            MissingExtraError: the package gguf is not installed.
        """
        gguf = library()
        try:
            reader = gguf.GGUFReader(folder)
            fields = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as error:  # the package raises several kinds for one cause
            raise CheckpointError(f"{folder} is not a GGUF file that can be read ({error}); copy it again.") from error
        kind = fields.get("general.architecture")
        if kind not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise CheckpointError(f"{folder} holds a model of the architecture {kind!r}; known are {known}.")
        scaling = fields.get(f"{kind}.rope.scaling.type", "none")
        if scaling != "none" or any(each.name == "rope_freqs.weight" for each in reader.tensors):
            raise CheckpointError(
                f"{folder} scales its rotary positions, which is not read from GGUF; take its safetensors."
            )
        values: dict[str, Any] = {ours: fields.get(f"{kind}.{theirs}") for ours, theirs in _FIELDS.items()}
        values |= {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in _TOKENS.items()}
        values["model_type"] = kind
        values["tie_word_embeddings"] = all(each.name != "output.weight" for each in reader.tensors)
        tensors = {}
        for each in reader.tensors:
            name, tensor = _read(gguf, each, values, folder)
            tensors[name] = tensor
        config = {name: value for name, value in values.items() if value is not None}
        tokenizer, notes = tokenizer_json(fields, folder)
        found = assemble(tensors, config, folder, ffn=ffn)
        template = template_of(str(fields.get("tokenizer.chat_template", "")))
        return replace(found, notes=(*found.notes, *notes), template=template, tokenizer=tokenizer)


def _read(gguf: Any, entry: Any, config: dict[str, Any], path: Path) -> tuple[str, Tensor]:
    """Name of a tensor in a Llama of transformers, and its numbers."""
    stem, _, kind = entry.name.rpartition(".")
    layer = _LAYER.fullmatch(stem)
    name = _NAMES.get(layer[2] if layer else stem)
    if kind not in ("weight", "bias") or name is None:
        raise CheckpointError(f"{path} holds {entry.name}, which this decoder does not have.")
    try:
        values = gguf.quants.dequantize(entry.data, entry.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path} holds {entry.name} in a form that cannot be read: {error}.") from error
    shape = [int(side) for side in entry.shape][::-1]
    tensor = torch.from_numpy(values.copy() if values.base is not None else values).view(shape)
    if entry.tensor_type == gguf.GGMLQuantizationType.F16:
        tensor = tensor.half()
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(layer[2] if layer else "")
    if heads is not None and config["model_type"] == "llama":
        tensor = halves(tensor, config[heads] or config["num_attention_heads"])
    return f"model.layers.{layer[1]}.{name}.{kind}" if layer else f"{name}.{kind}", tensor


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows [N,K] of queries or keys as this project has them: what ``interleaved`` in the writer does, undone."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(weight.shape)
