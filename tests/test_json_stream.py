"""A list is read piece by piece and comes out as json.loads reads it, wherever the pieces are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama_v import json_stream
from mobillama_v.errors import DataError
from mobillama_v.json_stream import record_texts

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "data.json"


@given(values=st.lists(VALUES, min_size=1, max_size=6), chunk=st.integers(1, 40), indent=st.none() | st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_a_list_is_read_wherever_it_is_cut(path: Path, values: list[Any], chunk: int, indent: int | None) -> None:
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), "utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        try:
            found = list(record_texts(path))
        except DataError as error:
            assert "UTF-8" in str(error)  # lone surrogates
            return
    assert [json.loads(text) for _, text in found] == values
    assert [place for place, _ in found] == [f"number {i + 1}" for i in range(len(values))]


@pytest.mark.parametrize(
    "text", ["[", "[1", "[1,", "[1 2]", "[1,]", '["a', "[1] 2", "[{]", '[{"a": 1}, {"a"}]', "[tru"]
)
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_a_list_that_is_no_json_ends_with_an_error(text: str, chunk: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json is not valid JSON \(line 1: "):
        list(record_texts(tmp_path / "a.json"))


def test_memory_is_that_of_a_record(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "big.json"
    path.write_text(json.dumps([{"id": i, "text": "x" * 1000} for i in range(20_000)]))
    tracemalloc.start()
    assert sum(1 for _ in record_texts(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2  # measured: 8 MB of 20


def test_records_of_several_lines_and_files_without_any(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = [{"id": 1, "text": ["a\nb", 2]}, {"id": 2}]
    path.write_text("\n\n".join(json.dumps(value, indent=1) for value in values), encoding="utf-16")
    assert [(place, json.loads(text)) for place, text in record_texts(path)] == [
        ("number 1", values[0]),
        ("number 2", values[1]),
    ]
    for empty in ("", "\n \n", "[]", "\ufeff"):
        path.write_text(empty, encoding="utf-8")
        with pytest.raises(DataError, match="holds no record"):
            list(record_texts(path))
    path.write_text('{\n"id": 1\n}\n{\n"id" 2\n}')
    with pytest.raises(DataError, match=r"line 5: Expecting ':' delimiter"):
        list(record_texts(path))
