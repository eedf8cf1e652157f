"""The chat page: its layout, and what its buttons do. All state that outlives a call is in the browser."""

# No `from __future__ import annotations` here: Gradio reads the annotations of functions that are made in a function.

import asyncio
import contextlib
import html
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobillama_v.demo.history import (
    FAILED,
    History,
    conversation,
    edit_message,
    last_answer,
    pop_question,
    user_messages,
)
from mobillama_v.demo.occlusion import CELLS
from mobillama_v.demo.scheduler import Ticket
from mobillama_v.demo.service import Picture, Service, Stopped
from mobillama_v.demo.sessions import COOKIE, Sessions
from mobillama_v.errors import MobiLlamaVError
from mobillama_v.generate import Sampling
from mobillama_v.reply import Reply

EXAMPLES = Path(__file__).resolve().parent / "examples"
_QUESTIONS = (
    ("shapes.png", "What shape is green?"),
    ("hearts.png", "How many shapes are there?"),
    ("word.png", "What does it say?"),
)
_REFRESH = 0.05  # seconds between updates of a growing answer
_TEMPERATURES = (0.0, 1.5)

CSS = """
footer { display: none !important; }
#status { min-height: 1.5em; padding: 0 .25em; color: var(--body-text-color-subdued); font-size: .9em; }
#chat { height: calc(100dvh - 28.5rem) !important; min-height: 20rem; }
#chat button[title="Share"] { display: none; } /* it would send the picture to Hugging Face */
#chat .message img { max-height: 15rem; width: auto; }
@media (max-width: 640px) {
  .gradio-container { padding: .5rem !important; }
  #title p { display: none; }
  #chat { height: calc(100dvh - 24.5rem) !important; }
}
"""


@dataclass
class Tabs:
    """The tickets that each open tab holds, so that closing it leaves them."""

    tickets: dict[str, set[Ticket]] = field(default_factory=lambda: defaultdict(set))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def holding(self, tab: str, ticket: Ticket) -> Any:
        """Hold a ticket for a tab while an answer is computed."""
        with self.lock:
            self.tickets[tab].add(ticket)
        try:
            yield
        finally:
            ticket.leave()
            with self.lock:
                self.tickets[tab].discard(ticket)
                if not self.tickets[tab]:
                    del self.tickets[tab]

    def close(self, tab: str) -> None:
        """Leave all tickets of a tab."""
        with self.lock:
            tickets = list(self.tickets.get(tab, ()))
        for ticket in tickets:
            ticket.leave()


def error_text(error: BaseException) -> str:
    """The message in the chat that says why there is no answer."""
    if isinstance(error, Stopped):
        return f"{FAILED}The server is shutting down; please come back later."
    if not isinstance(error, MobiLlamaVError):
        return f"{FAILED}Something went wrong on the server; please try again."
    text = str(error)
    return f"{FAILED}{text[:1].upper()}{text[1:]}"


class ChatHandler:
    """Computes the answers of one page."""

    def __init__(self, service: Service, sessions: Sessions) -> None:
        self.service, self.sessions, self.tabs = service, sessions, Tabs()

    async def answer(
        self, history: History, model: str, sampling: Sampling, token: str, tab: str
    ) -> AsyncGenerator[tuple[History, str], None]:
        """The history with the answer growing at its end, and the line that tells how fast; errors are answers too."""
        start, shown, text, tokens, first = time.perf_counter(), 0.0, "", 0, 0.0
        try:
            yield [*history, _reply("")], _status_line(model, "thinking …")
            messages, paths = conversation(history)
            ticket = self.service.scheduler.enter(token)
            with self.tabs.holding(tab, ticket):
                pictures = await asyncio.to_thread(self._read, paths, token)
                async for item in self.service.answer(ticket, model, messages, pictures, sampling):
                    now = time.perf_counter()
                    if isinstance(item, Reply):
                        yield (
                            [*history, _reply(item.text or f"{FAILED}The model had nothing to say.")],
                            self._final(model, item, first - start),
                        )
                        return
                    first, text, tokens = first or now, text + item, tokens + 1
                    if now - shown > _REFRESH and text.strip():
                        shown = now
                        speed = f" · {tokens / (now - first):.0f} tokens/s" if tokens > 10 else ""
                        yield (
                            [*history, _reply(text.strip())],
                            _status_line(model, f"first token after {first - start:.2f} s{speed}"),
                        )
        except Exception as error:
            partial = [_reply(text.strip())] if text.strip() else []
            yield [*history, *partial, _reply(error_text(error))], _status_line(model, "no answer")
            if not isinstance(error, (MobiLlamaVError, Stopped)):
                raise

    async def explain(
        self, history: History, model: str, token: str, tab: str
    ) -> AsyncGenerator[tuple[str | None, str], None]:
        """The file that shows where the model looked for its last answer, once it is there, and a line of text."""
        try:
            found = last_answer(history)
            messages, paths = conversation(found[0]) if found else ([], [])
            if not found or not paths:
                raise MobiLlamaVError("there is no answer about a picture yet.")
            ticket, rows = self.service.scheduler.enter(token), []
            with self.tabs.holding(tab, ticket):
                pictures = await asyncio.to_thread(self._read, paths, token)
                async for shown in self.service.explain(ticket, model, messages, pictures, found[1]):
                    rows.append(shown)
                    yield None, _status_line(model, f"covering parts of the picture, {len(rows)} of {CELLS} rows …")
            path = self.sessions.folder / Sessions.new_token() / "where.webp"
            path.parent.mkdir()
            rows[-1].save(path)
            self.sessions.upload(token, [str(path)])
            yield str(path), _status_line(model, "lit is what the last answer depends on")
        except (MobiLlamaVError, Stopped) as error:
            yield None, _status_line(model, error_text(error).removeprefix(FAILED))

    def _read(self, paths: list[str], token: str) -> list[Picture]:
        self.service.check_count(len(paths))
        pictures = []
        for path in paths:
            if not self.sessions.may_read(token, path):
                raise MobiLlamaVError("that picture is not here any more; show it again.")
            name = f"the picture {Path(path).name!r}"
            try:
                with open(path, "rb") as file:
                    pictures.append(Picture(file.read(self.service.limits.max_bytes + 1), name))
            except OSError:
                raise MobiLlamaVError("that picture is not here any more; show it again.") from None
        return pictures

    def _final(self, model: str, reply: Reply, first: float) -> str:
        engine = self.service.assistant(model).engine.title
        timings = reply.timings
        count = f"{reply.new_tokens} token{'' if reply.new_tokens == 1 else 's'}"
        rate = (reply.new_tokens - 1) / timings.decode if timings.decode > 0 else 0
        speed = f"{rate:.0f} tokens/s · " if rate > 0 else ""
        ended = " · stopped at the longest answer" if reply.finish_reason == "length" else ""
        return _status_line(model, f"{engine} · first token after {first:.2f} s · {speed}{count}{ended}")


def _reply(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _status_line(model: str, rest: str) -> str:
    return f'<div role="status"><b>{html.escape(model)}</b> · {html.escape(rest)}</div>'


def build(service: Service, sessions: Sessions) -> Any:
    """The page, a ``gradio.Blocks``; to be launched with :data:`CSS` and behind an ``AccessMiddleware``."""
    import gradio as gr

    gr.set_static_paths([EXAMPLES])
    limits, handler = service.limits, ChatHandler(service, sessions)
    first_model = service.models[0]

    def token_of(request: gr.Request) -> str:
        return str(dict(request.cookies).get(COOKIE, ""))

    def waits() -> Any:
        return gr.MultimodalTextbox(submit_btn=False, stop_btn=True)

    def ready() -> Any:
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)

    def ask(box: dict[str, Any] | None, history: History) -> tuple[Any, History]:
        text, files = (box or {}).get("text", "").strip(), (box or {}).get("files", [])
        if not text and not files:
            return gr.skip(), history
        return gr.MultimodalTextbox(value={"text": "", "files": []}), [*history, *user_messages(text, files)]

    async def answer(
        history: History,
        model: str,
        temperature: float,
        top_p: float,
        tokens: float,
        seed: float | None,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        if not history or history[-1]["role"] != "user":
            yield gr.skip(), gr.skip()
            return
        try:
            sampling = Sampling(int(tokens), float(temperature), float(top_p), None if seed is None else int(seed))
        except (MobiLlamaVError, ValueError, OverflowError) as error:
            yield [*history, _reply(error_text(error))], gr.skip()
            return
        tab = request.session_hash or ""
        async with contextlib.aclosing(handler.answer(history, model, sampling, token_of(request), tab)) as growing:
            async for shown in growing:
                yield shown

    async def where(history: History, model: str, request: gr.Request) -> AsyncGenerator[tuple[Any, Any], None]:
        tab = request.session_hash or ""
        async with contextlib.aclosing(handler.explain(history, model, token_of(request), tab)) as shown:
            async for each in shown:
                yield each

    def example(event: gr.SelectData, history: History) -> History:
        value = event.value
        files = [file["path"] if isinstance(file, dict) else str(file) for file in value.get("files") or []]
        return [*history, *user_messages(value.get("text") or "", files)]

    def retry(history: History, event: gr.RetryData) -> History:
        kept, text, files = pop_question(history)
        return [*kept, *user_messages(text, files)]

    def undo(history: History, event: gr.UndoData) -> tuple[History, Any]:
        kept, text, files = pop_question(history)
        return kept, {"text": text, "files": files}

    def edit(history: History, event: gr.EditData) -> History:
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        return edit_message(history, index, str(event.value))

    def take(picture: str | None, box: dict[str, Any] | None, request: gr.Request) -> tuple[Any, Any]:
        if picture is None:
            return gr.skip(), gr.skip()
        sessions.upload(token_of(request), [picture])
        box = box or {}
        return {"text": box.get("text", ""), "files": [*box.get("files", []), picture]}, None

    def entered(request: gr.Request) -> str:
        sessions.expire(3600)
        sessions.enter(token_of(request), request.session_hash or "")
        return _status_line(first_model, service.assistant(first_model).engine.title)

    def left(request: gr.Request) -> None:
        token = token_of(request)
        handler.tabs.close(request.session_hash or "")
        if sessions.leave(token, request.session_hash or ""):
            service.seen.forget(token)

    def chosen(model: str) -> str:
        try:
            return _status_line(model, service.assistant(model).engine.title)
        except MobiLlamaVError as error:
            return _status_line(model, str(error))

    private: dict[str, Any] = {"api_visibility": "private"}
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", **private}
    with gr.Blocks(title="MobiLlama-V", delete_cache=(600, 86400), analytics_enabled=False) as page:
        gr.Markdown("# MobiLlama-V\nAsk about pictures. Everything stays on this server.", elem_id="title")
        chat = gr.Chatbot(
            elem_id="chat",
            show_label=False,
            label="Conversation",
            editable="user",
            group_consecutive_messages=False,  # Gradio 6.31 cannot edit a group with a picture in it
            buttons=["copy", "copy_all"],
            feedback_options=None,
            render_markdown=False,
            placeholder="Drop, paste or take a picture and ask about it, or begin with an example.",
            examples=[
                {"text": text, "display_text": text, "files": [str(EXAMPLES / name)], "icon": str(EXAMPLES / name)}
                for name, text in _QUESTIONS
            ],
        )
        box = gr.MultimodalTextbox(
            elem_id="box",
            show_label=False,
            label="Your question",
            file_types=["image"],
            file_count="multiple",
            max_lines=6,
            placeholder="Ask about the picture …",
            max_plain_text_length=4000,
        )
        status = gr.HTML(elem_id="status")
        with gr.Accordion("Camera", open=False):
            camera = gr.Image(
                sources=["webcam"], type="filepath", image_mode=None, show_label=False, label="Camera", height=240
            )
        with gr.Accordion("Where it looked", open=False):
            look = gr.Button("Show it for the last answer", size="sm")
            looked = gr.Image(
                interactive=False,
                show_label=False,
                label="What the last answer depends on",
                height=320,
                buttons=[],
                elem_id="looked",
            )
        with gr.Accordion("Settings", open=False):
            model = gr.Dropdown(service.models, value=first_model, label="Model", filterable=False)
            with gr.Row():
                temperature = gr.Slider(
                    *_TEMPERATURES, 0.0, step=0.1, label="Temperature", info="0 takes the likeliest word."
                )
                top_p = gr.Slider(0.1, 1.0, 1.0, step=0.05, label="Top-p", info="Of the likeliest words.")
            with gr.Row():
                tokens = gr.Slider(
                    1, limits.max_new_tokens, min(256, limits.max_new_tokens), step=1, label="Longest answer, tokens"
                )
                seed = gr.Number(None, label="Seed", info="Repeats a sampled answer.", precision=0)

        inputs = [chat, model, temperature, top_p, tokens, seed]

        def then_answer(event: Any) -> Any:
            """Answer after ``event`` has put a question at the end of the chat; returns what stop cancels."""
            answered = event.then(waits, None, box, **quick).then(
                answer, inputs, [chat, status], concurrency_limit=None, show_progress="hidden", **private
            )
            answered.then(ready, None, box, **quick)
            return answered

        running = [
            then_answer(box.submit(ask, [box, chat], [box, chat], **quick)),
            then_answer(chat.example_select(example, chat, chat, **quick)),
            then_answer(chat.retry(retry, chat, chat, **quick)),
            then_answer(chat.edit(edit, chat, chat, **quick)),
        ]
        box.stop(None, None, None, cancels=running, **private)
        chat.undo(undo, chat, [chat, box], cancels=running, **quick)
        chat.clear(ready, None, box, cancels=running, **quick)
        look.click(where, [chat, model], [looked, status], concurrency_limit=None, show_progress="hidden", **private)
        model.change(chosen, model, status, concurrency_limit=None, show_progress="hidden", **private)
        camera.input(take, [camera, box], [box, camera], **quick)
        page.load(entered, None, status, **quick)
        page.unload(left)
    return page
