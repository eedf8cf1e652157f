"""Errors that a user can cause.

Each carries one sentence that says what is wrong, where, and how to fix it. The command line prints that sentence
to stderr and ends with exit code 2; a library caller catches :class:`MobiLlamaVError`.
"""

from __future__ import annotations


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


class MissingExtraError(MobiLlamaVError):
    """A command needs an optional dependency that is not installed."""
