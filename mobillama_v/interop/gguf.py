"""The decoder as a GGUF file, which llama.cpp reads as a Llama, a Qwen2 or a Qwen3, by its biases and norms.
Image tower and projector stand in a second file (:mod:`mobillama_v.interop.gguf_vision`).

The format (github.com/ggml-org/ggml, docs/gguf.md) has no shared feed-forward network: it is written once for every
layer. Of a Llama, llama.cpp rotates neighboring channels of a head where this project rotates its two halves, so the
rows of queries and keys are put in its order; of the others it does as we do. A stretched rotation (Llama 3) is said by
what each frequency is divided by. ``q8_0`` and ``q4_0`` hold the very numbers of
:mod:`mobillama_v.backends.native.tiles`: both formats are blocks of 32 codes with one fp16 scale.

Shapes: N rows, K columns, C head width.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mobillama_v.backends.native.pack import check_fp16_range
from mobillama_v.backends.native.packed_format import BLOCK
from mobillama_v.chat_templates import get_template
from mobillama_v.config import DecoderConfig, ModelConfig
from mobillama_v.errors import CheckpointError, ConfigError, needs
from mobillama_v.fields import parse_json
from mobillama_v.interop.formats import Exporter, decoder_type
from mobillama_v.interop.gguf_tokenizer import words_name
from mobillama_v.prompt_jinja import for_llama_cpp
from mobillama_v.tokenization import check_vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobillama_v.model.vlm import VisionLanguageModel

TYPES = {"f32": None, "f16": None, "q8_0": 8, "q4_0": 4}
"""Types of a file's matrices, and the bits of those that are quantized."""
_BLOCK_BYTES = {8: 2 + BLOCK, 4: 2 + BLOCK // 2}
_AT_ONCE = 1 << 21  # weights, so that what is computed with them stays in the cache
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class GGUFExporter(Exporter):
    """See :func:`write_gguf` and :func:`~mobillama_v.interop.gguf_vision.write_mmproj`."""

    help = """Write a model as GGUF files, which llama.cpp reads as a Llama.

    A CLIP or SigLIP tower and its projector mlp2x_gelu are written beside it, as mmproj-OUT. Of other models it is the
    text decoder alone.
    """
    suffix = ".gguf"
    types = tuple(TYPES)
    default_type = "q8_0"

    def check(self, spec: ModelConfig, kind: str) -> None:
        """As :func:`refuse_type`, and see that the package gguf is installed."""
        refuse_type(kind, spec.decoder)
        library()

    def write(
        self, path: Path, network: VisionLanguageModel, spec: ModelConfig, *, kind: str, folder: Path
    ) -> tuple[str, ...]:
        """The decoder and its tokenizer, under the folder's name; beside it tower and projector, as far as it can."""
        from mobillama_v.interop.gguf_vision import mmproj_path, write_mmproj

        notes = write_gguf(
            path,
            network.language_model,
            network.lm_head,
            spec.decoder,
            kind=kind,
            name=folder.name,
            tokenizer=folder / "tokenizer.json",
            chat_template=for_llama_cpp(get_template(spec.template).jinja),
        )
        second = mmproj_path(path)
        try:
            limits = write_mmproj(second, network, kind="f32" if kind == "f32" else "f16", name=folder.name)
        except ConfigError as error:
            return (*notes, f"The file is a text decoder only: {error}")
        return (*notes, f"Image tower and projector are in {second.name}.", *limits)


def library() -> ModuleType:
    """The package ``gguf``.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs("a GGUF file"):
        import gguf
    return gguf


def write_gguf(
    path: Path,
    decoder: nn.Module,
    lm_head: nn.Module,
    spec: DecoderConfig,
    *,
    kind: str,
    name: str = "MobiLlama",
    tokenizer: Path | None = None,
    chat_template: str | None = None,
    search: bool = True,
) -> tuple[str, ...]:
    """Write a :class:`~mobillama_v.model.decoder.Decoder` and its head.

    Args:
        path: of the file.
        decoder: with weights of any float type.
        lm_head: with its ``weight``.
        spec: the decoder's.
        kind: one of :data:`TYPES`, of all matrices; norms are fp32.
        name: what the file says that it is.
        tokenizer: a ``tokenizer.json``; without one the file takes and gives token ids.
        chat_template: in Jinja, by which programs write conversations.
        search: as in :func:`mobillama_v.backends.native.tiles.pack_matrix`.

    Returns:
        What is not in the file as it was, a sentence each.

    Raises:
        ConfigError: an unknown type, sizes that its blocks cannot hold, or a decoder that llama.cpp does not have.
        CheckpointError: weights that are not finite, or a tokenizer that cannot be read.
        MissingExtraError: the package gguf is not installed.
    """
    refuse_type(kind, spec)
    gguf = library()
    vocabulary = read_vocabulary(tokenizer, spec) if tokenizer else Vocabulary("none")
    writer = gguf.GGUFWriter(path, decoder_type(spec))
    writer.add_name(name)
    _add_shape(writer, spec)
    _add_vocabulary(writer, vocabulary, spec)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'f32' else 'MOSTLY'}_{kind.upper()}"])
    if TYPES[kind]:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tensors(writer, gguf, decoder, lm_head, spec, kind, search)
    write_all(writer)
    return vocabulary.notes


def write_all(writer: Any) -> None:
    """Write what a GGUF writer was given, and close its file."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def refuse_type(kind: str, spec: DecoderConfig) -> None:
    """See that a decoder can be written as ``kind``.

    Raises:
        ConfigError: an unknown type, sizes that its blocks cannot hold, or a decoder that llama.cpp does not have.
    """
    decoder_type(spec)
    if kind not in TYPES:
        raise ConfigError(f"the GGUF type {kind!r} is unknown; choose {', '.join(list(TYPES)[:-1])} or q4_0.")
    for name in ("hidden_size", "query_width", "intermediate_size") if TYPES[kind] else ():
        if getattr(spec, name) % BLOCK:
            raise ConfigError(
                f"{kind} has blocks of {BLOCK} weights, and this model's {name} {getattr(spec, name)} is no multiple "
                "of that; choose f16."
            )


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows [N,K] of queries or keys in llama.cpp's order: channel 2c of a head was c, and 2c+1 was C/2+c."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def blocks(weight: Tensor, bits: int, *, search: bool = True) -> Tensor:
    """Quantize [N,K] to GGUF's blocks: uint8 [N, bytes of a row].

    A block is an fp16 scale d, then 32 codes: of 8 bits a byte each; of 4 bits plus 8 and two in a byte, the first 16
    in the low halves.
    """
    import torch

    from mobillama_v.backends.native.tiles import quantize

    rows, columns = weight.shape
    out = torch.empty(rows, columns // BLOCK, _BLOCK_BYTES[bits], dtype=torch.uint8)
    step = max(1, _AT_ONCE // columns)
    for first in range(0, rows, step):
        some = out[first : first + step]
        each = weight[first : first + step].float().reshape(len(some), -1, BLOCK)
        codes, scales = quantize(each, bits, search=search)
        some[..., :2] = scales.half()[..., None].view(torch.uint8)
        if bits == 8:
            some[..., 2:] = codes.to(torch.int8).view(torch.uint8)
        else:
            low, high = (codes + 8).to(torch.uint8).chunk(2, dim=-1)
            some[..., 2:] = low | high << 4
    return out.flatten(1)


def _add_shape(writer: Any, spec: DecoderConfig) -> None:
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_block_count(spec.num_hidden_layers)
    writer.add_head_count(spec.num_attention_heads)
    writer.add_head_count_kv(spec.num_key_value_heads)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)


def _add_tensors(
    writer: Any, gguf: ModuleType, decoder: nn.Module, lm_head: nn.Module, spec: DecoderConfig, kind: str, search: bool
) -> None:
    bits = TYPES[kind]
    raw = gguf.GGMLQuantizationType[kind.upper()]

    def converted(name: str, weight: Tensor) -> Any:
        check_fp16_range(weight.detach().float().numpy(), name)
        if bits:
            return blocks(weight, bits, search=search).numpy()
        return (weight.float() if kind == "f32" else weight.half()).contiguous().numpy()

    def add(name: str, array: Any) -> None:
        writer.add_tensor(f"{name}.weight", array, raw_dtype=raw)

    def add_norm(name: str, weight: Tensor) -> None:
        writer.add_tensor(f"{name}.weight", weight.float().contiguous().numpy())

    state = {name: tensor.detach().cpu() for name, tensor in decoder.state_dict().items()}
    add("token_embd", converted("embed_tokens", state["embed_tokens.weight"]))
    add_norm("output_norm", state["norm.weight"])
    if spec.llama3_rope is not None:
        plain = replace(spec, llama3_rope=None).rotary_frequencies()
        writer.add_tensor("rope_freqs.weight", plain / spec.rotary_frequencies())
    add("output", converted("lm_head", lm_head.state_dict()["weight"].detach().cpu()))
    shared: dict[str, Any] = {}  # one array, in the file once a layer
    for i in range(spec.num_hidden_layers):
        here, there = f"layers.{i}", f"blk.{i}"
        add_norm(f"{there}.attn_norm", state[f"{here}.input_layernorm.weight"])
        add_norm(f"{there}.ffn_norm", state[f"{here}.post_attention_layernorm.weight"])
        for part, target in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
            own = f"{here}.self_attn.{part}_proj"
            weight = state[f"{own}.weight"]
            turned = part in "qk" and decoder_type(spec) == "llama"
            add(f"{there}.{target}", converted(own, interleaved(weight, spec.head_dim) if turned else weight))
            if f"{own}.bias" in state:
                writer.add_tensor(f"{there}.{target}.bias", state[f"{own}.bias"].float().numpy())
        for part in "qk" if spec.qk_norm else "":
            add_norm(f"{there}.attn_{part}_norm", state[f"{here}.self_attn.{part}_norm.weight"])
        for part in ("gate", "up", "down"):
            own = f"feed_forward.{part}_proj" if spec.ffn_sharing == "all" else f"{here}.mlp.{part}_proj"
            if own not in shared:
                shared[own] = converted(own, state[f"{own}.weight"])
            add(f"{there}.ffn_{part}", shared[own])


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF says it: ``model`` is ``gpt2`` (byte-level BPE), ``llama`` (sentencepiece's) or ``none``."""

    model: str
    tokens: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    """Names of gguf's ``TokenType``."""
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    words: str = "gpt-2"
    """llama.cpp's name of what cuts a text into words."""
    boundary: bool = False
    """Whether a text is given a space before it."""
    notes: tuple[str, ...] = ()


def read_vocabulary(path: Path, spec: DecoderConfig) -> Vocabulary:
    """Read a ``tokenizer.json``; ids that it leaves out are filled up to the decoder's.

    Raises:
        CheckpointError: it cannot be read, or has ids that the decoder has not.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        model, added = found["model"], found.get("added_tokens") or []
        kind = model["type"]
        merges = [each if isinstance(each, str) else " ".join(each) for each in model.get("merges", ())]
        ids = dict(model["vocab"]) if kind == "BPE" else {}
        special = {each["id"]: (each["content"], bool(each["special"])) for each in added}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{str(path)!r} is not a tokenizer that can be read ({error}); copy it again.") from error
    parts = json.dumps([found.get("pre_tokenizer"), found.get("decoder")])
    byte_level = '"ByteLevel"' in parts
    if kind != "BPE" or not (byte_level or model.get("byte_fallback")):
        note = f"Its tokenizer ({kind}) has no counterpart in GGUF that is written here: the file takes and gives ids."
        return Vocabulary("none", notes=(note,))
    by_id = {index: token for token, index in ids.items()} | {index: each[0] for index, each in special.items()}
    check_vocabulary(path, max(by_id, default=0) + 1, spec)
    types = [_type(index, by_id.get(index), special, model.get("unk_token")) for index in range(spec.vocab_size)]
    tokens = tuple(by_id.get(index, f"[UNUSED{index}]") for index in range(spec.vocab_size))
    if byte_level:
        words = words_name(found.get("pre_tokenizer"))
        note = "Its tokenizer cuts texts into words by a rule of its own; llama.cpp will cut them as GPT-2 does."
        notes = () if words else (note,)
        return Vocabulary("gpt2", tokens, tuple(types), merges=tuple(merges), words=words or "gpt-2", notes=notes)
    # sentencepiece joins the pair whose whole has the highest score: the merges' order, said by the wholes.
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    scores = tuple(-float(ranks.get(token, len(merges))) for token in tokens)
    before = json.dumps([found.get("normalizer"), found.get("pre_tokenizer")])
    boundary = '"Prepend"' in before or ('"Metaspace"' in before and '"never"' not in before)
    return Vocabulary("llama", tokens, tuple(types), scores=scores, boundary=boundary)


def _type(index: int, token: str | None, special: dict[int, tuple[str, bool]], unknown: str | None) -> str:
    if token is None:
        return "UNUSED"
    if token == unknown:
        return "UNKNOWN"
    if index in special:
        return "CONTROL" if special[index][1] else "USER_DEFINED"
    return "BYTE" if _BYTE.fullmatch(token) else "NORMAL"


def _add_vocabulary(writer: Any, vocabulary: Vocabulary, spec: DecoderConfig) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.model == "none":
        return
    writer.add_token_list(list(vocabulary.tokens))
    kinds = library().TokenType
    writer.add_token_types([kinds[each] for each in vocabulary.types])
    if vocabulary.model == "gpt2":
        writer.add_tokenizer_pre(vocabulary.words)
        writer.add_token_merges(list(vocabulary.merges))
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.boundary)
    writer.add_bos_token_id(spec.bos_token_id)
    writer.add_eos_token_id(spec.eos_token_id)
    writer.add_pad_token_id(spec.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
