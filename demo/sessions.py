"""Sessions of the demo: a picture is served only to the browser that uploaded it, and is deleted with its last tab.

A session is a browser, known by a random cookie that scripts cannot read. Each of its tabs is a session of Gradio's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

COOKIE = "mobillama_v_session"


@dataclass
class _Session:
    files: set[str] = field(default_factory=set)
    tabs: set[str] = field(default_factory=set)
    seen: float = field(default_factory=time.monotonic)


class Sessions:
    """The open sessions, and the files in ``folder`` that belong to each. Safe to use from several threads."""

    def __init__(self, folder: Path, *, shared: Path, max_files: int = 100, max_bytes: int = 2_000_000_000) -> None:
        self.folder, self.shared, self.max_files, self.max_bytes = folder, shared.resolve(), max_files, max_bytes
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}

    @staticmethod
    def new_token() -> str:
        """A random name for a session, which nobody can guess."""
        return secrets.token_urlsafe(24)

    def upload(self, token: str, paths: list[str]) -> None:
        """Record files as a session's own."""
        with self._lock:
            self._sessions.setdefault(token, _Session()).files.update(paths)

    def full(self, token: str) -> bool:
        """Whether a session has as many files as it may have."""
        with self._lock:
            return token in self._sessions and len(self._sessions[token].files) >= self.max_files

    def room(self) -> int:
        """Bytes that the uploads of all sessions may still take."""
        used = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # deleted meanwhile
                    used += os.path.getsize(os.path.join(folder, name))
        return self.max_bytes - used

    def may_read(self, token: str, path: str) -> bool:
        """Whether ``path`` is, letter by letter, a file of this session, or one that ships with the project."""
        if os.path.dirname(path) == str(self.shared):
            return os.path.realpath(path) == path and os.path.isfile(path)
        with self._lock:
            return token in self._sessions and path in self._sessions[token].files

    def enter(self, token: str, tab: str) -> None:
        """A tab was opened."""
        with self._lock:
            session = self._sessions.setdefault(token, _Session())
            session.tabs.add(tab)
            session.seen = time.monotonic()

    def leave(self, token: str, tab: str) -> bool:
        """A tab was closed. With the last one the session's files are deleted, unless another session has them too.

        Returns:
            Whether it was the last one.
        """
        with self._lock:
            session = self._sessions.get(token)
            if session is None:
                return True
            session.tabs.discard(tab)
            if session.tabs:
                return False
            del self._sessions[token]
            self._delete(session.files)
            return True

    def expire(self, seconds: float) -> None:
        """Delete sessions that have had no tab for ``seconds``."""
        with self._lock:
            now = time.monotonic()
            for token, session in list(self._sessions.items()):
                if not session.tabs and now - session.seen > seconds:
                    del self._sessions[token]
                    self._delete(session.files)

    def _delete(self, files: set[str]) -> None:
        others = set().union(*(session.files for session in self._sessions.values()))
        for path in files - others:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)  # Gradio gives every content a folder
