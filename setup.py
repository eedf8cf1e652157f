"""The optional part of the build: the CPU engine, a C++ library that Python calls through ctypes.

Without a compiler, or with ``MOBILLAMA_V_PURE=1``, the install goes on without it: numpy answers then. A wheel fits
every Python, and every platform where it holds no library. Everything else is in pyproject.toml.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("mobillama_v/backends/native/csrc")
UNIX = ["-std=c++17", "-O2", "-fvisibility=hidden", "-ffp-contract=off", "-g0"]  # contracted sums would differ
FASTEST = ("kernels_avx2", "kernels_neon", "kernels_vnni")  # the portable ones are slower with -O3


class BuildEngine(build_ext):
    """Builds a library that is no Python module: it has no function that Python would start it with."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the kernels' sources beside each other, and all others as one, so that they share their headers."""
        one = self.compiler.compile

        def compiled(source: str, extra_postargs: list[str], **options: Any) -> list[str]:
            more = ["-O3"] if Path(source).stem in FASTEST else []
            return one([source], extra_postargs=extra_postargs + more, **options)

        def together(sources: list[str], **options: Any) -> list[str]:
            kernels = [source for source in sources if "kernels" in Path(source).stem]
            joined = Path(self.build_temp, "joined.cpp")
            joined.parent.mkdir(parents=True, exist_ok=True)
            others = (Path(source).resolve().as_posix() for source in sources if source not in kernels)
            joined.write_text("".join(f'#include "{path}"\n' for path in others), encoding="utf-8")
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compiled(source, **options), [str(joined), *kernels])
                return [path for paths in made for path in paths]

        if sys.platform != "win32":
            self.compiler.compile = together
        super().build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None but those that the source marks."""
        return []


class TaggedWheel(bdist_wheel):
    """Says what a wheel fits: ctypes asks for no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Called when everything has been built."""
        self.root_is_pure = not any(Path(self.bdist_dir).rglob("_native*"))
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


engine = Extension(
    "mobillama_v.backends.native._native",
    sources=[str(path) for path in sorted(NATIVE.glob("*.cpp"))],
    depends=[str(path) for pattern in ("*.h", "*.inc") for path in sorted(NATIVE.glob(pattern))],
    extra_compile_args=["/std:c++17", "/O2", "/EHsc"] if sys.platform == "win32" else UNIX,
    extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
    optional=True,
    py_limited_api=True,  # in the file's name
)
setup(
    ext_modules=[] if os.environ.get("MOBILLAMA_V_PURE") == "1" else [engine],
    cmdclass={"build_ext": BuildEngine, "bdist_wheel": TaggedWheel},
)
