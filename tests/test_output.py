"""New files and folders: whole or not there, after a kill too, for others to read, and only where there is room."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mobillama_v.errors import ConfigError
from mobillama_v.hub import find_model
from mobillama_v.output import require_space, written_whole

NANO = find_model("nano")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_new_files_have(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "out") as made:
            made.mkdir()
            os.close(os.open(made / "private", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "private").stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["out"]


def test_space_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    require_space(tmp_path / "deep" / "er" / "out", 1)
    with pytest.raises(ConfigError, match=r"takes 1,152,921,504,607 MB or more and '.*' has [\d,]+ MB left; free some"):
        require_space(tmp_path / "deep" / "out", 1 << 60)


# A warm process forks one child for each run, so that a moment may fall anywhere in the work and not in the imports.
KILLS = """
import hashlib, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import open_clip, mobillama_v.interop.init_checkpoint, mobillama_v.model.vlm, mobillama_v.backends.native.packed_vision
from mobillama_v.cli.main import app
name, place, *arguments = sys.argv[1:]
place = Path(place)
place.mkdir()
(place / "precious").write_text("kept")
out = place / name

def start():
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            app([each.replace("OUT", str(out)) for each in arguments], standalone_mode=False)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def content(path):
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return {str(each.relative_to(place)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}

def remove():
    if out.exists():
        out.unlink() if out.is_file() else shutil.rmtree(out)

assert wait(start()) == 0  # warm
remove()
begin = time.monotonic()
assert wait(start()) == 0
seconds, whole, killed = time.monotonic() - begin, content(out), 0
random.seed(0)
for _ in range(20):
    remove()
    pid = start()
    time.sleep(random.random() * seconds)
    os.kill(pid, signal.SIGKILL)
    killed += wait(pid) == -signal.SIGKILL
    assert not out.exists() or content(out) == whole
    assert (place / "precious").read_text() == "kept"
remove()
assert wait(start()) == 0 and content(out) == whole
assert {each.name for each in place.iterdir() if not each.name.startswith(f".{name}")} == {"precious", name}
assert killed >= 5, killed
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("packed", ["quantize", "nano", "OUT", "--bits", "8"]),
        ("a.gguf", ["export", "gguf", "nano", "OUT"]),
        (
            "started",
            [
                "init",
                "OUT",
                "--decoder",
                "random:nano",
                "--tower",
                "ViT-S-32-alt",
                "--tokenizer",
                f"{NANO}/tokenizer.json",
            ],
        ),
        ("records.json", ["data", "convert", "TABLE", "OUT"]),
    ],
    ids=["quantize", "export", "init", "convert"],
)
def test_a_kill_leaves_all_or_nothing(name: str, arguments: list[str], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,question,answer\n" + "".join(f"{i}.jpg,What is {i}?,{i}\n" for i in range(50_000)))
    given = [each.replace("TABLE", str(table)) for each in arguments]
    command = [sys.executable, "-W", "ignore", "-c", KILLS, name, str(tmp_path / "place"), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
