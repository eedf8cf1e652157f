"""Matrices to the engine's tiles and back.

A matrix [N,K] is padded with zeros to multiples of 16 and 32 and cut into tiles of 16 rows x 32 columns: a tensor
[N/16, K/32, bytes of a tile], uint8. A tile of 4 or 8 bits holds for each of its rows an fp16 scale d and 32 whole
numbers q, and means d*q; of 16 bits it holds fp16. ``native/kernels.h`` says where in the tile each lies, and why.

Shapes: A row panels of 16 rows, B blocks of 32 columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobillama_v.backends.native import pack
from mobillama_v.backends.native.pack import check_fp16_range, pack_fp16
from mobillama_v.backends.native.packed_format import BLOCK, ROWS, tiles_shape

_AT_ONCE = 1 << 21  # weights, so that what is computed with them stays in the cache


def pack_matrix(
    weight: Tensor, bits: int, *, search: bool = True, moments: Tensor | None = None, name: str = "a matrix"
) -> Tensor:
    """Pack ``weight`` [N,K] of any float type to tiles [A,B,bytes].

    Args:
        weight: finite numbers.
        bits: 4, 8 or 16.
        search: choose each 4-bit scale as that with the least squared error among several, which takes ten times as
            long as the one that the largest weight gives.
        moments: of the matrix's inputs, [K,K] or less where the last columns are padding: 4-bit codes are chosen by
            them (:func:`quantize_for`).
        name: for the error.

    Raises:
        CheckpointError: numbers that are not finite, or beyond what 16 bits hold.
    """
    if bits == 16:
        return torch.from_numpy(pack_fp16(weight.detach().float().numpy(), name))
    rows, columns = weight.shape
    panels, blocks, _ = tiles_shape(rows, columns, bits)
    out = torch.empty(tiles_shape(rows, columns, bits), dtype=torch.uint8)
    errors = None
    if bits == 4 and moments is not None:
        padding = blocks * BLOCK - len(moments)
        errors = _spread_of_errors(nn.functional.pad(moments, (0, padding, 0, padding)))
    step = max(1, _AT_ONCE // (ROWS * BLOCK * blocks))
    for panel in range(0, panels, step):
        some = weight[panel * ROWS : (panel + step) * ROWS].float()
        check_fp16_range(some.detach().numpy(), name)
        end = min(panel + step, panels)
        padded = some.new_zeros((end - panel) * ROWS, blocks * BLOCK)
        padded[: len(some), :columns] = some
        tiles = padded.view(end - panel, ROWS, blocks, BLOCK).transpose(1, 2)  # [A,B,16,32]
        if errors is None:
            out[panel:end] = _pack_codes(*quantize(tiles, bits, search=search), bits)
        else:
            codes, scales = quantize_for(padded, errors)
            shape = (end - panel, ROWS, blocks)
            codes = codes.view(*shape, BLOCK).transpose(1, 2)
            out[panel:end] = _pack_codes(codes, scales.view(shape).transpose(1, 2), bits)
    return out


def _pack_codes(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Tiles of codes [A,B,16,32] and scales [A,B,16]."""
    panels, blocks = codes.shape[:2]
    halves = codes.reshape(panels, blocks, 2, 8, BLOCK)
    if bits == 4:
        nibbles = (halves + 8).to(torch.uint8).view(panels, blocks, 2, 8, 4, 2, 4)
        data = nibbles[..., 0, :] | nibbles[..., 1, :] << 4
    else:
        data = halves.to(torch.int8).view(torch.uint8).view(panels, blocks, 2, 8, 8, 4)
    data = data.transpose(3, 4).reshape(panels, blocks, -1)
    return torch.cat((scales.half().contiguous().view(torch.uint8).view(panels, blocks, -1), data), dim=-1)


def quantize(blocks: Tensor, bits: int, *, search: bool = True) -> tuple[Tensor, Tensor]:
    """Codes [...,32] and scales [...] of blocks [...,32], fp32: whole numbers, and numbers that fp16 holds.

    4 bits are -8 to 7, and 8 bits -127 to 127; ``search`` is as in :func:`pack_matrix`.
    """
    scales = _scales(blocks, bits, search)
    return _codes(blocks, scales, bits), scales


def _spread_of_errors(moments: Tensor) -> Tensor:
    """How an error of each column is made good by the columns after it, [K,K] upper triangular.

    The Cholesky factor of the inverse of ``moments``. A hundredth of their mean is added to each column's own, without
    which inputs that were never seen would be given any weight at all.
    """
    moments = moments.double()
    own = moments.diagonal()
    own += max(float(own.mean()) / 100, 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    return torch.linalg.cholesky(inverse, upper=True).float()


def quantize_for(weight: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """4-bit codes [N,K] and scales [N,K/32] of ``weight`` [N,K] for inputs that have been measured.

    Each block's scale is chosen when the errors of the blocks before it have been passed on to it.

    Args:
        weight: K a multiple of 32, fp32.
        errors: [K,K] of the inputs' moments.
    """
    left = weight.clone()
    codes = torch.empty_like(left)
    scales = left.new_empty(len(left), left.shape[1] // BLOCK)
    for block in range(scales.shape[1]):
        start, end = block * BLOCK, (block + 1) * BLOCK
        here, passed = left[:, start:end], errors[start:end, start:end]
        scale = _scales(here, 4, search=True, weights=passed.diagonal() ** -2)
        scales[:, block] = scale
        wrong = torch.empty_like(here)
        for column in range(BLOCK):
            code = _codes(here[:, column, None], scale, 4)[:, 0]
            codes[:, start + column] = code
            wrong[:, column] = (here[:, column] - code * scale) / passed[column, column]
            here[:, column + 1 :] -= wrong[:, column, None] * passed[column, column + 1 :]
        left[:, end:] -= wrong @ errors[start:end, end:]
    return codes, scales


def _scales(tiles: Tensor, bits: int, search: bool, weights: Tensor | None = None) -> Tensor:
    """Scales [...], numbers of fp16; ``weights`` [32] of the columns' squared errors."""
    if bits == 8:
        return (tiles.abs().amax(-1) / 127).half().float()
    at = tiles.abs().argmax(-1, keepdim=True)
    extreme = tiles.gather(-1, at)[..., 0]
    best = (extreme / -8).half().float()  # the code -8 has no counterpart: give it to the largest
    if not search:
        return best
    least = _squared_error(tiles, best, weights)
    # Cutting off the largest a little serves the others; 7 may fit better than -8.
    for divisor in (-9.0, -8.5, -7.5, -7.0, 7.0, 7.5, 8.0):
        scales = (extreme / divisor).half().float()
        error = _squared_error(tiles, scales, weights)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    return best


def _codes(tiles: Tensor, scales: Tensor, bits: int) -> Tensor:
    inverse = torch.where(scales == 0, 0.0, 1 / scales)[..., None]
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    return (tiles * inverse).round_().clamp_(low, high)


def _squared_error(tiles: Tensor, scales: Tensor, weights: Tensor | None) -> Tensor:
    squares = (_codes(tiles, scales, 4).mul_(scales[..., None]) - tiles).square_()
    return squares.sum(-1) if weights is None else squares @ weights


def unpack_matrix(tiles: Tensor, bits: int, rows: int, columns: int) -> Tensor:
    """The matrix [rows, columns] that tiles [A,B,bytes] mean, fp32."""
    return torch.from_numpy(pack.unpack_matrix(tiles.cpu().numpy(), bits, rows, columns)).to(tiles.device)
