"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mobillama_v.errors import ConfigError


def refuse_existing(out: Path, *, parents: bool = False) -> None:
    """See that ``out`` can be made.

    Raises:
        ConfigError: it exists, or (without ``parents``) the folder around it does not.
    """
    if out.exists():
        raise ConfigError(f"{str(out)!r} is there already; name another one.")
    if not parents and not out.absolute().parent.is_dir():
        raise ConfigError(
            f"there is no folder {str(out.absolute().parent)!r} to write {out.name!r} into; make it first."
        )


def require_space(out: Path, size: int) -> None:
    """See that there is room for ``size`` bytes where ``out`` will be, before hours are spent on them.

    Raises:
        ConfigError: there is not.
    """
    folder = next(each for each in out.absolute().parents if each.is_dir())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ConfigError(
            f"{str(out)!r} takes {size / 1e6:,.0f} MB or more and {str(folder)!r} has {free / 1e6:,.0f} MB left; free "
            "some, or choose another place."
        )


@contextmanager
def written_whole(out: Path, *, parents: bool = False) -> Iterator[Path]:
    """A path to write a new file or folder at. It, and what lies beside it, is renamed to ``out`` when all is written.

    After an error nothing is left. After a kill a folder is left whose name begins with a dot and that of ``out``. With
    ``parents`` the folders around it are made too.

    Raises:
        ConfigError: as :func:`refuse_existing`, or the system refuses to write.
    """
    from safetensors import SafetensorError  # which it raises in place of the system's errors

    refuse_existing(out, parents=parents)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}-") as work:
            made = Path(work) / out.name
            yield made
            beside = [(path, out.with_name(path.name)) for path in Path(work).iterdir() if path != made]
            for _, place in beside:
                refuse_existing(place)
            for path, place in (*beside, (made, out)):
                _give_usual_mode(path, Path(work) / "mode")
                path.rename(place)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{str(out)!r} cannot be written ({getattr(error, 'strerror', None) or error}); choose another place."
        ) from error


def _give_usual_mode(made: Path, probe: Path) -> None:
    """Let the files of ``made`` be read by those who may read other new files: safetensors makes them private."""
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    for path in (made, *made.rglob("*")):
        if path.is_file():
            path.chmod(mode)
