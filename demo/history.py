"""The chat window's history, and the conversation that the model gets. Plain functions, without Gradio.

A message is ``{"role": ..., "content": [...]}`` with parts ``{"type": "text", "text": ...}`` and ``{"type": "file",
"file": {"path": ...}}``. Neighboring messages of one role are one turn. A turn that was not answered, because it
failed or was stopped at once, is shown but not sent to the model.
"""

from __future__ import annotations

import mimetypes
from typing import Any

from mobillama_v.prompt import Message, assistant, user

FAILED = "⚠️ "
"""The beginning of a message that says why there is no answer."""
DEFAULT_QUESTION = "Describe the image."

History = list[dict[str, Any]]


def text_of(message: dict[str, Any]) -> str:
    """The text of a message."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def files_of(message: dict[str, Any]) -> list[str]:
    """The paths of a message's pictures."""
    content = message["content"]
    if isinstance(content, str):
        return []
    return [part["file"]["path"] for part in content if part.get("type") == "file"]


def user_messages(text: str, files: list[str]) -> History:
    """A user's turn: a message for each picture, then one for the words, which can be edited only on their own."""
    parts: list[dict[str, Any]]
    parts = [{"type": "file", "file": {"path": path, "mime_type": mime_type(path)}} for path in files]
    parts += [{"type": "text", "text": text}] if text else []
    return [{"role": "user", "content": [part]} for part in parts]


def mime_type(path: str) -> str:
    """What a file's name says that it is; what has no telling name is tried as a picture."""
    return mimetypes.guess_type(path)[0] or "image/*"


def conversation(history: History) -> tuple[list[Message], list[str]]:
    """The messages for the model, which end with the user's turn, and the paths of their pictures in order.

    Raises:
        ValueError: the history does not end with the user's turn.
    """
    turns: list[tuple[str, str, list[str]]] = []  # role, words, pictures
    for message in history:
        role, text, files = message["role"], text_of(message), files_of(message)
        if turns and turns[-1][0] == role:
            _, before, shown = turns[-1]
            turns[-1] = (role, f"{before}\n{text}" if before and text else before or text, [*shown, *files])
        else:
            turns.append((role, text, files))
    if not turns or turns[-1][0] != "user":
        raise ValueError("the history must end with the user's turn")
    messages: list[Message] = []
    paths: list[str] = []
    for i, (role, text, files) in enumerate(turns):
        if role != "user":
            continue
        last = i == len(turns) - 1
        answer = "" if last else turns[i + 1][1]
        if not last and (not answer.strip() or answer.startswith(FAILED)):
            continue
        messages.append(user(text.strip() or DEFAULT_QUESTION, images=len(files)))
        paths += files
        if not last:
            messages.append(assistant(answer.strip()))
    return messages, paths


def last_answer(history: History) -> tuple[History, str] | None:
    """The history up to the last question that was answered, and the answer; None where there is none."""
    for end in range(len(history), 0, -1):
        text = text_of(history[end - 1]).strip()
        if history[end - 1]["role"] == "assistant" and text and not text.startswith(FAILED):
            return history[: end - 1], text
    return None


def pop_question(history: History) -> tuple[History, str, list[str]]:
    """The history without its last question and what follows it; that question's words and pictures."""
    end = len(history)
    while end and history[end - 1]["role"] != "user":
        end -= 1
    start = end
    while start and history[start - 1]["role"] == "user":
        start -= 1
    asked = history[start:end]
    words = "\n".join(text for text in map(text_of, asked) if text)
    return history[:start], words, [path for message in asked for path in files_of(message)]


def edit_message(history: History, index: int, text: str) -> History:
    """The history up to the user's message ``index``, with other words."""
    return [*history[:index], *user_messages(text, [])]
