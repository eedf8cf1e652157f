"""One's own questions: a JSON, JSON lines or CSV file, judged in one of four ways.

| layout | fields |
| --- | --- |
| records, as trained from | ``id``, ``image``, ``conversations`` (the user's turns ask, the next turns answer) |
| questions (``.json``, ``.jsonl``) | ``question_id`` or ``id``, ``image``, ``text`` or ``question``, ``answer`` |
| a table (``.csv``, ``.tsv``) | the same as columns; ``answers`` is a JSON list, or texts between ``|`` |

Optional everywhere: ``category``, by which the score is broken down. A turn of a longer conversation is asked alone.
What stands in ``answer``, and every text in JSON, is taken as it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mobillama_v.conversation import ConversationError, read_record, turns_of
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.answer_metrics import anls, exact, plain, yes_no_metrics, yes_or_no
from mobillama_v.eval.benchmarks.base import SHORT_ANSWER, Benchmark, Example, Summary, register
from mobillama_v.eval.benchmarks.evalai import soft_accuracy
from mobillama_v.eval.ocr import ocr_mode
from mobillama_v.ocr import tokens_line
from mobillama_v.tables import is_json, read_table, stray_picture, text_of

Metric = Literal["exact", "vqa", "anls", "yesno"]
_NAMES: Mapping[Metric, str] = {
    "exact": "exact match",
    "vqa": "VQA soft accuracy",
    "anls": "ANLS",
    "yesno": "accuracy of yes and no",
}
_FILES = tuple(f"questions.{suffix}" for suffix in ("jsonl", "json", "csv", "tsv"))
_YES_NO = {"true": "yes", "false": "no"}
_QUESTION, _ANSWER = ("question", "text", "prompt"), ("answers", "answer", "label")


@register
@dataclass(frozen=True)
class Custom(Benchmark):
    """A question file of one's own.

    ``questions`` is the file; without it ``data`` is the file itself, or a folder with a ``questions.jsonl``,
    ``.json``, ``.csv`` or ``.tsv``. Pictures are looked for from ``data``, or from the folder of the file. ``prompt``
    puts the question as it is, or (``short``) with the request for a short answer that LLaVA's data have. ``ocr`` gives
    no words of pictures, or those that RapidOCR reads.
    """

    metric: Metric = "exact"
    prompt: Literal["as-is", "short"] = "as-is"
    ocr: Literal["none", "rapidocr"] = "none"

    name = "custom"
    title = "your questions"
    in_all = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in get_args(Metric):
            raise ConfigError(f"answers are judged by {', '.join(get_args(Metric))}, not by {self.metric!r}.")
        if self.prompt not in ("as-is", "short"):
            raise ConfigError(f"a question is put 'as-is' or 'short', not {self.prompt!r}.")
        if self.ocr not in ("none", "rapidocr"):
            raise ConfigError(f"OCR tokens of one's own pictures are none or read by rapidocr, not {self.ocr!r}.")

    def settings(self) -> dict[str, str]:
        """What makes a score comparable."""
        line = "" if self.ocr == "none" else tokens_line(["{tokens}"])
        return {
            "questions": self.questions.name if self.questions else "the file in the data folder",
            "prompt": "{question}" + line + (SHORT_ANSWER if self.prompt == "short" else ""),
            "ocr": ocr_mode(self.ocr),
            "judged by": _NAMES[self.metric],
        }

    def read(self, data: Path) -> list[Example]:
        """The questions in the order of the file.

        Raises:
            DataError: there is no file, it has another layout, or an entry lacks a question or an answer.
        """
        path = self.questions or data
        if path.is_dir():
            found = next((path / name for name in _FILES if (path / name).is_file()), None)
            if found is None:
                raise DataError(f"{str(path)!r} has no {', '.join(_FILES)}; name the file with --questions.")
            path = found
        if not path.is_file():
            raise DataError(f"{str(path)!r} does not exist; name the file of questions with --questions.")
        root = data if data.is_dir() else path.parent
        examples: list[Example] = []
        listed = not is_json(path)
        for number, row in enumerate(read_table(path), 1):
            where = f"{str(path)!r}, {row.place}"
            if row.problem:
                raise DataError(f"{where} {row.problem}.")
            examples += self._examples(number, row.values, where, root, listed)
        return examples

    def with_prompts(self, examples: list[Example], questions: Path) -> list[Example]:
        """The examples as they are: ``questions`` is their own file."""
        return examples

    def _examples(
        self, number: int, value: Mapping[str, Any], where: str, root: Path, listed: bool
    ) -> Iterator[Example]:
        """The examples of a row; with ``listed``, a text in ``answers`` is a list of them."""
        name = next((value[key] for key in ("question_id", "id") if value.get(key) not in (None, "")), number)
        images = tuple(root / image for image in _images(value, where))
        group = {"category": str(value["category"])} if value.get("category") else {}
        for turn, (question, answers) in enumerate(_pairs(value, where, listed), 1):
            yield Example(
                id=str(name) if turn == 1 else f"{name}#{turn}",
                images=images,
                prompt=question + (SHORT_ANSWER if self.prompt == "short" else ""),
                answers=self._checked(answers, where),
                group=group,
            )

    def _checked(self, answers: Sequence[str], where: str) -> tuple[str, ...]:
        if self.metric == "yesno":
            answers = [_YES_NO.get(plain(each), each) for each in answers]
            if len(answers) != 1 or plain(answers[0]) not in ("yes", "no"):
                said = " | ".join(answers)
                raise DataError(f"{where} has the answer {said!r} and must have yes or no to be judged so.")
        return tuple(answers)

    def judge(self, example: Example, answer: str) -> float:
        """By the metric."""
        return _JUDGES[self.metric](answer, example.answers)

    def summarize(
        self, examples: Sequence[Example], predictions: Mapping[str, str], correct: Mapping[str, float]
    ) -> Summary:
        """The mean over questions in percent; with ``yesno`` also precision, recall, F1 and the share of yes."""
        found = super().summarize(examples, predictions, correct)
        key: str = "accuracy" if self.metric == "yesno" else self.metric
        metrics = {key: found.metrics["accuracy"]}
        if self.metric == "yesno":
            metrics |= yes_no_metrics({each.id: yes_or_no(plain(each.answers[0])) for each in examples}, predictions)
        return Summary(metrics, found.categories, key, _NAMES[self.metric])


def _yesno(answer: str, answers: Sequence[str]) -> float:
    return float(yes_or_no(answer) == plain(answers[0]))


_JUDGES: Mapping[Metric, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "vqa": soft_accuracy,
    "anls": anls,
    "yesno": _yesno,
}


def _pairs(value: Mapping[str, Any], where: str, listed: bool) -> Iterator[tuple[str, list[str]]]:
    """Questions with their answers."""
    if turns_of(value) is not None:
        try:
            messages = read_record(value).messages
        except ConversationError as error:
            raise DataError(f"{where}: {error}") from error
        asked = [message.text.strip() for message in messages if message.role == "user"]
        yield from zip(asked, ([message.text] for message in messages if message.role == "assistant"), strict=True)
        return
    question = next((value[key] for key in _QUESTION if value.get(key)), None)
    key = next((key for key in _ANSWER if value.get(key) not in (None, "", [])), "answer")
    yield _question(question, where), _answers(value.get(key), where, listed and key == "answers")


def _question(value: Any, where: str) -> str:
    """A question; a marker of LLaVA's at one of its ends is the picture's place, and no text."""
    text = _text(value, where, "question")
    for cut in (text.removeprefix("<image>"), text.removesuffix("<image>")):
        text = cut if cut != text and cut.strip() and "<image>" not in cut else text
    return text.strip()


def _text(value: Any, where: str, what: str) -> str:
    try:
        return text_of(value)
    except ValueError as error:
        raise DataError(
            f"{where} has no {what}: it is {error}; see docs/evaluation.md for the fields of a question file."
        ) from None


def _answers(value: Any, where: str, listed: bool) -> list[str]:
    if listed and isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split("|")
        except ValueError:
            value = value.split("|")
    values = value if isinstance(value, list) and value else [value]
    return [_text(each, where, "answer") for each in values]


def _images(value: Mapping[str, Any], where: str) -> list[str]:
    given = value.get("image") or value.get("images") or []
    stray = (
        None
        if {"image", "images"} & value.keys()
        else stray_picture(value, ("id", "question_id", *_QUESTION, *_ANSWER))
    )
    if stray:
        raise DataError(f"{where} has no 'image', and its {stray[0]!r} names a picture ({stray[1]}); call it 'image'.")
    paths = given if isinstance(given, list) else [given]
    if not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{where} has an 'image' that is neither a path nor a list of paths; write it as one.")
    return [path.replace("\\", "/") for path in paths]
