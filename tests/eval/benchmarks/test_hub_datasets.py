"""lmms-lab's layouts, written by the library that reads them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

import official
from mobillama_v.errors import DataError, MissingExtraError
from mobillama_v.eval.benchmarks.registry import get

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def image(path: Path | None) -> dict[str, Any] | None:
    return None if path is None else {"bytes": path.read_bytes(), "path": path.name}


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = datasets.Dataset.from_list(rows)
    if "image" in rows[0]:
        found = found.cast_column("image", datasets.Image())
    found.to_parquet(str(path))


def same(ours: list[Any], theirs: list[Any]) -> None:
    """The same questions, and the same pictures wherever they lie."""
    assert [(a.prompt, a.answers) for a in ours] == [(b.prompt, b.answers) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert [each.read_bytes() for each in a.images] == [each.read_bytes() for each in b.images]


def test_gqa(tmp_path: Path) -> None:
    ours = get("gqa").load(official.gqa(tmp_path / "ours"))
    hub = tmp_path / "hub"
    rows = [{"id": name} | each for name, each in official.gqa_questions().items()]
    for row in rows:
        del row["annotations"]  # empty objects, which parquet cannot hold
    parquet(hub / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", rows)
    pictures = [{"id": f"n{i:03d}", "image": image(tmp_path / f"ours/images/n{i:03d}.jpg")} for i in range(2)]
    parquet(hub / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", pictures)
    theirs = get("gqa").load(hub)
    same(ours, theirs)
    assert [each.id for each in theirs] == [each.id for each in ours]
    answers = {each.id: each.answers[0] for each in ours}
    assert get("gqa").score(theirs, answers) == get("gqa").score(ours, answers)


def test_scienceqa(tmp_path: Path) -> None:
    ours = get("scienceqa").load(official.scienceqa(tmp_path / "ours"))
    rows = []
    for pid, each in official.science_problems().items():
        if each["split"] == "test":
            file = tmp_path / "ours/images/test" / pid / "image.png" if each["image"] else None
            rows.append({**each, "image": image(file)})
    parquet(tmp_path / "hub" / "ScienceQA-FULL" / "test-00000-of-00001.parquet", rows)
    theirs = get("scienceqa").load(tmp_path / "hub")
    same(ours, theirs)
    assert [each.id for each in theirs] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("saved", [False, True])
def test_textvqa(tmp_path: Path, saved: bool) -> None:
    ours = get("textvqa").load(official.textvqa(tmp_path / "ours"))
    rows = [
        {
            **row,
            "image": image(tmp_path / f"ours/train_images/{row['image_id']}.jpg"),
            "ocr_tokens": official.OCR[row["image_id"]],
        }
        for row in official.textvqa_rows()
    ]
    if saved:
        found = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        datasets.DatasetDict({"validation": found}).save_to_disk(str(tmp_path / "hub"))
    else:
        parquet(tmp_path / "hub" / "data" / "validation-00000-of-00002.parquet", rows[:2])
        parquet(tmp_path / "hub" / "data" / "validation-00001-of-00002.parquet", rows[2:])
    theirs = get("textvqa").load(tmp_path / "hub")
    same(ours, theirs)
    assert [each.id for each in theirs] == [each.id for each in ours]


def test_mme(tmp_path: Path) -> None:
    ours = get("mme").load(official.mme(tmp_path / "ours"))
    rows = [
        {
            "question_id": name.replace("images/", ""),
            "image": image(tmp_path / "ours" / name),
            "question": q,
            "answer": a,
            "category": c,
        }
        for c, name, q, a in official.mme_rows()
    ]
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", rows)
    theirs = get("mme").load(tmp_path / "hub")
    same(ours, theirs)
    # Pictures are written once and then found.
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "hub" / "extracted_images").iterdir()}
    same(ours, get("mme").load(tmp_path / "hub"))
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_damaged_file_and_a_missing_library_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data" / "validation-00000-of-00001.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"cannot be read .*; download it again"):
        get("textvqa").load(tmp_path)
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ModuleNotFoundError(name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'mobillama-v\[eval\]'"):
        get("textvqa").load(tmp_path)
