"""Noise that depends on a scene's seed alone, not on its place in a batch: hashed lattices, smoothed and summed.

B scenes, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform_lattice(seeds: Tensor, salt: int, size: int, channels: int = 1) -> Tensor:
    """(B, channels, size, size) uniform numbers in [0, 1) hashed from seed, salt and position (as splitmix64 does)."""
    index = torch.arange(channels * size * size, dtype=torch.int64).reshape(1, channels, size, size)
    x = (seeds.to(torch.int64) * 1_000_003 + salt * 7_919).reshape(-1, 1, 1, 1) * 2_654_435_769 + index * 40_503
    x = (x ^ (x >> 30)) * -4_658_895_280_553_007_687  # 0xbf58476d1ce4e5b9 as a signed 64-bit number
    x = (x ^ (x >> 27)) * -7_723_592_293_110_705_685  # 0x94d049bb133111eb
    return ((x ^ (x >> 31)) & 0xFFFFFF).float() / 0x1000000


def uniform_numbers(seeds: Tensor, salt: int, count: int) -> Tensor:
    """(B, count) uniform numbers in [0, 1)."""
    return uniform_lattice(seeds, salt, 1, count)[:, :, 0, 0]


def smooth_noise(seeds: Tensor, salt: int, cells: int, size: int) -> Tensor:
    """(B, size, size) noise of one octave in about [0, 1]: a lattice of `cells` cells, bicubically enlarged."""
    lattice = uniform_lattice(seeds, salt, cells + 3)
    big = F.interpolate(lattice, scale_factor=size / cells, mode="bicubic", align_corners=False)
    start = (big.shape[-1] - size) // 2
    return big[:, 0, start : start + size, start : start + size]


def smooth_curve(seeds: Tensor, salt: int, cells: int, size: int) -> Tensor:
    """(B, 1, size) smooth noise along one axis, in [0, 1]."""
    points = uniform_numbers(seeds, salt, cells + 3)[:, None, None, :]
    row = F.interpolate(points, size=(1, round((cells + 3) * size / cells)), mode="bicubic", align_corners=False)
    start = (row.shape[-1] - size) // 2
    return row[:, 0, :, start : start + size].clamp(0, 1)


def fractal_noise(seeds: Tensor, salt: int, cells: int, octaves: int, size: int, gain: float = 0.5) -> Tensor:
    """(B, size, size) fractal noise in about [0, 1]; each octave has twice the cells and `gain` times the weight."""
    total = sum(gain**o * smooth_noise(seeds, salt + o, cells * 2**o, size) for o in range(octaves))
    weight = sum(gain**o for o in range(octaves))
    return ((total / weight - 0.5) * 1.6 + 0.5).clamp(0, 1)


def sample_wrapped(tile: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B, H, W) values of a tile (B, S, S) at coordinates (B, H, W) in tiles; outside [0, 1] the tile is mirrored."""
    grid = torch.stack((x, y), dim=-1) * 2 - 1
    return F.grid_sample(tile[:, None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)[:, 0]


def sample_image(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Image (B, C, H, W) at pixel coordinates x, y (B, H, W); beyond the border the edge goes on."""
    height, width = image.shape[-2:]
    grid = torch.stack(((x + 0.5) / width, (y + 0.5) / height), dim=-1) * 2 - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
