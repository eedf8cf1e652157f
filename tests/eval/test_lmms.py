"""The adapter to lmms-eval: its answers are the assistant's, and lmms-eval itself runs a task through it offline."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks.drawn_gqa import draw_gqa
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval import lmms
from mobillama_v.eval.benchmarks.registry import get
from tiny import whole_logits

TASK = """\
task: drawn_gqa
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: generate_until
test_split: test
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
metadata:
  - version: 0.0
"""
UTILS = """\
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["prompt"]
"""


class Base:
    """As much of lmms-eval's base class as the adapter uses."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
        self.task_dict: dict[str, Any] = {}


@pytest.fixture(scope="module")
def answers(nano_like: Path):
    """The adapter on a base of its own: lmms-eval need not be installed."""
    return type("MobiLlamaV", (lmms.Answers, Base), {})(str(nano_like), batch_size="3")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("drawn")
    draw_gqa(folder, images=3)
    return [Image.open(path).convert("RGB") for path in sorted((folder / "images").iterdir())]


def request(text: str, settings: object, doc: int) -> SimpleNamespace:
    return SimpleNamespace(args=(text, settings, lambda images: images, doc, "t", "s"))


def test_answers_are_the_assistant_s(answers, pictures: list[Image.Image]) -> None:
    from mobillama_v.generate import Sampling

    answers.task_dict = {"t": {"s": [[picture] for picture in pictures] + [[], pictures[:2]]}}
    settings = {"max_new_tokens": 5, "temperature": 0, "until": ["\n\n"], "num_beams": 1}
    texts = ["What is this?", "Is it a red circle or a small blue square?", "Which color?", "Hello.", "Compare both."]
    requests = [request(text, settings, doc) for doc, text in enumerate(texts)]
    sampling = Sampling(max_new_tokens=5, stop=("\n\n",))
    expected = [
        answers.assistant.ask(answers.task_dict["t"]["s"][i], text, sampling).text for i, text in enumerate(texts)
    ]
    assert answers.generate_until(requests) == expected and len(set(expected)) > 2
    assert answers.generate_until(requests[::-1]) == expected[::-1]


def test_each_picture_is_encoded_once_and_places_are_kept(answers, pictures: list[Image.Image], monkeypatch) -> None:
    from mobillama_v.prompt import Slot

    encoded: list[object] = []
    see = answers.assistant.encode_image
    monkeypatch.setattr(answers.assistant, "encode_image", lambda image: encoded.append(image) or see(image))
    answers._seen.clear()
    answers.task_dict = {"t": {"s": [pictures[:1], pictures[:2]]}}
    answers.generate_until([request(f"Question {i}", {"max_new_tokens": 1}, 0) for i in range(7)])
    assert sum(isinstance(each, Image.Image) for each in encoded) == 1
    _, (message,) = answers._prompt("A <image> B <image>?", lambda images: images, 1, "t", "s")
    assert message.content == ("A ", Slot.IMAGE, " B ", Slot.IMAGE, "?")
    _, (message,) = answers._prompt("<image>\nB <image>", lambda images: images, 1, "t", "s")
    assert message.content == (Slot.IMAGE, "\nB ", Slot.IMAGE)
    _, (message,) = answers._prompt("only one <image>", lambda images: images, 1, "t", "s")
    assert message.images == 2 and message.text.endswith("only one <image>")


def test_likelihood_is_the_product_over_the_answer_s_tokens(answers, pictures: list[Image.Image]) -> None:
    import torch

    from mobillama_v.chat_templates import TEMPLATES
    from mobillama_v.prompt import IGNORE_INDEX, assistant, user

    answers.task_dict = {"t": {"s": [pictures[:1]]}}
    model = answers.assistant
    found, greedy = answers.loglikelihood([request("What is this?", "A dog", 0)])[0]
    encoded = TEMPLATES["v1"].encode(
        [user("What is this?", images=1), assistant("A dog")],
        model.tokenizer,
        tokens_per_image=model.network.tokens_per_image,
    )
    pixels = torch.from_numpy(model.spec.image(pictures[0]))[None]
    with torch.inference_mode():
        logits = whole_logits(model.network, encoded, pixels)
    chances = logits.log_softmax(-1)
    said = [(i, label) for i, label in enumerate(encoded.labels) if label != IGNORE_INDEX][:-1]
    assert len(said) > 1 and said[-1][1] != model.tokenizer.eos_id
    assert found == pytest.approx(sum(float(chances[i - 1, label]) for i, label in said), abs=0.02)  # 16 bits
    assert greedy == all(int(logits[i - 1].argmax()) == label for i, label in said)


def test_what_cannot_be_answered(answers, pictures: list[Image.Image]) -> None:
    answers.task_dict = {"t": {"s": [pictures[:1], ["film.mp4"]]}}
    requests = [request("word " * 600, {"max_new_tokens": 2}, 0), request("Short?", {"max_new_tokens": 2}, 0)]
    with pytest.warns(UserWarning, match="left without an answer"):
        found = answers.generate_until(requests)
    assert found[0] == "" and found[1]
    with pytest.raises(DataError, match="sees images only"):
        answers.generate_until([request("?", {}, 1)])
    with pytest.raises(ConfigError, match="several rounds"):
        answers.generate_until_multi_round([])


def test_arguments(nano_like: Path) -> None:
    made = type("MobiLlamaV", (lmms.Answers, Base), {})
    with pytest.raises(ConfigError, match=r"not \['attn'\]"):
        made(str(nano_like), attn="flash")
    with pytest.raises(ConfigError, match="batch_size must be a number"):
        made(str(nano_like), batch_size="auto")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (128, 0.0, 1.0, ())),
        ({"max_new_tokens": 16, "temperature": 0.7, "do_sample": False, "top_p": 0.5}, (16, 0.0, 1.0, ())),
        ({"temperature": 0.7, "top_p": 0.5, "until": "\n"}, (128, 0.7, 0.5, ("\n",))),
        ({"temperature": None, "top_p": None, "until": ["", "\n", "\n"], "num_beams": 1}, (128, 0.0, 1.0, ("\n",))),
    ],
)
def test_settings_of_tasks(settings: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = lmms._sampling(settings)
    assert (found.max_new_tokens, found.temperature, found.top_p, found.stop) == expected


@pytest.mark.slow
def test_lmms_eval_runs_a_task_offline(nano_like: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("lmms_eval") is None:
        pytest.skip("lmms-eval is not installed, so no task was run through it: pip install lmms-eval")
    draw_gqa(tmp_path / "data", images=2, questions=4)
    examples = get("gqa").load(tmp_path / "data")
    rows = [{"image": str(e.images[0]), "prompt": e.prompt, "answer": e.answers[0]} for e in examples]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "drawn_gqa.yaml").write_text(TASK.format(file=tmp_path / "questions.jsonl"))
    (tasks / "utils.py").write_text(UTILS)
    command = ["-m", "lmms_eval", "--model", "mobillama_v", "--model_args", f"pretrained={nano_like}"]
    command += ["--tasks", "drawn_gqa", "--include_path", str(tasks), "--batch_size", "4", "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("*samples_drawn_gqa.jsonl")
    given = [json.loads(line) for line in samples.read_text().splitlines()]
    from mobillama_v.generate import Sampling
    from mobillama_v.loading import load

    assistant = load(str(nano_like), device="cpu")
    sampling = Sampling(max_new_tokens=8, stop=("\n\n",))
    # The task opens pictures with Pillow, which decodes them whole; a path would be decoded smaller.
    expected = [assistant.ask([Image.open(e.images[0]).convert("RGB")], e.prompt, sampling).text for e in examples]
    found = {sample["doc_id"]: sample["filtered_resps"] for sample in given}
    assert [found[i][0] if isinstance(found[i], list) else found[i] for i in range(len(examples))] == expected
