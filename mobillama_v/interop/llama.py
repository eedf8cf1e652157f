"""Published MobiLlama, Llama, Qwen2 and Qwen3 checkpoints as decoders of this project, verified tensor by tensor.

The authors' MobiLlama (huggingface.co/MBZUAI, arXiv 2402.16840) is saved as a Llama: the shared network stands under
every layer's name, or only the first's where a format holds a tensor once; the files are ``.bin`` shards or safetensors
and may hold ``rotary_emb.inv_freq`` buffers; ``config.json`` gives 4 key/value heads where the tensors have 32. Shapes
are therefore taken from the tensors, and from the configuration only what no tensor tells.

No code of a checkpoint is run: ``.bin`` files are read as tensors and nothing else.

Shapes: V vocabulary, D hidden, F feed-forward width, K key/value heads, C head width, L layers.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama_v.checkpoint import iterate_tensors, refuse_misfits, weight_files
from mobillama_v.config import DecoderConfig, Llama3Rope, from_mapping
from mobillama_v.errors import CheckpointError
from mobillama_v.interop.formats import FFN, AverageError, ImportedDecoder, Importer, template_of
from mobillama_v.model.decoder import Decoder

MATRICES = ("gate_proj", "up_proj", "down_proj")

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NETWORK = re.compile(r"mlp\.(gate_proj|up_proj|down_proj)\.weight")
_SHARED = re.compile(r"model\.(?:mlp|feed_forward)\.(gate_proj|up_proj|down_proj)\.weight")
_BUFFER = re.compile(r"model\.(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_PROBES = 256  # random inputs on which an averaged network is compared with those that it replaces
MODEL_TYPES = ("llama", "mobillama", "qwen2", "qwen3")


class LlamaImporter(Importer):
    """Folders with ``config.json`` and weights, as transformers saves a Llama, a Qwen2 or a Qwen3."""

    title = "Llama, MobiLlama, Qwen2 and Qwen3"

    def detect(self, config: dict[str, Any]) -> bool:
        """By its ``model_type``, which the authors' first checkpoints lack."""
        return (config.get("model_type") or "llama") in MODEL_TYPES

    def load(self, folder: Path, config: dict[str, Any], *, ffn: FFN) -> ImportedDecoder:
        """Read the decoder, and compare every tensor's name and shape.

        Raises:
            CheckpointError: missing, extra or mis-shaped tensors, unequal networks, or a configuration that this
                decoder cannot follow; each named.
            ConfigError: shapes that no decoder can have.
        """
        refuse_features(config, folder / "config.json")  # before gigabytes are read
        found = assemble(_read_tensors(folder), config, folder, ffn=ffn)
        return replace(found, template=chat_template(folder))


def assemble(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path, *, ffn: FFN) -> ImportedDecoder:
    """The decoder that ``tensors`` make, under transformers' names for a Llama; ``folder`` is for messages.

    Raises:
        CheckpointError, ConfigError: as :meth:`LlamaImporter.load`.
    """
    notes: list[str] = []
    head_dim = _take_buffers(tensors, _theta(config), notes)
    spec = decoder_spec({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, notes, folder)
    if head_dim not in (None, spec.head_dim):
        raise CheckpointError(
            f"{folder} has rotary_emb.inv_freq buffers for heads of width {head_dim}, and "
            f"{spec.num_attention_heads} heads in its config.json make {spec.head_dim}; correct "
            "num_attention_heads."
        )
    head = tensors.pop("lm_head.weight", None)
    if head is None and config.get("tie_word_embeddings"):
        notes.append("the head is a copy of the embeddings, to which the checkpoint ties it")
        head = tensors["model.embed_tokens.weight"].clone()
    networks = _networks(tensors, spec, folder)
    shared, averaged = _shared_network(networks, spec, ffn, folder)
    spec = replace(spec, ffn_sharing="none" if shared is None else "all")
    found = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if shared is not None:
        found |= {f"feed_forward.{name}.weight": tensor for name, tensor in shared.items()}
    else:
        for layer, network in networks.items():
            found |= {f"layers.{layer}.mlp.{name}.weight": tensor for name, tensor in network.items()}
    _verify(found, head, spec, folder)
    assert head is not None
    return ImportedDecoder(spec, found, head, tuple(notes), averaged)


def chat_template(folder: Path) -> str:
    """Our name of the template in a checkpoint's ``chat_template.jinja`` or ``tokenizer_config.json``."""
    paths = (folder / "chat_template.jinja", folder / "tokenizer_config.json")
    return template_of("".join(path.read_text(encoding="utf-8") for path in paths if path.is_file()))


def refuse_features(config: dict[str, Any], path: Path) -> None:
    """See that a decoder of this configuration is one of ours.

    Raises:
        CheckpointError: it asks for something that this decoder does not have; named.
    """
    scaling, kind = _rope(config)
    refused = {
        "rope_scaling": kind not in ("default", "llama3"),
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
    }
    asked = config | {"rope_scaling": scaling}
    wrong = [f"{name} {asked.get(name)!r}" for name, is_wrong in refused.items() if is_wrong]
    if wrong:
        raise CheckpointError(f"{path} asks for {', '.join(wrong)}, which this decoder does not have.")


def _rope(config: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What is said of rotary positions, and the kind of their scaling."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else scaling
    return scaling, kind


def _llama3_rope(config: dict[str, Any], path: Path) -> Llama3Rope | None:
    scaling, kind = _rope(config)
    if kind != "llama3":
        return None
    names = {each.name for each in fields(Llama3Rope)}
    return from_mapping(Llama3Rope, {name: scaling[name] for name in names & scaling.keys()}, f"rope_scaling in {path}")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in iterate_tensors(path):
            if name in tensors:
                raise CheckpointError(f"{folder} holds {name} in two of its files; copy the checkpoint again.")
            tensors[name] = tensor
    return tensors


def _theta(config: dict[str, Any]) -> float:
    """The base of the rotary frequencies."""
    parameters = config.get("rope_parameters")
    given = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    return float(given or config.get("rope_theta") or 10000.0)


def _take_buffers(tensors: dict[str, Tensor], theta: float, notes: list[str]) -> int | None:
    """Remove the rotary buffers, which must agree with the base ``theta``; the width of their heads."""
    names = [name for name in tensors if _BUFFER.fullmatch(name)]
    head_dim = None
    for name in names:
        buffer = tensors.pop(name).float()
        head_dim = 2 * len(buffer)
        wanted = theta ** -(torch.arange(len(buffer)) / len(buffer))
        # bf16 keeps 8 bits: a buffer that was saved in half precision is still the same one.
        if not torch.allclose(buffer, wanted, rtol=1e-2, atol=0):
            raise CheckpointError(
                f"{name} does not belong to rope_theta {theta:g} of config.json; one of them is wrong."
            )
    if names:
        notes.append(f"{len(names)} rotary_emb.inv_freq buffers are left out; they agree with rope_theta {theta:g}")
    return head_dim


def decoder_spec(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], notes: list[str], folder: Path
) -> DecoderConfig:
    """The decoder whose tensors have these ``shapes``, by transformers' names for a Llama.

    What the configuration says otherwise is added to ``notes``. Networks are taken as shared.

    Raises:
        CheckpointError: tensors that every decoder has are missing, or heads that cannot be.
        ConfigError: sizes that no decoder can have.
    """
    layers = [int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name))]
    keys = ("model.embed_tokens.weight", *(f"model.layers.0.self_attn.{each}_proj.weight" for each in "qk"))
    missing = [name for name in keys if name not in shapes]
    widths = {shape[0] for name, shape in shapes.items() if (at := _layer_and_matrix(name)) and at[1] == MATRICES[0]}
    if missing or not widths:
        refuse_misfits(folder, missing=missing or ["model.layers.0.mlp.gate_proj.weight"], extra=[], wrong=[])
    vocabulary, hidden = shapes[keys[0]]
    heads, width = config.get("num_attention_heads"), shapes[keys[1]][0]
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(f"{folder / 'config.json'} gives {heads!r} attention heads for width {width}.")
    found: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": max(widths),
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": heads,
        "num_key_value_heads": shapes[keys[2]][0] * heads // width,
        "head_dim": width // heads,
    }
    for name, value in found.items():
        said = config.get(name)
        if said is not None and said != value:
            if name == "head_dim":
                raise CheckpointError(f"{folder / 'config.json'} gives head_dim {said}; the tensors have {value}.")
            notes.append(f"config.json says {name} {said}; the tensors have {value}")
    head_dim = found.pop("head_dim")
    return DecoderConfig(
        **found,
        max_position_embeddings=int(config.get("max_position_embeddings", 2048)),
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=_theta(config),
        qkv_bias=config.get("model_type") == "qwen2",
        qk_norm=config.get("model_type") == "qwen3",
        attention_head_dim=None if head_dim * heads == hidden else head_dim,
        llama3_rope=_llama3_rope(config, folder / "config.json"),
        initializer_range=float(config.get("initializer_range", 0.02)),
        bos_token_id=_token_id(config, "bos_token_id", 1),
        eos_token_id=_token_id(config, "eos_token_id", 2),
        pad_token_id=max(0, _token_id(config, "pad_token_id", 0)),  # LLaMA-2 has -1
    )


def _token_id(config: dict[str, Any], name: str, default: int) -> int:
    """A token's id, or the first of several."""
    value = config.get(name)
    if isinstance(value, list):
        value = value[0] if value else None
    return default if value is None else int(value)


def _layer_and_matrix(name: str) -> tuple[int, str] | None:
    """Layer and matrix of a network's tensor; a network that stands under no layer counts as the first one's."""
    if shared := _SHARED.fullmatch(name):
        return 0, shared[1]
    layer = _LAYER.fullmatch(name)
    inner = _NETWORK.fullmatch(layer[2]) if layer else None
    return (int(layer[1]), inner[1]) if layer and inner else None


def _networks(tensors: dict[str, Tensor], spec: DecoderConfig, folder: Path) -> dict[int, dict[str, Tensor]]:
    """Take the feed-forward networks: of every layer, or only of one (as layer 0) where the checkpoint holds one."""
    found: dict[int, dict[str, Tensor]] = {}
    for name in list(tensors):
        if (found_at := _layer_and_matrix(name)) is None:
            continue
        layer, matrix = found_at
        if matrix in found.setdefault(layer, {}):
            raise CheckpointError(f"{folder} holds the {matrix} of layer {layer} twice, once as {name}; keep one.")
        found[layer][matrix] = tensors.pop(name)
    if len(found) > 1:
        missing = [
            f"model.layers.{layer}.mlp.{name}.weight"
            for layer in range(spec.num_hidden_layers)
            for name in MATRICES
            if name not in found.get(layer, {})
        ]
    else:
        missing = [f"mlp.{name}.weight" for network in found.values() for name in MATRICES if name not in network]
    refuse_misfits(folder, missing=missing, extra=[], wrong=[])
    return found


def _shared_network(
    networks: dict[int, dict[str, Tensor]], spec: DecoderConfig, ffn: FFN, folder: Path
) -> tuple[dict[str, Tensor] | None, tuple[AverageError, ...]]:
    """The network that all layers share, or None where each has its own."""
    first_layer = min(networks)
    first = networks[first_layer]
    if len(networks) == 1:
        if ffn == "per-layer" and spec.num_hidden_layers > 1:
            raise CheckpointError(f"{folder} holds one feed-forward network for all layers; it has none per layer.")
        return first, ()
    if ffn == "per-layer":
        return None, ()
    unequal = [
        f"model.layers.{layer}.mlp.{name}.weight"
        for layer, network in networks.items()
        for name in MATRICES
        if not torch.equal(network[name], first[name])
    ]
    if not unequal:
        return first, ()
    if ffn == "average":
        return _average(networks)
    raise CheckpointError(
        f"{folder} holds feed-forward networks that are not the same in all layers: {len(unequal)} tensors differ from "
        f"layer {first_layer}'s, the first is {unequal[0]}. A plain Llama is imported with per-layer networks or with "
        "their average as the shared one (--ffn per-layer, --ffn average); a MobiLlama is damaged."
    )


def _average(networks: dict[int, dict[str, Tensor]]) -> tuple[dict[str, Tensor], tuple[AverageError, ...]]:
    """The mean of the networks, in the first one's dtype, and each layer's distance from it."""
    dtype = next(iter(networks.values()))["gate_proj"].dtype
    mean = {
        name: (sum((each[name].float() for each in networks.values()), torch.zeros(())) / len(networks)).to(dtype)
        for name in MATRICES
    }
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(_PROBES, mean["gate_proj"].shape[1], generator=generator)
    probe = F.rms_norm(probe, probe.shape[-1:])
    expected = _feed_forward(mean, probe)
    errors = []
    for layer, network in sorted(networks.items()):
        apart = sum(float((network[name].float() - mean[name].float()).square().sum()) for name in MATRICES)
        size = sum(float(network[name].float().square().sum()) for name in MATRICES)
        theirs = _feed_forward(network, probe)
        outputs = float((theirs - expected).norm() / theirs.norm().clamp(min=1e-30))
        errors.append(AverageError(layer, (apart / max(size, 1e-30)) ** 0.5, outputs))
    return mean, tuple(errors)


def _feed_forward(network: dict[str, Tensor], x: Tensor) -> Tensor:
    gate, up, down = (network[name].float() for name in MATRICES)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _verify(found: dict[str, Tensor], head: Tensor | None, spec: DecoderConfig, folder: Path) -> None:
    """Hold names and shapes against a decoder of that spec, which is made without memory."""
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Decoder(spec).state_dict().items()}
    expected["lm_head.weight"] = torch.Size((spec.vocab_size, spec.hidden_size))
    everything = found if head is None else found | {"lm_head.weight": head}
    refuse_misfits(
        folder,
        missing=[name for name in expected if name not in everything],
        extra=[name for name in everything if name not in expected],
        wrong=[
            f"{name} is {list(tensor.shape)} and must be {list(expected[name])}"
            for name, tensor in everything.items()
            if name in expected and tensor.shape != expected[name]
        ],
    )
