"""Tables as spreadsheets and programs write them come out as the same rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobillama_v.errors import DataError
from mobillama_v.tables import read_table, text_of

CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table.csv"


@given(
    rows=st.lists(st.tuples(CELLS, CELLS).filter(lambda row: any(cell.strip() for cell in row)), min_size=1),
    delimiter=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    sep=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_table_is_read_back(path: Path, rows: list[tuple[str, str]], delimiter: str, encoding: str, sep: bool):
    with open(path, "w", encoding=encoding, newline="") as file:
        file.write(f"sep={delimiter}\r\n" * sep)
        csv.writer(file, delimiter=delimiter).writerows([[" Größe ", "ANSWER"], *rows])
    assert [tuple(row.values.values()) for row in read_table(path)] == rows
    assert all(set(row.values) == {"grösse", "answer"} and not row.problem for row in read_table(path))


def test_windows_code_page(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("Frage;Antwort\r\nGröße?;“groß” – sehr\r\n".encode("cp1252"))
    assert [row.values for row in read_table(tmp_path / "a.csv")] == [{"frage": "Größe?", "antwort": "“groß” – sehr"}]


def test_json_in_every_layout_is_the_same(tmp_path: Path) -> None:
    rows = [{"Answer": "a|b", "id": 1}, {"Answer": "[x]", "id": 2}]
    for text in (
        json.dumps(rows),
        json.dumps(rows, indent=2),
        "\n".join(map(json.dumps, rows)),
        "\n".join(json.dumps(row, indent=1) for row in rows),
    ):
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / "a.txt").write_text(text, encoding=encoding)
            assert [row.values for row in read_table(tmp_path / "a.txt")] == [
                {"answer": "a|b", "id": 1},
                {"answer": "[x]", "id": 2},
            ]


def test_bad_rows_are_named_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'q,a,\n1,"two\nlines",\n,,\n3,x,y\n4,"b" c\n5,{"z" * 140_000}\n6\n')
    found = list(read_table(tmp_path / "a.csv"))
    assert [(row.place, row.problem[:26]) for row in found] == [
        ("line 2", ""),
        ("line 5", "has more columns than the "),
        ("line 6", "cannot be split into colum"),
        ("line 7", ""),
        ("line 8", ""),
    ]
    assert found[0].values == {"q": "1", "a": "two\nlines"} and len(found[3].values["a"]) == 140_000
    assert found[4].values == {"q": "6"}
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n{oops\n[1]\n{"7": {"q": 1}}\n{"q": 2}\n')
    assert [(row.place, row.problem[:22]) for row in read_table(tmp_path / "a.jsonl")] == [
        ("line 1", ""),
        ("line 2", "is not valid JSON (Exp"),
        ("line 3", "is no object with colu"),
        ("line 4", "is an object that hold"),
        ("line 5", ""),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row"),
        (b"q,a\n\n,\n", "holds no row"),
        (b"q, Q\n1,2\n", "has the column q twice"),
        (b'q,a\n1,"2\n3,4\n', "line 2 has a quote that is never closed"),
        (b"PK\x03\x04xl/", "is a workbook or an archive"),
        (b"q,a\n1,\x81\xff\n", "cannot be read"),
        (b"\xff\xfeq", "cannot be read"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_table(tmp_path / "a.csv"))


def test_values_as_text() -> None:
    assert [text_of(each) for each in (" a|b ", 3, 2.5, True, "[x]")] == ["a|b", "3", "2.5", "true", "[x]"]
    votes = ["red", "blue", "blue", "red", "green"]
    assert (text_of(votes, "first"), text_of(votes, "most"), text_of(["x", 3, 3], "most")) == ("red", "red", "3")
    for value in (["red"], [], None, " ", float("nan"), {"text": "x"}, [["x"]]):
        with pytest.raises(ValueError):
            text_of(value)
    with pytest.raises(ValueError, match="object"):
        text_of(["x", {}], "first")
