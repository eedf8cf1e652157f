"""4-bit codes chosen by what a model is really given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from decoders import SHAPES, Plain
from mobillama_v.backends.native.calibration import gathered_moments
from mobillama_v.backends.native.packed_format import FILE, matrices, tiles_shape
from mobillama_v.backends.native.tiles import pack_matrix, unpack_matrix
from mobillama_v.backends.native.torch_convert import pack, unpack
from mobillama_v.cli.main import app


def correlated(rows: int, columns: int) -> torch.Tensor:
    """Inputs [rows, columns] of few directions and uneven sizes, as activations are."""
    torch.manual_seed(1)
    few = torch.randn(rows, columns // 4) @ torch.randn(columns // 4, columns)
    return (few + 0.3 * torch.randn(rows, columns)) * torch.linspace(0.1, 3, columns)


@pytest.mark.parametrize(("rows", "columns"), [(48, 128), (33, 70)])
def test_products_are_nearer_than_with_the_nearest_codes(rows: int, columns: int) -> None:
    x, weight = correlated(4000, columns), torch.randn(rows, columns)
    seen, unseen = x[:2000], x[2000:]
    nearest = pack_matrix(weight, 4)
    chosen = pack_matrix(weight, 4, moments=seen.T @ seen)
    assert chosen.shape == tiles_shape(rows, columns, 4)
    off = [(unseen @ (unpack_matrix(each, 4, rows, columns) - weight).T).pow(2).mean() for each in (nearest, chosen)]
    assert off[1] < 0.6 * off[0]


def test_inputs_that_are_alike_everywhere_give_up_nothing() -> None:
    """With the identity for moments no error can be made good: the codes are the nearest ones, scale by scale."""
    weight = torch.randn(32, 64)
    assert torch.equal(pack_matrix(weight, 4, moments=torch.eye(64)), pack_matrix(weight, 4))
    assert pack_matrix(weight, 4, moments=torch.zeros(64, 64)).shape == tiles_shape(32, 64, 4)  # nothing was seen


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_those_of_every_use(shape: str) -> None:
    spec = SHAPES[shape]
    model = Plain(spec)
    decoder = model.language_model
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, module in decoder.named_modules():
        if name.endswith(("up_proj", "down_proj", "v_proj", "o_proj")):
            module.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0][0]))
    with gathered_moments(decoder, model.lm_head, spec) as moments:
        for length in (5, 9):
            model.logits(torch.randn(length, spec.hidden_size))
    known = {name: tensor.clone() for name, tensor in moments.items()}
    model.logits(torch.randn(4, spec.hidden_size))
    assert all(torch.equal(known[name], tensor) for name, tensor in moments.items())  # no hook is left
    assert known.keys() == matrices(spec).keys()
    network = "feed_forward" if spec.ffn_sharing == "all" else "layers.1.mlp"
    index = 0 if spec.ffn_sharing == "all" else 1
    uses = spec.num_hidden_layers if spec.ffn_sharing == "all" else 1
    for mine, theirs, count in (
        (f"feed_forward.{index}.gate_up", f"{network}.up_proj", uses),
        (f"feed_forward.{index}.down", f"{network}.down_proj", uses),
        ("layers.1.qkv", "layers.1.self_attn.v_proj", 1),
        ("layers.1.out", "layers.1.self_attn.o_proj", 1),
    ):
        seen = torch.cat(inputs[theirs][: 2 * count])
        assert len(seen) == 14 * count
        torch.testing.assert_close(known[mine], seen.T @ seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_calibrated_decoder_is_nearer_to_the_float_one(shape: str) -> None:
    spec = SHAPES[shape]
    model = Plain(spec)
    decoder, head = model.language_model, model.lm_head
    tokens = torch.randint(0, spec.vocab_size, (40, 24), generator=torch.Generator().manual_seed(2))
    embeds = decoder.embed_tokens(tokens)
    with gathered_moments(decoder, head, spec) as moments:
        for each in embeds[:30]:
            model.logits(each)
    wanted = torch.stack([model.logits(each) for each in embeds[30:]])
    off = []
    for known in (None, moments):
        state, weight = unpack(pack(decoder, head, spec, 4, moments=known))
        other = Plain(spec)
        other.language_model.load_state_dict(state)
        other.lm_head.weight.copy_(weight)
        off.append((torch.stack([other.logits(each) for each in embeds[30:]]) - wanted).pow(2).mean())
    assert off[1] < 0.9 * off[0]


def call(*arguments: object):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_quantize_calibrates_with_records(nano_like: Path, tmp_path: Path) -> None:
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "a.png")
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a red circle"}]
    words = [{"from": "human", "value": "And now?"}, {"from": "gpt", "value": "a blue one"}]
    records = tmp_path / "records.json"
    told = [{"id": "1", "image": "a.png", "conversations": talk}, {"id": "2", "conversations": words}]
    records.write_text(json.dumps(told))
    arguments = ("quantize", nano_like, "--calibrate", records, "--image-root", tmp_path)
    for out, more in (("guided", arguments), ("nearest", arguments[:2])):
        result = call(*more, tmp_path / out)
        assert result.exit_code == 0, result.stderr
    assert (tmp_path / "guided" / FILE).read_bytes() != (tmp_path / "nearest" / FILE).read_bytes()
    result = call("describe", tmp_path / "a.png", "-m", tmp_path / "guided", "--max-new-tokens", 3, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    before = sorted(tmp_path.iterdir())
    for more, message in (
        (("--bits", 8), "--calibrate is for 4 bits"),
        (("--image-root", tmp_path / "guided"), "a.png"),
        (("--calibrate", tmp_path / "none.json"), "none.json"),
    ):
        result = call(*arguments, tmp_path / "new", *more)
        assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before
