"""Fenced blocks of Markdown pages, and running them as they stand: the tests of the documentation."""

from __future__ import annotations

import glob
import importlib.util
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mobillama_v.cli.main import app

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^(?:<!-- (needs|file): (.+?) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANSWERS = "What is this?\nAnd what color is it?\n"  # what `chat` is asked


@dataclass(frozen=True)
class Block:
    """A fenced block.

    ``needs`` says what a test lacks: ``gpu``, ``network``, ``server`` (a command that does not end), or a package.
    ``file`` is the module that a reader saves the block as. Both stand in a comment above the block.
    """

    where: str
    language: str
    text: str
    needs: str = ""
    file: str = ""

    @property
    def can_run(self) -> bool:
        """Whether nothing is missing that it needs."""
        return not self.needs or (
            self.needs not in ("gpu", "network", "server") and importlib.util.find_spec(self.needs) is not None
        )


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(3)) + 1}",
            language=match[3],
            text=match[4],
            **({match[1]: match[2]} if match[1] else {}),
        )
        for match in _BLOCK.finditer(text)
    ]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block."""
    lines = (shlex.split(line, comments=True) for line in block.text.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a page from top to bottom in the current folder, as a reader would.

    Commands of ``mobillama-v`` run in this process. Those that cannot run here are asked for their help, so that their
    options must exist. Python blocks share their names; one that is saved as a file becomes that module.
    """
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "sh":
            for words in commands(block):
                _run(words, block)
        elif block.language == "python" and block.can_run:
            code = compile(block.text, block.where, "exec", dont_inherit=True)
            if block.file:
                _as_module(block.file, code, monkeypatch)
            else:
                exec(code, names)


def _run(words: list[str], block: Block) -> None:
    if words[0] != "mobillama-v":
        assert block.needs, f"{block.where}: nothing runs {words[0]!r}, and no comment says what it needs"
        return
    words, output = words[1:], ""
    if ">" in words:
        words, output = words[: words.index(">")], words[-1]
    words = [found for word in words for found in (sorted(glob.glob(word)) or [word])]
    result = CliRunner().invoke(app, words if block.can_run else [*words, "--help"], input=_ANSWERS)
    assert result.exit_code == 0, f"{block.where}: mobillama-v {shlex.join(words)}\n{result.output}"
    if output:
        Path(output).write_text(result.stdout, encoding="utf-8")


def _as_module(file: str, code: types.CodeType, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mobillama_v." + file.removeprefix("mobillama_v/").removesuffix(".py").replace("/", ".")
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(code, module.__dict__)
