"""Checkpoints are whole or not there, whenever a training is killed and when the disk is full."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.train import checkpoints
from mobillama_v.train.recipe import Recipe
from mobillama_v.train.recipe_files import load_recipe
from mobillama_v.train.run import run

# Writes checkpoints, a best and a final model as the trainer does, going on after the last one.
SCRIPT = """
import sys
from pathlib import Path
from mobillama_v.train import checkpoints
output = Path(sys.argv[1])
found = checkpoints.checkpoints(output)
first = int(found[-1].name.rpartition("-")[2]) + 1 if found else 1
print("begun", flush=True)
for step in range(first, 61):
    for name in (f"checkpoint-{step}", "best"):
        written = checkpoints.partial_folder(output) / name
        (written / "adapter").mkdir(parents=True)
        for file in ("weights", "optimizer", "adapter/weights"):
            (written / file).write_text(str(step) * 10_000)
        checkpoints.publish(written, output / name)
    checkpoints.rotate(output, 2)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, folder], stdout=subprocess.PIPE, text=True)


def content(output: Path) -> dict[str, dict[str, str]]:
    """The files of every folder under a name of its own."""
    return {
        folder.name: {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
        for folder in (*checkpoints.checkpoints(output), output / checkpoints.BEST)
        if folder.exists()
    }


@pytest.mark.slow
def test_kills_at_random_moments_leave_whole_checkpoints(tmp_path: Path) -> None:
    process = start(tmp_path / "whole")
    assert process.stdout and process.stdout.readline() == "begun\n"
    began = time.monotonic()
    assert process.wait() == 0
    lasts, chance, kills = time.monotonic() - began, random.Random(), 0
    whole = content(tmp_path / "whole")
    assert whole.keys() == {"checkpoint-59", "checkpoint-60", "best"}
    while kills < 20:
        output = tmp_path / f"{kills}"
        process = start(output)
        assert process.stdout and process.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0, lasts))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        for name, files in content(output).items():
            step = name.rpartition("-")[2] if "-" in name else files["weights"][: len(files["weights"]) // 10_000]
            assert files == dict.fromkeys(("weights", "optimizer", "adapter/weights"), step * 10_000)
        assert start(output).wait() == 0
        assert content(output) == whole


def recipe_of(start: Path, corpus: Path, output: Path) -> Recipe:
    args = [f"model.start={start}", f"data.json={corpus / 'pictures.json'}", f"data.image_root={corpus / 'images'}"]
    args += ["data.max_length=256", "train.batch_size=4", "train.max_steps=4", "train.save_steps=2", f"output={output}"]
    return load_recipe("nano-align", args)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_stays(start_folder, corpus, tmp_path, monkeypatch) -> None:
    recipe = recipe_of(start_folder, corpus, tmp_path / "run")
    with monkeypatch.context() as patch:
        publish = checkpoints.publish
        patch.setattr(checkpoints, "publish", lambda written, to: (full if "4" in to.name else publish)(written, to))
        with pytest.raises(
            CheckpointError, match=r"cannot write to .*run' \(No space left on device\).*go on with --res"
        ):
            run(recipe)
    assert [path.name for path in checkpoints.checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert not (tmp_path / "run" / checkpoints.PARTIAL).exists()
    assert run(recipe, resume=True).is_dir()


# Files may grow to 1,000 bytes: a disk that gets full, for torch, for safetensors and for Python.
FULL = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from mobillama_v.errors import CheckpointError
from mobillama_v.train import checkpoints
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder, values = Path(sys.argv[1]), torch.zeros(1 << 18)
for write in (
    lambda: torch.save(values, folder / "a.pt"),
    lambda: save_file({"a": values}, folder / "a.safetensors"),
    lambda: (folder / "a.json").write_text("a" * 2000),
    lambda: values.reshape(2, -1) @ values.reshape(2, -1),
):
    try:
        with checkpoints.writing(folder):
            write()
    except (CheckpointError, RuntimeError) as error:
        print(type(error).__name__, error)
"""


def test_what_torch_and_safetensors_say_of_a_full_disk_is_known(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    *full_disk, other = done.stdout.splitlines()
    assert len(full_disk) == 3, done.stdout
    assert all(line.startswith("CheckpointError the training cannot write to") for line in full_disk)
    assert other.startswith("RuntimeError mat1 and mat2 shapes")


def test_space_is_asked_for_before_the_first_step(start_folder, corpus, tmp_path, monkeypatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"run' takes \d+ MB or more"):
        run(recipe_of(start_folder, corpus, tmp_path / "run"))
    assert not checkpoints.checkpoints(tmp_path / "run")
