"""Files belong to browsers, and go with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobillama_v.demo.sessions import Sessions


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "cat.jpg").touch()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "secret")
    return Sessions(tmp_path / "uploads", shared=tmp_path / "shared", max_files=2)


def upload(sessions: Sessions, token: str, name: str) -> str:
    path = sessions.folder / name / "picture.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    sessions.upload(token, [str(path)])
    return str(path)


def test_only_the_owner_may_read(sessions: Sessions) -> None:
    path = upload(sessions, "a", "1")
    assert sessions.may_read("a", path) and not sessions.may_read("b", path) and not sessions.may_read("", path)
    folder, name = path.rsplit("/", 1)
    for other in (f"{folder}/./{name}", f"{folder}/../1/{name}", folder, f"file://{path}", f"{path}\0"):
        assert not sessions.may_read("a", other)


def test_what_ships_is_everybodys(sessions: Sessions, tmp_path: Path) -> None:
    assert sessions.may_read("", str(tmp_path / "shared" / "cat.jpg"))
    for other in ("shared/../secret", "shared/link", "shared/missing", "shared", "secret"):
        assert not sessions.may_read("", str(tmp_path / other))


def test_files_go_with_the_last_tab(sessions: Sessions) -> None:
    sessions.enter("a", "tab 1")
    sessions.enter("a", "tab 2")
    mine, both = upload(sessions, "a", "1"), upload(sessions, "a", "2")
    upload(sessions, "b", "2")
    assert not sessions.leave("a", "tab 1") and Path(mine).exists()
    assert sessions.leave("a", "tab 2") and not Path(mine).parent.exists()
    assert Path(both).exists() and sessions.may_read("b", both) and not sessions.may_read("a", both)
    assert sessions.leave("b", "tab 3") and not Path(both).exists()
    assert sessions.leave("nobody", "tab")


def test_who_never_opened_a_page_is_forgotten(sessions: Sessions) -> None:
    path = upload(sessions, "a", "1")
    sessions.expire(3600)
    assert Path(path).exists()
    sessions.expire(-1)
    assert not Path(path).exists()


def test_so_many_files(sessions: Sessions) -> None:
    upload(sessions, "a", "1")
    assert not sessions.full("a")
    upload(sessions, "a", "2")
    assert sessions.full("a") and not sessions.full("b")
