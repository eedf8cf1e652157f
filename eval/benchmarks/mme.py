"""MME (Fu et al., arXiv 2306.13394): yes-or-no questions in fourteen categories, two about each picture.

Judged as ``calculation.py`` of MME's ``eval_tool`` does. Of a category there are 100 points for the share of right
answers and 100 for the share of pictures with both right; perception is the sum of ten categories, cognition of four.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.base import (
    SHORT_ANSWER,
    Benchmark,
    Chart,
    Example,
    Record,
    Score,
    Source,
    Summary,
    percent,
    register,
)
from mobillama_v.eval.benchmarks.dataset_files import field, find, read_text, some

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES = (*PERCEPTION, *COGNITION)
REQUEST = " Please answer yes or no."
_SUFFIXES = (".jpg", ".png", ".jpeg")
_RELEASE = "MME_Benchmark_release_version"


@register
@dataclass(frozen=True)
class MME(Benchmark):
    """MME; ``questions`` takes the prompts from LLaVA's ``llava_mme.jsonl``."""

    split: str = "test"

    name = "mme"
    title = "MME"
    hub_id = "lmms-lab/MME"
    splits: ClassVar = {"test": 2_374}
    max_new_tokens = 16  # four characters decide, and a letter is two tokens
    paper_score = 1191.9
    judged_by = "yes or no among the first four characters"
    digits = 1
    points_by = "category"
    headline_group = ("area", "perception")

    def sources(self) -> list[Source]:
        """A folder for each category."""
        page = (
            "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation (by request to its "
            "authors) or https://huggingface.co/datasets/lmms-lab/MME"
        )
        return [Source(f"{category}/", page) for category in CATEGORIES]

    def hub_files(self) -> str:
        """All of it."""
        return f"data/{self.split}-*"

    def read(self, data: Path) -> list[Example]:
        """The questions by category and name of picture; ids are ``category/[images/]picture#1`` and ``#2``.

        Raises:
            DataError: a category, picture, text file or one of a picture's two questions is missing.
        """
        rows = None
        if not any(_category(data, category) for category in CATEGORIES):
            rows = _from_hub(data)
        if rows is None:
            rows = list(_from_files(data))
        counts: Counter[str] = Counter()
        examples: list[Example] = []
        for category, name, image, question, answer, where in rows:
            counts[name] += 1
            if answer.lower() not in ("yes", "no"):
                raise DataError(f"{where} has the answer {answer!r} and must have Yes or No; download it again.")
            examples.append(
                Example(
                    id=f"{name}#{counts[name]}",
                    images=(image,),
                    prompt=_bare(question) + SHORT_ANSWER,
                    answers=(answer.lower(),),
                    group={
                        "category": category,
                        "area": "perception" if category in PERCEPTION else "cognition",
                        "picture": name,
                    },
                )
            )
        odd = [name for name, count in counts.items() if count != 2]
        if odd:
            raise DataError(
                f"{len(odd)} pictures of MME in {str(data)!r} do not have two questions ({some(odd)}; the first has "
                f"{counts[odd[0]]}); download these categories again."
            )
        absent = [
            category for category in CATEGORIES if not any(each.group["category"] == category for each in examples)
        ]
        if absent:
            raise DataError(f"MME in {str(data)!r} lacks {some(absent)} of its 14 categories; download them.")
        return examples

    def read_predictions(self, path: Path) -> list[Record]:
        """A file as of any benchmark, or the folder of ``<category>.txt`` that MME's ``eval_tool`` takes."""
        return list(_predictions(path)) if path.is_dir() else super().read_predictions(path)

    def keys(self, example: Example) -> list[Any]:
        """Category, picture without suffix, and question."""
        return [_key(example.group["picture"], example.prompt)]

    def record_keys(self, record: Record) -> list[Any]:
        """The same: other people's files name both questions of a picture by the picture."""
        return [_key(record.id, record.prompt)]

    def judge(self, example: Example, answer: str) -> float:
        """Whether the answer says the right one of yes and no."""
        return float(verdict(answer) == example.answers[0])

    def summarize(
        self, examples: Sequence[Example], predictions: Mapping[str, str], correct: Mapping[str, float]
    ) -> Summary:
        """Points: ``perception`` (the headline, of 2000), ``cognition`` (of 800) and ``total``."""
        accuracy, both, points = {}, {}, {}
        for category in CATEGORIES:
            pictures: dict[str, list[float]] = defaultdict(list)
            for example in examples:
                if example.group["category"] == category:
                    pictures[example.group["picture"]].append(correct[example.id])
            if not pictures:
                continue
            accuracy[category] = percent(value for pair in pictures.values() for value in pair)
            both[category] = percent(float(all(pair)) for pair in pictures.values())
            points[category] = accuracy[category] + both[category]
        perception = {name: value for name, value in points.items() if name in PERCEPTION}
        cognition = {name: value for name, value in points.items() if name in COGNITION}
        metrics = {"perception": sum(perception.values()), "cognition": sum(cognition.values())}
        metrics["total"] = metrics["perception"] + metrics["cognition"]
        return Summary(
            metrics,
            {"perception": perception, "cognition": cognition, "accuracy": accuracy, "accuracy+": both},
            headline="perception",
        )

    @classmethod
    def top(cls, score: Score) -> float:
        """The points of the perception categories that were asked."""
        return 200.0 * max(1, len(score.categories.get("perception", {})))

    @classmethod
    def charts(cls, score: Score) -> list[Chart]:
        """Each category's bar in two parts of up to 100 points: accuracy and accuracy+."""
        parts = score.categories
        found = []
        for area, names in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
            bars = {
                name.replace("_", " "): (parts["accuracy"][name], parts["accuracy+"][name])
                for name in names
                if name in parts["accuracy"]
            }
            if bars:
                legend = ("accuracy", "accuracy+: both of a picture right")
                found.append(Chart(f"{area}, points of 200", 200, bars, legend=legend))
        return found


def verdict(answer: str) -> Literal["yes", "no", "other"]:
    """What an answer says: lower-cased it is yes or no, or has one of them in its first four characters, yes first."""
    start = answer.lower()[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else "other"


def _bare(question: str) -> str:
    return question.replace(REQUEST, "").rstrip()


def _key(name: str, prompt: str) -> tuple[str, str, str]:
    path = PurePosixPath(name)
    text = prompt.replace(SHORT_ANSWER.strip(), "").replace(REQUEST.strip(), "")
    # Categories have flat file names, but for MME's own folder 'images'; a picture's name ends at its first full stop.
    return path.parts[0] if path.parts else "", path.name.split(".")[0], " ".join(text.split())


def _category(data: Path, name: str) -> Path | None:
    path = find(data, name) or find(data / _RELEASE, name)
    return path if path and path.is_dir() else None


def _from_files(data: Path) -> Iterator[tuple[str, str, Path, str, str, str]]:
    if not data.is_dir():
        raise DataError(f"{str(data)!r} is not a folder; give --data the folder of MME's categories.")
    folders = {category: _category(data, category) for category in CATEGORIES}
    absent = [category for category, folder in folders.items() if folder is None]
    if absent and (answers := [name for name in CATEGORIES if (data / f"{name}.txt").is_file()]):
        raise DataError(
            f"{str(data)!r} holds answers to MME ({answers[0]}.txt and the like, as its eval_tool takes them), not its "
            "questions and pictures; give it as --predictions, and the pictures' folder as --data."
        )
    if absent:
        raise DataError(
            f"{str(data)!r} is not a folder of MME, or half of one: of the 14 categories {some(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} missing; `mobillama-v eval prepare mme --data {data}` says more."
        )
    for category, folder in folders.items():
        assert folder is not None
        yield from _read_category(category, folder)


def _read_category(category: str, folder: Path) -> Iterator[tuple[str, str, Path, str, str, str]]:
    pictures, answers = folder, folder
    prefix = category
    if (folder / "images").is_dir() or (folder / "questions_answers_YN").is_dir():
        pictures, answers, prefix = folder / "images", folder / "questions_answers_YN", f"{category}/images"
    files = {path.stem: path for path in sorted(answers.glob("*.txt"))}
    images = {path.stem: path for path in sorted(pictures.glob("*")) if path.suffix.lower() in _SUFFIXES}
    if not files and not images:
        raise DataError(f"the category {category} in {str(folder)!r} is empty; download it again.")
    lacking_text, lacking_image = sorted(images.keys() - files.keys()), sorted(files.keys() - images.keys())
    if lacking_text:
        raise DataError(
            f"{len(lacking_text)} pictures of MME's {category} have no text file in {str(answers)!r} "
            f"({some(images[stem].name for stem in lacking_text)}); download it again."
        )
    if images and lacking_image:
        raise DataError(
            f"{len(lacking_image)} text files of MME's {category} have no picture in {str(pictures)!r} "
            f"({some(files[stem].name for stem in lacking_image)}); download it again."
        )
    for stem in lacking_image:  # no pictures at all: enough for scoring, and a run refuses what it cannot open
        images[stem] = pictures / f"{stem}.jpg"
    for stem, file in files.items():
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                parts = line.strip().split("\t")
                where = f"{str(file)!r}, line {number}"
                if len(parts) != 2:
                    raise DataError(f"{where} is no question, tab and answer; download the file again.")
                yield category, f"{prefix}/{images[stem].name}", images[stem], parts[0], parts[1].strip(), where


def _predictions(path: Path) -> Iterator[Record]:
    """The lines of a folder of answers: image, question, right answer, answer."""
    files = sorted(path.glob("*.txt"))
    if not files:
        raise DataError(f"{str(path)!r} is a folder without <category>.txt; give --predictions a file of answers.")
    lines = [(file, n, line) for file in files for n, line in enumerate(read_text(file).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{str(path)!r} holds no predictions; give --predictions a file or folder of answers.")
    for file, number, line in lines:
        columns = line.split("\t")
        where = f"{str(file)!r}, line {number}"
        if len(columns) != 4:
            raise DataError(
                f"{where} has {len(columns)} columns and must have four: image, question, right answer, answer."
            )
        image, question, _, answer = columns
        yield Record(where, f"{file.stem}/{image}", answer.rstrip("\r"), question)


def _from_hub(data: Path) -> list[tuple[str, str, Path, str, str, str]] | None:
    from mobillama_v.eval.benchmarks import hub_datasets

    rows = hub_datasets.read(data, "test")
    if rows is None:
        return None
    found = []
    for i, row in enumerate(rows):
        where = f"{data}, row {i}"
        name = field(row, "question_id", str, where)
        image = hub_datasets.image_file(data, row.get("image"), name)
        if image is None:
            raise DataError(f"{where} has no picture; download the dataset again.")
        category = field(row, "category", str, where)
        # The name of a picture begins with its category in the owners' layout; so it does here.
        name = name if name.startswith(f"{category}/") else f"{category}/{name}"
        found.append(
            (category, name, image, field(row, "question", str, where), field(row, "answer", str, where), where)
        )
    return found
