"""What a visitor does on the demo's page, and what stands there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

WAIT = 30_000
"""Milliseconds that anything on the page may take; other things may run on the machine."""


def ask(page: Any, text: str, *paths: Path) -> None:
    if paths:
        page.set_input_files("#box input[type=file]", [str(path) for path in paths])
        page.wait_for_function(f"document.querySelectorAll('#box .thumbnail-item').length >= {len(paths)}")
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")


def answers(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("#chat .bot.message").all_inner_texts()]


def wait_for_answer(page: Any, count: int) -> str:
    """The answer number ``count``, when it has ended."""
    ended = page.wait_for_function(
        f"""() => {{
            const found = document.querySelectorAll('#chat .bot.message');
            const line = document.querySelector('#status').innerText.trim();
            const told = /tokens?( · stopped.*)?$|no answer$/.test(line);
            const ready = document.querySelector('#box .submit-button');
            return found.length == {count} && told && ready && {{text: found[{count} - 1].innerText}};
        }}"""
    )
    return ended.json_value()["text"].strip()


def pictures(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('#chat .message img')].map(i => i.src)")


def choose(page: Any, tokens: int, model: str = "talkative") -> None:
    """Set the model and the longest answer.

    The settings are made when they are first unfolded, and what is typed before Gradio has bound a field is reset by
    it: the length is typed until the slider, which shows what a question will be sent with, has taken it.
    """
    slider = page.locator("input[type=range][aria-label*='Longest']")
    for last in (False, False, True):
        number = page.locator("input[type=number][aria-label*='Longest']")
        if not number.is_visible():
            page.get_by_text("Settings", exact=True).click()
        if model != page.get_by_role("combobox", name="Model").input_value():
            page.get_by_role("combobox", name="Model").click()
            page.get_by_role("option", name=model).click()
        deadline = time.monotonic() + WAIT / 3000
        while time.monotonic() < deadline:
            if slider.input_value() == str(tokens):
                return
            number.fill(str(tokens))
            number.blur()
            page.wait_for_timeout(300)
        assert not last, f"the slider stays at {slider.input_value()}"
        page.reload()  # now and then a page takes no setting at all; a person would load it again, too
        page.wait_for_selector("#status b")


def watch(page: Any) -> None:
    """Let the page remember whether the button that stops an answer appears, however briefly."""
    page.evaluate("""() => {
        window.answering = false;
        const look = () => { window.answering ||= Boolean(document.querySelector("#box .stop-button")); };
        new MutationObserver(look).observe(document.body, {childList: true, subtree: true, attributes: true});
    }""")
