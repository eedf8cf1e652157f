"""Other people's formats to records: tables, VQAv2's JSON, folders of image and text pairs, Hugging Face datasets.

Each reader yields :class:`Pair`; :func:`records_of` makes conversations of them. Nothing is checked here that
:mod:`mobillama_v.train.data.check` checks.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from mobillama_v.errors import DataError
from mobillama_v.hf_datasets import is_saved, open_rows, reading
from mobillama_v.images import find_images
from mobillama_v.train.data.json_stream import record_texts
from mobillama_v.train.data.records import IMAGE_MARKER

DESCRIBE = "Describe the image."
_VQAV2_IMAGE = "COCO_{subtype}_{image_id:012d}.jpg"
_SHARD = re.compile(r"(.+)-\d+-of-\d+\.parquet")


class Pair(NamedTuple):
    """A question about an image (or about none) and its answer."""

    id: str
    image: str | None
    question: str
    answer: str


def table(path: Path, *, image: str = "image", question: str = "question", answer: str = "answer") -> Iterator[Pair]:
    """Rows of a CSV file (TSV by its name) or objects of JSON or JSON lines, with a column for each field.

    A row without an image is text only, and so is a table without that column.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    rows = _csv(path) if path.suffix.lower() in (".csv", ".tsv") else _objects(path)
    for place, row in rows:
        _require_columns(f"{path}, {place}", row, [name for name in (question, answer) if row.get(name) is None])
        yield Pair(str(row.get("id", place)), row.get(image) or None, str(row[question]), str(row[answer]))


def _require_columns(where: str, columns: Iterable[str], missing: list[str]) -> None:
    if missing:
        raise DataError(
            f"{where} has no column {', '.join(missing)}; its columns are {', '.join(map(str, columns))}: name the "
            "right ones with --question and --answer."
        )


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(1 << 24)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for row in reader:
                yield f"line {reader.line_num}", {str(name): value for name, value in row.items() if name is not None}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); check its path, and that it is UTF-8.") from error


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, text in record_texts(path):
        try:
            value = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}, {place} is not valid JSON ({error}); fix it.") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}, {place} is no object with columns; write it as one.")
        yield place, value


def vqav2(questions: Path, annotations: Path, *, image_name: str | None = None) -> Iterator[Pair]:
    """VQAv2's questions with the answer that most annotators gave (``multiple_choice_answer``).

    Args:
        questions: ``v2_OpenEnded_mscoco_train2014_questions.json``, say.
        annotations: ``v2_mscoco_train2014_annotations.json``.
        image_name: file of an image, with ``{image_id}`` (an integer, so also ``{image_id:012d}``) and ``{subtype}``;
            by default MS COCO's of 2014.

    Raises:
        DataError: a file that is not what VQAv2's are, or a question without an annotation.
    """
    asked, answered = _json(questions, "questions"), _json(annotations, "annotations")
    pattern = image_name or _VQAV2_IMAGE
    try:
        answers = {each["question_id"]: each["multiple_choice_answer"] for each in answered["annotations"]}
        for each in asked["questions"]:
            name = pattern.format(image_id=int(each["image_id"]), subtype=asked.get("data_subtype", ""))
            yield Pair(str(each["question_id"]), name, str(each["question"]), str(answers[each["question_id"]]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{questions} and {annotations} do not fit together as VQAv2's do ({type(error).__name__}: {error}); check "
            "that both are of one split, and --image-name."
        ) from error


def _json(path: Path, key: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); check its path.") from error
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise DataError(f"{path} holds no list of {key}; give VQAv2's file of {key}.")
    return value


def captions(folder: Path, *, question: str = DESCRIBE) -> Iterator[Pair]:
    """Images of a folder with the text of the ``.txt`` file beside each; images without one are an error.

    Raises:
        ImageError: the folder holds no images.
        DataError: an image has no text, or it cannot be read.
    """
    for image in find_images(folder):
        text = image.with_suffix(".txt")
        try:
            caption = text.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{text} cannot be read ({error}); every image needs its text beside it.") from error
        yield Pair(image.stem, image.name, question, caption)


def hugging_face(
    folder: Path,
    *,
    images: Path,
    split: str | None = None,
    image: str = "image",
    question: str = "question",
    answer: str = "answer",
) -> Iterator[Pair]:
    """A dataset that ``save_to_disk`` wrote, or a folder of ``.parquet`` files; its images are written to ``images``.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed.
        DataError: no dataset, no such split or column, or images that cannot be written.
    """
    with reading(folder):
        rows = open_rows(folder if is_saved(folder) else _parquet_files(folder, split), split)
        columns = rows.column_names
        _require_columns(f"the dataset in {folder}", columns, [n for n in (question, answer) if n not in columns])
        for number, row in enumerate(rows):
            given = row.get(image) or None
            if not isinstance(given, dict | str | None):
                kind = type(given).__name__
                raise DataError(f"column {image} of the dataset in {folder} holds a {kind}, no image; choose another.")
            name = _write_image(given, images, folder) if isinstance(given, dict) else given
            yield Pair(str(row.get("id", number)), name, str(row[question]), _answer(row[answer]))


def is_dataset(folder: Path) -> bool:
    """Whether ``folder`` holds a dataset, and not images with their texts."""
    return is_saved(folder) or next(folder.rglob("*.parquet"), None) is not None


def _parquet_files(folder: Path, split: str | None) -> list[Path]:
    """The files of a split, which names such as ``train-00000-of-00002.parquet`` name; never those of several."""
    files = {path: _SHARD.fullmatch(path.name) for path in sorted(folder.rglob("*.parquet"))}
    splits = sorted({match[1] for match in files.values() if match})
    found = [path for path, at in files.items() if split is None or (split == at[1] if at else split in path.name)]
    if not found or (split is None and len(splits) > 1):
        problem = f"has the splits {', '.join(splits)}; choose one with" if splits else "is not split; leave out"
        raise DataError(f"the dataset in {folder} {problem} --split.")
    return found


def _answer(value: Any) -> str:
    """A text, or the first of several."""
    return str(value[0]) if isinstance(value, list) and value else str(value)


def _write_image(given: dict[str, Any], images: Path, folder: Path) -> str:
    """The name of a row's image in ``images``, which its bytes make: one that came twice is written once."""
    content = given.get("bytes")
    if content is None:
        try:
            content = Path(given["path"]).read_bytes()
        except (OSError, TypeError, KeyError) as error:
            raise DataError(f"an image of the dataset in {folder} is not there ({error}); save it again.") from error
    name = hashlib.sha256(content).hexdigest()[:24] + ".img"
    if not (images / name).is_file():
        try:
            images.mkdir(parents=True, exist_ok=True)
            partial = images / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(images / name)
        except OSError as error:
            raise DataError(
                f"images cannot be written to {images} ({error.strerror}); choose another --images."
            ) from error
    return name


def records_of(pairs: Iterable[Pair], *, suffix: str = "", turns: int = 1) -> Iterator[dict[str, Any]]:
    """Records of the pairs, in their order.

    Args:
        pairs: questions and answers; the image goes before the first question of a record.
        suffix: goes after every question.
        turns: up to how many neighboring pairs of one image share a record, which encodes the image once for them.
    """
    for image, group in groupby(pairs, lambda pair: pair.image):
        asked = list(group)
        step = turns if image is not None else 1
        for first in range(0, len(asked), step):
            chosen = asked[first : first + step]
            messages: list[dict[str, str]] = []
            for place, pair in enumerate(chosen):
                lead = f"{IMAGE_MARKER}\n" if image is not None and place == 0 else ""
                question = pair.question.replace(IMAGE_MARKER, "").strip()
                messages += [
                    {"from": "human", "value": f"{lead}{question}{suffix}"},
                    {"from": "gpt", "value": pair.answer},
                ]
            yield {"id": chosen[0].id, **({} if image is None else {"image": image}), "conversations": messages}
