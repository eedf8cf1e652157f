"""Small sets in the formats in which the owners of the benchmarks publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
IN_IMAGES = ("posters", "celebrity", "scene", "landmark", "artwork")
"""MME's categories whose pictures and texts lie in folders of their own."""
COLORS = ("red", "green", "blue", "yellow")


def picture(path: Path, number: int) -> Path:
    """A drawn picture; each number another one."""
    image = Image.new("RGB", (64 + 8 * (number % 3), 48), (235, 235, 225))
    corner = 4 + 5 * (number % 7)
    ImageDraw.Draw(image).rectangle((corner, 8, corner + 22, 34), fill=COLORS[number % 4])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def dump(path: Path, value: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def dump_lines(path: Path, values: list[Any]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def gqa_questions(images: int = 2) -> dict[str, dict[str, Any]]:
    """Three questions an image: one binary, two open, of which one follows from the other."""
    found: dict[str, dict[str, Any]] = {}
    for i in range(images):
        color = COLORS[i % 4]
        base = f"20{i:04d}"
        rows = [
            ("verify", "attr", "Is there a square?", "yes", [("select", "square"), ("exist", "?")], None, []),
            (
                "query",
                "attr",
                "What color is the square?",
                color,
                [("select", "square"), ("query", "color")],
                "color",
                [2],
            ),
            ("query", "cat", "What is it?", "square", [("select", "it"), ("query", "name")], "shape", [1]),
        ]
        for n, (structural, semantic, text, answer, steps, group, entailed) in enumerate(rows):
            found[f"{base}{n}"] = {
                "imageId": f"n{i:03d}",
                "question": text,
                "answer": answer,
                "fullAnswer": f"{answer}.",
                "isBalanced": True,
                "groups": {"global": group, "local": None},
                "entailed": [f"{base}{n}", *(f"{base}{m}" for m in entailed)],
                "equivalent": [f"{base}{n}"],
                "types": {"structural": structural, "semantic": semantic, "detailed": f"{structural}Thing"},
                "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
                "semantic": [{"operation": o, "dependencies": [], "argument": a} for o, a in steps],
                "semanticStr": "",
            }
    return found


def gqa(folder: Path, *, images: int = 2) -> Path:
    """testdev_balanced_questions.json and images/."""
    questions = gqa_questions(images)
    dump(folder / "testdev_balanced_questions.json", questions)
    for i in range(images):
        picture(folder / "images" / f"n{i:03d}.jpg", i)
    return folder


def llava_gqa(path: Path, *, images: int = 2) -> Path:
    """LLaVA's questions."""
    rows = [
        {
            "question_id": name,
            "image": f"{each['imageId']}.jpg",
            "text": f"{each['question']}\nAnswer the question using a single word or phrase.",
            "category": "default",
        }
        for name, each in gqa_questions(images).items()
    ]
    return dump_lines(path, rows)


def science_problems() -> dict[str, dict[str, Any]]:
    """Four problems of test (two with a picture), one of train."""

    def problem(number: int, **changes: Any) -> dict[str, Any]:
        return {
            "question": f"Which is number {number}?",
            "choices": ["one", "two", "three"],
            "answer": number % 3,
            "hint": "",
            "image": None,
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "physics",
            "category": "Numbers",
            "skill": "Count",
            "lecture": "",
            "solution": "",
            "split": "test",
        } | changes

    return {
        "4": problem(4),
        "5": problem(5, image="image.png", hint="The figure\nshows it."),
        "11": problem(11, image="image.png", subject="social science", grade="grade8"),
        "15": problem(15, hint="Count them.", subject="language science", grade="grade11", choices=["no", "yes"]),
        "1": problem(1, split="train"),
    }


def scienceqa(folder: Path) -> Path:
    """problems.json, pid_splits.json and images/test/<pid>/image.png."""
    problems = science_problems()
    dump(folder / "problems.json", problems)
    tests = [pid for pid, each in problems.items() if each["split"] == "test"]
    dump(folder / "pid_splits.json", {"train": ["1"], "val": [], "test": tests, "minitest": tests[:2], "minival": []})
    for number, pid in enumerate(tests):
        if problems[pid]["image"]:
            picture(folder / "images" / "test" / pid / "image.png", number)
    return folder


def llava_scienceqa(path: Path) -> Path:
    """LLaVA's llava_test_CQM-A.json, in which the request for a letter is not yet."""
    rows = []
    for pid, each in science_problems().items():
        if each["split"] != "test":
            continue
        context = f"Context: {each['hint']}\n" if each["hint"] else ""
        options = "\n".join(f"{'ABCDE'[i]}. {choice}" for i, choice in enumerate(each["choices"]))
        text = f"{context}{each['question']}\n{options}"
        row: dict[str, Any] = {"id": pid}
        if each["image"]:
            row["image"] = f"{pid}/image.png"
            text = f"<image>\n{text}"
        answer = {"from": "gpt", "value": "ABCDE"[each["answer"]]}
        rows.append(row | {"conversations": [{"from": "human", "value": text}, answer]})
    return dump(path, rows)


def textvqa_rows() -> list[dict[str, Any]]:
    """Four questions about three images, of which one has no OCR tokens."""

    def row(number: int, image: str, question: str, answers: list[str]) -> dict[str, Any]:
        return {
            "question_id": 34602 + number,
            "image_id": image,
            "question": question,
            "question_tokens": question.rstrip("?").split(),
            "image_classes": ["Sign"],
            "image_width": 72,
            "image_height": 48,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": answers,
            "set_name": "val",
        }

    return [
        row(0, "003a8ae2ef43b901", "what does the SIGN say?", ["stop"] * 6 + ["stop sign"] * 2 + ["the stop", "halt"]),
        row(1, "003a8ae2ef43b901", "what color is it?", ["red"] * 10),
        row(2, "b9dc400eb20bad64", "how many?", ["2", "two", "2.", "two"] + ["three"] * 6),
        row(3, "2b538a43dd933fc1", "what brand is this?", ["none"] * 2 + ["unanswerable"] * 8),
    ]


OCR = {"003a8ae2ef43b901": ["STOP", "ALL-WAY"], "b9dc400eb20bad64": [], "2b538a43dd933fc1": ["A,", "B"]}


def textvqa(folder: Path) -> Path:
    """The two JSON files and train_images/."""
    rows = textvqa_rows()
    about = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    dump(folder / "TextVQA_0.5.1_val.json", about | {"data": rows})
    tokens = [{"image_id": image, "ocr_tokens": words, "ocr_info": []} for image, words in OCR.items()]
    dump(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", about | {"data": tokens})
    for number, image in enumerate(OCR):
        picture(folder / "train_images" / f"{image}.jpg", number)
    return folder


def textvqa_prompt(row: dict[str, Any]) -> str:
    """The prompt of LLaVA's file."""
    tokens = ", ".join(OCR[row["image_id"]])
    return (
        f"{row['question'].capitalize()}\nReference OCR token: {tokens}\n"
        "Answer the question using a single word or phrase."
    )


def llava_textvqa(path: Path) -> Path:
    """LLaVA's questions, which are named by their image."""
    return dump_lines(
        path,
        [
            {
                "question_id": row["image_id"],
                "image": f"{row['image_id']}.jpg",
                "text": textvqa_prompt(row),
                "category": "default",
            }
            for row in textvqa_rows()
        ],
    )


def mme_rows(images: int = 2) -> list[tuple[str, str, str, str]]:
    """Category, picture, question and answer; a double blank in one, as in the original."""
    rows = []
    for category in (*PERCEPTION, *COGNITION):
        inner = "images/" if category in IN_IMAGES else ""
        suffix = "png" if category in COGNITION else "jpg"
        for i in range(images):
            name = f"{category}/{inner}{i:04d}.{suffix}"
            rows.append((category, name, "Is there a square? Please answer yes or no.", "Yes"))
            blanks = "  " if i else " "
            rows.append((category, name, f"Is it {COLORS[i + 1]}?{blanks}Please answer yes or no.", "No"))
    return rows


def mme(folder: Path, *, images: int = 2) -> Path:
    """A folder for each category, in both of MME's layouts."""
    texts: dict[Path, list[str]] = {}
    for number, (category, name, question, answer) in enumerate(mme_rows(images)):
        path = picture(folder / name, number // 2)
        where = folder / category / "questions_answers_YN" if category in IN_IMAGES else folder / category
        texts.setdefault(where / f"{path.stem}.txt", []).append(f"{question}\t{answer}\n")
    for path, lines in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    return folder


def mme_prompt(question: str) -> str:
    """The prompt of LLaVA's file."""
    bare = question.replace(" Please answer yes or no.", "").strip()
    return f"{bare}\nAnswer the question using a single word or phrase."


def llava_mme(path: Path) -> Path:
    """LLaVA's questions, which are named by their picture."""
    return dump_lines(
        path,
        [
            {"question_id": name, "image": name, "text": mme_prompt(question), "category": category}
            for category, name, question, _ in mme_rows()
        ],
    )


def custom(folder: Path) -> Path:
    """questions.jsonl and its pictures."""
    rows = [
        {"question_id": "a", "image": "images/0.jpg", "text": "What color?", "answer": "red", "category": "color"},
        {"question_id": "b", "image": "images/1.jpg", "text": "What color?", "answer": "green", "category": "color"},
        {"question_id": "c", "image": "images/1.jpg", "text": "What shape?", "answers": ["square", "box"]},
    ]
    dump_lines(folder / "questions.jsonl", rows)
    for number in range(2):
        picture(folder / "images" / f"{number}.jpg", number)
    return folder


def write_all(folder: Path) -> Path:
    """Every set, each in a folder of its name, as ``mobillama-v eval run all --data`` takes them."""
    gqa(folder / "gqa")
    scienceqa(folder / "scienceqa")
    textvqa(folder / "textvqa")
    mme(folder / "mme")
    custom(folder / "custom")
    return folder
