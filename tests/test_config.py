"""Whatever a model folder's config.json holds, it is read or refused with one sentence."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobillama_v import load
from mobillama_v.checkpoint import weight_files
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError, ConfigError, MobiLlamaVError, PromptError
from mobillama_v.fields import shown
from mobillama_v.hub import find_model, read_spec
from mobillama_v.tokenization import TextTokenizer

NANO = find_model("nano")
CONFIG: dict[str, Any] = json.loads((NANO / "config.json").read_text())
VALUES: list[Any] = [
    *(None, "none", True, -1, 0, 0.5, math.nan, math.inf, 10**400, -(10**400), 5e-324, 2**31, 10**9),
    *([], {}, [1, 2, 3], [10**400] * 3, {"a": {}}, "\ud800", "a\0", "x" * 10_000),
]


def places(values: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


@pytest.mark.parametrize("place", list(places(CONFIG)), ids=".".join)
def test_any_value_at_any_place_is_read_or_refused(place: tuple[str, ...], tmp_path: Path) -> None:
    """And what is read loads, or is refused then."""
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(NANO / name)
    for value in VALUES:
        changed = copy.deepcopy(CONFIG)
        inside = changed
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            spec = read_spec(tmp_path)
            assert spec.num_params() > 0 < spec.tokens_per_image()
            load(str(tmp_path))
        except MobiLlamaVError as error:
            assert 20 < len(str(error)) < 1000 and "__init__" not in str(error), error


@pytest.mark.parametrize(
    "text", ["", "[", "null", "1", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "\0", '{"\\ud800": 1}']
)
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MobiLlamaVError, match=r"config\.json"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", '{"weight_map": 1}', '{"weight_map": {"a": 1, "b": "c"}}', '{"weight_map": {"a": "\\u0000"}}']
    + [f'{{"weight_map": {{"a": "{name}"}}}}' for name in ("../x", "\\ud800", "x" * 5000, "")],
    ids=range(9),
)
def test_an_index_of_weights_is_read_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"is not an index|not in its own folder|which its index names") as error:
        weight_files(tmp_path)
    assert len(str(error.value)) < 500


def test_sizes_end_where_the_engine_ends() -> None:
    with pytest.raises(ConfigError, match="max_position_embeddings must be a positive integer of at most 1048576"):
        DecoderConfig(max_position_embeddings=(1 << 20) + 1)


def test_what_a_message_shows_is_short() -> None:
    assert shown("a") == "'a'" and len(shown("x" * 1000)) == 81 and shown([1] * 9) == "a list of 9"
    assert shown(10**5000) == "a value of type int that is too large to show"


def test_half_a_character_is_refused_before_a_model_sees_it() -> None:
    tokenizer = TextTokenizer.of_decoder(NANO / "tokenizer.json", read_spec(NANO).decoder)
    with pytest.raises(PromptError, match="half a character"):
        tokenizer.encode("a\ud800")
    assert tokenizer.encode("a\0") != tokenizer.encode("a")
