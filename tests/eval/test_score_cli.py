"""The commands that load no model, as a user calls them."""

from __future__ import annotations

import fnmatch
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import official
from mobillama_v.cli.main import app
from mobillama_v.eval.benchmarks.registry import get, public


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app([str(each) for each in ("eval", *args)])
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


def answers(folder: Path, name: str, *, leave_out: int = 0) -> Path:
    examples = get(name).load(folder)
    lines = [{"question_id": each.id, "prompt": each.prompt, "text": each.answers[0]} for each in examples]
    return official.dump_lines(folder / "answers.jsonl", lines[leave_out:])


@pytest.mark.parametrize("name", public())
def test_score(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    official.write_all(tmp_path)
    path = answers(tmp_path / name, name, leave_out=1)
    code, out, err = call(capsys, "score", name, "--predictions", path, "--data", tmp_path)
    assert (code, err) == (0, "")
    head = {"gqa": "GQA: 83.33", "scienceqa": "ScienceQA: 100.00", "textvqa": "TextVQA: 65.00", "mme": "MME: 1925.00"}
    assert out.startswith(head[name])
    assert "missing answers, counted as wrong: 1" in out
    assert "not comparable with published scores" in out
    assert "prompt:" in out and "split:" in out
    if name == "textvqa":
        assert "ocr: rosetta" in out
    if name == "scienceqa":
        assert "  prompt: [Context: {hint}\\n]{question}\\nA. {choice}…\\nAnswer with" in out
    assert call(capsys, "score", name, "-p", path, "-d", tmp_path / name)[1] == out  # or its own folder


def test_what_others_asked_is_not_called_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official.textvqa(tmp_path)
    rows = official.textvqa_rows()
    ours = [{"question_id": row["question_id"], "text": "x", "prompt": official.textvqa_prompt(row)} for row in rows]
    marked = [each | {"prompt": "<image>\n" + each["prompt"]} for each in ours]
    mixed = [*ours[:3], ours[3] | {"prompt": "What brand is this?"}]
    silent = [{"question_id": each["question_id"], "answer": "x"} for each in ours]
    expected = {
        "ours": (ours, "prompt: {question}\\nReference OCR token: {tokens}", "ocr: rosetta"),
        "marked": (marked, "prompt: {question}\\nReference OCR token: {tokens}", "ocr: rosetta"),
        "mixed": (mixed, "prompt: the predictions' own; 1 of 4 are not {question}", "ocr: tokens in 3 of 4 prompts"),
        "silent": (silent, "prompt: not given by the predictions", "ocr: not given by the predictions"),
    }
    for lines, prompt, ocr in expected.values():
        path = official.dump_lines(tmp_path / "answers.jsonl", lines)
        out = call(capsys, "score", "textvqa", "-p", path, "-d", tmp_path)[1]
        assert f"  {prompt}" in out and f"  {ocr}" in out


def test_scoring_textvqa_needs_no_file_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (official.textvqa(tmp_path) / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    rows = official.textvqa_rows()
    lines = [{"question_id": row["image_id"], "text": "red", "prompt": official.textvqa_prompt(row)} for row in rows]
    path = official.dump_lines(tmp_path / "answers.jsonl", lines)
    code, out, _ = call(capsys, "score", "textvqa", "-p", path, "-d", tmp_path)
    assert code == 0 and out.startswith("TextVQA: 25.00") and "ocr: tokens in 4 of 4 prompts" in out
    code, _, err = call(capsys, "score", "textvqa", "-p", path, "-d", tmp_path, "--ocr", "rosetta")
    assert code == 2 and "has no TextVQA_Rosetta_OCR" in err


def test_score_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official.custom(tmp_path)
    path = official.dump_lines(tmp_path / "a.jsonl", [{"question_id": "a", "text": "Red"}])
    code, out, _ = call(capsys, "score", "custom", "-p", path, "-d", tmp_path, "--metric", "anls", "--json")
    found = json.loads(out)
    assert code == 0 and found["headline"] == {"name": "ANLS", "value": pytest.approx(100 / 3)}
    assert found["correct"] == {"a": 1, "b": 0, "c": 0} and found["missing"] == ["b", "c"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("score", "gqaa"), "no benchmark 'gqaa'"),
        (("score", "gqa", "--ocr", "none"), "the benchmark gqa has no option 'ocr'"),
        (("score", "mme"), "not a folder of MME"),
    ],
)
def test_errors_are_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    path = answers(official.gqa(tmp_path), "gqa")
    code, out, err = call(capsys, *args, "-p", path, "-d", tmp_path)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_predictions_and_data_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "score", "gqa", "-p", tmp_path / "no", "-d", official.gqa(tmp_path / "gqa"))
    assert code == 2 and "does not exist; give --predictions" in err
    code, _, err = call(capsys, "score", "gqa", "-p", tmp_path / "no", "-d", tmp_path / "no")
    assert code == 2 and "does not exist; give --data" in err


def test_scoring_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    path = answers(official.gqa(tmp_path), "gqa")
    code = (
        "import sys; from mobillama_v.cli.main import app\n"
        f"try: app(['eval', 'score', 'gqa', '-p', {str(path)!r}, '-d', {str(tmp_path)!r}])\n"
        "except SystemExit as end: print(end.code, {'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_prepare_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "prepare", "--data", official.write_all(tmp_path))
    assert (code, err) == (0, "")
    for line in ("questions: 6 of 12,578", "questions: 4 of 4,241", "questions: 4 of 5,000", "questions: 56 of 2,374"):
        assert line in out
    assert out.count("not the owners' whole set") == 4 and "images: 28 of 28" in out
    (tmp_path / "gqa" / "images" / "n001.jpg").unlink()
    code, out, _ = call(capsys, "prepare", "gqa", "--data", tmp_path)
    assert code == 1 and "images: 1 of 2" in out and "1 images are missing, the first is" in out


def test_prepare_says_what_to_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "prepare", "--data", tmp_path / "nothing")
    assert code == 1 and out.count("not ready") == 4
    for part in (
        "testdev_balanced_questions.json",
        "pid_splits.json",
        "TextVQA_Rosetta_OCR_v0.2_val.json",
        "'existence/'",
    ):
        assert part in out
    assert not (tmp_path / "nothing").exists()
    folders = [shlex.split(line, comments=True)[-1] for line in out.splitlines() if "--local-dir" in line]
    assert folders == [str(tmp_path / "nothing" / name) for name in public()]
    assert "lmms-lab/GQA --repo-type dataset --include 'testdev_balanced_*'" in out and "# 65.6 MB" in out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    code, out, _ = call(capsys, "prepare", "textvqa", "--ocr", "none", "--data", tmp_path / "mine")
    assert code == 1 and "may have TextVQA_Rosetta" in out and "TextVQA_0.5.1_val.json is missing" in out
    assert f"--local-dir {tmp_path / 'mine'}\n" in out
    code, out, _ = call(capsys, "prepare", "gqa", "--consistency", "--data", tmp_path / "nothing")
    assert "testdev_all_questions.json" in out and "hf download" not in out


def test_the_lines_to_download_fetch_what_is_read(tmp_path: Path) -> None:
    """The patterns take the files of lmms-lab's layout in which the readers look, and no others of these data sets."""
    files = {
        "gqa": ["testdev_balanced_images/testdev-0.parquet", "testdev_balanced_instructions/testdev-0.parquet"],
        "scienceqa": ["ScienceQA-FULL/test-00000-of-00001.parquet"],
        "textvqa": ["data/validation-00000-of-00003.parquet"],
        "mme": ["data/test-00000-of-00002.parquet"],
    }
    others = ["train_all_images/train-0.parquet", "testdev_all_instructions/testdev-0.parquet", "data/train-0.parquet"]
    for name, wanted in files.items():
        pattern = get(name).hub_files()
        assert [each for each in (*wanted, *others) if fnmatch.fnmatch(each, pattern)] == wanted
