"""``mobillama-v chat``: a conversation about pictures, at a terminal or from piped lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mobillama_v.cli.answering import Answering, with_answering
from mobillama_v.cli.options import printable, read_image
from mobillama_v.errors import ConfigError, ImageError, MobiLlamaVError, PromptError

if TYPE_CHECKING:
    from mobillama_v.assistant import Chat
    from mobillama_v.generate import Sampling

HELP = """\
/image PATH  show one more picture with the next question
/clear       forget the conversation and its pictures
/help        this list
/quit        end (so does Ctrl-D); Ctrl-C stops an answer"""


@with_answering(longest=256)
def chat(
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE", help="Pictures to begin with.", show_default=False)
    ] = None,
    *,
    answering: Answering,
) -> None:
    """Talk about pictures over several turns.

    Each line is a question; /help lists the commands. Lines can also come from a pipe, one question each.
    """
    if "-" in (images or []):
        raise ImageError("in a chat, standard input carries the questions; give the picture as a file.")
    allow_urls, target = answering.allow_urls, answering.target
    pictures = [read_image(source, allow_urls=allow_urls, target=target) for source in images or []]
    Session(answering.load().chat(pictures), answering.sampling, allow_urls=allow_urls).run()


class Session:
    """One conversation with its user: lines in, answers out, errors on stderr and the talk goes on."""

    def __init__(self, chat: Chat, sampling: Sampling, *, allow_urls: bool) -> None:
        self.chat, self.sampling, self.allow_urls = chat, sampling, allow_urls
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> None:
        """Take lines until they end or one says to quit."""
        if self.interactive:
            print("Ask about the pictures; /help lists the commands.", file=sys.stderr)
        for line in self._lines():
            text = line.strip()
            if text == "/quit":
                return
            try:
                if text.startswith("/"):
                    self._command(text)
                elif text:
                    self._answer(text)
            except MobiLlamaVError as error:
                print(f"error: {printable(str(error))}", file=sys.stderr)

    def _lines(self) -> Iterator[str]:
        if not self.interactive:
            yield from sys.stdin
            return
        import readline  # noqa: F401 (gives input() editing and history)

        while True:
            try:
                yield input("> ")
            except EOFError:
                print()
                return

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name == "/image":
            self._add_image(rest.strip())
        elif name == "/clear":
            self.chat.clear()
            self._note("The conversation and its pictures are forgotten.")
        elif name == "/help":
            print(HELP)
        else:
            raise ConfigError(f"there is no command {name!r}; /help lists them.")

    def _add_image(self, source: str) -> None:
        if len(source) > 1 and source[0] == source[-1] and source[0] in "'\"":
            source = source[1:-1]
        if not source or source == "-":
            raise ImageError("/image needs the path of a picture.")
        target = self.chat.assistant.read_size
        self.chat.add_image(read_image(os.path.expanduser(source), allow_urls=self.allow_urls, target=target))
        self._note(f"{source} goes with your next question.")

    def _answer(self, text: str) -> None:
        try:
            for piece in self.chat.stream(text, self.sampling):
                print(printable(piece), end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self._note("\nStopped; this question and its answer are forgotten.")
            return
        except PromptError as error:
            raise PromptError(f"{error} (/clear starts a new one)") from error
        print(flush=True)

    def _note(self, text: str) -> None:
        if self.interactive:
            print(printable(text), file=sys.stderr)
