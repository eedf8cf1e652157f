"""Files of predictions, anybody's: ours, LLaVA's answer files, and what the owners' scorers take.

| layout | id | answer |
| --- | --- | --- |
| JSON lines (ours, LLaVA's) | ``question_id`` | ``text`` |
| GQA's list | ``questionId`` | ``prediction`` |
| EvalAI's list (TextVQA) | ``question_id`` | ``answer`` |
| LLaVA's ScienceQA result | keys of ``outputs`` | values of ``outputs`` |
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.base import Benchmark, Example, Record
from mobillama_v.eval.benchmarks.dataset_files import json_lines, kind, read_json, read_text, some

_LOG = frozenset({"doc_id", "resps", "filtered_resps", "model_configs", "logs"})
_IDS, _TEXTS = ("question_id", "questionId", "id"), ("text", "prediction", "answer")


@dataclass(frozen=True)
class Matched:
    """Answers by example id, the examples by which they are to be judged (see :func:`match`), and what was asked.

    ``prompts`` are those of the file, without image markers, by example id; empty where it has none.
    """

    examples: list[Example]
    predictions: dict[str, str]
    prompts: dict[str, str]

    def settings(self, benchmark: Benchmark) -> dict[str, str]:
        """The benchmark's settings, with what the file tells of prompts in the place of what we would have asked."""
        found = benchmark.settings()
        others = [each.id for each in self.examples if self.prompts.get(each.id, each.prompt) != each.prompt]
        if self.prompts and not others:
            return found
        if not self.prompts:
            found["prompt"] = "not given by the predictions"
        else:
            found["prompt"] = (
                f"the predictions' own; {len(others):,} of {len(self.prompts):,} are not {found['prompt']}"
            )
        if "ocr" in found:
            with_tokens = sum("OCR token" in prompt for prompt in self.prompts.values())
            counted = f"tokens in {with_tokens:,} of {len(self.prompts):,} prompts"
            found["ocr"] = counted if self.prompts else "not given by the predictions"
        return found


def read_records(path: Path) -> list[Record]:
    """Read a file of predictions.

    Raises:
        DataError: it cannot be read, has no layout of the table above, or holds an answer that is not a string.
    """
    if path.is_dir():
        mme = " of answers to MME, as its eval_tool takes them" if (path / "existence.txt").is_file() else ""
        raise DataError(f"{str(path)!r} is a folder{mme}; give --predictions a file of answers to this benchmark.")
    if not path.is_file():
        raise DataError(f"{str(path)!r} does not exist; give --predictions a file of answers.")
    records = list(_records(path))
    if not records:
        raise DataError(f"{str(path)!r} holds no predictions; give --predictions a file of answers.")
    return records


def match(benchmark: Benchmark, examples: Sequence[Example], records: Sequence[Record], *, of: str) -> Matched:
    """Put records to the questions that they answer.

    A record is found by its id, or by the benchmark's keys where the file names questions by image and prompt. Where
    two questions have the same key, the official scripts look the right answer up by that key and so judge both by the
    last one's; so are they here, when found by key.

    Args:
        benchmark: which keys identify a question.
        examples: the questions.
        records: the answers.
        of: the file, for messages.

    Raises:
        DataError: a question is answered twice, or an answer is about no question; the first few are named.
    """
    by_id = {example.id: example for example in examples}
    by_key: dict[Any, list[Example]] = defaultdict(list)
    for example in examples:
        for key in benchmark.keys(example):
            by_key[key].append(example)
    given: dict[str, Record] = {}
    judged = dict(by_id)
    unknown: list[Record] = []
    for record in records:
        candidates = [by_id[record.id]] if record.id in by_id else _by_key(benchmark, record, by_key)
        if not candidates:
            unknown.append(record)
            continue
        free = [each for each in candidates if each.id not in given]
        if not free:
            earlier = given[candidates[-1].id]
            raise DataError(
                f"{of} answers question {record.id!r} twice ({earlier.where} and {record.where}); remove one of them."
            )
        example = free[0]
        given[example.id] = record
        if example.answers != candidates[-1].answers:
            judged[example.id] = dataclasses.replace(example, answers=candidates[-1].answers)
    if unknown:
        verb = "answer is" if len(unknown) == 1 else "answers are"
        raise DataError(
            f"{of}: {len(unknown):,} {verb} about no question of {benchmark.title} as it is in --data "
            f"({some(each.id for each in unknown)}; first in {unknown[0].where}); check benchmark, split and data."
        )
    return Matched(
        examples=[judged[example.id] for example in examples],
        predictions={name: each.text for name, each in given.items()},
        prompts={name: each.prompt.replace("<image>", "").strip() for name, each in given.items() if each.prompt},
    )


def with_prompts(benchmark: Benchmark, examples: Sequence[Example], questions: Path) -> list[Example]:
    """The examples with the prompts of one of LLaVA's files of questions.

    Raises:
        DataError: the file cannot be read, or its questions are not those of the examples.
    """
    matched = match(benchmark, examples, read_questions(questions), of=str(questions))
    without = [example.id for example in examples if example.id not in matched.predictions]
    if without:
        raise DataError(
            f"{questions} lacks {len(without):,} of the {len(examples):,} questions of {benchmark.title} "
            f"({some(without)}); give the file for this split."
        )
    return [dataclasses.replace(example, prompt=matched.predictions[example.id]) for example in examples]


def read_questions(path: Path) -> list[Record]:
    """LLaVA's questions: JSON lines with ``question_id`` and ``text``, or a list of conversations (``*_CQM-A.json``).

    Raises:
        DataError: the file cannot be read or has another layout.
    """
    records = []
    for where, value in _values(path):
        if isinstance(value, dict) and isinstance(value.get("conversations"), list):
            turns = value["conversations"]
            text = turns[0].get("value") if turns and isinstance(turns[0], dict) else None
        else:
            text = value.get("text") if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise DataError(f"{where} has no question ('text', or 'conversations' with a human turn).")
        text = text.replace("<image>", "").strip()
        records.append(Record(where, _id(value, where), text, text))
    return records


def _by_key(benchmark: Benchmark, record: Record, by_key: dict[Any, list[Example]]) -> list[Example]:
    return next((by_key[key] for key in benchmark.record_keys(record) if key in by_key), [])


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Each value of a JSON list, or of a file of JSON lines, and where it is."""
    if read_text(path).lstrip()[:1] == "[":
        for number, value in enumerate(read_json(path), 1):
            yield f"{str(path)!r}, entry {number}", value
    else:
        for line, value in json_lines(path):
            yield f"{str(path)!r}, line {line}", value


def _records(path: Path) -> Iterator[Record]:
    text = read_text(path).strip()
    if text.startswith("{") and (text.count("\n") and not text.split("\n", 1)[0].rstrip().endswith("}")):
        values = [(str(path), read_json(path))]  # over several lines, as LLaVA's ScienceQA result is
    else:
        values = list(_values(path))
    for where, value in values:
        if isinstance(value, dict) and (marks := _LOG.intersection(value)):
            raise DataError(
                f"{where} is from a log of lmms-eval or lm-eval ({', '.join(sorted(marks))}), not an answer; give "
                "--predictions a file with 'question_id' and 'text'."
            )
    if len(values) == 1 and isinstance(values[0][1], dict) and not any(name in values[0][1] for name in _IDS):
        yield from _mapping(path, values[0][1])
        return
    for where, value in values:
        name = _id(value, where)
        given = next((key for key in _TEXTS if key in value), None)
        if given is None:
            raise DataError(f"{where} (question {name!r}) has no answer: 'text', or 'prediction', or 'answer'.")
        prompt = value.get("prompt")
        yield Record(where, name, _answer(value[given], where, name), prompt if isinstance(prompt, str) else "")


def _mapping(path: Path, found: Any) -> Iterator[Record]:
    outputs = found.get("outputs", found) if isinstance(found, dict) else found
    if not isinstance(outputs, dict):
        raise DataError(f"{str(path)!r} holds no answers by question id ('outputs'); check that it is the right file.")
    for name, text in outputs.items():
        where = f"{str(path)!r}, question {name!r}"
        yield Record(where, name, _answer(text, where, name))


def _id(value: Any, where: str) -> str:
    if not isinstance(value, dict):
        raise DataError(f"{where} is a JSON {kind(value)} and must be an object with 'question_id' and 'text'.")
    name = next((value[key] for key in _IDS if key in value), None)
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise DataError(f"{where} has no 'question_id' that is a string or a whole number.")
    return str(name)


def _answer(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{where} answers question {name!r} with a JSON {kind(value)}; an answer must be a string, or an empty one."
        )
    return value
