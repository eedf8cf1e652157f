"""One's own questions: a JSON, JSON lines or CSV file, judged in one of four ways.

| layout | fields |
| --- | --- |
| LLaVA records, as trained from | ``id``, ``image``, ``conversations`` (human turns ask, the next turns answer) |
| questions (``.json`` list, ``.jsonl``) | ``question_id`` or ``id``, ``image``, ``text`` or ``question``, ``answer`` |
| CSV with a header | the same names as columns; several ``answers`` as a JSON list or separated by ``|`` |

Optional everywhere: ``category``, by which the score is broken down. A turn of a longer conversation is asked alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.answer_metrics import anls, exact, plain, yes_no_metrics, yes_or_no
from mobillama_v.eval.benchmarks.base import SHORT_ANSWER, Benchmark, Example, Summary, register
from mobillama_v.eval.benchmarks.dataset_files import json_lines, kind, read_json, read_text
from mobillama_v.eval.benchmarks.evalai import soft_accuracy
from mobillama_v.eval.ocr import ocr_mode, tokens_line

Metric = Literal["exact", "vqa", "anls", "yesno"]
_NAMES: Mapping[Metric, str] = {
    "exact": "exact match",
    "vqa": "VQA soft accuracy",
    "anls": "ANLS",
    "yesno": "accuracy of yes and no",
}
_FILES = tuple(f"questions.{suffix}" for suffix in ("jsonl", "json", "csv"))
_QUESTION, _ANSWER = ("question", "text", "prompt"), ("answers", "answer", "label")


@register
@dataclass(frozen=True)
class Custom(Benchmark):
    """A question file of one's own.

    ``questions`` is the file; without it ``data`` is the file itself, or a folder with a ``questions.jsonl``, ``.json``
    or ``.csv``. Pictures are looked for from ``data``, or from the folder of the file. ``prompt`` puts the question as
    it is, or (``short``) with the request for a short answer that LLaVA's data have. ``ocr`` tells no words of
    pictures, or those that RapidOCR reads.
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
        return [example for where, row in _rows(path) for example in self._examples(row, where, root)]

    def with_prompts(self, examples: list[Example], questions: Path) -> list[Example]:
        """The examples as they are: ``questions`` is their own file."""
        return examples

    def _examples(self, row: tuple[int, Any], where: str, root: Path) -> Iterator[Example]:
        number, value = row
        if not isinstance(value, dict):
            raise DataError(f"{where} is a JSON {kind(value)} and must be an object with a question and an answer.")
        name = next((value[key] for key in ("question_id", "id") if value.get(key) not in (None, "")), number)
        images = tuple(root / image for image in _images(value.get("image"), where))
        group = {"category": str(value["category"])} if value.get("category") else {}
        for turn, (question, answers) in enumerate(_pairs(value, where), 1):
            yield Example(
                id=str(name) if turn == 1 else f"{name}#{turn}",
                images=images,
                prompt=question + (SHORT_ANSWER if self.prompt == "short" else ""),
                answers=self._checked(answers, where),
                group=group,
            )

    def _checked(self, answers: Sequence[str], where: str) -> tuple[str, ...]:
        if self.metric == "yesno" and (len(answers) != 1 or plain(answers[0]) not in ("yes", "no")):
            raise DataError(f"{where} has the answer {' | '.join(answers)!r} and must have yes or no to be judged so.")
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


def _rows(path: Path) -> Iterator[tuple[str, tuple[int, Any]]]:
    """Each entry with where it is and its number."""
    if path.suffix.lower() == ".csv":
        # csv's own rules for quoted line ends need the text as it is, not split into lines before.
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        for number, row in enumerate(reader, 1):
            where = f"{str(path)!r}, row {number}"
            if None in row:
                raise DataError(f"{where} has more columns than the header; put texts that hold commas in quotes.")
            yield where, (number, {str(key).strip().lower(): value for key, value in row.items()})
    elif read_text(path).lstrip()[:1] == "[":
        for number, value in enumerate(read_json(path), 1):
            yield f"{str(path)!r}, entry {number}", (number, value)
    else:
        for number, (line, value) in enumerate(json_lines(path), 1):
            yield f"{str(path)!r}, line {line}", (number, value)


def _pairs(value: Mapping[str, Any], where: str) -> Iterator[tuple[str, list[str]]]:
    """Questions with their answers."""
    turns = value.get("conversations")
    if isinstance(turns, list):
        body = [turn for turn in turns if not (isinstance(turn, dict) and turn.get("from") == "system")]
        roles = [turn.get("from") if isinstance(turn, dict) else None for turn in body]
        if not body or roles != ["human", "gpt"] * (len(body) // 2):
            raise DataError(f"{where} has conversations that are no turns of human and gpt by turns, gpt the last.")
        for human, gpt in zip(body[::2], body[1::2], strict=True):
            yield _text(human.get("value"), where, "question"), [_text(gpt.get("value"), where, "answer")]
        return
    question = next((value[key] for key in _QUESTION if value.get(key)), None)
    answers = next((value[key] for key in _ANSWER if value.get(key) not in (None, "", [])), None)
    yield _text(question, where, "question"), _answers(answers, where)


def _text(value: Any, where: str, what: str) -> str:
    text = value.replace("<image>", "").strip() if isinstance(value, str) else ""
    if not text:
        raise DataError(f"{where} has no {what}; see docs/evaluation.md for the fields of a question file.")
    return text


def _answers(value: Any, where: str) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"{where} has answers that begin like a JSON list and are none; mend them.") from None
    elif isinstance(value, str):
        value = value.split("|")
    values = value if isinstance(value, list) else [value]
    texts = [str(each) if isinstance(each, (int, float)) and not isinstance(each, bool) else each for each in values]
    return [_text(each, where, "answer") for each in texts] or [_text(None, where, "answer")]


def _images(value: Any, where: str) -> list[str]:
    paths = [] if value in (None, "") else value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{where} has an 'image' that is neither a path nor a list of paths; write it as one.")
    return paths
