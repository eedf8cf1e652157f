"""The optional part of the build: the CPU engine, a C++ library that Python calls through ctypes.

Without a compiler the install goes on without it. Everything else is in pyproject.toml.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("mobillama_v/backends/native/csrc")
UNIX = ["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-g0"]  # contracted sums would differ


class BuildEngine(build_ext):
    """Builds a library that is no Python module: it has no function that Python would start it with."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None but those that the source marks."""
        return []


setup(
    ext_modules=[
        Extension(
            "mobillama_v.backends.native._native",
            sources=[str(path) for path in sorted(NATIVE.glob("*.cpp"))],
            depends=[str(path) for pattern in ("*.h", "*.inc") for path in sorted(NATIVE.glob(pattern))],
            extra_compile_args=["/std:c++17", "/O2", "/EHsc"] if sys.platform == "win32" else UNIX,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            optional=True,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildEngine},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
