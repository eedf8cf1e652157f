"""A validation during training: it finds what it should, keeps the best model, and changes nothing."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mobillama_v.errors import DataError, RecipeError
from mobillama_v.loading import load
from mobillama_v.train import trainer as training
from mobillama_v.train.build import Setup
from mobillama_v.train.monitor.val_samples import read_answers
from mobillama_v.train.monitor.validation import Validation
from mobillama_v.train.recipe_files import load_recipe
from mobillama_v.train.run import run
from trainings import on_corpus

SETTINGS = (
    "data.features=null",
    "train.batch_size=4",
    "train.max_steps=6",
    "train.save_steps=2",
    "train.optimizer=adamw",
    "train.modules={projector: 3e-3, decoder: 3e-3}",
)
overrides = partial(on_corpus, settings=SETTINGS)


def validating(corpus: Path, *more: str) -> list[str]:
    return [
        f"validation.json=[{corpus / 'text.jsonl'}, {corpus / 'pictures.json'}]",
        "validation.steps=2",
        "validation.samples=12",
        "validation.answers=7",
        "validation.max_new_tokens=6",
        *more,
    ]


def entries(output: Path, key: str) -> list[dict[str, float]]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if key in line]


def losses(output: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in entries(output, "loss")]


def found(output: Path) -> list[tuple[float, float, float, float]]:
    names = ("step", "validation_loss", "validation_exact_match", "validation_best")
    return [tuple(line[name] for name in names) for line in entries(output, "validation_loss")]  # type: ignore[misc]


def test_a_validation_changes_nothing_and_a_resumed_one_finds_the_same(
    start_folder, corpus, tmp_path, monkeypatch
) -> None:
    plain = run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / "plain")))
    args = overrides(start_folder, corpus, tmp_path / "tried", *validating(corpus))
    states: list[bool] = []
    tried = Validation.run

    def watched(self: Validation, trainer: object) -> dict[str, float]:
        before = torch.get_rng_state()
        metrics = tried(self, trainer)
        states.append(bool(torch.equal(before, torch.get_rng_state())))
        return metrics

    monkeypatch.setattr(Validation, "run", watched)
    final = run(load_recipe("nano-instruct", args))
    assert states == [True] * 3
    assert losses(tmp_path / "tried") == losses(tmp_path / "plain")
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, final))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [step for step, *_ in found(tmp_path / "tried")] == [2, 4, 6]

    # Ended after step 5: what was said of steps after the checkpoint is said again.
    ending = training.StageTrainer.training_step

    def ended(self: training.StageTrainer, *rest: object, **options: object) -> torch.Tensor:
        if self.state.global_step == 5:
            raise DataError("the end")
        return ending(self, *rest, **options)  # type: ignore[arg-type]

    args = overrides(start_folder, corpus, tmp_path / "ended", *validating(corpus), "train.save_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr(training.StageTrainer, "training_step", ended)
        with pytest.raises(DataError, match="the end"):
            run(load_recipe("nano-instruct", args))
    assert [step for step, *_ in found(tmp_path / "ended")] == [2, 4]
    run(load_recipe("nano-instruct", args), resume=True)
    assert losses(tmp_path / "ended") == losses(tmp_path / "plain")
    assert [line[:3] for line in found(tmp_path / "ended")] == [line[:3] for line in found(tmp_path / "tried")]
    assert read_answers(tmp_path / "ended") == read_answers(tmp_path / "tried")
    best = [load_file(tmp_path / name / "best" / "model.safetensors") for name in ("ended", "tried")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_what_a_validation_finds_is_what_the_model_does(start_folder, corpus, tmp_path) -> None:
    """Loss and answers are those of the model that was kept, loaded as a user loads it."""
    output = tmp_path / "run"
    more = validating(corpus, "validation.samples=null", "validation.answers=9", "validation.steps=3")
    run(load_recipe("nano-instruct", overrides(start_folder, corpus, output, "train.max_steps=3", *more)))
    scores = json.loads((output / "best" / "validation.json").read_text())
    assert scores["step"] == 3
    setup = Setup.of(
        load_recipe("nano-instruct", overrides(output / "best", corpus, tmp_path / "o", "data.duplicates=keep"))
    )
    dataset, total, count = setup.dataset(), 0.0, 0
    setup.model.eval()
    for i in range(len(dataset)):
        item = {name: value[None] for name, value in dataset[i].items() if name != "pixel_values"}
        if "pixel_values" in dataset[i]:
            item["pixel_values"] = dataset[i]["pixel_values"]
        with torch.no_grad():
            total += float(setup.model(**item, num_items_in_batch=1).loss)
        count += int((item["labels"] != -100).sum())
    assert scores["metrics"]["eval_loss"] == pytest.approx(total / count, rel=1e-5)

    from mobillama_v.generate import Sampling

    assistant = load(str(output / "best"), device="cpu")
    answers = read_answers(output)
    assert len(answers) == 9
    assert scores["metrics"]["eval_exact_match"] == sum(answer.right for answer in answers) / 9
    assert any(answer.images for answer in answers) and any(not answer.images for answer in answers)
    for answer in answers:
        question = re.fullmatch(r"USER: (.*) ASSISTANT:", answer.prompt, re.DOTALL)
        assert question is not None, answer.prompt
        pictures = [corpus / "images" / path for path in answer.images]
        reply = assistant.ask(pictures, question[1].strip(), Sampling(max_new_tokens=6))
        assert reply.text == answer.text


def test_right_answers_are_counted_and_the_page_shows_them(start_folder, corpus, tmp_path, monkeypatch) -> None:
    expected = ["white", "Yes <b>!"]

    def said(self: Validation, model: object, questions: list) -> list[str]:
        return [question.answer if question.sample % 2 else expected[1] for question in questions]

    monkeypatch.setattr(Validation, "_answers", said)
    output = tmp_path / "run"
    more = validating(corpus, f"validation.json={corpus / 'pictures.json'}", "validation.answers=12")
    run(load_recipe("nano-instruct", overrides(start_folder, corpus, output, "train.max_steps=4", *more)))
    answers = read_answers(output)
    assert len(answers) == 24
    right = [answer.right for answer in answers[:12]]
    assert 0 < sum(right) < 12
    assert all(exact == sum(right) / 12 for _, _, exact, _ in found(output))
    page = (output / "validation" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 12
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page.replace("http-equiv", "")
    assert "Yes &lt;b&gt;!" in page and "<b>" not in page
    assert page.count("step 2") == page.count("step 4") == 12
    assert page.count('class="right"') == 2 * sum(right)
    assert "What color?" in page


@pytest.mark.parametrize("measure", ["loss", "exact_match"])
def test_the_best_model_is_the_one_of_its_measure(measure, start_folder, corpus, tmp_path, monkeypatch) -> None:
    results = iter([(3.0, 0.25), (2.0, 0.5), (2.5, 0.5), (1.0, 0.25)])

    def scripted(self: Validation, model: object, trainer: object, shares: int) -> tuple[float, int, dict[int, str]]:
        loss, exact = next(results)
        right = round(exact * len(self.questions))
        return loss, 1, {i: each.answer if i < right else "" for i, each in enumerate(self.questions)}

    monkeypatch.setattr(Validation, "_try", scripted)
    output = tmp_path / "run"
    more = validating(corpus, "validation.steps=1", "validation.answers=4", f"validation.best={measure}")
    more += ["train.max_steps=4", "train.save_steps=1", "train.save_total_limit=4"]
    final = run(load_recipe("nano-instruct", overrides(start_folder, corpus, output, *more)))
    assert [best for *_, best in found(output)] == ([1, 1, 0, 1] if measure == "loss" else [1, 1, 0, 0])
    step = 4 if measure == "loss" else 2
    assert json.loads((output / "best" / "validation.json").read_text())["step"] == step
    kept, same = (load_file(output / name / "model.safetensors") for name in ("best", f"checkpoint-{step}"))
    assert all(torch.equal(kept[name], same[name]) for name in kept)
    assert final == output / "final"
    assert not (output / ".partial").exists()
    assert load(str(output / "best"), device="cpu").ask([], "Hi").text is not None


def test_bad_validations_are_named(start_folder, corpus, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"validation\.best exact_match needs answers"):
        load_recipe("nano-instruct", ["validation.best=exact_match", "validation.answers=0"])
    with pytest.raises(RecipeError, match=r"validation\.steps must be at least 1, not 0"):
        load_recipe("nano-instruct", ["validation.steps=0"])
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([{"id": "x", "conversations": [{"from": "human", "value": "Hi"}]}]))
    args = overrides(start_folder, corpus, tmp_path / "run", f"validation.json={bad}")
    with pytest.raises(DataError, match="1 of 1 records cannot be learned from"):
        run(load_recipe("nano-instruct", args))
    assert (tmp_path / "run" / "bad-records.jsonl").is_file()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
