"""Answers are those of one question at a time, each image is encoded once, and a kill costs nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toy
from mobillama_v.backends.native import library
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.batching import batches, windows
from mobillama_v.eval.benchmarks.base import Example
from mobillama_v.eval.benchmarks.registry import find
from mobillama_v.eval.evaluate import TOO_LONG
from mobillama_v.eval.results import judge
from mobillama_v.eval.store import PREDICTIONS, Store

TOKENS = 6
SCRIPT = """
import importlib.util, os, resource, sys
from pathlib import Path
if full := os.environ.get("FULL"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(full),) * 2)
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy
spec.loader.exec_module(toy)
import torch
torch.set_num_threads(1)
from mobillama_v import distributed
distributed.join()
toy.run(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], batch_size=2, max_new_tokens=6)
distributed.cleanup()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.draw(folder, pictures=6)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, nano_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never broken off."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    toy.run(data, folder, nano_like, batch_size=2, max_new_tokens=TOKENS)
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def start(data: Path, output: Path, model: Path, **variables: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", SCRIPT, toy.__file__, str(data), str(output), str(model)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_batched_answers_equal_single_answers(data: Path, whole: Path, nano_like: Path) -> None:
    from mobillama_v.generate import Sampling
    from mobillama_v.loading import load

    assistant = load(str(nano_like), engine="torch")
    answers = {line["question_id"]: line for line in lines(whole / PREDICTIONS)}
    examples = toy.Toy().load(data)
    assert list(answers) == [example.id for example in examples]  # the benchmark's order, each once
    for example in examples:
        alone = assistant.ask(example.images, example.prompt, Sampling(max_new_tokens=TOKENS))
        found = answers[example.id]
        assert (found["text"], found["finish_reason"]) == (alone.text, alone.finish_reason)
        assert found["prompt"] == example.prompt and found["model"] == str(nano_like)
    assert len({line["text"] for line in answers.values()}) > 5, "answers that are all alike show nothing"
    assert not (whole / "shards").exists()


@pytest.mark.parametrize("template", ["v1", "plain"])
def test_pictures_and_texts_in_torch_are_answered_as_alone(
    template: str, data: Path, nano_like: Path, tmp_path: Path
) -> None:
    """Five questions a picture, and some without one; in ``plain`` nothing of a prompt is the question's own."""
    from mobillama_v.generate import Sampling
    from mobillama_v.loading import load

    questions = json.loads((data / "questions.json").read_text())
    if template == "v1":  # in plain there is nothing to say without a picture
        questions += [{**each, "id": f"text-{each['id']}", "image": ""} for each in questions[:3]]
    for path in data.glob("*.png"):
        os.link(path, tmp_path / path.name)
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    model = tmp_path / "model"
    shutil.copytree(nano_like, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"template": template}))
    done = toy.run(tmp_path, tmp_path / "run", model, batch_size=4, max_new_tokens=TOKENS)
    assistant = load(str(model), engine="torch")
    for example in done.examples:
        alone = assistant.ask(example.images, example.prompt, Sampling(max_new_tokens=TOKENS))
        assert (done.texts[example.id], done.answers[example.id]["finish_reason"]) == (alone.text, alone.finish_reason)
    assert len(set(done.texts.values())) >= 3


def test_each_image_is_encoded_once(data: Path, nano_like: Path, tmp_path: Path, monkeypatch) -> None:
    from mobillama_v.assistant import Assistant

    encoded: list[str] = []
    see = Assistant.encode_image
    monkeypatch.setattr(Assistant, "encode_image", lambda self, image: encoded.append(str(image)) or see(self, image))
    questions = json.loads((data / "questions.json").read_text())
    random.Random(0).shuffle(questions)  # an image's questions need not stand together
    (tmp_path / "data").mkdir()
    for path in data.glob("*.png"):
        os.link(path, tmp_path / "data" / path.name)
    (tmp_path / "data" / "questions.json").write_text(json.dumps(questions))
    toy.run(tmp_path / "data", tmp_path / "run", nano_like, batch_size=2, max_new_tokens=1)
    assert sorted(name for name in encoded if name.endswith(".png")) == sorted(
        str(path) for path in (tmp_path / "data").glob("*.png")
    )


@pytest.mark.skipif(bool(library.missing()), reason="no native library")
@pytest.mark.parametrize("batch_size", [3, 32])  # with 3, an image's questions are of two batches
def test_the_native_engine_answers_as_alone_and_runs_an_image_once(
    batch_size: int, data: Path, whole: Path, nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobillama_v.backends.native.runtime import NativeModel
    from mobillama_v.generate import Sampling
    from mobillama_v.loading import load

    positions: list[int] = []
    forward = NativeModel.forward

    def counted(self, sequences, inputs):
        positions.extend(len(each) for each in inputs if each.ndim == 2)  # embeddings: parts of prompts
        return forward(self, sequences, inputs)

    monkeypatch.setattr(NativeModel, "forward", counted)
    done = toy.run(data, tmp_path / "run", nano_like, engine="native", batch_size=batch_size, max_new_tokens=TOKENS)
    assert done.about["precision"] == "16 bit, native"
    assistant = load(str(nano_like), engine="native")
    image = assistant.network.tokens_per_image
    assert sum(each > image for each in positions) == 6, "each picture is in the part of one prompt that was run"
    assert len(positions) == len(done.examples)
    for example in done.examples:
        alone = assistant.ask(example.images, example.prompt, Sampling(max_new_tokens=TOKENS))
        assert (done.texts[example.id], done.answers[example.id]["finish_reason"]) == (alone.text, alone.finish_reason)
    with pytest.raises(DataError, match=r"answers of another run.*precision 'float32', not '16 bit, native'"):
        toy.run(data, whole, nano_like, engine="native", max_new_tokens=TOKENS)


def test_windows_keep_images_whole_and_bound_what_is_held() -> None:
    def example(i: int, image: str | None) -> Example:
        return Example(str(i), (Path(image),) if image else (), "?", ())

    examples = [example(i, f"{i % 7}.png") for i in range(35)] + [example(100 + i, None) for i in range(9)]
    found = list(windows(examples, questions=12, images=2))
    assert sorted(each.id for window in found for each in window) == sorted(each.id for each in examples)
    held = [{path for each in window for path in each.images} for window in found]
    assert all(len(paths) <= 2 for paths in held)
    assert sum(len(paths) for paths in held) == 7  # none twice
    assert all(len(window) <= 12 for window in found)
    assert max(map(len, windows(examples[:35], questions=3, images=9))) == 5  # an image is never cut


def test_batches_go_by_length_and_keep_pictures_together() -> None:
    def example(name: str) -> Example:
        return Example(name, () if name[0] == "-" else (Path(name[0]),), "?", ())

    lengths = {"a1": 5, "b1": 9, "-1": 7, "a2": 8, "-2": 10, "b2": 2, "a3": 6}
    found = batches([example(name) for name in lengths], list(lengths.values()), size=3)
    assert [[each.id for each in batch] for batch in found] == [["-2", "b1", "b2"], ["a1", "a2", "a3"], ["-1"]]


def test_a_full_disk_is_a_sentence_and_costs_nothing(
    data: Path, whole: Path, nano_like: Path, tmp_path: Path, monkeypatch
) -> None:
    """The files of the run may grow to some 2,000 bytes, which some of the answers fill."""
    output, limit = tmp_path / "run", 2000
    shard = output / "shards" / "0.jsonl"
    found = start(data, output, nano_like, FULL=str(limit))
    said = found.communicate()[1]
    if shard.stat().st_size == limit and "(File too large)" in said:  # it lies between two answers: no part was taken
        found = start(data, output, nano_like, FULL=str(limit + 1))
        said = found.communicate()[1]
    assert found.returncode == 1 and "mobillama_v.errors.DataError: " in said and "(No space left on device)" in said
    assert "the same command goes on" in said
    before = shard.read_bytes()
    assert 1 < before.count(b"\n") < 30
    again = start(data, output, nano_like)
    assert again.communicate()[1].count("error") == 0 and again.returncode == 0
    assert (output / PREDICTIONS).read_bytes() == (whole / PREDICTIONS).read_bytes()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"new' takes 11 MB or more and .* has 0 MB left"):
        toy.run(data, tmp_path / "new", nano_like)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_and_repeats_nothing(
    data: Path, whole: Path, nano_like: Path, tmp_path: Path
) -> None:
    output, shard = tmp_path / "run", tmp_path / "run" / "shards" / "0.jsonl"
    chance = random.Random()
    process = start(data, output, nano_like)
    while not (shard.is_file() and shard.stat().st_size):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = shard.read_bytes() if shard.is_file() else (output / PREDICTIONS).read_bytes()
    if shard.is_file():
        shard.write_bytes(before + b'{"question_id": "5-4", "text": "torn')  # as a kill within a write leaves it
    again = start(data, output, nano_like)
    assert again.communicate()[1].count("error") == 0 and again.returncode == 0
    assert (output / PREDICTIONS).read_bytes() == (whole / PREDICTIONS).read_bytes()
    whole_lines = set((whole / PREDICTIONS).read_bytes().split(b"\n"))
    assert set(before[: before.rfind(b"\n")].split(b"\n")) <= whole_lines


def test_what_is_answered_is_not_asked_again(
    data: Path, whole: Path, nano_like: Path, tmp_path: Path, monkeypatch
) -> None:
    from mobillama_v.eval.evaluate import Evaluator

    output = tmp_path / "run"
    (output / "shards").mkdir(parents=True)
    (output / "run.json").write_bytes((whole / "run.json").read_bytes())
    answered = (whole / PREDICTIONS).read_bytes().splitlines(keepends=True)[:17]
    (output / "shards" / "3.jsonl").write_bytes(b"".join(answered) + b'{"question_id": "9')
    asked: list[str] = []
    ask = Evaluator.ask

    def spy(self, examples, failed):
        asked.extend(example.id for example in examples)
        return ask(self, examples, failed)

    monkeypatch.setattr(Evaluator, "ask", spy)
    toy.run(data, output, nano_like, batch_size=3, max_new_tokens=TOKENS)
    assert len(asked) == 30 - 17
    assert (output / PREDICTIONS).read_bytes() == (whole / PREDICTIONS).read_bytes()
    asked.clear()
    toy.run(data, output, nano_like, max_new_tokens=TOKENS)
    assert asked == []


@pytest.mark.slow
def test_two_processes_give_what_one_gives(data: Path, whole: Path, nano_like: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    both = [start(data, tmp_path / "run", nano_like, RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(2)]
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert (tmp_path / "run" / PREDICTIONS).read_bytes() == (whole / PREDICTIONS).read_bytes()


def test_processes_share_the_windows(data: Path, nano_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobillama_v.eval.evaluate import Evaluator
    from mobillama_v.loading import load

    examples = toy.Toy().load(data)
    evaluator = Evaluator(load(str(nano_like), engine="torch"), batch_size=1, max_new_tokens=1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append([example.id for window in evaluator.share(examples) for example in window])
    assert all(parts) and sorted(each for part in parts for each in part) == sorted(example.id for example in examples)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"max_new_tokens": TOKENS + 1}, "max_new_tokens 6, not 7"),
        ({"benchmark": toy.Toy(split="val")}, "split 'test', not 'val'"),
    ],
)
def test_another_run_is_refused(data: Path, whole: Path, nano_like: Path, changed: dict, says: str) -> None:
    before = (whole / PREDICTIONS).read_bytes()
    options = {"benchmark": toy.Toy(), "max_new_tokens": TOKENS} | changed
    with pytest.raises(DataError, match=f"answers of another run.*{says}"):
        toy.run(data, whole, nano_like, **options)
    assert (whole / PREDICTIONS).read_bytes() == before


def test_another_model_is_refused_even_under_the_same_name(
    data: Path, whole: Path, tmp_path: Path, nano_like: Path
) -> None:
    copy = Path(shutil.copytree(nano_like, tmp_path / "model"))
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(DataError, match="weights have changed"):
        toy.run(data, whole, copy, max_new_tokens=TOKENS)


def test_a_folder_of_something_else_is_refused(data: Path, nano_like: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        toy.run(data, tmp_path, nano_like)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_as_it_began_goes_on(data: Path, nano_like: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "shards").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".run.json.partial").write_text('{"benchm')
    toy.run(data, tmp_path / "run", nano_like, batch_size=2, max_new_tokens=TOKENS)
    assert (tmp_path / "run" / PREDICTIONS).read_bytes() == (whole / PREDICTIONS).read_bytes()


def test_two_runs_do_not_write_in_one_folder(tmp_path: Path) -> None:
    about = dict.fromkeys(
        ("benchmark", "settings", "questions_sha256", "weights_sha256", "precision", "max_new_tokens", "model"), "x"
    )
    store = Store(tmp_path / "run")
    with store.claimed(about), pytest.raises(DataError, match="another process is writing"), store.claimed(about):
        pass
    with Store(tmp_path / "run").claimed(about):
        pass


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / PREDICTIONS).write_text('{"question_id": "1", "text": "a"}\n{"question_id": "2", "text": 3}\n')
    with pytest.raises(DataError, match=r"predictions\.jsonl', line 2, is not an answer"):
        Store(tmp_path).answered()


def test_a_bad_image_costs_only_its_questions(data: Path, nano_like: Path, whole: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "toy"
    toy.draw(copy, pictures=6)
    (copy / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"5 of 30 questions could not be asked: '2-\d'.*2\.png.*; …"):
        toy.run(copy, tmp_path / "run", nano_like, batch_size=2, max_new_tokens=TOKENS)
    assert len(Store(tmp_path / "run").answered()) == 25
    part = toy.run(copy, tmp_path / "run", nano_like, batch_size=2, max_new_tokens=TOKENS, allow_missing=True)
    said = capsys.readouterr().err
    assert said.startswith("warning: 5 of 30 questions could not be asked") and "They count as wrong." in said
    assert len(part.answers) == 25 and len(lines(tmp_path / "run" / PREDICTIONS)) == 25
    assert judge(toy.Toy(), part.examples, part.answers, part.about).score.missing == tuple(f"2-{i}" for i in range(5))
    (copy / "2.png").write_bytes((data / "2.png").read_bytes())
    done = toy.run(copy, tmp_path / "run", nano_like, batch_size=2, max_new_tokens=TOKENS)
    expected = {line["question_id"]: line["text"] for line in lines(whole / PREDICTIONS)}
    assert done.texts == expected


def test_a_prompt_too_long_is_an_answer_that_is_wrong(nano_like: Path, tmp_path: Path) -> None:
    toy.draw(tmp_path / "toy", pictures=1)
    path = tmp_path / "toy" / "questions.json"
    questions = json.loads(path.read_text())
    questions[1]["question"] = "word " * 600
    questions[2]["image"] = ""
    path.write_text(json.dumps(questions))
    done = toy.run(tmp_path / "toy", tmp_path / "run", nano_like, max_new_tokens=2)
    assert done.answers["0-1"]["text"] == "" and done.answers["0-1"]["finish_reason"] == TOO_LONG
    assert all(done.answers[f"0-{i}"]["finish_reason"] != TOO_LONG for i in (0, 2, 3, 4))


def test_benchmarks_have_their_own_longest_answers() -> None:
    assert find("mme").max_new_tokens < find("textvqa").max_new_tokens < find("custom").max_new_tokens
