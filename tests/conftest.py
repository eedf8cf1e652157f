"""Shared fixtures: a tiny random model; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if os.environ.get("PYTEST_XDIST_WORKER"):  # tests beside each other: threads that wait for threads would stand still
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tower_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a tiny open_clip tower."""
    return tiny.register_tower(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture
def tiny_model(tower_name: str):
    """A tiny random MobiLlama-V in fp32, in evaluation mode."""
    import torch

    from mobillama_v import MobiLlamaVConfig, MobiLlamaVForConditionalGeneration

    torch.manual_seed(0)
    return MobiLlamaVForConditionalGeneration(MobiLlamaVConfig(**tiny.model_config())).eval()


def _model(name: str, make: Callable[[Path], Path], folders: pytest.TempPathFactory) -> Path:
    """A model folder of a test.

    An install without torch cannot make one: ``MOBILLAMA_V_TEST_MODELS`` names a folder of those that another install
    has made (see .ci/extras).
    """
    if importlib.util.find_spec("torch") is None:
        made = os.environ.get("MOBILLAMA_V_TEST_MODELS")
        return Path(made) / name if made else pytest.skip("no torch to make a model, and no MOBILLAMA_V_TEST_MODELS")
    return make(folders.mktemp("models") / name)


@pytest.fixture(scope="session")
def nano_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the embedded model's architecture, tiny and random; do not change it."""
    return _model(tiny.NANO_LIKE, tiny.save_nano_like, tmp_path_factory)


@pytest.fixture(scope="session")
def packed_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model with CLIP's tower, tiny and random; do not change it."""
    return _model(tiny.PACKED_CLIP, tiny.save_packed_clip, tmp_path_factory)
