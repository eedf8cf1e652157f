"""What a newcomer writes to add a projector: one class. Everything else finds it by its name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mobillama_v import MobiLlamaVConfig, MobiLlamaVForConditionalGeneration
from mobillama_v.cli.models import report_of
from mobillama_v.config import ProjectorConfig
from mobillama_v.errors import ConfigError
from mobillama_v.hub import read_spec
from mobillama_v.loading import load
from mobillama_v.model.vlm import TorchVisionEncoder
from mobillama_v.projector import PROJECTORS, Projector, register_projector
from tiny import model_config

RED = Image.new("RGB", (300, 200), (200, 30, 30))


class SiluMLP(Projector):
    """The tensors of ``mlp2x_gelu`` and another activation: a backend that does not ask for the type is wrong."""

    def linear_layers(self, tower_width: int, decoder_width: int) -> dict[str, tuple[int, int]]:
        return {"linear_1": (tower_width, decoder_width), "linear_2": (decoder_width, decoder_width)}

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Any) -> Any:
        return layers.linear_2(F.silu(layers.linear_1(features)))


class Resampler(Projector):
    """Learned queries that attend to the features: layers that are not linear, and a fixed number of visual tokens."""

    def num_tokens(self, extra: int, patches: int) -> int:
        return 3

    def num_params(self, tower_width: int, decoder_width: int) -> int:
        return 3 * decoder_width + (tower_width + 1) * decoder_width

    def layers(self, tower_width: int, decoder_width: int) -> dict[str, nn.Module]:
        return {"queries": nn.Embedding(3, decoder_width), "keys": nn.Linear(tower_width, decoder_width)}

    def forward(self, layers: Any, features: Any, *, extra: int, ops: Any) -> Any:
        keys = layers.keys(features)
        queries = layers.queries.weight.expand(len(keys), -1, -1)
        return F.scaled_dot_product_attention(queries, keys, keys)


@pytest.fixture
def registered() -> Iterator[None]:
    new: dict[str, type[Projector]] = {"mlp2x_silu": SiluMLP, "resampler": Resampler}
    for name, kind in new.items():
        register_projector(name)(kind)
    yield
    for name in new:
        del PROJECTORS[name]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["mlp2x_silu", "resampler"])
def test_it_is_built_counted_saved_and_loaded(name: str, tower_name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MobiLlamaVForConditionalGeneration(MobiLlamaVConfig(**model_config(projector={"type": name}))).eval()
    spec = model.config.spec
    kind = spec.projector.kind
    assert kind.num_params(24, 32) == sum(each.numel() for each in model.projector.parameters())
    tokens = model.get_image_features(torch.rand(2, 3, 32, 32))
    assert tokens.shape == (2, kind.num_tokens(0, 16), 32) and model.tokens_per_image == kind.num_tokens(0, 16)
    model.save_pretrained(tmp_path)
    again = MobiLlamaVForConditionalGeneration.from_pretrained(tmp_path)
    white = torch.ones(1, 3, 32, 32)
    assert torch.equal(again.get_image_features(white), model.get_image_features(white))
    assert read_spec(tmp_path) == spec
    report = report_of(str(tmp_path))
    assert {"part": f"projector ({name})", "parameters": kind.num_params(24, 32)} in report["parts"]
    assert report["tokens_per_image"] == model.tokens_per_image


@pytest.mark.usefixtures("registered")
def test_a_backend_that_cannot_run_it_leaves_it_to_torch(nano_like: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nano_like, tmp_path / "silu")
    config = json.loads((folder / "config.json").read_text())
    config["projector"]["type"] = "mlp2x_silu"
    (folder / "config.json").write_text(json.dumps(config))
    model, gelu = load(str(folder), device="cpu"), load(str(nano_like), device="cpu", engine="torch")
    assert isinstance(model.vision, TorchVisionEncoder)
    seen = torch.as_tensor(model.encode_image(RED).features)
    network = gelu.network
    with torch.inference_mode():
        features = network.vision_tower(torch.from_numpy(gelu.spec.image(RED))[None])
        hidden = F.silu(network.projector.linear_1(features))
        expected = network.projector.linear_2(hidden)[0]
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.usefixtures("registered")
def test_a_name_stands_for_one_projector() -> None:
    with pytest.raises(ValueError, match="there is a projector 'linear' already"):
        register_projector("linear")(SiluMLP)
    with pytest.raises(ConfigError, match=r"choose one of linear, .*, mlp2x_silu, resampler"):
        ProjectorConfig("perceiver")
    with pytest.raises(ConfigError, match="projector resampler needs a factor of 1, not 2"):
        dataclasses.replace(ProjectorConfig("resampler"), factor=2)
