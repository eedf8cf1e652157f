"""What the core install does without torch, and what it says where an extra is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from typer.testing import CliRunner

import mobillama_v
from mobillama_v.backends.native import library
from mobillama_v.cli import doctor
from mobillama_v.cli.main import app
from mobillama_v.errors import EXTRAS, MissingExtraError, MobiLlamaVError, needs
from serving import RED, data_url, encoded, question, running

ROOT = Path(__file__).parent.parent
LIBRARIES = {"numpy", "PIL", "tokenizers", "safetensors", "typer", "shellingham", "annotated_doc", "mobillama_v"}
"""All that is imported to describe a picture, beside the standard library; not pydantic, on which typer depends."""


def run_without(modules: tuple[str, ...], code: str, *arguments: str) -> str:
    """What a program prints where these modules cannot be imported."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in modules)
    command = [sys.executable, "-c", f"import sys\n{blocked}{code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 60), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


native_only = pytest.mark.skipif(bool(library.missing()), reason="no native library")


@pytest.fixture(params=["nano_like", pytest.param("packed_clip", marks=native_only)])
def light(request: pytest.FixtureRequest) -> Path:
    """A model that answers without torch."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_what_is_imported_to_describe_a_picture(light: Path, picture: Path) -> None:
    code = """
import mobillama_v.cli.main as program
sys.argv[0] = "mobillama-v"
try:
    program.main()
except SystemExit as end:
    print(end.code)
files = {name.partition(".")[0]: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
print(*(name for name, file in files.items() if "site-packages" in file or name == "mobillama_v"))
"""
    out = run_without((), code, "describe", str(picture), "-m", str(light), "--prompt", "What?").splitlines()
    assert out[-2] == "0" and {each for each in out[-1].split() if not each.startswith("_")} <= LIBRARIES, out


def test_every_door_names_the_extra_that_it_needs(nano_like: Path, tmp_path: Path) -> None:
    code = """
import json
from typer.testing import CliRunner
import mobillama_v
from mobillama_v.cli.main import app
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, command)
    print(json.dumps([result.exit_code, result.stderr, result.stdout]))
try:
    mobillama_v.MobiLlamaVForConditionalGeneration
except mobillama_v.MobiLlamaVError as error:
    print(error)
"""
    folder, damaged = str(nano_like), shutil.copytree(nano_like, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:9999])
    shapes = str(ROOT / "demo/examples/shapes.png")
    doors = {
        ("describe", shapes, "-m", str(damaged)): "torch",
        ("init", str(tmp_path / "new"), "--decoder", "random:mobillama-0.5b"): "torch",
        ("quantize", folder, str(tmp_path / "new")): "torch",
        ("describe", shapes, "-m", folder, "--engine", "torch"): "torch",
        ("describe", shapes, "-m", folder, "--device", "cuda"): "torch",
        ("train", "align-558k", "--dry-run"): "train",
        ("serve",): "serve",
        ("demo",): "demo",
    }
    absent = ("torch", "transformers", "open_clip", "accelerate", "fastapi", "gradio")
    out = run_without(absent, code, json.dumps([list(door) for door in doors])).splitlines()
    for (door, extra), line in zip(doors.items(), out, strict=False):
        status, stderr, stdout = json.loads(line)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1), (door, line)
        assert stderr.startswith("error: ") and f"pip install 'mobillama-v[{extra}]'" in stderr, (door, stderr)
    assert out[-1] == ("MobiLlamaVForConditionalGeneration needs torch: pip install 'mobillama-v[torch]'.")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def no_torch(tmp_path: Path) -> str:
    """A folder for ``PYTHONPATH`` with which torch, transformers and open_clip are not there."""
    for name in ("torch", "transformers", "open_clip"):
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text(f"raise ModuleNotFoundError('none', name={name!r})")
    return str(tmp_path / "without")


def test_evaluation_needs_no_torch(light: Path, picture: Path, no_torch: str, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("image,question,answer\nred.png,What is this?,a square\n")
    command = [sys.executable, "-m", "mobillama_v", "eval", "run", "custom", "-m", str(light), "--data", "q.csv"]
    done = subprocess.run(
        [*command, "--output", "out"], env=os.environ | {"PYTHONPATH": no_torch}, cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("*.jsonl")) and b"exact" in done.stdout


def test_chat_needs_no_torch(light: Path, picture: Path, no_torch: str) -> None:
    command = [sys.executable, "-m", "mobillama_v", "chat", str(picture), "-m", str(light), "-v"]
    asked = {"env": os.environ | {"PYTHONPATH": no_torch}, "input": "What?\n", "text": True, "capture_output": True}
    done = subprocess.run([*command, "--max-new-tokens", "3"], check=False, **asked)
    assert done.returncode == 0 and "vision: torch" not in done.stderr, done.stderr


@pytest.mark.parametrize("command", ["serve", pytest.param("demo", marks=pytest.mark.slow)])
def test_serving_needs_no_torch(command: str, light: Path, no_torch: str) -> None:
    pytest.importorskip({"serve": "fastapi", "demo": "gradio"}[command])
    with running(command, light, PYTHONPATH=no_torch) as server:
        message = question("What?", data_url(encoded(RED)))
        asked = json.dumps({"model": light.name, "messages": [message], "max_tokens": 4}).encode()
        headers = {"Content-Type": "application/json"}
        if command == "serve":
            answer = urlopen(Request(f"{server.url}/v1/chat/completions", asked, headers)).read()
            assert json.loads(answer)["usage"]["completion_tokens"] == 4
        else:
            assert b"gradio" in urlopen(server.url).read()


def test_extras_are_those_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in set(EXTRAS.values()))
    with (
        pytest.raises(MissingExtraError, match=r"it needs gguf: pip install 'mobillama-v\[gguf\]'") as raised,
        needs("it"),
    ):
        raise ModuleNotFoundError(name="gguf.reader")
    assert isinstance(raised.value, MobiLlamaVError) and isinstance(raised.value, ImportError)
    with pytest.raises(ModuleNotFoundError, match="ours"), needs("it"):  # which is a bug
        raise ModuleNotFoundError("ours", name="mobillama_v.nothing")


def test_bare_command_and_a_picture_for_a_command(picture: Path) -> None:
    start = CliRunner().invoke(app, [])
    assert start.exit_code == 0 and "mobillama-v photo.jpg" in start.stdout and "mobillama-v doctor" in start.stdout
    long, short = (CliRunner().invoke(app, [*command, str(picture)]) for command in (["describe"], []))
    assert short.exit_code == 0 and short.stdout == long.stdout != ""
    asked = CliRunner().invoke(app, [str(picture), str(picture), "-p", "What is this?", "--max-new-tokens", "2"])
    assert asked.exit_code == 0 and asked.stdout.count("red.png: ") == 2
    missing = CliRunner().invoke(app, ["nothing.jpg"])
    assert missing.exit_code == 2 and "'nothing.jpg' does not exist" in missing.stderr
    typed = CliRunner().invoke(app, [str(picture), "--max-new-tokens", "many"])
    assert typed.exit_code == 2 and "--max-new-tokens" in typed.stderr


def test_doctor_says_what_is_here_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = CliRunner().invoke(app, ["doctor"])
    names = [line.split()[0] for line in fine.stdout.splitlines() if not line.startswith(" ")]
    assert names == ["versions", "engine", "models", "extras", "space", "trial", "wrong"]
    assert mobillama_v.__version__ in fine.stdout and "nano describes a red square" in fine.stdout
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 10**8}))
    monkeypatch.setattr(doctor, "_LEAST_MEMORY", 1 << 60)
    monkeypatch.setattr(doctor, "_provided", lambda: ["odd"])
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda _: ['numpy>=999; extra == "odd"', 'nowhere; extra == "odd"']
    )
    ill = CliRunner().invoke(app, ["doctor"])
    assert ill.exit_code == 1
    assert all(
        part in ill.stdout for part in ("only 100 MB are free", "of memory are free", "odd needs >=999", "nowhere")
    )
