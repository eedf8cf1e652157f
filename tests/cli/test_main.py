"""The command line: what it prints, where, and its exit codes. Mostly in this process: a start costs seconds."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mobillama_v import __version__
from mobillama_v.assistant import Assistant
from mobillama_v.cli import answering
from mobillama_v.cli.main import BROKEN_PIPE, BUG, LAZY, app
from mobillama_v.cli.options import printable
from mobillama_v.generate import Sampling
from mobillama_v.loading import load
from mobillama_v.prompt import assistant, user

RUN = [sys.executable, "-m", "mobillama_v"]
SHORT = ["--max-new-tokens", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(nano_like: Path) -> Assistant:
    return load(str(nano_like), device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (300, 200), (200, 30, 30)).save(folder / "red.png")
    Image.linear_gradient("L").save(folder / "ramp.png")
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that cannot be described."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture\n" * 50)
    Image.effect_noise((400, 300), 80).convert("RGB").save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:3000])
    (folder / "whole.jpg").unlink()
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    return folder


def run(*args: object, stdin: str | bytes | None = None):
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def describe(nano_like: Path, *args: object, stdin: str | bytes | None = None):
    return run("describe", "--model", nano_like, *SHORT, *args, stdin=stdin)


def assert_one_line(result, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def answer(model: Assistant, picture: Path, question: str = "Describe the image.") -> str:
    return printable(model.ask([picture], question, Sampling(max_new_tokens=8)).text)


# Help and commands


def test_help_imports_nothing_heavy_and_names_every_command() -> None:
    code = (
        "import sys; sys.argv = ['mobillama-v', '--help']; import mobillama_v.cli.main as c\n"
        "try: c.main()\nexcept SystemExit as e: print(e.code)\n"
        "heavy = ('torch', 'numpy', 'PIL', 'tokenizers', 'huggingface_hub', 'transformers', 'mobillama_v.cli.models')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/").stdout
    for name in ("describe", "chat", *LAZY):
        assert f" {name} " in out
    assert out.strip().splitlines()[-2:] == ["0", "[]"]


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"mobillama-v {__version__}\n")


@pytest.mark.parametrize("name", ["describe", "chat", *LAZY])
def test_every_command_loads_and_helps(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage" in result.stdout


def test_a_mistyped_command_gets_a_suggestion() -> None:
    result = run("modls")
    assert result.exit_code == 2
    assert "models" in result.stderr


def test_models_list() -> None:
    result = run("models", "list")
    assert result.exit_code == 0
    assert "nano" in result.stdout


# describe


def test_describe_one(nano_like: Path, pictures: Path, model: Assistant) -> None:
    result = describe(nano_like, pictures / "red.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == answer(model, pictures / "red.png") + "\n"
    asked = describe(nano_like, pictures / "red.png", "--prompt", "Why?")
    assert asked.stdout == answer(model, pictures / "red.png", "Why?") + "\n" != result.stdout


def test_describe_several_names_each(nano_like: Path, pictures: Path, model: Assistant) -> None:
    """A folder stands for its pictures, in natural order."""
    result = describe(nano_like, pictures)
    expected = [f"{path}: {answer(model, path)}" for path in (pictures / "ramp.png", pictures / "red.png")]
    assert result.exit_code == 0
    assert result.stdout == "\n".join(expected) + "\n"


def test_describe_json(nano_like: Path, pictures: Path, model: Assistant) -> None:
    result = describe(nano_like, "--json", pictures / "red.png", pictures / "ramp.png")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["image"] for record in records] == [str(pictures / "red.png"), str(pictures / "ramp.png")]
    expected = model.ask([pictures / "red.png"], "Describe the image.", Sampling(max_new_tokens=8))
    assert records[0]["text"] == expected.text
    assert records[0]["finish_reason"] == "length"
    assert records[0]["tokens"] == {"prompt": expected.prompt_tokens, "image": 84, "new": 8}
    assert records[0]["model"] == str(nano_like)
    assert set(records[0]["timings"]) == {"read", "images", "prefill", "decode"}
    assert all(0 <= seconds < 60 for seconds in records[0]["timings"].values())


def test_describe_stdin(nano_like: Path, pictures: Path, model: Assistant) -> None:
    result = describe(nano_like, "-", stdin=(pictures / "red.png").read_bytes())
    assert (result.exit_code, result.stdout) == (0, answer(model, pictures / "red.png") + "\n")
    assert_one_line(describe(nano_like, "-"))


def test_describe_sampling(nano_like: Path, pictures: Path) -> None:
    hot = ["--temperature", "2", "--seed"]
    texts = [describe(nano_like, pictures / "red.png", *hot, seed).stdout for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "name",
    ["missing.jpg", "empty.jpg", "text.jpg", "truncated.jpg", "huge.png", "nothing-in-it", "https://a.org/b.jpg"],
)
def test_one_bad_picture(nano_like: Path, bad: Path, name: str) -> None:
    (bad / "nothing-in-it").mkdir(exist_ok=True)
    result = describe(nano_like, name if name.startswith("https") else bad / name)
    assert_one_line(result)
    assert name in result.stderr


def test_unreadable_picture(nano_like: Path, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    shutil.copy(pictures / "red.png", path)
    path.chmod(0)
    # The superuser may read every file, unless that capability is taken away.
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*drop, *RUN, "describe", "--model", str(nano_like), *SHORT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert str(path) in done.stderr and "permission" in done.stderr.lower()


def test_bad_pictures_among_good_ones(nano_like: Path, pictures: Path, bad: Path, model: Assistant) -> None:
    result = describe(nano_like, bad / "text.jpg", pictures / "red.png", bad / "missing.jpg", "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [str(pictures / "red.png")]
    assert [line.startswith("error: ") for line in result.stderr.splitlines()] == [True, True]
    none = describe(nano_like, bad / "text.jpg", bad / "missing.jpg")
    assert (none.exit_code, none.stdout, none.stderr.count("\n")) == (2, "", 2)


def test_a_bad_picture_is_told_without_torch(nano_like: Path, bad: Path) -> None:
    code = (
        f"import sys; sys.argv = ['m', 'describe', '--model', {str(nano_like)!r}, {str(bad / 'huge.png')!r}]\n"
        "import mobillama_v.cli.main as c\n"
        "try: c.main()\nexcept SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert out.stdout == "2 False\n"


# Errors


def test_unknown_models(pictures: Path) -> None:
    for name in ("nothing-of-that-name", "mobillama-0.5b"):
        assert_one_line(run("describe", "--model", name, pictures / "red.png"))
        assert_one_line(run("chat", "--model", name))


@pytest.fixture
def copy(nano_like: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nano_like, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), "lacks lm_head.weight"),
        (lambda t: t.update(extra=t["lm_head.weight"][:1].clone()), "has unknown extra"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:7].clone()}), "mis-shaped tensors: lm_head.weight"),
    ],
)
def test_checkpoints_that_do_not_fit(copy: Path, pictures: Path, change, message: str) -> None:
    pytest.importorskip("torch")  # which names what does not fit
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    result = describe(copy, pictures / "red.png")
    assert_one_line(result)
    assert message in result.stderr


def test_model_folders_that_are_damaged(copy: Path, pictures: Path) -> None:
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:9999])
    assert_one_line(describe(copy, pictures / "red.png"))
    (copy / "tokenizer.json").write_text("{}")
    assert_one_line(describe(copy, pictures / "red.png"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"color": "red"}))
    result = describe(copy, pictures / "red.png")
    assert_one_line(result)
    assert "unknown keys: color" in result.stderr


def test_a_prompt_longer_than_the_context(nano_like: Path, pictures: Path) -> None:
    result = describe(nano_like, pictures / "red.png", pictures / "ramp.png", "--prompt", "word " * 600)
    assert_one_line(result)
    assert "context is 512" in result.stderr


@pytest.mark.parametrize("options", [["--top-p", "0"], ["--top-p", "nan"], ["--temperature", "inf"], ["--device", "x"]])
def test_options_out_of_range(nano_like: Path, pictures: Path, options: list[str]) -> None:
    assert_one_line(describe(nano_like, pictures / "red.png", *options))


def test_a_bug_is_one_line_unless_debugging(nano_like: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(answering, "load_assistant", broken)
    result = describe(nano_like, pictures / "red.png")
    assert_one_line(result, BUG)
    assert "ZeroDivisionError: first second" in result.stderr
    monkeypatch.setenv("MOBILLAMA_V_DEBUG", "1")
    result = describe(nano_like, pictures / "red.png")
    assert result.exit_code == BUG
    assert "Traceback" in result.stderr


def test_a_reader_that_goes_away(nano_like: Path, pictures: Path) -> None:
    args = [*RUN, "describe", "--model", str(nano_like), *SHORT, str(pictures)]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == BROKEN_PIPE


def test_interrupt(nano_like: Path) -> None:
    def interruptible() -> None:  # a test run in the background of a script has Ctrl-C ignored, and its children too
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    args = [*RUN, "chat", "--model", str(nano_like), *SHORT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(args, preexec_fn=interruptible, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"/help\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"/image")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == b""


# Terminals


def read_terminal(descriptor: int) -> Iterator[str]:
    while True:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # Linux says so when the other side has closed
            return
        if not data:
            return
        yield data.decode(errors="replace")


@pytest.mark.slow
def test_terminal_gets_the_stream_and_a_file_the_bar_beside_it(
    nano_like: Path, pictures: Path, model: Assistant
) -> None:
    args = [*RUN, "describe", "--model", str(nano_like), *SHORT, str(pictures)]
    expected = "".join(f"{path}: {answer(model, path)}\n" for path in (pictures / "ramp.png", pictures / "red.png"))

    ours, theirs = pty.openpty()
    with subprocess.Popen(args, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = "".join(read_terminal(ours))
    os.close(ours)
    assert process.returncode == 0
    assert shown.replace("\r\n", "\n") == expected

    ours, theirs = pty.openpty()
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        bar = "".join(read_terminal(ours))
        assert process.stdout is not None
        texts = process.stdout.read().decode()
    os.close(ours)
    assert texts == expected
    assert "2/2" in bar and "red.png" not in bar


# chat


def chat(nano_like: Path, *args: object, lines: str):
    return run("chat", "--model", nano_like, *SHORT, *args, stdin=lines)


def test_chat_is_one_conversation(nano_like: Path, pictures: Path, model: Assistant) -> None:
    red, sampling = pictures / "red.png", Sampling(max_new_tokens=8)
    first = model.ask([red], "What?", sampling).text
    second = model.ask([red], [user("What?", images=1), assistant(first), user("Why?")], sampling).text
    result = chat(nano_like, red, lines="What?\n\nWhy?\n/quit\nnever asked\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        line.rstrip() for text in (first, second) for line in printable(text).splitlines()
    ]


def test_chat_goes_on_after_errors(nano_like: Path, pictures: Path, bad: Path, model: Assistant) -> None:
    lines = [
        "/frobnicate",
        "/image",
        f"/image {bad / 'text.jpg'}",
        "word " * 600,
        f"/image '{pictures / 'ramp.png'}'",
        "Describe the image.",
    ]
    result = chat(nano_like, lines="\n".join(lines))
    assert result.exit_code == 0
    errors = result.stderr.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error"] * 4
    for error, part in zip(
        errors, ("no command '/frobnicate'", "/image needs", "text.jpg", "/clear starts"), strict=True
    ):
        assert part in error
    assert result.stdout.split() == answer(model, pictures / "ramp.png").split()


def test_chat_clear_and_help(nano_like: Path, pictures: Path, model: Assistant) -> None:
    result = chat(nano_like, pictures / "red.png", lines="/help\n/clear\nWhat?\n")
    expected = printable(model.ask([], "What?", Sampling(max_new_tokens=8)).text)
    assert all(f"/{name}" in result.stdout for name in ("image", "clear", "help", "quit"))
    assert result.stdout.rstrip().endswith(expected.splitlines()[-1])


def test_chat_starts_with_good_pictures_only(nano_like: Path, bad: Path) -> None:
    assert_one_line(chat(nano_like, bad / "text.jpg", lines="What?\n"))
    assert_one_line(chat(nano_like, "-", lines="What?\n"))


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\x07\x9b1m\n\té…👩‍🚀") == "a\ufffd[2Jb\ufffd\ufffd\ufffd1m\n\té…👩‍🚀"
