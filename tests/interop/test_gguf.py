"""The decoder as GGUF: read back, every tensor is the decoder's, and llama.cpp's rotation does what ours does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from mobillama_v.backends.native.tiles import pack_matrix, unpack_matrix
from mobillama_v.cli.main import app
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.interop.gguf import interleaved, read_vocabulary, write_gguf
from mobillama_v.model.decoder import Decoder, apply_rotary, rotary_tables

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

SHARED = DecoderConfig(99, 64, 96, 3, 4, 4, 300, rms_norm_eps=1e-5, rope_theta=5000.0)
SHAPES = {
    "shared": SHARED,
    "grouped": dataclasses.replace(SHARED, num_attention_heads=8, num_key_value_heads=2, ffn_sharing="none"),
}
MATRICES = {"attn_output": "self_attn.o_proj", "attn_v": "self_attn.v_proj"} | {
    f"ffn_{part}": f"{part}_proj" for part in ("gate", "up", "down")
}


def model(spec: DecoderConfig) -> tuple[Decoder, nn.Linear]:
    torch.manual_seed(0)
    return Decoder(spec).eval(), nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)


def halves(weight: Tensor, head_dim: int) -> Tensor:
    """What :func:`interleaved` has put in llama.cpp's order, in ours again."""
    heads = weight.view(-1, head_dim, weight.shape[1])
    return torch.cat((heads[:, 0::2], heads[:, 1::2]), dim=1).flatten(0, 1)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    reader = gguf.GGUFReader(path)
    tensors = {}
    for each in reader.tensors:
        values = torch.from_numpy(gguf.dequantize(each.data, each.tensor_type).copy())
        tensors[each.name.removesuffix(".weight")] = values.view(*[int(n) for n in each.shape][::-1])
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
def test_every_tensor_is_the_decoders(kind: str, shape: str, tmp_path: Path) -> None:
    """Of the quantized types too, number for number: gguf's own decoder gives what our packed file means."""
    spec = SHAPES[shape]
    decoder, head = model(spec)
    assert write_gguf(tmp_path / "m.gguf", decoder, head, spec, kind=kind) == ()
    _, tensors = read(tmp_path / "m.gguf")

    def meant(weight: Tensor) -> Tensor:
        if kind[0] == "f":
            return weight if kind == "f32" else weight.half().float()
        bits = int(kind[1])
        return unpack_matrix(pack_matrix(weight, bits), bits, *weight.shape)

    state = {name.removesuffix(".weight"): tensor for name, tensor in decoder.state_dict().items()}
    expected = {"token_embd": meant(state["embed_tokens"]), "output": meant(head.weight), "output_norm": state["norm"]}
    for i in range(spec.num_hidden_layers):
        for theirs, mine in MATRICES.items():
            network = "feed_forward." if spec.ffn_sharing == "all" else f"layers.{i}.mlp."
            owner = network if theirs.startswith("ffn") else f"layers.{i}."
            expected[f"blk.{i}.{theirs}"] = meant(state[owner + mine])
        expected[f"blk.{i}.attn_norm"] = state[f"layers.{i}.input_layernorm"]
        expected[f"blk.{i}.ffn_norm"] = state[f"layers.{i}.post_attention_layernorm"]
        for part in "qk":
            expected[f"blk.{i}.attn_{part}"] = meant(state[f"layers.{i}.self_attn.{part}_proj"])
            tensors[f"blk.{i}.attn_{part}"] = halves(tensors[f"blk.{i}.attn_{part}"], spec.head_dim)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name


def test_the_file_says_what_the_decoder_is(tmp_path: Path) -> None:
    decoder, head = model(SHARED)
    write_gguf(tmp_path / "m.gguf", decoder, head, SHARED, kind="q4_0", name="tiny")
    fields, _ = read(tmp_path / "m.gguf")
    assert fields["general.architecture"] == "llama" and fields["general.name"] == "tiny"
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert fields["tokenizer.ggml.model"] == "none" and fields["llama.vocab_size"] == 99
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert fields["llama.rope.freq_base"] == 5000.0 and fields["llama.rope.dimension_count"] == 16
    assert (fields["llama.block_count"], fields["llama.feed_forward_length"]) == (3, 96)
    assert (fields["llama.context_length"], fields["llama.embedding_length"]) == (300, 64)
    assert (fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]) == (4, 4)


def test_rotating_neighbours_of_the_written_rows_is_our_rotation() -> None:
    """As llama.cpp does for a Llama: channels 2c and 2c+1 of a head turn by position * theta^(-2c/C)."""
    heads, width, length = 2, 8, 5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(length, 12, generator=generator)
    q, k = (torch.randn(heads * width, 12, generator=generator) for _ in range(2))
    tables = rotary_tables(torch.arange(length)[None], head_dim=width, theta=5000.0, dtype=torch.float32)

    def ours(weight: Tensor) -> Tensor:
        return apply_rotary((x @ weight.T).view(1, length, heads, width).transpose(1, 2), *tables)[0]

    def theirs(weight: Tensor) -> Tensor:
        pairs = torch.view_as_complex((x @ interleaved(weight, width).T).view(length, heads, width // 2, 2))
        angles = torch.arange(length)[:, None] * 5000.0 ** (-torch.arange(0, width, 2) / width)
        turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(-2).transpose(0, 1)

    torch.testing.assert_close(theirs(q) @ theirs(k).mT, ours(q) @ ours(k).mT)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", "gguf", *map(str, arguments)])


def test_a_model_is_exported_with_its_tokenizer(nano_like: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    result = call(nano_like, out, "--type", "f16")
    assert result.exit_code == 0, result.stderr
    assert str(out) in result.stdout and "MB, f16" in result.stdout
    fields, tensors = read(out)
    written = json.loads((nano_like / "tokenizer.json").read_text())["model"]
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])} == written["vocab"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(each) for each in written["merges"]]
    assert fields["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]  # control, and then normal
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert tensors["token_embd"].shape == (len(written["vocab"]), 32)
    assert list(tmp_path.iterdir()) == [out]


def test_a_sentencepiece_tokenizer_joins_in_the_order_of_its_merges(tmp_path: Path) -> None:
    """llama.cpp joins the neighbors whose whole has the highest score, the leftmost first."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("▁", "a"), ("bc", "bc")]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abc", *("".join(m) for m in merges)]
    tokenizer = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    words = read_vocabulary(tmp_path / "tokenizer.json", dataclasses.replace(SHARED, vocab_size=300))
    assert words.model == "llama" and words.boundary and words.notes == ()
    assert words.types[:4] == ("UNKNOWN", "CONTROL", "CONTROL", "BYTE") and words.types[259:] == (
        *["NORMAL"] * 9,
        *["UNUSED"] * 32,
    )
    ids = {token: i for i, token in enumerate(words.tokens)}
    for text in ("abc", "bcbc", "aabcbc", "cab"):
        pieces = [*("▁" + text)]
        while True:
            joined = [
                (-words.scores[ids[a + b]], i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in ids
            ]
            if not joined:
                break
            _, i = min(joined)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        assert pieces == tokenizer.encode(text, add_special_tokens=False).tokens, text


def test_what_cannot_be_is_refused(nano_like: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (packed / name).write_text((nano_like / name).read_text())
    (packed / "packed.safetensors").touch()
    out = tmp_path / "m.gguf"
    for arguments, message in (
        ((nano_like, out, "--type", "q4_0"), "q4_0 has blocks of 32 weights, and this model's intermediate_size 48 is"),
        ((nano_like, out, "--type", "q2_k"), "the GGUF type 'q2_k' is unknown; choose f32, f16, q8_0 or q4_0"),
        ((nano_like, packed, "--type", "f16"), "is there already"),
        ((nano_like, tmp_path / "no" / "m.gguf"), "there is no folder"),
        ((packed, out, "--type", "f16"), "is packed; give the model that it was made from"),
        ((tmp_path / "nothing", out), "there is no model"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not out.exists()


def test_odd_weights_and_tokenizers_are_refused(tmp_path: Path) -> None:
    decoder, head = model(SHARED)
    with torch.no_grad():
        decoder.layers[1].self_attn.q_proj.weight[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj holds weights that are not finite"):
        write_gguf(tmp_path / "m.gguf", decoder, head, SHARED, kind="f16")
    with pytest.raises(ConfigError, match="hidden_size 48 is no multiple"):
        odd = dataclasses.replace(SHARED, hidden_size=48)
        write_gguf(tmp_path / "m.gguf", *model(odd), odd, kind="q8_0")
    broken = tmp_path / "tokenizer.json"
    broken.write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(CheckpointError, match="is not a tokenizer that can be read"):
        read_vocabulary(broken, SHARED)
    broken.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 99}, "byte_fallback": True, "merges": []}}))
    with pytest.raises(CheckpointError, match="has 100 tokens and the decoder 99 embeddings"):
        read_vocabulary(broken, SHARED)
    broken.write_text('{"model": {"type": "Unigram", "vocab": []}}')
    words = read_vocabulary(broken, SHARED)
    assert words.model == "none" and "Unigram" in words.notes[0]


def test_without_the_package_it_says_what_to_install(
    nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = call(nano_like, tmp_path / "m.gguf", "--type", "f16")
    assert result.exit_code == 2
    assert result.stderr == "error: a GGUF file needs gguf: pip install 'mobillama-v[gguf]'.\n"
