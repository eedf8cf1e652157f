"""The command line ``mobillama-v``: its commands, and how errors become exit codes.

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | some of several pictures could not be read; the others were described |
| 2 | a user error, with one line on stderr; nothing was done |
| 70 | a bug of this program; ``MOBILLAMA_V_DEBUG=1`` shows where |
| 130, 141 | ended by Ctrl-C, or by the reader of a pipe, as shells number it |

Commands that import much, or belong to another part of the project, are imported when they are called: see ``LAZY``.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from mobillama_v import __version__
from mobillama_v.cli.chat import chat
from mobillama_v.cli.describe import describe
from mobillama_v.cli.options import printable
from mobillama_v.errors import MobiLlamaVError, needs

USER_ERROR, BUG, BROKEN_PIPE = 2, 70, 141


class Lazy(NamedTuple):
    """A command that is imported when it is called: its module, a ``Typer`` or function in it, and its line of help."""

    module: str
    attribute: str
    help: str

    def load(self, name: str) -> Any:
        """The command itself."""
        found = getattr(importlib.import_module(self.module), self.attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(name)(function)
        found.info.name = name
        return typer.main.get_command(found)


LAZY = {
    "models": Lazy("mobillama_v.cli.models", "app", "List the models and their sizes."),
    "init": Lazy("mobillama_v.cli.init", "init", "Make a model to train, from published parts."),
    "import": Lazy("mobillama_v.cli.import_model", "import_", "Make a model folder of another program's model."),
    "data": Lazy("mobillama_v.cli.data", "app", "Check, preview and convert training data."),
    "quantize": Lazy("mobillama_v.cli.quantize", "quantize", "Shrink a model to 4-bit or 8-bit weights, for the CPU."),
    "export": Lazy("mobillama_v.cli.export", "app", "Write a model in another program's format."),
    "train": Lazy("mobillama_v.cli.train", "app", "Train a model with a recipe file, and plot its progress."),
    "demo": Lazy("mobillama_v.cli.demo", "demo", "Chat about pictures in a browser."),
    "serve": Lazy("mobillama_v.cli.serve", "serve", "Serve a model over HTTP, for clients of the OpenAI API."),
    "eval": Lazy("mobillama_v.cli.eval", "app", "Score a model, or a file of predictions, on benchmarks."),
    "bench": Lazy("mobillama_v.cli.bench", "bench", "Measure how fast this machine runs a model."),
    "doctor": Lazy("mobillama_v.cli.doctor", "doctor", "Show what is installed here, and what is wrong."),
}
_START = """\
MobiLlama-V {version} answers questions about pictures, on this machine. Try:

  mobillama-v photo.jpg                             describe a picture, several, or a folder
  mobillama-v describe photo.jpg -p "What is this?" ask about it
  mobillama-v chat photo.jpg                        ask several questions
  mobillama-v demo                                  the same in a browser (pip install 'mobillama-v[demo]')
  mobillama-v doctor                                what is installed here, and what is wrong
  mobillama-v --help                                all commands"""


class _Value:
    """The value of a parameter: texts, and defaults of any type, as they are.

    typer imports pydantic to look at a value, which takes longer than encoding a picture. Its own conversion is left
    to numbers and paths that somebody typed.
    """

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        """As the method that typer has for this."""
        several = param.multiple or param.nargs == -1
        if value is None or (not value and several):
            return () if several else value
        kind = param.type_descriptor.annotation
        if kind in (list[str], str, str | None) or not isinstance(value, str | list | tuple):
            return list(value) if several else value
        from typer._coercion import build_runtime_param

        return build_runtime_param(param.type_descriptor).coerce(value, param=param, ctx=ctx)


class _Quick:
    """A command whose values are taken so."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, the help option among them."""
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "_runtime_param", self) is None:  # else another version of typer
                param._runtime_param = _Value()
        return params


class QuickCommand(_Quick, TyperCommand):
    """A command of ours."""


class Commands(_Quick, TyperGroup):
    """The commands of the program; it alone turns exceptions into exit codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, lazy in LAZY.items():
            self.add_command(TyperCommand(name, help=lazy.help), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is called; the help of all others needs only their line of it.

        A picture in place of a command is described.
        """
        if args and args[0] not in self.commands and (args[0] == "-" or "." in args[0] or os.path.exists(args[0])):
            args = ["describe", *args]
        if args and args[0] in LAZY:
            self.add_command(LAZY[args[0]].load(args[0]), args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a reader that has gone away ends it quietly."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, and not when Python ends and could only complain
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program and end it with its exit code."""
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a name or text that the terminal cannot show must not end the program
                stream.reconfigure(errors="replace")
        try:
            with needs("this command"):
                return super().main(*args, **options)
        except MobiLlamaVError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(USER_ERROR)
        except Exception as error:
            if os.environ.get("MOBILLAMA_V_DEBUG") == "1":
                traceback.print_exc()
            else:
                print(
                    f"error: this is a bug ({type(error).__name__}: {one_line(error)}); please report it with what "
                    "MOBILLAMA_V_DEBUG=1 shows.",
                    file=sys.stderr,
                )
            sys.exit(BUG)


def one_line(error: BaseException) -> str:
    """The message of an error, on one line."""
    return printable(" ".join(str(error).split()))


app = typer.Typer(
    cls=Commands,
    name="mobillama-v",
    help="Ask a small vision-language model about pictures, on this machine.",
    epilog="Start with: mobillama-v photo.jpg",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("describe", cls=QuickCommand)(describe)
app.command("chat", cls=QuickCommand)(chat)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mobillama-v {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ask a small vision-language model about pictures, on this machine."""
    if context.invoked_subcommand is None:
        print(_START.format(version=__version__))


def main() -> None:
    """The console script."""
    # numpy's products here are small: its threads would wait for each other, long where something else runs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(50_000)  # to search for garbage while modules are imported takes a tenth of that time
    try:
        app()
    finally:
        gc.freeze()  # Python's search for garbage at its end would take as long as a prompt
