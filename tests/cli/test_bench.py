"""The command that measures one model: its figures are those of the seconds, by every backend that can run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mobillama_v.backends.native import library
from mobillama_v.cli.bench import measure, prompt_lengths, spread
from mobillama_v.cli.main import app


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


FEW = ("--prompts", "5,12", "--new", 3, "--turns", 2, "--threads", 1)


def test_a_model_is_measured_by_all_backends(nano_like: Path) -> None:
    code, out, err = call("bench", "-m", nano_like, *FEW, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert len(facts["backends"]) == 3 - bool(library.missing()) and facts["turns"] == 2
    for by_length in facts["backends"].values():
        assert list(by_length) == ["5", "12"]
        for speeds in by_length.values():
            for each in speeds.values():
                assert 0 < each["least"] <= each["median"] <= each["most"]
    code, out, err = call("bench", "run", "-m", nano_like, *FEW, "--backend", "torch")
    assert code == 0, err
    header, row, last = out.splitlines()
    assert "prefill 5 tok/s" in header and "decode after 12 tok/s" in header
    assert row.startswith("PyTorch float32 on cpu")
    assert last.endswith("medians of 2 turns (least-most).")


def test_both_phases_are_timed_a_turn_and_every_prompt_is_new(nano_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobillama_v.loading import load

    engine = load(str(nano_like), engine="torch").engine
    asked: list[list[int]] = []
    prefill = engine.prefill

    def spy(prompts, room):
        asked.append(prompts[0].encoded.input_ids)
        return prefill(prompts, room)

    monkeypatch.setattr(engine, "prefill", spy)
    seconds = measure({"torch": engine}, [6, 8], new=3, turns=2)["torch"]
    assert {length: len(pairs) for length, pairs in seconds.items()} == {6: 2, 8: 2}
    assert all(min(pair) > 0 for pairs in seconds.values() for pair in pairs)
    assert len({tuple(ids) for ids in asked}) == 5  # one to warm up


def test_a_spread_is_of_its_values() -> None:
    assert spread([3.0, 1.0, 8.0]) == {"median": 3.0, "least": 1.0, "most": 8.0}
    assert prompt_lengths("64, 640,64") == [64, 640]


def test_mistakes_and_what_has_moved_are_told(nano_like: Path) -> None:
    for arguments, message in (
        (["--prompts", "many"], "is not a list of numbers"),
        (["--prompts", "0"], "is not a list of numbers"),
        (["-m", nano_like, "--prompts", 600], "do not fit the model's context of 512"),
        (["-m", "nobody"], "there is no model"),
        (["-m", nano_like, "--backend", "abacus"], "'abacus' is unknown"),
        (["eval"], "is now `python -m benchmarks eval`"),
        (["train"], "is now `python -m benchmarks train`"),
        (["photo.jpg"], "takes no argument 'photo.jpg'"),
    ):
        code, _, err = call("bench", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err
