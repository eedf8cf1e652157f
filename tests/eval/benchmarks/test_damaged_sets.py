"""Whatever one value of a published file turns into, a set is read and scored or refused in one sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import official
from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.registry import get

JUNK = [None, True, -1, 3.5, 10**30, "", "x", [], {}, [None], ["a", 1], {"a": 1}]
FILES = [
    ("gqa", "testdev_balanced_questions.json"),
    ("gqa", "testdev_choices.json"),
    ("scienceqa", "problems.json"),
    ("scienceqa", "pid_splits.json"),
    ("textvqa", "TextVQA_0.5.1_val.json"),
    ("textvqa", "TextVQA_Rosetta_OCR_v0.2_val.json"),
    ("custom", "questions.json"),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = official.write_all(tmp_path_factory.mktemp("sets"))
    choices = {name: {"valid": ["red"], "plausible": ["red"]} for name in official.gqa_questions()}
    official.dump(root / "gqa" / "testdev_choices.json", choices)
    lines = (root / "custom" / "questions.jsonl").read_text().splitlines()
    (root / "custom" / "questions.jsonl").unlink()
    official.dump(root / "custom" / "questions.json", [json.loads(line) for line in lines])
    return root


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead there."""
    yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*way, key))


@pytest.mark.parametrize(("name", "file"), FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_one_wrong_value(sets: Path, name: str, file: str, data: st.DataObject) -> None:
    path = sets / name / file
    text = path.read_text()
    value = json.loads(text)
    way = data.draw(st.sampled_from(list(places(value))))
    junk = data.draw(st.sampled_from(JUNK))
    holder = value = copy.deepcopy([value])
    for key in (0, *way[:-1]) if way else ():
        holder = holder[key]
    holder[way[-1] if way else 0] = junk
    path.write_text(json.dumps(value[0]))
    try:
        bench = get(name)
        examples = bench.load(sets / name)
        found = bench.score(examples, {each.id: "red" for each in examples[1:]})
        assert len(found.correct) == len(examples) and found.missing == (examples[0].id,)
        assert 0 <= found.headline <= 100
    except DataError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(text)
