"""Configurations: equal to the plain specs, exact round trips, and refusals that name the key."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from mobillama_v import MobiLlamaConfig, MobiLlamaVConfig
from mobillama_v.config import DecoderConfig, ModelConfig
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
    assert ModelConfig.from_dict(json.loads((tmp_path / "config.json").read_text())) == config.spec
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


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("text_config", "eos_token_id", "none", "eos_token_id must be a whole number, not 'none'"),
        ("text_config", "eos_token_id", [2, 3], "eos_token_id must be a whole number, not"),
        ("text_config", "bos_token_id", None, "bos_token_id must be a whole number, not None"),
        ("text_config", "pad_token_id", 97, "pad_token_id must be a token's id, from 0 to 96, not 97"),
        ("text_config", "vocab_size", True, "vocab_size must be a whole number, not True"),
        ("text_config", "hidden_size", 32.0, r"hidden_size must be a whole number, not 32\.0"),
        ("text_config", "rms_norm_eps", None, "rms_norm_eps must be a finite number, not None"),
        ("text_config", "rope_theta", math.nan, "rope_theta must be a finite number, not nan"),
        ("text_config", "rope_theta", 0, "rope_theta must be above 0, not 0"),
        ("text_config", "initializer_range", -1, "initializer_range must be above 0, not -1"),
        ("tower", "feature_layer", None, "feature_layer must be a whole number, not None"),
        ("tower", "feature_layer", -1.5, r"feature_layer must be a whole number, not -1\.5"),
        ("tower", "model", 7, "model must be a text, not 7"),
        ("tower", "pretrained", 3, "pretrained must be a text or null, not 3"),
        ("tower", "select", ["patch"], "select must be 'patch' or 'cls_patch'"),
        ("projector", "factor", True, "factor must be a whole number, not True"),
        ("projector", "type", {}, "type must be a text, not {}"),
        ("image", "size", None, "size must be a whole number of pixels"),
        ("image", "mean", [0, 0, math.nan], "mean must be three finite numbers"),
        ("template", None, {"v1": 1}, "template must be a text, not {'v1': 1}"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_sentence(part: str, key: str | None, value, message: str) -> None:
    changed = model_config()
    changed[part] = value if key is None else dict(changed[part]) | {key: value}
    for read in (
        lambda: MobiLlamaVConfig(**changed),
        lambda: ModelConfig.from_dict({"model_type": "mobillama_v"} | changed),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            read()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("part", ["tower", "projector", "image"])
@pytest.mark.parametrize("value", [[], 3, "x"])
def test_a_part_that_is_no_mapping_is_refused(part: str, value) -> None:
    for read in (MobiLlamaVConfig, lambda **parts: ModelConfig.from_dict({"model_type": "mobillama_v"} | parts)):
        with pytest.raises(ConfigError, match=f"{part}.* must be a mapping, not {type(value).__name__}"):
            read(**{part: value})


def test_another_model_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="model of type 'llava', not 'mobillama_v'"):
        ModelConfig.from_dict({"model_type": "llava"})


def test_plain_reader_refuses_unknown_keys() -> None:
    with pytest.raises(ConfigError, match=r"config\.json has unknown keys: speed"):
        ModelConfig.from_dict({"model_type": "mobillama_v", "speed": 9})
