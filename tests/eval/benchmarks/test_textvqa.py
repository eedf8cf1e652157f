from __future__ import annotations

from pathlib import Path

import pytest

import official
from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.registry import get
from mobillama_v.eval.predictions import match, read_records

SHORT = "\nAnswer the question using a single word or phrase."


def test_prompts_are_those_of_llavas_file(tmp_path: Path) -> None:
    examples = get("textvqa").load(official.textvqa(tmp_path))
    assert [each.id for each in examples] == ["34602", "34603", "34604", "34605"]
    # One capital letter, the first, as in LLaVA's file; a comma that belongs to a token stays.
    assert examples[0].prompt == f"What does the sign say?\nReference OCR token: STOP, ALL-WAY{SHORT}"
    assert examples[2].prompt == f"How many?\nReference OCR token: {SHORT}"  # the line is kept when there are none
    assert examples[3].prompt == f"What brand is this?\nReference OCR token: A,, B{SHORT}"
    assert all(each.images[0].is_file() for each in examples)
    theirs = get("textvqa", questions=official.llava_textvqa(tmp_path / "l.jsonl")).load(tmp_path)
    assert theirs == examples


def test_without_tokens_their_file_is_not_needed(tmp_path: Path) -> None:
    (official.textvqa(tmp_path) / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    assert get("textvqa", ocr="none").load(tmp_path)[0].prompt == f"What does the sign say?{SHORT}"
    with pytest.raises(DataError, match=r"has no TextVQA_Rosetta_OCR_v0\.2_val\.json.*--ocr none"):
        get("textvqa").load(tmp_path)


def test_score(tmp_path: Path) -> None:
    bench = get("textvqa")
    examples = bench.load(official.textvqa(tmp_path))
    found = bench.score(examples, {"34602": "Halt!", "34603": "blue", "34605": "zero"})
    # Halt was said by one of ten: 0.3. "none" and "zero" are the same; two of ten said so: 0.6.
    assert found.correct == pytest.approx({"34602": 0.3, "34603": 0, "34604": 0, "34605": 0.6})
    assert found.headline == found.metrics["accuracy"] == pytest.approx(22.5)
    assert found.missing == ("34604",)


def answer_file(path: Path, prompts: list[tuple[str, str, str]]) -> Path:
    return official.dump_lines(path, [{"question_id": q, "prompt": p, "text": t} for q, p, t in prompts])


def test_llavas_answers_are_found_by_image_and_prompt(tmp_path: Path) -> None:
    bench, rows = get("textvqa"), official.textvqa_rows()
    examples = bench.load(official.textvqa(tmp_path))
    styles = [
        official.textvqa_prompt(rows[0]),
        f"{rows[1]['question']}{SHORT}",  # without tokens
        f"Reference OCR token: \n{rows[2]['question']}{SHORT}",  # tokens first
        f"OCR tokens: A, B. Question: {rows[3]['question']} Short answer:",  # LLaVA 1.0
    ]
    lines = [(row["image_id"], style, f"answer {i}") for i, (row, style) in enumerate(zip(rows, styles, strict=True))]
    records = read_records(answer_file(tmp_path / "a.jsonl", lines[::-1]))
    found = match(bench, examples, records, of="a.jsonl")
    assert found.predictions == {f"3460{2 + i}": f"answer {i}" for i in range(4)}
    assert found.examples == examples


def test_two_questions_alike_are_judged_by_the_last_ones_answers_when_found_by_image(tmp_path: Path) -> None:
    official.textvqa(tmp_path)
    rows = official.textvqa_rows()
    twin = rows[1] | {"question_id": 99, "question": rows[1]["question"].upper(), "answers": ["blue"] * 10}
    official.dump(tmp_path / "TextVQA_0.5.1_val.json", {"data": [*rows, twin]})
    bench = get("textvqa", ocr="none")
    examples = bench.load(tmp_path)
    prompt = f"{rows[1]['question'].capitalize()}{SHORT}"
    path = answer_file(
        tmp_path / "a.jsonl", [(rows[1]["image_id"], prompt, "red"), (rows[1]["image_id"], prompt, "blue")]
    )
    found = match(bench, examples, read_records(path), of="a.jsonl")
    assert found.predictions == {"34603": "red", "99": "blue"}
    assert bench.score(found.examples, found.predictions).correct["34603"] == 0
    # By its own id each question has its own answers.
    own = official.dump(tmp_path / "a.json", [{"question_id": 34603, "answer": "red"}])
    found = match(bench, examples, read_records(own), of="a.json")
    assert bench.score(found.examples, found.predictions).correct["34603"] == 1


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a folder of TextVQA: TextVQA_0\.5\.1_val\.json is missing"):
        get("textvqa").load(tmp_path)
    official.textvqa(tmp_path)
    tokens = {"data": [{"image_id": "003a8ae2ef43b901", "ocr_tokens": ["x"]}]}
    official.dump(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", tokens)
    with pytest.raises(DataError, match="no tokens for image 'b9dc400eb20bad64'"):
        get("textvqa").load(tmp_path)
    rows = official.textvqa_rows()
    official.dump(tmp_path / "TextVQA_0.5.1_val.json", {"data": [*rows, rows[1]]})
    with pytest.raises(DataError, match=r"has questions twice \('34603'\)"):
        get("textvqa", ocr="none").load(tmp_path)
    rows[1]["answers"] = ["red"] * 9
    official.dump(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    with pytest.raises(DataError, match="entry 2 has 9 answers and must have ten"):
        get("textvqa", ocr="none").load(tmp_path)
    official.dump(tmp_path / "TextVQA_0.5.1_val.json", {"data": [{k: v for k, v in rows[0].items() if k != "answers"}]})
    with pytest.raises(DataError, match="has no 'answers'"):
        get("textvqa", ocr="none").load(tmp_path)
    official.dump(tmp_path / "TextVQA_0.5.1_val.json", {"data": []})
    with pytest.raises(DataError, match="holds no questions"):
        get("textvqa", ocr="none").load(tmp_path)
    with pytest.raises(ConfigError, match="not 'tesseract'"):
        get("textvqa", ocr="tesseract")
