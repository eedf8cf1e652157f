"""The whole model against transformers' Llava, with copied weights."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mobillama_v import (
    MobiLlamaConfig,
    MobiLlamaForCausalLM,
    MobiLlamaVConfig,
    MobiLlamaVForConditionalGeneration,
)
from mobillama_v.errors import PromptError
from tiny import DECODER, IMAGE_SIZE, PATCH, TOWER_LAYERS, TOWER_WIDTH, model_config

PATCHES = (IMAGE_SIZE // PATCH) ** 2
IMAGE_ID = DECODER["vocab_size"] - 1


def reference() -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=4 * TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=TOWER_WIDTH // 8,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**DECODER, rms_norm_eps=1e-6),
        image_token_index=IMAGE_ID,
        vision_feature_layer=-2,
    )
    torch.manual_seed(2)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def tower_state(state: dict[str, torch.Tensor], visual: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' CLIP vision names to open_clip's; what Llava never uses is taken from ``visual``."""
    out = {
        "class_embedding": state["embeddings.class_embedding"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "conv1.weight": state["embeddings.patch_embedding.weight"],
        "ln_pre.weight": state["pre_layrnorm.weight"],
        "ln_pre.bias": state["pre_layrnorm.bias"],
    }
    for i in range(TOWER_LAYERS):
        theirs, ours = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            out[f"{ours}attn.in_proj_{kind}"] = torch.cat([state[f"{theirs}self_attn.{x}_proj.{kind}"] for x in "qkv"])
            out[f"{ours}attn.out_proj.{kind}"] = state[f"{theirs}self_attn.out_proj.{kind}"]
            for a, b in (
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                out[f"{ours}{a}.{kind}"] = state[f"{theirs}{b}.{kind}"]
    return {name: out.get(name, tensor) for name, tensor in visual.items()}


@pytest.fixture(scope="module")
def pair(tower_name: str):
    llava = reference()
    llama = llava.model.language_model.state_dict()
    config = MobiLlamaVConfig(**model_config(text_config=DECODER | {"ffn_sharing": "none"}))
    ours = MobiLlamaVForConditionalGeneration(config).eval()
    ours.language_model.load_state_dict(llama, strict=True)
    ours.lm_head.load_state_dict(llava.lm_head.state_dict())
    ours.projector.load_state_dict(llava.model.multi_modal_projector.state_dict(), strict=True)
    vision = {k.removeprefix("vision_model."): v for k, v in llava.model.vision_tower.state_dict().items()}
    visual = ours.vision_tower.visual
    visual.load_state_dict(tower_state(vision, visual.state_dict()), strict=True)
    return ours, llava


def prompts(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, IMAGE_ID, (rows, PATCHES + 9))
    for row in range(rows):
        ids[row, 2 + row : 2 + row + PATCHES] = IMAGE_ID
    return ids, torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_logits_are_llavas(pair) -> None:
    ours, llava = pair
    ids, pixels = prompts()
    with torch.no_grad():
        expected = llava(input_ids=ids, pixel_values=pixels).logits
        got = ours(input_ids=ids, pixel_values=pixels, image_mask=ids == IMAGE_ID).logits
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)


def test_generate_is_llavas(pair) -> None:
    ours, llava = pair
    ids, pixels = prompts()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = llava.generate(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **options)
    got = ours.generate(
        input_ids=ids,
        pixel_values=pixels,
        image_mask=ids == IMAGE_ID,
        attention_mask=torch.ones_like(ids),
        **options,
    )
    torch.testing.assert_close(got, expected)


def test_the_image_matters(pair) -> None:
    ours, _ = pair
    ids, pixels = prompts()
    with torch.no_grad():
        a = ours(input_ids=ids, pixel_values=pixels, image_mask=ids == IMAGE_ID).logits
        b = ours(input_ids=ids, pixel_values=pixels.flip(0), image_mask=ids == IMAGE_ID).logits
    assert (a - b).abs().max() > 1e-2


@pytest.mark.parametrize("images", [1, 3])
def test_wrong_number_of_images_is_refused(pair, images: int) -> None:
    ours, _ = pair
    ids, _ = prompts()
    with pytest.raises(PromptError, match=f"2 images and {images} images"):
        ours(input_ids=ids, pixel_values=torch.randn(images, 3, IMAGE_SIZE, IMAGE_SIZE), image_mask=ids == IMAGE_ID)


def test_partial_slots_are_refused_with_the_row(pair) -> None:
    ours, _ = pair
    ids, pixels = prompts()
    mask = ids == IMAGE_ID
    mask[1, 3] = False
    with pytest.raises(PromptError, match=f"row 1 has {PATCHES - 1} image slots.*{PATCHES}"):
        ours(input_ids=ids, pixel_values=pixels, image_mask=mask)


def test_pixels_without_slots_are_refused(pair) -> None:
    ours, _ = pair
    ids, pixels = prompts()
    with pytest.raises(PromptError, match="go together"):
        ours(input_ids=ids, pixel_values=pixels)


def test_round_trip_is_exact(pair, tmp_path) -> None:
    ours, _ = pair
    ours.save_pretrained(tmp_path)
    again, info = MobiLlamaVForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.config.spec == ours.config.spec
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_with_images_equal_single_rows(pair, side: str) -> None:
    ours, _ = pair
    ids, pixels = prompts(rows=3)
    lengths, total = [PATCHES + 9, PATCHES + 6, PATCHES + 7], PATCHES + 9
    rows, mask = torch.zeros(3, total, dtype=torch.long), torch.zeros(3, total, dtype=torch.long)
    places = [slice(0, n) if side == "right" else slice(total - n, total) for n in lengths]
    for i, (n, place) in enumerate(zip(lengths, places, strict=True)):
        rows[i, place], mask[i, place] = ids[i, :n], 1
    with torch.no_grad():
        batch = ours(input_ids=rows, pixel_values=pixels, image_mask=rows == IMAGE_ID, attention_mask=mask).logits
        for i, (n, place) in enumerate(zip(lengths, places, strict=True)):
            one = ids[i : i + 1, :n]
            alone = ours(input_ids=one, pixel_values=pixels[i : i + 1], image_mask=one == IMAGE_ID).logits[0]
            torch.testing.assert_close(batch[i, place], alone, rtol=1e-4, atol=1e-3)


def test_text_models_take_the_mask_second_and_no_images() -> None:
    torch.manual_seed(0)
    model = MobiLlamaForCausalLM(MobiLlamaConfig(**DECODER)).eval()
    ids, mask = torch.arange(3, 11).view(2, 4), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert torch.equal(model(ids, mask).logits, model(input_ids=ids, attention_mask=mask).logits)
    slots = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(PromptError, match="reads text alone"):
        model(ids, mask, image_features=torch.zeros(2, 4, 24), image_mask=slots)
