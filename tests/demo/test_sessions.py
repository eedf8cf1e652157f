"""Files belong to browsers, and go with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobillama_v.demo.sessions import Sessions


@pytest.fixture
def visitors(tmp_path: Path) -> Sessions:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "cat.jpg").touch()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "secret")
    return Sessions(tmp_path / "uploads", shared=tmp_path / "shared", max_files=2)


def upload(visitors: Sessions, token: str, name: str) -> str:
    path = visitors.folder / name / "picture.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    visitors.upload(token, [str(path)])
    return str(path)


def test_only_the_owner_may_read(visitors: Sessions) -> None:
    path = upload(visitors, "a", "1")
    assert visitors.may_read("a", path) and not visitors.may_read("b", path) and not visitors.may_read("", path)
    folder, name = path.rsplit("/", 1)
    for other in (f"{folder}/./{name}", f"{folder}/../1/{name}", folder, f"file://{path}", f"{path}\0"):
        assert not visitors.may_read("a", other)


def test_what_ships_is_everybodys(visitors: Sessions, tmp_path: Path) -> None:
    assert visitors.may_read("", str(tmp_path / "shared" / "cat.jpg"))
    for other in ("shared/../secret", "shared/link", "shared/missing", "shared", "secret"):
        assert not visitors.may_read("", str(tmp_path / other))


def test_files_go_with_the_last_tab(visitors: Sessions) -> None:
    visitors.enter("a", "tab 1")
    visitors.enter("a", "tab 2")
    mine, both = upload(visitors, "a", "1"), upload(visitors, "a", "2")
    upload(visitors, "b", "2")
    assert not visitors.leave("a", "tab 1") and Path(mine).exists()
    assert visitors.leave("a", "tab 2") and not Path(mine).parent.exists()
    assert Path(both).exists() and visitors.may_read("b", both) and not visitors.may_read("a", both)
    assert visitors.leave("b", "tab 3") and not Path(both).exists()
    assert visitors.leave("nobody", "tab")


def test_who_never_opened_a_page_is_forgotten(visitors: Sessions) -> None:
    path = upload(visitors, "a", "1")
    visitors.expire(3600)
    assert Path(path).exists()
    visitors.expire(-1)
    assert not Path(path).exists()


def test_so_many_files(visitors: Sessions) -> None:
    upload(visitors, "a", "1")
    assert not visitors.full("a")
    upload(visitors, "a", "2")
    assert visitors.full("a") and not visitors.full("b")
