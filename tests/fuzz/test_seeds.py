"""Every seed of the fuzzer, and what it found once, ends with a result or a user's error."""

from __future__ import annotations

import random
import re

import pytest

from fuzz.make_seeds import SEEDS
from fuzz.targets import TARGETS, run
from mobillama_v.errors import MobiLlamaVError

FOUND = [
    # A tokenizer without the token for what is unknown, and one whose ids are far apart.
    ("config", b'{}\n---\n{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}}'),
    ("config", b'{}\n---\n{"model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 999999}, "unk_token": "<unk>"}}'),
    ("config", b'{"model_type": "mobillama_v", "text_config": {"rms_norm_eps": 1e999}}\n---\n'),
    ("recipes", b"name: 1" + b"0" * 5000),
    ("recipes", b'name: "\\ud800"'),
    ("requests", b'{"model": "nano", "messages": [{"role": "user", "content": "\\ud800"}]}'),
]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_there_and_reach_the_end(name: str) -> None:
    seeds = sorted((SEEDS / name).iterdir())
    assert len(seeds) >= 2 and sum(path.stat().st_size for path in seeds) < 50_000
    reached = 0
    for path in seeds:
        try:
            TARGETS[name](path.read_bytes())
            reached += 1
        except MobiLlamaVError:
            pass
    assert reached >= len(seeds) / 2


def test_the_script_finds_seeds_for_all_its_targets() -> None:
    script = (SEEDS.parents[1] / ".ci" / "fuzz").read_text(encoding="utf-8")
    found = re.search(r"for target in ([a-z ]+);", script)
    assert found and set(found[1].split()) == {"engine", *TARGETS} == {path.name for path in SEEDS.iterdir()}


@pytest.mark.parametrize("name", TARGETS)
def test_changed_seeds_end_well(name: str) -> None:
    """A hundredth of a second of fuzzing, without a fuzzer."""
    chance = random.Random(0)
    for path in sorted((SEEDS / name).iterdir()):
        for _ in range(8):
            data = bytearray(path.read_bytes())
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(data))
                data[at : at + chance.choice((0, 1, 1, 4))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
            run(name, bytes(data))


@pytest.mark.parametrize(("name", "data"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_ends_well(name: str, data: bytes) -> None:
    run(name, data)
