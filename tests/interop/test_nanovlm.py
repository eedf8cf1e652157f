"""nanoVLM's files: Idefics3's arithmetic under nanoVLM's names gives Idefics3's logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

import mobillama_v
from mobillama_v.errors import CheckpointError
from mobillama_v.interop.import_model import import_model
from mobillama_v.prompt import user
from reference_models import TEXT, VISION, add_tokenizer, assert_same, idefics3

CONFIG = {
    **{"lm_vocab_size": TEXT["vocab_size"], "lm_hidden_dim": 32, "lm_inter_dim": 48, "lm_rms_eps": 1e-5},
    **{"lm_re_base": 10000, "lm_max_position_embeddings": 128, "lm_n_heads": 4, "lm_n_kv_heads": 2, "lm_n_blocks": 3},
    **{"lm_attn_scaling": 1.0, "lm_use_tokens": False, "lm_tie_weights": True, "lm_tokenizer": "odd/tokenizer"},
    **{"vit_hidden_dim": 24, "vit_inter_dim": 40, "vit_patch_size": 8, "vit_img_size": 32, "vit_n_heads": 3},
    **{"vit_n_blocks": VISION["num_hidden_layers"], "vit_ln_eps": 1e-6, "vit_cls_flag": False},
    **{"mp_pixel_shuffle_factor": 2, "vlm_load_backbone_weights": True},
}
NAMES = [
    ("model.connector.modality_projection.", "MP."),
    ("model.text_model.embed_tokens.", "decoder.token_embedding."),
    ("model.text_model.norm.", "decoder.norm."),
    ("lm_head.", "decoder.head."),
    ("model.text_model.layers.", "decoder.blocks."),
    ("input_layernorm", "norm1"),
    ("post_attention_layernorm", "norm2"),
    ("self_attn.o_proj", "attn.out_proj"),
    ("model.vision_model.embeddings.patch_embedding.", "vision_encoder.patch_embedding.conv."),
    ("model.vision_model.embeddings.position_embedding.weight", "vision_encoder.patch_embedding.position_embedding"),
    ("model.vision_model.post_layernorm.", "vision_encoder.layer_norm."),
    ("model.vision_model.encoder.layers.", "vision_encoder.blocks."),
    ("layer_norm", "ln"),
    ("vision_encoder.lnorm", "vision_encoder.layer_norm"),
    ("self_attn.", "attn."),
]


def save(folder: Path, *, tied: bool = True, **config: Any) -> Any:
    """An Idefics3 as nanoVLM saves itself; a tied head stands for the embeddings too."""
    model, state = idefics3(), {}
    for name, tensor in model.state_dict().items():
        for theirs, ours in NAMES:
            if "vision_encoder.layer_norm" not in name or theirs != "layer_norm":
                name = name.replace(theirs, ours)
        if name.endswith("position_embedding"):
            tensor = tensor[None]
        state[name] = tensor.clone()
    for name in [each for each in state if ".q_proj." in each and each.startswith("vision_encoder")]:
        parts = [state.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat(parts)
    if tied:
        del state["decoder.token_embedding.weight"]
    state["decoder.rotary_embd.inv_freq"] = 10000 ** -(torch.arange(4) / 4)
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return model


def tokenizer(folder: Path) -> Path:
    add_tokenizer(folder)
    path = folder / "tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    made.save(str(path))
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_it_gives_the_logits_of_the_same_arithmetic(tied: bool, tmp_path: Path) -> None:
    model = save(tmp_path / "theirs", tied=tied, lm_tie_weights=tied)
    words = tokenizer(tmp_path / "words")
    made = import_model(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer=words)
    assert made.spec.tokens_per_image() == 4 and made.spec.image.mean == (0, 0, 0)
    assert_same(model, tmp_path / "ours", 4)


EXTRA = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", "r1c1": "<row_1_col_1>"}
WAYS = {
    "nanovlm": ("", "Question: Hi Answer:", "<|endoftext|>"),
    "nanovlm-chat": ("<|im_start|>user\n", "Hi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "nanovlm-tile": ("<|im_start|>user\n<|global_image|>", "Hi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
}


@pytest.mark.parametrize("template", WAYS)
def test_its_ways_to_ask(template: str, tmp_path: Path) -> None:
    before, after, end = WAYS[template]
    words = tokenizer(tmp_path / "words")
    config: dict[str, Any] = {"lm_chat_template": "<|im_start|>"} if before else {}
    if template == "nanovlm-tile":
        config |= {"max_img_size": 1536, "vlm_extra_tokens": EXTRA}
    save(tmp_path / "theirs", **config)
    made = import_model(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer=words)
    spec, known = made.spec, Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    base = Tokenizer.from_file(str(words)).get_vocab_size()
    assert known.get_vocab_size() == base + 3 * (template == "nanovlm-tile")
    assert any("one tile" in note for note in made.notes) == (template == "nanovlm-tile")
    assert (spec.template, spec.decoder.eos_token_id) == (template, known.token_to_id(end))
    encoded = mobillama_v.load(str(tmp_path / "ours"), device="cpu", engine="torch").encode_messages(
        [user("Hi", images=1)]
    )
    first = encoded.image_mask.index(True)
    assert sum(encoded.image_mask) == 4
    for ids, text in ((encoded.input_ids[:first], before), (encoded.input_ids[first + 4 :], after)):
        assert known.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"max_img_size": 1536}, "splits pictures and has no global_image_token"),
        ({"vit_cls_flag": True}, "vit_cls_flag True"),
        ({}, r"comes without its tokenizer, 'odd/tokenizer'.*--tokenizer"),
    ],
)
def test_what_cannot_be_read_is_named(config: dict[str, Any], problem: str, tmp_path: Path) -> None:
    save(tmp_path / "theirs", **config)
    with pytest.raises(CheckpointError, match=problem):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    words = tokenizer(tmp_path / "words")
    save(tmp_path / "theirs", max_img_size=1536, vlm_extra_tokens=EXTRA, lm_base_vocab_size=5)
    with pytest.raises(CheckpointError, match=r"counts its own from 5; give the tokenizer of 'odd/tokenizer'"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer=words)
