"""Who uploaded what: a picture is served to the browser that uploaded it and to no other, and goes with its last tab.

A browser is told by a random cookie, which scripts cannot read. A tab is a session of Gradio's.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

COOKIE = "mobillama_v_visitor"


@dataclass
class _Visitor:
    files: set[str] = field(default_factory=set)
    tabs: set[str] = field(default_factory=set)
    seen: float = field(default_factory=time.monotonic)


class Sessions:
    """The browsers that are here, and the files in ``folder`` that are theirs; safe to use from several threads."""

    def __init__(self, folder: Path, *, shared: Path, max_files: int = 100) -> None:
        self.folder, self.shared, self.max_files = folder, shared.resolve(), max_files
        self._lock = threading.Lock()
        self._here: dict[str, _Visitor] = {}

    @staticmethod
    def new_token() -> str:
        """A name for a browser that nobody can guess."""
        return secrets.token_urlsafe(24)

    def upload(self, token: str, paths: list[str]) -> None:
        """Note files as a browser's own."""
        with self._lock:
            self._here.setdefault(token, _Visitor()).files.update(paths)

    def full(self, token: str) -> bool:
        """Whether a browser has as many files here as it may have."""
        with self._lock:
            return token in self._here and len(self._here[token].files) >= self.max_files

    def may_read(self, token: str, path: str) -> bool:
        """Whether ``path`` is, letter by letter, a file of this browser, or one that ships with the project."""
        if os.path.dirname(path) == str(self.shared):
            return os.path.realpath(path) == path and os.path.isfile(path)
        with self._lock:
            return token in self._here and path in self._here[token].files

    def enter(self, token: str, tab: str) -> None:
        """A tab was opened."""
        with self._lock:
            visitor = self._here.setdefault(token, _Visitor())
            visitor.tabs.add(tab)
            visitor.seen = time.monotonic()

    def leave(self, token: str, tab: str) -> bool:
        """A tab was closed; with the last one go the browser's files, but for those that another uploaded too.

        Returns:
            Whether it was the last one.
        """
        with self._lock:
            visitor = self._here.get(token)
            if visitor is None:
                return True
            visitor.tabs.discard(tab)
            if visitor.tabs:
                return False
            del self._here[token]
            self._delete(visitor.files)
            return True

    def expire(self, seconds: float) -> None:
        """Forget browsers that have uploaded and opened no tab for ``seconds``."""
        with self._lock:
            now = time.monotonic()
            for token, visitor in list(self._here.items()):
                if not visitor.tabs and now - visitor.seen > seconds:
                    del self._here[token]
                    self._delete(visitor.files)

    def _delete(self, files: set[str]) -> None:
        others = set().union(*(visitor.files for visitor in self._here.values()))
        for path in files - others:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)  # Gradio gives every content a folder
