"""Shared fixtures: a tiny random model; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import os
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


@pytest.fixture(scope="session")
def nano_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the embedded model's architecture, tiny and random; do not change it.

    In an install without torch, ``MOBILLAMA_V_TEST_MODEL`` names one that another install has made (see .ci/extras).
    """
    if importlib.util.find_spec("torch") is None:
        made = os.environ.get("MOBILLAMA_V_TEST_MODEL")
        return Path(made) if made else pytest.skip("no torch to make a model, and no MOBILLAMA_V_TEST_MODEL")
    return tiny.save_nano_like(tmp_path_factory.mktemp("models") / "nano-like")
