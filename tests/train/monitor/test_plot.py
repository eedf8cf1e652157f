"""The curves of a training, drawn from what it said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mobillama_v import plots
from mobillama_v.cli.main import app
from mobillama_v.errors import DataError
from mobillama_v.train.monitor.plot import draw, read_metrics


def entry(step: int) -> dict[str, float]:
    return {"step": step, "loss": 9 / step, "lr": 1e-3 / step, "grad_norm": 1.0, "tokens_per_second": 100.0 + step}


def tried(step: int) -> dict[str, float]:
    return {"step": step, "validation_loss": 10 / step, "validation_exact_match": step / 200, "validation_seconds": 1.0}


def write(run: Path, entries: list[dict[str, float]]) -> Path:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in entries))
    return run


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("count", [1, 7, 120])
def test_the_curves_are_those_of_the_metrics(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    steps = [entry(step) for step in range(1, count + 1)]
    validations = [tried(step) for step in range(5, count + 1, 5)]
    run = write(tmp_path / "run", sorted([*steps, *validations], key=lambda each: each["step"]))
    figures: list = []
    monkeypatch.setattr(plots.pyplot("a test", "plot"), "close", figures.append)
    draw(run, tmp_path / "curves.png")
    axes = figures[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes[0].get_lines()}
    assert curves["training"] == [[each["step"], each["loss"]] for each in steps]
    assert ("training, running mean" in curves) == (count == 120)
    assert ("validation" in curves) == (count >= 5)
    if count >= 5:
        assert curves["validation"] == [[each["step"], each["validation_loss"]] for each in validations]
        exact = axes[3].get_lines()[0].get_xydata().tolist()
        assert exact == [[each["step"], 100 * each["validation_exact_match"]] for each in validations]
    assert [each["lr"] for each in steps] == list(axes[1].get_lines()[0].get_ydata())
    assert [each["tokens_per_second"] for each in steps] == list(axes[2].get_lines()[0].get_ydata())
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.width > 800


def test_the_command_draws_where_it_is_told_and_names_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = write(tmp_path / "run", [entry(1), entry(2)])
    assert call("train", "plot", run) == (0, f"curves: {run / 'curves.png'}\n", "")
    code, _, err = call("train", "plot", run, "-o", tmp_path / "new" / "c.png")
    assert code == 0, err
    assert (tmp_path / "new" / "c.png").is_file()
    code, _, err = call("train", "plot", tmp_path)
    assert code == 2 and err.count("\n") == 1 and "give the output folder of a training" in err
    code, _, err = call("train", "plot", run, "-o", run)
    assert code == 2 and "choose another file" in err
    write(run, [])
    code, _, err = call("train", "plot", run)
    assert code == 2 and "holds no step yet" in err
    (run / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1 names no step"):
        read_metrics(run)


def test_training_is_what_train_does_with_anything_else(tmp_path: Path) -> None:
    code, out, err = call("train", "--help")
    assert code == 0 and "recipe" in out and "train plot RUN" in out, err
    code, out, _ = call("train", "--keys")
    assert code == 0 and "validation.steps" in out
    code, _, err = call("train", "plots", "train.lr=1")
    assert code == 2 and "there is no recipe 'plots'" in err
    code, _, err = call("train", "nano-align", "plot")
    assert code == 2 and "override 'plot'" in err
    code, out, _ = call("train", "plot", "--help")
    assert code == 0 and "train plot" in out and "--out" in out


@pytest.mark.slow
def test_the_module_plots_too_and_without_matplotlib_says_so(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [entry(1)])
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom mobillama_v.train.__main__ import main\n"
        f"sys.argv = ['train', 'plot', {str(run)!r}]\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: train plot needs matplotlib: pip install 'mobillama-v[plot]'.\n"
