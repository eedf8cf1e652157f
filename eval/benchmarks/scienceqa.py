"""ScienceQA (Lu et al., arXiv 2209.09513): school science in multiple choice, half of it with a picture.

Prompts and judgement are LLaVA-1.5's (``llava_test_CQM-A.json``, ``llava/eval/eval_science_qa.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.base import Benchmark, Example, Source, Summary, by_group, percent, register
from mobillama_v.eval.benchmarks.dataset_files import check_unique, field, find, need, read_mapping, some, texts

SUFFIX = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDE"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # the full stop is unescaped there: any character but a newline
_HUB_SPLITS = {"val": "validation"}
_PAGE = "https://github.com/lupantech/ScienceQA"


@register
@dataclass(frozen=True)
class ScienceQA(Benchmark):
    """ScienceQA; ``split`` is ``test`` (the one that is reported), ``val``, ``train``, ``minitest`` or ``minival``.

    ``questions`` takes the prompts from LLaVA's ``llava_test_CQM-A.json``.
    """

    split: str = "test"

    name = "scienceqa"
    title = "ScienceQA"
    hub_id = "lmms-lab/ScienceQA"
    splits: ClassVar = {"test": 4_241, "val": 4_241, "train": 12_726, "minitest": 1_000, "minival": 1_000}
    max_new_tokens = 32
    paper_score = 53.1
    template = "[Context: {hint}\n]{question}\nA. {choice}…" + SUFFIX
    request = SUFFIX
    judged_by = "the option's letter"
    category = "subject"
    headline_group = ("image", "yes")

    def sources(self) -> list[Source]:
        """Problems, splits and pictures."""
        images = self.split.removeprefix("mini")
        return [
            Source("problems.json", f"{_PAGE} (data/scienceqa)"),
            Source("pid_splits.json", f"{_PAGE} (data/scienceqa)"),
            Source(f"images/{images}/", f"{_PAGE} (tools/download.sh: {images}.zip)"),
        ]

    def hub_files(self) -> str:
        """The split with and without pictures."""
        return f"ScienceQA-FULL/{_HUB_SPLITS.get(self.split, self.split)}-*"

    def settings(self) -> dict[str, str]:
        """With what is added to prompts of a file."""
        found = super().settings()
        return found | {"prompt": f"{found['prompt']} + suffix"} if self.questions else found

    def read(self, data: Path) -> list[Example]:
        """The problems of the split in the order of ``pid_splits.json``, or of the dataset of Hugging Face."""
        examples = self._from_hub(data) if find(data, "problems.json") is None else None
        return self._from_files(data) if examples is None else examples

    def with_prompts(self, examples: list[Example], questions: Path) -> list[Example]:
        """LLaVA's files lack the request for a letter."""
        examples = super().with_prompts(examples, questions)
        return [
            each if each.prompt.endswith(SUFFIX) else replace(each, prompt=each.prompt + SUFFIX) for each in examples
        ]

    def _from_files(self, data: Path) -> list[Example]:
        path = need(data, "problems.json", title=self.title, command=self.name)
        problems = read_mapping(path)
        splits_path = need(data, "pid_splits.json", title=self.title, command=self.name)
        pids = texts(read_mapping(splits_path), self.split, str(splits_path))
        absent = [pid for pid in pids if pid not in problems]
        if absent:
            raise DataError(
                f"{str(path)!r} lacks {len(absent):,} problems of the split {self.split} ({some(absent)}); download "
                "it again."
            )
        check_unique(pids, splits_path)
        # Whoever unpacks an archive of pictures beside the problems has them without the folder 'images'.
        inner = self.split.removeprefix("mini")
        folder = find(data, f"images/{inner}", inner) or path.parent / "images" / inner
        examples = []
        for pid in pids:
            problem, where = problems[pid], f"{str(path)!r}, problem {pid!r}"
            image = field(problem, "image", (str, type(None)), where)
            examples.append(_example(pid, problem, folder / pid / image if image else None, where))
        return examples

    def _from_hub(self, data: Path) -> list[Example] | None:
        from mobillama_v.eval.benchmarks import hub_datasets

        name = _HUB_SPLITS.get(self.split, self.split)
        config = next((each for each in ("ScienceQA-FULL", "ScienceQA-IMG") if (data / each).is_dir()), None)
        rows = hub_datasets.read(data, name, config=config)
        if rows is None:
            return None
        return [
            _example(
                str(i),  # the dataset has no ids: rows are numbered from 0
                row,
                hub_datasets.image_file(data, row.get("image"), f"{self.split}-{i}"),
                f"{data}, row {i}",
            )
            for i, row in enumerate(rows)
        ]

    def judge(self, example: Example, answer: str) -> float:
        """Whether the answer chooses the right letter."""
        return float(letter(answer, int(example.group["choices"])) == example.answers[0])

    def summarize(
        self, examples: Sequence[Example], predictions: Mapping[str, str], correct: Mapping[str, float]
    ) -> Summary:
        """Accuracy over all problems (``accuracy``) and over those with a picture (``img``), in percent.

        The headline is ``img``, which is what tables of vision-language models call SQA; where a set has no picture at
        all it is ``accuracy``.
        """
        pictured = [each for each in examples if each.group["image"] == "yes"]
        metrics = {"accuracy": percent(correct.values())}
        if pictured:
            metrics["img"] = percent(correct[each.id] for each in pictured)
        context = {
            "text": [each for each in examples if each.group["text"] == "yes"],
            "image": pictured,
            "none": [each for each in examples if each.group["text"] == each.group["image"] == "no"],
        }
        categories = {
            "subject": by_group(examples, correct, "subject"),
            "context": {name: percent(correct[e.id] for e in chosen) for name, chosen in context.items() if chosen},
            "grade": by_group(examples, correct, "grade"),
        }
        if pictured:
            return Summary(metrics, categories, "img", "accuracy on questions with an image")
        return Summary(metrics, categories)


def letter(answer: str, choices: int) -> str | None:
    """The letter that an answer chooses among the first ``choices`` of A to E; None where it chooses none.

    The whole answer is a letter; or it begins with one, a full stop and a blank; or "The answer is X." (any character
    in place of the full stop) is in it exactly once. The first of these that holds decides.
    """
    if len(answer) == 1 and answer in LETTERS:
        chosen = answer
    elif len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        chosen = answer[0]
    else:
        found = _SENTENCE.findall(answer)
        chosen = found[0] if len(found) == 1 else ""
    return chosen if chosen and chosen in LETTERS[:choices] else None


def _example(name: str, problem: Any, image: Path | None, where: str) -> Example:
    choices = texts(problem, "choices", where)
    answer = field(problem, "answer", int, where)
    if not 0 <= answer < len(choices) <= len(LETTERS):
        raise DataError(f"{where} has {len(choices)} choices and the answer {answer}; download the file again.")
    hint = problem.get("hint") or ""
    context = f"Context: {hint}\n" if hint else ""
    options = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
    group = {
        "subject": str(problem.get("subject") or "unknown"),
        "grade": _grades(str(problem.get("grade") or "")),
        "topic": str(problem.get("topic") or "unknown"),
        "image": "yes" if image else "no",
        "text": "yes" if hint else "no",
        "choices": str(len(choices)),
    }
    return Example(
        id=name,
        images=(image,) if image else (),
        prompt=f"{context}{field(problem, 'question', str, where)}\n{options}{SUFFIX}",
        answers=(LETTERS[answer],),
        group=group,
    )


def _grades(grade: str) -> str:
    number = grade.removeprefix("grade")
    return ("1-6" if int(number) <= 6 else "7-12") if number.isdigit() else "unknown"
