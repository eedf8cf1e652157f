"""The native library through ctypes; ``csrc/engine.h`` says what its functions do."""

from __future__ import annotations

import ctypes
import itertools
from functools import lru_cache
from pathlib import Path

_ABI = 8


class Config(ctypes.Structure):
    """``mv_config``."""

    _fields_ = (
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("vocab", "hidden", "ffn", "layers", "heads", "kv_heads", "head_width")),
        *((name, ctypes.c_int32) for name in ("context", "ffn_count", "qkv_bias", "qk_norm", "bits", "threads")),
        ("path", ctypes.c_char_p),
    )


class TowerConfig(ctypes.Structure):
    """``mv_tower_config``."""

    _fields_ = (
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("image", "patch", "width", "layers", "heads", "mlp", "activation")),
        *((name, ctypes.c_int32) for name in ("class_token", "keep_class", "pre_norm", "final_norm")),
    )


class Span(ctypes.Structure):
    """``mv_span``."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64))


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    if library.mv_abi() != _ABI:
        raise OSError("it was built from another version of the source")
    pointer, int32, uint64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64
    signatures = {
        "mv_error": (ctypes.c_char_p, ()),
        "mv_path_name": (ctypes.c_char_p, (int32,)),
        "mv_model_new": (pointer, (ctypes.POINTER(Config), ctypes.POINTER(Span), int32)),
        "mv_model_free": (None, (pointer,)),
        "mv_model_path": (ctypes.c_char_p, (pointer,)),
        "mv_model_traffic": (None, (pointer, ctypes.POINTER(uint64), ctypes.POINTER(uint64))),
        "mv_sequence_new": (pointer, (pointer, int32)),
        "mv_sequence_free": (None, (pointer,)),
        "mv_sequence_copy": (int32, (pointer, pointer, int32)),
        "mv_forward": (
            int32,
            (pointer, ctypes.POINTER(pointer), ctypes.POINTER(int32), int32, pointer, pointer, pointer),
        ),
        "mv_thread_pool_new": (pointer, (int32, ctypes.c_char_p)),
        "mv_thread_pool_free": (None, (pointer,)),
        "mv_thread_pool_path": (ctypes.c_char_p, (pointer,)),
        "mv_activate": (int32, (pointer, int32, pointer, ctypes.c_int64)),
        "mv_tower_new": (pointer, (pointer, ctypes.POINTER(TowerConfig), ctypes.POINTER(Span), int32)),
        "mv_tower_free": (None, (pointer,)),
        "mv_tower_encode": (int32, (pointer, pointer, int32, pointer)),
        "mv_linear": (int32, (pointer, ctypes.POINTER(Span), int32, int32, pointer, pointer, int32, pointer)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@lru_cache(maxsize=1)
def _open_once() -> tuple[ctypes.CDLL | None, str]:
    folder = Path(__file__).parent
    found = [path for path in sorted(folder.glob("_native*")) if path.suffix in (".so", ".pyd", ".dylib")]
    if not found:
        built = "this package was installed from its source without a C++ compiler, or from a pure wheel"
        return None, f"{built}; install it again with a compiler, or from a wheel of this platform"
    try:
        return _open(found[0]), ""
    except (OSError, AttributeError) as error:
        return None, f"{error}; install this package again"


def missing() -> str:
    """Why there is no native library here, and how to get it; empty where there is one."""
    return _open_once()[1]


def library() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: there is none; ask :func:`missing` first.
    """
    found, why = _open_once()
    if found is None:
        raise RuntimeError(f"the native engine is not here: {why}")
    return found


def paths() -> list[str]:
    """Names of the kernel paths that this machine can run, the fastest first."""
    names = map(library().mv_path_name, itertools.count())
    return [name.decode() for name in itertools.takewhile(bool, names)]


def encoded(path: str | None) -> bytes | None:
    """The name of a kernel path as the library takes it; None means the fastest."""
    return None if path is None else path.encode()


def error() -> str:
    """What went wrong in this thread's last call that failed."""
    return library().mv_error().decode(errors="replace")
