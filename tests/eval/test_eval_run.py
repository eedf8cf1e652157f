"""The commands `eval run` and `eval compare` on small sets in the official formats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import official
from mobillama_v.cli.main import app
from mobillama_v.eval.benchmarks.registry import public
from mobillama_v.eval.results import read_result
from mobillama_v.eval.store import PREDICTIONS

FILES = ("run.json", PREDICTIONS, "score.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official.write_all(tmp_path_factory.mktemp("official"))


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of all, and what it printed."""
    output = tmp_path_factory.mktemp("runs") / "first"
    code, out, err = call("eval", "run", "all", "--model", "nano", "--data", data, "--output", output)
    assert code == 0, err
    return output, out


def test_run_all_from_files_to_report(data: Path, done: tuple[Path, str]) -> None:
    output, said = done
    counts = {"gqa": 6, "scienceqa": 4, "textvqa": 4, "mme": 56}
    for name in public():
        assert sorted(path.name for path in (output / name).iterdir() if path.name != ".lock") == sorted(FILES)
        lines = [json.loads(line) for line in (output / name / PREDICTIONS).read_text().splitlines()]
        assert len(lines) == counts[name]
        assert {"question_id", "prompt", "text", "finish_reason", "model"} == set(lines[0])
        found = read_result(output / name)
        assert len(found.questions) == counts[name] and found.interval and not found.score.missing
    assert (output / "report.html").is_file() and (output / "report.md").is_file()
    for words in ("GQA: ", "95 % interval: ", "paper, MobiLlama-V 0.8B: 58.5", "ocr: rosetta", "report: "):
        assert words in said


def test_our_predictions_score_the_same_without_a_model(data: Path, done: tuple[Path, str]) -> None:
    for name in public():
        predictions = done[0] / name / PREDICTIONS
        code, out, err = call("eval", "score", name, "--predictions", predictions, "--data", data, "--json")
        assert code == 0, err
        assert json.loads(out)["headline"]["value"] == pytest.approx(read_result(done[0] / name).score.headline)


def test_a_finished_run_is_not_asked_again(data: Path, done: tuple[Path, str], monkeypatch) -> None:
    from mobillama_v import loading

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load", fail)
    before = {name: (done[0] / name / PREDICTIONS).read_bytes() for name in public()}
    (done[0] / "report.html").unlink()
    code, out, err = call("eval", "run", "all", "-m", "nano", "-d", data, "-o", done[0])
    assert code == 0, err
    assert out == done[1] and (done[0] / "report.html").is_file()
    assert before == {name: (done[0] / name / PREDICTIONS).read_bytes() for name in public()}


@pytest.mark.slow
def test_a_killed_run_of_all_ends_the_same(data: Path, done: tuple[Path, str], tmp_path: Path) -> None:
    output = tmp_path / "again"
    command = [sys.executable, "-m", "mobillama_v", "eval", "run", "all", "-m", "nano", "-d", data, "-o", output]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([*map(str, command), "--batch-size", "4"], env=env, stdout=subprocess.PIPE, text=True)
    while not (output / "mme" / "shards").is_dir() and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    subprocess.run([*map(str, command), "--batch-size", "4"], env=env, check=True, capture_output=True)
    for name in public():
        assert (output / name / PREDICTIONS).read_bytes() == (done[0] / name / PREDICTIONS).read_bytes()


def test_all_says_which_folders_are_missing(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "gqa", tmp_path / "data" / "gqa")
    code, out, err = call("eval", "run", "all", "-m", "nano", "-d", tmp_path / "data", "-o", tmp_path / "run")
    assert code == 1 and "GQA: " in out
    assert [line.split(" is left out")[0] for line in err.splitlines() if "left out" in line] == list(public()[1:])
    code, _, err = call("eval", "run", "all", "-m", "nano", "-d", tmp_path / "run" / "gqa", "-o", tmp_path / "other")
    assert code == 2 and "has no folder gqa, scienceqa, textvqa, mme" in err and not (tmp_path / "other").exists()


def test_a_bad_picture_in_one_benchmark_leaves_the_others_whole(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    (copy / "gqa" / "images" / "n000.jpg").write_bytes(b"\x00" * 99)
    code, out, err = call("eval", "run", "all", "-m", "nano", "-d", copy, "-o", tmp_path / "run")
    assert code == 2 and "MME: " in out and (tmp_path / "run" / "mme" / "score.json").is_file()
    message = err.splitlines()[-1]
    assert message.startswith("error: 3 of 6 questions could not be asked") and "n000.jpg" in message
    assert "report: " in out and "MME" in (tmp_path / "run" / "report.md").read_text()
    code, out, err = call("eval", "run", "gqa", "-m", "nano", "-d", copy, "-o", tmp_path / "run", "--allow-missing")
    assert code == 0 and err.startswith("warning: 3 of 6 questions") and "missing answers, counted as wrong: 3" in out
    report = (tmp_path / "run" / "report.html").read_text()
    assert "3 questions have no answer" in report and "3 without an answer" in report


def test_the_first_questions_are_a_try(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    code, out, err = call("eval", "run", "all", "-m", "nano", "-d", data, "-o", output, "--limit", "3")
    assert code == 0, err
    assert out.count("limit: the first 3 questions") == 4 and "questions: 3 of the owners' 12,578" in out
    assert {len(read_result(output / name).questions) for name in public()} == {3}
    code, _, err = call("eval", "run", "gqa", "-m", "nano", "-d", data, "-o", output)
    assert code == 2 and "limit 'the first 3 questions', not None" in err
    code, _, err = call("eval", "run", "gqa", "-d", data, "-o", output, "--limit", "3", "--consistency")
    assert code == 2 and "leave out --limit or --consistency" in err


def test_one_benchmark_with_options(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    options = ["-m", "nano", "-d", data, "-o", output, "--ocr", "none", "--max-new-tokens", "2"]
    code, out, err = call("eval", "run", "textvqa", *options)
    assert code == 0 and "ocr: none" in out, err
    assert "Reference OCR" not in (output / "textvqa" / PREDICTIONS).read_text()
    code, _, err = call("eval", "run", "textvqa", "-m", "nano", "-d", data, "-o", output)
    assert code == 2 and "ocr 'none', not 'rosetta'" in err and "max_new_tokens 2, not 48" in err


def test_one_s_own_questions(data: Path, tmp_path: Path) -> None:
    code, out, err = call("eval", "run", "custom", "-m", "nano", "-d", data / "custom", "-o", tmp_path / "run")
    assert code == 0, err
    assert "exact match" in out and read_result(tmp_path / "run" / "custom").interval


def test_options_of_one_benchmark_are_refused_for_all(data: Path, tmp_path: Path) -> None:
    code, _, err = call("eval", "run", "all", "-m", "nano", "-d", data, "-o", tmp_path / "run", "--split", "test")
    assert code == 2 and "--split means something else in each benchmark" in err


def test_an_unknown_model_is_told_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    code, _, err = call("eval", "run", "gqa", "-m", "nobody", "-d", data, "-o", tmp_path / "run")
    assert code == 2 and "there is no model 'nobody'" in err and not (tmp_path / "run").exists()


def test_compare_two_runs(data: Path, done: tuple[Path, str], tmp_path: Path) -> None:
    second = tmp_path / "second"
    code, _, err = call("eval", "run", "mme", "-m", "nano", "-d", data, "-o", second)
    assert code == 0, err
    path = second / "mme" / "score.json"
    score = json.loads(path.read_text())
    for row in score["questions"][:7]:
        row["correct"] = 1 - row["correct"]
    path.write_text(json.dumps(score))
    page, every = tmp_path / "compare.md", tmp_path / "different.jsonl"
    code, out, err = call("eval", "compare", done[0], second, "--output", page, "--disagreements", every)
    assert code == 0, err
    assert "1,191.9" in out and "58.5" in out and "disagree on 7" in out.replace("\n", " ")
    assert "disagree on 7" in page.read_text() and len(every.read_text().splitlines()) == 7
    code, _, err = call("eval", "compare", tmp_path)
    assert code == 2 and "holds no scores" in err
