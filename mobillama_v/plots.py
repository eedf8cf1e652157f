"""Figures by matplotlib, which only an extra installs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobillama_v.errors import ConfigError, needs


def pyplot(what: str, extra: str) -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        MissingExtraError: matplotlib is not installed; ``what`` needs it, ``extra`` brings it.
    """
    with needs(what, extra):
        import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, and free it.

    Raises:
        ConfigError: the file cannot be written.
    """
    import matplotlib.pyplot as pyplot

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written ({error.strerror}); choose another file.") from None
    finally:
        pyplot.close(figure)
