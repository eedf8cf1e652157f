"""The examples of deploying, and the notebook: their commands are ones that the program has."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mobillama_v.cli.main import app

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def shell(file: str, pattern: str) -> list[list[str]]:
    """The words after ``mobillama-v`` of each command that matches in a file of ``deploy/``."""
    text = (DEPLOY / file).read_text(encoding="utf-8")
    return [shlex.split(command) for command in re.findall(pattern, text, re.MULTILINE)]


def docker(file: str) -> list[list[str]]:
    """The command that an image starts with."""
    text = (DEPLOY / file).read_text(encoding="utf-8").replace("\\\n", " ")
    return [[word for word in json.loads(text.split("\nCMD ")[1].split("\n")[0]) if word != "mobillama-v"]]


COMMANDS = {
    "service": shell("mobillama-v.service", r"^ExecStart=\S+/mobillama-v (.+)$"),
    "nginx": shell("nginx.conf", r"^# +mobillama-v (.+)$"),
    "image": docker("Dockerfile"),
    "space": docker("space/Dockerfile"),
}


@pytest.mark.parametrize("where", COMMANDS)
def test_commands_exist(where: str) -> None:
    assert COMMANDS[where]
    for words in COMMANDS[where]:
        shown = CliRunner().invoke(app, [*words, "--help"])  # options that do not exist come first
        assert shown.exit_code == 0 and "Options" in shown.stdout, (words, shown.output)
    assert CliRunner().invoke(app, ["serve", "--nothing", "--help"]).exit_code == 2


def test_ports_of_the_proxy_are_the_defaults() -> None:
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for command, port in zip(("demo", "serve"), re.findall(r"127\.0\.0\.1:(\d+)", text), strict=True):
        assert f"default: {port}]" in CliRunner().invoke(app, [command, "--help"]).stdout


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples" / "first_minute.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "network" not in cell.metadata.get("tags", ())]
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = [
        "".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"
    ]
    assert len(printed) == 5 and not printed[0] and all(printed[1:])  # the first one shows a picture
    assert "How many shapes are there? 2\n" in printed[2]
