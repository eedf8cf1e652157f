"""LLaVA's own checkpoints, tiny: whole, as an adapter beside its base, and as a projector alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tiny
from mobillama_v.errors import CheckpointError
from mobillama_v.hub import read_spec
from mobillama_v.interop.import_model import import_model
from mobillama_v.model.vlm import load_network

TEXT = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "num_key_value_heads": 4}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
VISION |= {"image_size": 32, "patch_size": 8}
CONFIG = {"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336", **TEXT} | {
    **{"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"},
    **{"image_aspect_ratio": "pad"},
}


class Parts:
    """The same model in transformers' classes."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        self.folder = folder
        self.decoder = LlamaForCausalLM(LlamaConfig(**TEXT, initializer_range=0.3)).eval()
        self.tower = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
        self.projector = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
        for part in (self.tower, self.projector):
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        self.tower.save_pretrained(folder / "clip")
        self.decoder.save_pretrained(folder / "base")
        tiny.save_nano_like(folder / "nano")
        (folder / "base" / "tokenizer.json").write_text((folder / "nano" / "tokenizer.json").read_text())

    def projected(self) -> dict[str, torch.Tensor]:
        return {f"model.mm_projector.{name}": tensor for name, tensor in self.projector.state_dict().items()}

    def llava(self, **changes: Any) -> Path:
        """A folder with LLaVA's configuration."""
        folder = self.folder / "llava"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG | changes))
        return folder

    @torch.no_grad()
    def assert_same(self, folder: Path, decoder: Any = None) -> None:
        decoder, generator = decoder or self.decoder, torch.Generator().manual_seed(1)
        pixels = torch.randn(1, 3, 32, 32, generator=generator)
        ids = torch.randint(3, 390, (28,), generator=generator)
        mask = torch.arange(28) < 16
        features = self.projector(self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
        embeds = decoder.get_input_embeddings()(ids[None])
        embeds[0, :16] = features[0]
        encoded = SimpleNamespace(input_ids=ids.tolist(), image_mask=mask.tolist())
        found = tiny.whole_logits(load_network(folder, read_spec(folder)), encoded, pixels)
        torch.testing.assert_close(found, decoder(inputs_embeds=embeds).logits[0], rtol=0, atol=1e-4)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


@pytest.mark.parametrize("own_tower", [False, True])
def test_a_whole_model(own_tower: bool, parts: Parts, tmp_path: Path) -> None:
    folder = parts.llava()
    state = parts.decoder.state_dict() | parts.projected()
    if own_tower:
        tower = parts.tower.state_dict()
        state |= {
            f"model.vision_tower.vision_tower.vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in tower.items()
        }
    torch.save({name: tensor.clone() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    (folder / "tokenizer.json").write_text((parts.folder / "base" / "tokenizer.json").read_text())
    spec = import_model(str(folder), tmp_path / "ours", tower=str(tmp_path / "clip")).spec
    assert (spec.template, spec.image.mode, spec.decoder.ffn_sharing) == ("v1", "pad", "none")
    parts.assert_same(tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"give .*--tower|tower's folder with --tower"):
        import_model(str(folder), tmp_path / "other")


def test_an_adapter_beside_its_base(parts: Parts, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra lora is not installed")
    folder = parts.llava(image_aspect_ratio="square")
    adapted = peft.get_peft_model(
        parts.decoder, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    rest = {f"base_model.model.{name}": tensor for name, tensor in parts.projected().items()}
    torch.save(rest, folder / "non_lora_trainables.bin")
    places = {"base": str(tmp_path / "base"), "tower": str(tmp_path / "clip")}
    made = import_model(str(folder), tmp_path / "ours", **places)
    assert made.spec.image.mode == "crop"
    assert "4 matrices have an adapter's product added, times 2" in made.notes
    parts.assert_same(tmp_path / "ours", adapted.merge_and_unload())
    with pytest.raises(CheckpointError, match="give the language model with --base"):
        import_model(str(folder), tmp_path / "other", tower=places["tower"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    with pytest.raises(CheckpointError, match="other than plain LoRA"):
        import_model(str(folder), tmp_path / "other", **places)


def test_a_projector_alone(parts: Parts, tmp_path: Path) -> None:
    folder = parts.llava()
    torch.save(parts.projected(), folder / "mm_projector.bin")
    places = {"base": str(tmp_path / "base"), "tower": str(tmp_path / "clip")}
    import_model(str(folder), tmp_path / "ours", **places)
    parts.assert_same(tmp_path / "ours")
    torch.save({**parts.projected(), "model.mm_projector.4.weight": torch.zeros(2)}, folder / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"unknown model\.mm_projector\.4\.weight"):
        import_model(str(folder), tmp_path / "other", **places)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "a projector or features that are not LLaVA-1.5's"),
        ({"mm_vision_select_layer": -9}, "of the layer -9"),
    ],
)
def test_what_is_not_llava_1_5_is_refused(changes: dict[str, Any], problem: str, parts: Parts, tmp_path: Path) -> None:
    folder = parts.llava(**changes)
    save_file(parts.decoder.state_dict() | parts.projected(), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=problem):
        import_model(str(folder), tmp_path / "ours", tower=str(tmp_path / "clip"))
