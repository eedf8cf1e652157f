"""Configurations: equal to the plain specs, exact round trips, and refusals that name the key."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mobillama_v import MobiLlamaConfig, MobiLlamaVConfig
from mobillama_v.config import DecoderConfig, ModelConfig, spec_from_config
from mobillama_v.errors import ConfigError
from tiny import model_config


def test_the_two_forms_have_the_same_fields_and_defaults() -> None:
    assert MobiLlamaConfig().spec == DecoderConfig()
    assert MobiLlamaVConfig().spec == ModelConfig()


def test_every_decoder_field_reaches_the_spec() -> None:
    changed = DecoderConfig(96, 48, 64, 2, 4, 2, 64, 1e-5, 5e4, "none", 0.01, 3, 4, 5)
    assert MobiLlamaConfig(**dataclasses.asdict(changed)).spec == changed


def test_saved_file_reads_as_either_form(tmp_path) -> None:
    config = MobiLlamaVConfig(**model_config(projector={"type": "avg_pool_mlp", "factor": 2}))
    config.save_pretrained(tmp_path)
    assert MobiLlamaVConfig.from_pretrained(tmp_path).spec == config.spec
    assert spec_from_config(json.loads((tmp_path / "config.json").read_text())) == config.spec
    assert MobiLlamaVConfig.from_spec(config.spec).spec == config.spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_dim": 3}, "hidden_dim"),
        ({"tower": {"modle": "x"}}, "tower has unknown keys: modle"),
        ({"projector": {"type": "magic"}}, "projector type 'magic' is unknown"),
        ({"image": {"size": 0}}, "size"),
        ({"template": "v9"}, "template 'v9' is unknown"),
        ({"text_config": {"hidden_size": 33}}, "hidden_size 33 cannot be split into 32 heads"),
        ({"text_config": {"num_key_value_heads": 5}}, "not a multiple of num_key_value_heads 5"),
        ({"text_config": {"ffn_shared": True}}, "ffn_shared"),
        ({"text_config": {"tie_word_embeddings": True}}, "head is untied"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MobiLlamaVConfig(**model_config(**change))


def test_another_model_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="model of type 'llava', not 'mobillama_v'"):
        spec_from_config({"model_type": "llava"})


def test_plain_reader_refuses_unknown_keys() -> None:
    with pytest.raises(ConfigError, match=r"config\.json has unknown keys: speed"):
        spec_from_config({"model_type": "mobillama_v", "speed": 9})
