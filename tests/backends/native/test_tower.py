"""Image towers in the native library: torch's features, bit for bit the same whoever computes them, and errors."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from mobillama_v.backends.native import library
from mobillama_v.backends.native.layers import NativeTower, ThreadPool
from mobillama_v.backends.native.tiles import pack_matrix
from mobillama_v.backends.native_vision import tower_tensors
from mobillama_v.backends.numpy.layers import Tensors
from mobillama_v.model.vision import PlainViT, TowerConfig, ViTShape, build_tower
from mobillama_v.model.vision.plain_vit import CLIP, SIGLIP

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")

# Widths and tokens that fill no block, heads of 8, 12 and 64.
CASES: dict[str, tuple[TowerConfig, int]] = {
    "clip": (TowerConfig(CLIP, vit=ViTShape(24, 3, 3, 40, 8, "quick_gelu")), 40),
    "clip, all": (TowerConfig(CLIP, None, -1, "cls_patch", True, ViTShape(36, 2, 3, 70, 5, "gelu")), 33),
    "siglip": (TowerConfig(SIGLIP, None, -1, final_norm=True, vit=ViTShape(72, 2, 6, 90, 7, "gelu_tanh")), 70),
    "siglip, all": (TowerConfig(SIGLIP, None, -2, "cls_patch", vit=ViTShape(64, 3, 1, 128, 16, "gelu")), 64),
}


def vit_of(spec: TowerConfig) -> PlainViT:
    assert spec.vit is not None
    return PlainViT(spec.vit, timm=spec.model == SIGLIP)


def in_torch(spec: TowerConfig, size: int) -> Any:
    """A tower with random weights that 16 bits hold, norms and biases among them."""
    torch.manual_seed(2)
    tower = build_tower(spec, image_size=size).eval().requires_grad_(False)
    for parameter in tower.parameters():
        if parameter.dim() == 1:
            parameter += torch.randn_like(parameter) / 10
        parameter.copy_(parameter.half())
    return tower


def in_library(
    tower: Any, spec: TowerConfig, size: int, bits: int, threads: int = 1, path: str | None = None
) -> NativeTower:
    """The same in the library, its blocks' matrices in 8 or 16 bits."""
    state = {name.removeprefix("visual."): each.numpy() for name, each in tower.state_dict().items()}
    if bits == 8:
        for name in [name for name, each in state.items() if "blocks" in name and each.ndim == 2]:
            tiles = name.replace("in_proj_weight", "in_proj.tiles").replace(".weight", ".tiles")
            state[tiles] = pack_matrix(torch.from_numpy(state.pop(name)), 8).numpy()
            if f"{name[:-6]}bias" in state:
                state[tiles.replace(".tiles", ".bias")] = state.pop(f"{name[:-6]}bias")
    tensors = Tensors(state)
    made = list(tower_tensors(vit_of(spec), spec, size, tensors))
    assert not tensors.left
    return NativeTower(ThreadPool(threads, path=path), vit_of(spec), spec, size, made)


def pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", CASES)
def test_features_are_torchs(name: str) -> None:
    """At 16 bits but for the order of sums, at 8 within a hundredth, whatever the path."""
    spec, size = CASES[name]
    tower, pixels = in_torch(spec, size), pictures(2, size)
    expected = tower(torch.from_numpy(pixels)).numpy()
    for path in library.paths():
        exact = in_library(tower, spec, size, 16, path=path)(pixels)
        assert exact.shape == expected.shape and distance(exact, expected) < 2e-6
        assert 1e-6 < distance(in_library(tower, spec, size, 8, path=path)(pixels), expected) < 0.01


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_threads_batches_and_runs_agree_bit_for_bit(name: str, bits: int) -> None:
    spec, size = CASES[name]
    tower, pixels = in_torch(spec, size), pictures(37, size)  # more than pass a layer together
    for path in library.paths():
        native = in_library(tower, spec, size, bits, 1, path)
        expected = native(pixels)
        assert np.array_equal(native(pixels), expected)
        assert np.array_equal(np.concatenate([native(each[None]) for each in pixels]), expected)
        for threads in (2, 3):
            assert np.array_equal(in_library(tower, spec, size, bits, threads, path)(pixels), expected)
        if path in ("avx2", "vnni"):
            assert np.array_equal(in_library(tower, spec, size, bits, 1, "avx2")(pixels), expected)
    assert native(pixels[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("kind", ["quick_gelu", "gelu", "gelu_tanh"])
def test_activations_are_torchs(kind: str) -> None:
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -100.0, 100.0, 1e4])))
    exact = x.double()
    expected = {
        "quick_gelu": exact * torch.sigmoid(1.702 * exact),
        "gelu": torch.nn.functional.gelu(exact),
        "gelu_tanh": torch.nn.functional.gelu(exact, approximate="tanh"),
    }[kind]
    for path in library.paths():
        found = torch.from_numpy(ThreadPool(1, path=path).activate(kind, x.numpy()))
        assert float((found - expected).abs().max()) < 2e-6 and torch.equal(x[-1:], found[-1:])


def test_what_does_not_fit_is_refused() -> None:
    spec, size = CASES["clip"]
    tower = in_library(in_torch(spec, size), spec, size, 16)
    with pytest.raises(ValueError, match=r"images are \[3, 32, 32\] and the tower takes \[3, 40, 40\]"):
        tower(pictures(1, 32))
    tensors, pool = list(tower._tensors), ThreadPool(1)
    for count in (len(tensors) - 1, len(tensors) + 1):
        with pytest.raises(RuntimeError, match="refuses this image tower: there are"):
            NativeTower(pool, vit_of(spec), spec, size, [*tensors, tensors[-1]][:count])
    for i, tensor in enumerate(tensors):
        wrong = [*tensors[:i], tensor[:-1].copy(), *tensors[i + 1 :]]
        with pytest.raises(RuntimeError, match="and must have"):
            NativeTower(pool, vit_of(spec), spec, size, wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_goes_on() -> None:
    spec, size = CASES["clip"]
    native, pixels = in_library(in_torch(spec, size), spec, size, 8, threads=3), pictures(2, size)
    expected = native(pixels)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(native(pixels), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(native(pixels), expected)
