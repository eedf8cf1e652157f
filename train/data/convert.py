"""Other people's formats to records: tables, conversations, VQAv2's and COCO's JSON, folders, Hugging Face datasets.

A reader yields an :data:`Item` for each row: what it says, or the problem for which it is left out. :func:`read`
chooses the reader by what it is given; :func:`records_of` makes records of what it yields.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from mobillama_v.conversation import IMAGE_MARKER, MALFORMED, Conversation, ConversationError, read_record, turns_of
from mobillama_v.errors import DataError, ImageError
from mobillama_v.hf_datasets import is_saved, open_rows, reading
from mobillama_v.json_stream import record_texts
from mobillama_v.prompt import Slot
from mobillama_v.tables import Pick, column_name, is_json, read_table, stray_picture, text_of
from mobillama_v.train.data import folders, hub_files
from mobillama_v.train.data.preprocess import MISSING, Problem

NO_TEXT, UNREADABLE_ROW = "question or answer is no text", "row cannot be read"
_VQAV2_IMAGE = "COCO_{subtype}_{image_id:012d}.jpg"
_FROM = {"system": "system", "user": "human", "assistant": "gpt"}
_COCO = ("images", "annotations")
_IMAGES = ("file_name", "filename", "image_path", "image_file", "img", "picture", "photo")
"""Columns that are the image's where there is none of the name that was asked for."""
_CAPTIONS = ("caption", "captions", "text", "description")
"""Columns of what is to be said of an image, where there is neither question nor answer."""


class Pair(NamedTuple):
    """A question about images (or about none) and its answer."""

    id: str
    images: tuple[str, ...]
    question: str
    answer: str


class Talk(NamedTuple):
    """A conversation as the normalizer gives it; its images are paths."""

    id: str
    read: Conversation


Item = Pair | Talk | Problem


@dataclass(frozen=True)
class Options:
    """What a user may say of a source; names of columns count without case."""

    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    pick: Pick | None = None
    """Which of a list of answers is learned; None: a list is refused."""
    prompt: str | None = None
    """The question about images that have a caption or a class; None: one that asks for it."""
    split: str | None = None
    images: Path = Path("images")
    """Folder to which the images of a Hugging Face dataset are written."""


def read(source: Path, options: Options) -> Iterator[Item]:
    """The rows of any source but VQAv2's.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed, and ``source`` needs it.
        DataError: the source cannot be read.
    """
    if source.suffix.lower() == ".parquet" or hub_files.is_dataset(source):
        return hugging_face(source, options)
    if source.is_dir():
        return (
            found if isinstance(found, Problem) else Pair(found.name, (found.image,), found.question, found.answer)
            for found in folders.read(source, options.prompt)
        )
    if is_json(source):
        first = _first_object(source)
        if all(isinstance(first.get(key), list) for key in _COCO):
            return coco(source, options)
        if isinstance(first.get("questions"), list):
            raise DataError(f"{source} holds VQAv2's questions; name the file of its answers with --annotations.")
    return table(source, options)


def _first_object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(next(record_texts(path))[1])
    except (ValueError, RecursionError):
        return {}  # is named when it is read as a row
    return value if isinstance(value, dict) else {}


def table(path: Path, options: Options) -> Iterator[Item]:
    """Rows of a table with a column for each field, or with a column of conversations.

    A row without an image is text only, and so is a table without that column.

    Raises:
        DataError: the file cannot be read.
    """
    for row in read_table(path):
        if row.problem:
            yield Problem(str(path), row.place, row.place, UNREADABLE_ROW, f"{path}, {row.place} {row.problem}.")
        else:
            yield _item(row.values, str(path), row.place, options, lambda image: image)


def _item(row: Mapping[str, Any], source: str, place: str, options: Options, path_of: Callable[[Any], Any]) -> Item:
    """What a row says; ``path_of`` makes a path of an image that is none."""
    name = str(place if row.get("id") in (None, "") else row["id"])
    where = f"{source}, {place}"
    question, answer = column_name(options.question), column_name(options.answer)
    talks = not {question, answer} <= row.keys() and turns_of(row) is not None
    columns = _image_columns(row, column_name(options.image), talks=talks)
    caption = next((each for each in _CAPTIONS if each in row), None)
    if caption and columns and not talks and not {question, answer} & row.keys():
        row, answer = {question: folders.DESCRIBE, **row}, caption
    if options.prompt is not None and (question not in row or answer == caption):
        row = {**row, question: options.prompt}
    missing = [each for each in (question, answer) if each not in row]
    stray = None if columns else stray_picture(row, {"id", question, answer})
    if stray:
        reason = (
            f"{where}: its column {stray[0]!r} names a picture ({stray[1]}), and --image {options.image} does not; "
        )
        return Problem(source, place, name, MALFORMED, f"{reason}give --image {shlex.quote(stray[0])}.")
    try:
        images = {key: _paths(row[key], path_of) for key in columns if row.get(key) is not None}
        if talks:
            rest = {key: value for key, value in row.items() if key not in columns}
            own = {key if key == "images" else "image": paths for key, paths in images.items()}
            return Talk(name, read_record(rest | own))
    except ConversationError as error:
        return Problem(source, place, name, error.kind, f"{where}: {error}")
    except ImageError as error:
        return Problem(source, place, name, MISSING, f"{where}: {error}")
    if missing:
        return Problem(
            source,
            place,
            name,
            MALFORMED,
            f"{where} has no column {', '.join(missing)}; its columns are {', '.join(row)}: name the right ones with "
            "--question and --answer, or give --prompt where nothing is asked.",
        )
    paths = [path for each in images.values() for path in each]
    if not all(isinstance(path, str) for path in paths):
        reason = f"{where}: the {options.image} is neither a path nor a list of paths; choose another --image."
        return Problem(source, place, name, MALFORMED, reason)
    texts = []
    for column, pick in ((question, None), (answer, options.pick)):
        try:
            texts.append(text_of(row[column], pick))
        except ValueError as error:
            return Problem(source, place, name, NO_TEXT, f"{where}: the {column} is {error}.")
    return Pair(name, tuple(paths), *texts)


def _image_columns(row: Mapping[str, Any], named: str, *, talks: bool) -> tuple[str, ...]:
    """Those of a row that hold its images: the one that was named, or what is usual where that is ``image``."""
    usual = [("image", "images"), *(() if talks else ((each,) for each in _IMAGES))]
    asked = usual if named == "image" else [(named,), *usual[:1]] if talks else [(named,)]
    found = (tuple(each for each in columns if each in row) for columns in asked)
    return next((columns for columns in found if columns), ())


def _paths(value: Any, path_of: Callable[[Any], Any]) -> list[Any]:
    values = value if isinstance(value, list | tuple) else [value]
    paths = [path_of(each) for each in values if each not in (None, "")]
    return [path.strip().replace("\\", "/") if isinstance(path, str) else path for path in paths]


def vqav2(questions: Path, annotations: Path, *, image_name: str | None = None) -> Iterator[Item]:
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
            number = str(each["question_id"])
            try:
                yield Pair(number, (name,), text_of(each["question"]), text_of(answers[each["question_id"]]))
            except ValueError as error:
                reason = f"{questions}, question {number} or its answer is {error}."
                yield Problem(str(questions), f"question {number}", number, NO_TEXT, reason)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{questions} and {annotations} do not fit together as VQAv2's do ({type(error).__name__}: {error}); check "
            "that both are of one split, and --image-name."
        ) from error


def coco(path: Path, options: Options) -> Iterator[Item]:
    """COCO's captions: a pair for each annotation, those of one image together.

    Raises:
        DataError: the file is not what COCO's are.
    """
    found = _json(path, "images")
    try:
        names = {each["id"]: each["file_name"] for each in found["images"]}
        order = {name: place for place, name in enumerate(names)}
        for each in sorted(found["annotations"], key=lambda each: order[each["image_id"]]):
            place = f"annotation {each['id']}"
            try:
                caption = text_of(each["caption"])
                yield Pair(str(each["id"]), (names[each["image_id"]],), options.prompt or folders.DESCRIBE, caption)
            except ValueError as error:
                yield Problem(str(path), place, place, NO_TEXT, f"{path}, {place}: the caption is {error}.")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no captions as COCO's files do ({type(error).__name__}: {error}).") from error


def _json(path: Path, key: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); check its path.") from error
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise DataError(f"{path} holds no list of {key}; give the file of {key}.")
    return value


def hugging_face(source: Path, options: Options) -> Iterator[Item]:
    """A dataset that ``save_to_disk`` wrote, a ``.parquet`` file or a folder of them; its images are written to files.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed.
        DataError: no dataset, no such split, or images that cannot be written.
    """

    def path_of(image: Any) -> Any:
        return hub_files.write_image(image, options.images) if isinstance(image, dict) else image

    with reading(source):
        rows = open_rows(source if is_saved(source) else hub_files.parquet_files(source, options.split), options.split)
        for number, row in enumerate(rows):
            values = {column_name(name): value for name, value in row.items()}
            yield _item(values, f"the dataset in {source}", f"row {number}", options, path_of)


def records_of(
    items: Iterable[Item], *, suffix: str = "", turns: int = 1, left_out: Callable[[Problem], None]
) -> Iterator[dict[str, Any]]:
    """Records of the items, in their order.

    Args:
        items: of a reader.
        suffix: goes after every question of a pair.
        turns: up to how many neighboring pairs of one image share a record, which encodes the image once for them.
        left_out: called with each problem, in the place of a record.
    """
    for images, group in groupby(items, lambda item: item.images if isinstance(item, Pair) else None):
        asked = list(group)
        if images is None:
            for item in asked:
                if isinstance(item, Talk):
                    yield _record(item.id, item.read)
                elif isinstance(item, Problem):
                    left_out(item)
            continue
        step = turns if images else 1
        pairs = [item for item in asked if isinstance(item, Pair)]
        for first in range(0, len(pairs), step):
            messages: list[dict[str, str]] = []
            for pair in pairs[first : first + step]:
                lead = f"{IMAGE_MARKER}\n" * (0 if messages else len(images))
                question = pair.question.replace(IMAGE_MARKER, "").strip()
                messages += [
                    {"from": "human", "value": f"{lead}{question}{suffix}"},
                    {"from": "gpt", "value": pair.answer},
                ]
            yield _named(pairs[first].id, images) | {"conversations": messages}


def _record(name: str, read: Conversation) -> dict[str, Any]:
    """LLaVA's record, or one in parts where a user's text holds what is LLaVA's marker of an image."""
    texts = [part for message in read.messages for part in message.content if isinstance(part, str)]
    weights = [{} if message.learned else {"weight": 0} for message in read.messages]
    if read.images and any(IMAGE_MARKER in text for text in texts):
        turns = [
            {"role": message.role, "content": [_part(part) for part in message.content], **weight}
            for message, weight in zip(read.messages, weights, strict=True)
        ]
        return _named(name, read.images) | {"messages": turns}
    told = [
        {"from": _FROM[message.role], "value": "".join(map(_marked, message.content)), **weight}
        for message, weight in zip(read.messages, weights, strict=True)
    ]
    return _named(name, read.images) | {"conversations": told}


def _part(part: str | Slot) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _marked(part: str | Slot) -> str:
    return part if isinstance(part, str) else IMAGE_MARKER


def _named(name: str, images: tuple[str, ...]) -> dict[str, Any]:
    given = {} if not images else {"image": images[0] if len(images) == 1 else list(images)}
    return {"id": name, **given}
