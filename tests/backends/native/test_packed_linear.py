"""Linear layers outside the decoder: what the library computes, bit for bit the same whoever computes it."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from mobillama_v.backends.native import library
from mobillama_v.backends.native.layers import ThreadPool
from mobillama_v.backends.native.packed_linear import PackedLinear
from mobillama_v.backends.native.tiles import pack_matrix, unpack_matrix

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")

SHAPES = [(1, 1, 1), (16, 32, 4), (40, 70, 3), (130, 96, 65), (64, 256, 517)]  # rows, columns, vectors


def case(rows: int, columns: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [rows, columns], bias [rows] and inputs [count, columns], some far larger than others."""
    torch.manual_seed(rows)
    x = torch.randn(count, columns) * torch.randn(columns).exp()
    return torch.randn(rows, columns) / columns**0.5, torch.randn(rows), x


def product(pool: ThreadPool, tiles: Tensor, bias: Tensor | None, x: Tensor, rows: int) -> Tensor:
    """A layer in the library."""
    return torch.from_numpy(pool.linear(tiles.numpy(), None if bias is None else bias.numpy(), x.numpy(), rows))


def rounded(x: Tensor) -> Tensor:
    """Inputs as the engine rounds them: to 127 steps of each block of 32's largest."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
    step = padded.abs().amax(-1, keepdim=True) / 127
    whole = (padded * torch.where(step == 0, 0, 1 / step)).round()
    return (whole * step).flatten(-2)[..., : x.shape[-1]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_product_of_rounded_numbers(shape: tuple[int, int, int], with_bias: bool) -> None:
    """Weights and inputs rounded to 8 bits give the product but for the order of sums in fp32, of 1e-6 at most.

    A number that lies midway between two steps may be rounded the other way here, as 127 / largest is rounded too: that
    is one step, 1/127 of a block's largest, and allowed for in few of them. From the float product it is 0.7 % away.
    """
    rows, columns, _ = shape
    weight, bias, x = case(*shape)
    tiles = pack_matrix(weight, 8)
    found = product(ThreadPool(2), tiles, bias if with_bias else None, x, rows) - (bias if with_bias else 0)
    exact = rounded(x).double() @ unpack_matrix(tiles, 8, rows, columns).double().T
    apart = (found - exact).abs() / exact.norm(dim=-1, keepdim=True) * rows**0.5
    assert float((apart < 1e-5).double().mean()) > 0.98 and float(apart.max()) < 0.01
    float_product = x @ weight.T
    assert float((found - float_product).norm() / float_product.norm()) < 0.015


@pytest.mark.parametrize("shape", SHAPES)
def test_threads_counts_and_paths_agree_bit_for_bit(shape: tuple[int, int, int]) -> None:
    rows, _, count = shape
    weight, bias, x = case(*shape)
    tiles = pack_matrix(weight, 8)
    for path in library.paths():
        expected = product(ThreadPool(1, path=path), tiles, bias, x, rows)
        for threads in (2, 3):
            assert torch.equal(product(ThreadPool(threads, path=path), tiles, bias, x, rows), expected)
        alone = torch.cat(
            [product(ThreadPool(1, path=path), tiles, bias, each, rows) for each in x.split(max(1, count // 3))]
        )
        assert torch.equal(alone, expected)
        if path in ("avx2", "vnni"):
            assert torch.equal(product(ThreadPool(1, path="avx2"), tiles, bias, x, rows), expected)
        portable = product(ThreadPool(1, path="portable"), tiles, bias, x, rows)
        assert float((expected - portable).norm() / portable.norm()) < 1e-6


def test_shapes_and_paths_that_are_not_there_are_refused() -> None:
    pool, tiles = ThreadPool(1), pack_matrix(torch.randn(40, 70), 8)
    with pytest.raises(RuntimeError, match=r"weights have 4896 bytes and must have \d+"):
        product(pool, tiles, None, torch.randn(2, 97), 40)
    with pytest.raises(RuntimeError, match="must have"):
        product(pool, tiles, None, torch.randn(2, 70), 49)
    assert product(pool, tiles, None, torch.randn(0, 70), 40).shape == (0, 40)
    with pytest.raises(RuntimeError, match="threads is 0 and must be between 1 and 256"):
        ThreadPool(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_goes_on() -> None:
    """The threads stay behind; a call in the child makes its own."""
    weight, bias, x = case(130, 96, 65)
    tiles, pool = pack_matrix(weight, 8), ThreadPool(3)
    expected = product(pool, tiles, bias, x, 130)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(product(pool, tiles, bias, x, 130), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(product(pool, tiles, bias, x, 130), expected)


def test_a_layer_keeps_shape_and_type() -> None:
    weight, bias, x = case(40, 70, 6)
    layer = PackedLinear(40, 70, bias=True, like=weight)
    layer.fill(weight, bias, "a layer")
    assert layer(x.view(2, 3, 70)).shape == (2, 3, 40)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer(x.T.contiguous().T), layer(x))
