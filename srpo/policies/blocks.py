"""Numbers packed in blocks of 32 with one scale, on whatever device they lie: GGUF's Q8_0 and Q4_0.

Equal to the package gguf bit for bit (gguf.quants, MIT), which packs on one core of the CPU alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32


def pack(weight: Tensor, kind: str) -> Tensor:
    """(rows, bytes per row) uint8 of a matrix. ValueError for another kind, or rows that are not whole blocks."""
    if kind not in PACKERS:
        raise ValueError(f"Numbers are packed as {' or '.join(PACKERS)}, not as {kind!r}.")
    rows, columns = weight.shape
    if columns % BLOCK:
        raise ValueError(f"A row must be a multiple of {BLOCK} numbers to be packed, not {columns}.")
    scales, packed = PACKERS[kind](weight.float().reshape(-1, BLOCK))
    return torch.cat([scales.half().view(torch.uint8), packed], dim=1).reshape(rows, -1)


def _q8_0(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1) scales and (N, 32) bytes: the largest number of a block is 127 steps, or -127."""
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * _inverse(scales)
    rounded = scaled.sign() * (scaled.abs() + 0.5).floor()  # halves away from zero
    return scales, rounded.to(torch.int8).view(torch.uint8)


def _q4_0(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1) scales and (N, 16) bytes, two numbers each: the largest one, with its sign, is 8 steps down."""
    sizes, places = blocks.abs(), torch.arange(BLOCK, device=blocks.device)
    # The first of equals, which argmax does not promise.
    first = torch.where(sizes == sizes.amax(dim=1, keepdim=True), places, BLOCK).amin(dim=1, keepdim=True)
    largest = blocks.gather(1, first)
    scales = largest / -8
    steps = (blocks * _inverse(scales) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return scales, steps[:, : BLOCK // 2] | (steps[:, BLOCK // 2 :] << 4)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0, 1 / scales)


PACKERS = {"Q8_0": _q8_0, "Q4_0": _q4_0}
