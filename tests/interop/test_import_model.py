"""Whole models of transformers, tiny and random: imported, they give the logits of their own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from typer.testing import CliRunner

import mobillama_v
from mobillama_v.backends.native import library
from mobillama_v.cli.main import app
from mobillama_v.errors import CheckpointError
from mobillama_v.generate import Prompt
from mobillama_v.interop import import_model as importing
from mobillama_v.interop.import_model import import_model
from mobillama_v.prompt import user
from reference_models import assert_same, idefics3, internvl, llava, llava_onevision, save

CASES = {
    "clip and llama": ({}, 16),
    "clip with its class token, another layer": (
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        17,
    ),
    "a layer counted from the front": ({"vision_feature_layer": 1}, 16),
    "clip and qwen3": ({"decoder": "qwen3"}, 16),
    "siglip and qwen2": (
        {"tower": "siglip", "decoder": "qwen2"}
        | {"vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        16,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_llava_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    changes, tokens = CASES[name]
    model = llava(**changes)
    made = import_model(str(save(model, tmp_path / "theirs")), tmp_path / "ours")
    assert made.spec.tokens_per_image() == tokens
    assert (tmp_path / "ours" / "chat_template.jinja").exists()
    assert_same(model, tmp_path / "ours", tokens)


def test_idefics3_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    model = idefics3()
    made = import_model(str(save(model, tmp_path / "theirs")), tmp_path / "ours")
    assert made.spec.tokens_per_image() == 4
    assert any("one tile" in note for note in made.notes) and any("ties it" in note for note in made.notes)
    assert_same(model, tmp_path / "ours", 4)
    assistant = mobillama_v.load(str(tmp_path / "ours"), device="cpu", engine="torch")
    special, plain = assistant.tokenizer.special_id, assistant.tokenizer.encode
    around, end = special("<fake_token_around_image>"), special("<end_of_utterance>")
    picture = [around, special("<global-img>"), *[end] * 4, around]
    expected = [special("<|im_start|>"), *plain("User:"), *picture, *plain("Hi"), end, *plain("\nAssistant:")]
    assert assistant.encode_messages([user("Hi", images=1)]).input_ids == expected


def test_llava_onevision_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    model = llava_onevision()
    made = import_model(str(save(model, tmp_path / "theirs")), tmp_path / "ours")
    assert made.spec.tokens_per_image() == 17 and any("one tile of 17 tokens" in note for note in made.notes)
    assert_same(model, tmp_path / "ours", 17, images=2)


@pytest.mark.parametrize("decoder", ["qwen2", "qwen3"])
def test_internvl_gives_the_logits_of_transformers(decoder: str, tmp_path: Path) -> None:
    model = internvl(decoder)
    made = import_model(str(save(model, tmp_path / "theirs")), tmp_path / "ours")
    assert made.spec.tokens_per_image() == 4 and any("one tile" in note for note in made.notes)
    assert_same(model, tmp_path / "ours", 4)
    assistant = mobillama_v.load(str(tmp_path / "ours"), device="cpu", engine="torch")
    ids = assistant.encode_messages([user("Hi", images=1)]).input_ids
    text = Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json")).decode(ids, skip_special_tokens=False)
    picture = "<img>" + "<|im_end|>" * 4 + "</img>\n"
    assert text == f"<|im_start|>user\n{picture}Hi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer -2"),
        ({"vision_config": {"use_qk_norm": True, "attention_bias": True}}, "use_qk_norm True"),
        ({"vision_config": {"image_size": [448, 224], "attention_bias": True}}, "448, 224"),
    ],
)
def test_an_internvl_with_another_tower_is_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    folder = save(internvl(), tmp_path / "theirs")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=problem):
        import_model(str(folder), tmp_path / "ours")


@pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")
@pytest.mark.parametrize("kind", ["llava", "idefics3", "internvl"])
def test_what_is_imported_runs_natively(kind: str, tmp_path: Path) -> None:
    makers: dict[str, Any] = {"idefics3": idefics3, "internvl": internvl}
    model = makers.get(kind, lambda: llava("siglip", "qwen2", vision_feature_select_strategy="full"))()
    import_model(str(save(model, tmp_path / "theirs")), tmp_path / "ours")
    logits = []
    for engine in ("torch", "native"):
        assistant = mobillama_v.load(str(tmp_path / "ours"), device="cpu", engine=engine)
        encoded = assistant.encode_messages([user("Hi", images=1)])
        features = assistant.vision.encode_image(
            torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
        )
        logits.append(torch.as_tensor(assistant.engine.prefill([Prompt(encoded, [features])], room=1)[1][0]))
    assert (logits[0] - logits[1]).abs().max() < 2e-2 * logits[0].abs().max()


def hub_layout(folder: Path) -> None:
    """Rename tensors as the files on the hub have them, and cut them into ``.bin`` shards."""
    state = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.")
        name = name.replace("vision_tower.", "vision_tower.vision_model.") if "vision_model" not in name else name
        if (
            name.startswith(("lm_head", "language_model."))
            and ".model." not in name
            and "language_model.lm_head" not in name
        ):
            name = name.replace("language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")
        renamed[name] = tensor
    renamed["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    names = sorted(renamed)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, chosen in shards.items():
        torch.save({name: renamed[name] for name in chosen}, folder / shard)
    index = {"weight_map": {name: shard for shard, chosen in shards.items() for name in chosen}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_shards_in_the_hubs_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD", 50_000)
    model = llava()
    folder = save(model, tmp_path / "theirs")
    hub_layout(folder)
    made = import_model(str(folder), tmp_path / "ours")
    assert any("1 buffers are left out" in note for note in made.notes)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    assert_same(model, tmp_path / "ours", 16)


def test_equal_networks_are_held_once(tmp_path: Path) -> None:
    model = llava()
    for layer in model.model.language_model.layers:
        layer.mlp.load_state_dict(model.model.language_model.layers[0].mlp.state_dict())
    folder = save(model, tmp_path / "theirs")
    made = import_model(str(folder), tmp_path / "ours")
    assert made.spec.decoder.ffn_sharing == "all"
    assert_same(model, tmp_path / "ours", 16)
    assert import_model(str(folder), tmp_path / "own", ffn="per-layer").spec.decoder.ffn_sharing == "none"


def test_what_the_folder_says_of_pictures_and_tokens(tmp_path: Path) -> None:
    folder = save(llava(), tmp_path / "theirs")
    picture = {"do_center_crop": True, "size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture | {"resample": 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    (folder / "chat_template.jinja").write_text("<|im_start|>{{ messages }}")
    spec = import_model(str(folder), tmp_path / "ours").spec
    assert (spec.image.mode, spec.image.std, spec.image.resample) == ("crop", (0.25,) * 3, "bilinear")
    assert spec.template == "chatml"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = spec.decoder.bos_token_id, spec.decoder.eos_token_id
    assert ids == (tokenizer.token_to_id("<s>"), tokenizer.token_to_id("<|im_end|>"))


def edit(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.update(odd=torch.zeros(2)), "has unknown odd"),
        (
            lambda state: state.pop("lm_head.weight", state.pop("language_model.lm_head.weight", None)),
            r"lacks .*lm_head\.weight",
        ),
        (
            lambda state: state.update({n: torch.zeros(7) for n in state if n.endswith("linear_2.bias")}),
            r"projector\.linear_2\.bias is \[7\] and must be \[32\]",
        ),
        (
            lambda state: [state.pop(n) for n in list(state) if n.endswith("1.self_attn.v_proj.bias")],
            r"lacks .*layers\.1\.self_attn\.v_proj\.bias",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Any, problem: str, tmp_path: Path) -> None:
    folder = save(llava(), tmp_path / "theirs")
    edit(folder, change)
    with pytest.raises(CheckpointError, match=problem):
        import_model(str(folder), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "paligemma"}, r"type 'paligemma'; what can be imported: .*llava-hf"),
        ({"vision_feature_layer": [-2, -3]}, r"of the layers \[-2, -3\]"),
        ({"vision_feature_layer": 0}, "of the layers 0"),
        ({"vision_feature_select_strategy": "odd"}, "selects features by 'odd'"),
        ({"projector_hidden_act": "relu"}, "a projector other than two layers"),
        ({"vision_config": {"model_type": "pixtral"}}, "a tower of type 'pixtral'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "drops the first patch"),
        ({"text_config": {"model_type": "mistral"}}, "a decoder of type 'mistral'"),
    ],
)
def test_what_no_model_here_has_is_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    folder = save(llava(), tmp_path / "theirs")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=problem):
        import_model(str(folder), tmp_path / "ours")


def test_the_command(tmp_path: Path) -> None:
    folder = save(idefics3(), tmp_path / "theirs")
    result = CliRunner().invoke(app, ["import", str(folder), str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    assert "4 visual tokens" in result.stdout and "tensors written and read back" in result.stdout
    result = CliRunner().invoke(app, ["import", str(folder), str(tmp_path / "ours")])
    assert result.exit_code == 2 and "there already" in result.stderr


def test_a_chatml_model_in_the_other_doors(tmp_path: Path) -> None:
    """transformers' processor writes the same conversation, and training learns the same tokens."""
    from transformers import AutoProcessor

    from mobillama_v.chat_templates import get_template
    from mobillama_v.prompt import assistant
    from mobillama_v.train.data.encoding import Encoding, _tokenizer

    folder = save(llava(), tmp_path / "theirs")
    (folder / "chat_template.jinja").write_text("<|im_start|>")
    spec = import_model(str(folder), tmp_path / "ours").spec
    text = AutoProcessor.from_pretrained(tmp_path / "ours").apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    encoding = Encoding.of(tmp_path / "ours", spec, template=None, max_length=None, key="the context")
    turns = [user("Hi"), assistant("Yes."), user("Really?"), assistant("No.")]
    encoded = get_template("chatml").encode(turns, _tokenizer(encoding, 0), tokens_per_image=16)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole = tokenizer.decode(encoded.input_ids, skip_special_tokens=False)
    assert whole.count("<|im_start|>") == 4 and whole.endswith("assistant\nNo.<|im_end|>")
    learnt = [token for token in encoded.labels if token != -100]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "Yes.<|im_end|>No.<|im_end|>"
