"""TextVQA (Singh et al., arXiv 1904.08920): questions whose answer is written in the picture.

Prompts are those of LLaVA-1.5's ``llava_textvqa_val_v051_ocr.jsonl``: the question with a capital first letter (and no
other), the Rosetta tokens, the request for a short answer. Answers are judged by
:mod:`mobillama_v.eval.benchmarks.evalai`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.base import SHORT_ANSWER, Benchmark, Example, Record, Source, register
from mobillama_v.eval.benchmarks.dataset_files import field, find, need, read_mapping, texts
from mobillama_v.eval.benchmarks.evalai import soft_accuracy
from mobillama_v.eval.ocr import ocr_mode
from mobillama_v.ocr import tokens_line

FILE = "TextVQA_0.5.1_val.json"
OCR_FILE = "TextVQA_Rosetta_OCR_v0.2_val.json"
_OLD_PROMPT = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)
_PAGE = "https://textvqa.org/dataset"
_PEOPLE = 10
Ocr = Literal["rosetta", "rapidocr", "none"]


@register
@dataclass(frozen=True)
class TextVQA(Benchmark):
    """TextVQA 0.5.1, validation; ``ocr`` puts the Rosetta tokens into the prompt, those that RapidOCR reads, or none.

    ``questions`` takes the prompts from LLaVA's ``llava_textvqa_val_v051_ocr.jsonl``.
    """

    split: str = "0.5.1 val"
    ocr: Ocr = "rosetta"

    name = "textvqa"
    title = "TextVQA"
    hub_id = "lmms-lab/textvqa"
    splits: ClassVar = {"0.5.1 val": 5_000}
    max_new_tokens = 48
    paper_score = 41.4
    options_in_all = frozenset({"ocr"})
    judged_by = "EvalAI soft accuracy over ten answers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ocr not in get_args(Ocr):
            raise ConfigError(f"TextVQA is asked with OCR tokens {', '.join(get_args(Ocr))}, not {self.ocr!r}.")
        if self.questions and self.ocr == "rapidocr":
            raise ConfigError("--questions takes whole prompts from its file; leave out --ocr rapidocr, or that file.")

    def sources(self) -> list[Source]:
        """Questions, tokens and pictures."""
        base = "https://dl.fbaipublicfiles.com/textvqa"
        return [
            Source(FILE, f"{_PAGE} ({base}/data/{FILE})"),
            Source(OCR_FILE, f"{_PAGE} ({base}/data/{OCR_FILE})", optional=self.ocr != "rosetta"),
            Source("train_images/", f"{_PAGE} ({base}/images/train_val_images.zip)"),
        ]

    def hub_files(self) -> str:
        """The split."""
        return "data/validation-*"

    def settings(self) -> dict[str, str]:
        """With the OCR tokens."""
        found = super().settings()
        if self.questions:
            return found | {"ocr": "as in the file of questions"}
        line = "" if self.ocr == "none" else tokens_line(["{tokens}"])
        return found | {"prompt": "{question}" + line + SHORT_ANSWER, "ocr": ocr_mode(self.ocr)}

    def read(self, data: Path) -> list[Example]:
        """From the owners' files, or from the dataset of Hugging Face."""
        rows = self._from_hub(data) if find(data, FILE) is None else None
        return [self._example(*row) for row in (self._from_files(data) if rows is None else rows)]

    def for_scoring(self, data: Path) -> TextVQA:
        """The benchmark without tokens where only their file is missing: answers are judged without it."""
        return replace(self, ocr="none") if find(data, FILE) and not find(data, OCR_FILE) else self

    def _from_files(self, data: Path) -> list[tuple[Any, list[str], Path, str]]:
        path = need(data, FILE, title=self.title, command=self.name)
        questions = field(read_mapping(path), "data", list, str(path))
        tokens = {} if self.ocr != "rosetta" or self.questions else self._tokens(data)
        folder = find(data, "train_images") or path.parent / "train_images"
        rows = []
        for number, question in enumerate(questions, 1):
            where = f"{str(path)!r}, entry {number}"
            image = field(question, "image_id", str, where)
            if tokens and image not in tokens:
                raise DataError(f"{OCR_FILE} has no tokens for image {image!r} of {FILE}; download both again.")
            rows.append((question, tokens.get(image, []), folder / f"{image}.jpg", where))
        return rows

    def _tokens(self, data: Path) -> dict[str, list[str]]:
        path = find(data, OCR_FILE)
        if path is None:
            raise DataError(
                f"{str(data)!r} has no {OCR_FILE}; download it (`mobillama-v eval prepare textvqa --data {data}`), or "
                "ask without OCR tokens: --ocr none."
            )
        found = {}
        for number, each in enumerate(field(read_mapping(path), "data", list, str(path)), 1):
            where = f"{str(path)!r}, entry {number}"
            found[field(each, "image_id", str, where)] = texts(each, "ocr_tokens", where)
        return found

    def _from_hub(self, data: Path) -> list[tuple[Any, list[str], Path, str]] | None:
        from mobillama_v.eval.benchmarks import hub_datasets

        rows = hub_datasets.read(data, "validation")
        if rows is None:
            return None
        found = []
        for i, row in enumerate(rows):
            image = hub_datasets.image_file(data, row.get("image"), str(row.get("image_id")))
            if image is None:
                raise DataError(f"{data}, row {i} has no picture; download the dataset again.")
            tokens = [] if self.ocr != "rosetta" else texts(row, "ocr_tokens", f"{data}, row {i}")
            found.append((row, tokens, image, f"{data}, row {i}"))
        return found

    def _example(self, row: Any, tokens: list[str], image: Path, where: str) -> Example:
        question = field(row, "question", str, where)
        answers = texts(row, "answers", where)
        if len(answers) != _PEOPLE:
            raise DataError(f"{where} has {len(answers)} answers and must have ten; is it the validation split?")
        line = tokens_line(tokens) if self.ocr == "rosetta" else ""
        return Example(
            id=str(field(row, "question_id", (int, str), where)),
            images=(image,),
            prompt=f"{question.capitalize()}{line}{SHORT_ANSWER}",
            answers=tuple(answers),
            group={"image": field(row, "image_id", str, where), "question": question},
        )

    def keys(self, example: Example) -> list[Any]:
        """Image and question: LLaVA's files carry the id of the image where that of the question is expected."""
        return [(example.group["image"], example.group["question"].lower())]

    def record_keys(self, record: Record) -> list[Any]:
        """The image with each line of the prompt, for the question is one of them; also of LLaVA's older prompts."""
        old = _OLD_PROMPT.search(record.prompt)
        lines = [old.group(1), record.prompt] if old else record.prompt.split("\n")
        return [(record.id, line.lower()) for line in lines]

    def judge(self, example: Example, answer: str) -> float:
        """Soft accuracy."""
        return soft_accuracy(answer, example.answers)
