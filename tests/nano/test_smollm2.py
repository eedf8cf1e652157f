"""A decoder from a GGUF file gets nano's tower, a projector and adapters, in two short stages, and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from typer.testing import CliRunner

import mobillama_v
import tiny
from mobillama_v.chat_templates import get_template
from mobillama_v.config import DecoderConfig
from mobillama_v.generate import Sampling
from mobillama_v.hub import find_model, read_spec
from mobillama_v.interop.gguf import write_gguf
from mobillama_v.model.decoder import Decoder
from mobillama_v.model.vlm import load_network
from nano.__main__ import app

pytest.importorskip("gguf", reason="the extra gguf is not installed")


def chatml_decoder(folder: Path) -> Path:
    """A tiny Llama of random weights whose chats are ChatML, as a GGUF file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tiny.SENTENCES, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = tiny.DECODER | {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 512}
    spec = DecoderConfig(**sizes, ffn_sharing="none", bos_token_id=1, eos_token_id=2, pad_token_id=2)
    torch.manual_seed(0)
    head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
    path, template = folder / "decoder.gguf", get_template("chatml").jinja
    write_gguf(path, Decoder(spec), head, spec, kind="f16", tokenizer=folder / "tokenizer.json", chat_template=template)
    return path


@pytest.mark.slow
def test_two_short_stages(tmp_path: Path) -> None:
    flickr8k, out = tmp_path / "flickr8k", tmp_path / "out"
    (flickr8k / "images").mkdir(parents=True)
    rows = []
    for i, color in enumerate(("red", "green", "blue", "black", "white", "yellow")):
        Image.new("RGB", (224, 224), color).save(flickr8k / "images" / f"{i}.png")
        captions = [f"A {color} dog is running on the beach .", f"A dog in the {color} water"]
        rows.append({"image": f"{i}.png", "split": "dev" if i == 5 else "train", "captions": captions})
    (flickr8k / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ["smollm2", "--decoder", str(chatml_decoder(tmp_path)), "--flickr8k", str(flickr8k), "--out", str(out)]
    asked += ["--align-steps", "2", "--instruct-steps", "2"]
    result = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    final = out / "instruct" / "final"
    assert str(final) in result.stdout
    spec, nano = read_spec(final), read_spec(find_model("nano"))
    assert (spec.template, spec.tower, spec.image) == ("chatml", nano.tower, nano.image)
    assert "5.png" not in (out / "align.json").read_text()
    start, end, theirs = (
        load_network(each, read_spec(each)).state_dict() for each in (out / "start", final, find_model("nano"))
    )
    for name, tensor in start.items():
        own = name.split(".")[0]
        learnt = own == "projector" or ".self_attn." in name or ".mlp." in name
        assert torch.equal(tensor, end[name]) != learnt, name
        if own == "vision_tower":
            assert torch.equal(tensor, theirs[name]), name
    picture = Image.open(flickr8k / "images" / "0.png")
    said = mobillama_v.load(str(final), device="cpu").ask([picture], "Describe the image.", Sampling(4))
    assert said.image_tokens > 0
    assert CliRunner().invoke(app, asked, catch_exceptions=False).exit_code == 0  # everything is there
