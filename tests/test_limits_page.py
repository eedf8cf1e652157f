"""docs/limits.md holds the numbers of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mobillama_v.config import _SIZES
from mobillama_v.demo.limits import Limits
from mobillama_v.generate import Sampling
from mobillama_v.images.fetch import MAX_BYTES
from mobillama_v.images.read import MAX_PIXELS

PAGE = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")]


def test_every_option_of_the_server_is_there_with_its_default() -> None:
    listed = {row[2].strip("`"): row[1] for row in ROWS if row[-1].startswith("`--")}
    fields = {f"--{each.name.replace('_', '-')}": each.default for each in dataclasses.fields(Limits)}
    assert listed.keys() == fields.keys()
    assert all(listed[name].split(", ")[0].startswith(f"{default:,.0f}") for name, default in fields.items())


def test_sizes_and_answers_are_there() -> None:
    cells = {cell for row in ROWS for cell in row}
    assert {f"{MAX_PIXELS:,}", f"{MAX_BYTES:,}", str(Sampling().max_new_tokens)} <= cells
    largest = {name: row[1] for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    assert {name: largest[name] for name in _SIZES} == {name: f"{most:,}" for name, most in _SIZES.items()}
