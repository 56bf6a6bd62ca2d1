"""Sky, light and the five places: what lies behind and under the subject.

B scenes, H W pixels. Screen coordinates: x to the right in [0, 1], y down in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from srpo.miniature.renderer.groups import draw_by_group
from srpo.miniature.renderer.noise import fractal_noise, sample_wrapped, smooth_curve, uniform_lattice, uniform_numbers


@dataclass(frozen=True)
class Light:
    """The light of one time of day. Colours are linear factors on albedo."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    disc: tuple[float, float, float]  # colour of sun or moon
    height: float  # elevation of the light: 0 at the horizon, 1 overhead
    cloud: tuple[float, float, float]


LIGHTS = {
    "noon": Light(
        (0.20, 0.45, 0.83),
        (0.74, 0.87, 0.95),
        (0.80, 0.77, 0.69),
        (0.36, 0.40, 0.46),
        (1.0, 1.0, 0.95),
        0.8,
        (1.0, 1.0, 1.0),
    ),
    "sunset": Light(
        (0.33, 0.27, 0.48),
        (1.0, 0.62, 0.33),
        (0.84, 0.56, 0.36),
        (0.36, 0.29, 0.35),
        (1.0, 0.90, 0.62),
        0.3,
        (0.98, 0.58, 0.50),
    ),
    "night": Light(
        (0.02, 0.03, 0.09),
        (0.11, 0.15, 0.30),
        (0.40, 0.43, 0.50),
        (0.21, 0.23, 0.30),
        (0.93, 0.94, 0.88),
        0.6,
        (0.17, 0.20, 0.33),
    ),
}


@dataclass
class Backdrop:
    """Everything but the subject, before any style: colours are albedo below the horizon, light above it."""

    sky: Tensor  # (B, 3, H, W)
    cloud: Tensor  # (B, H, W) density
    cloud_colour: Tensor  # (B, 3, 1, 1)
    glow: Tensor  # (B, H, W) sun or moon and its halo
    disc: Tensor  # (B, 3, 1, 1)
    stars: Tensor  # (B, H, W)
    land: Tensor  # (B, H, W) 1 below the horizon line
    albedo: Tensor  # (B, 3, H, W) of the land
    relief: Tensor  # (B, H, W) fine texture of the land in [-1, 1]
    water: Tensor  # (B, H, W) 1 where the land is water
    shore: Tensor  # (B, H, W) lines a draughtsman would draw: horizon, hills, shore


@dataclass(frozen=True)
class View:
    """Pixel coordinates of a batch and what the ground functions need of them."""

    seeds: Tensor  # (B,)
    x: Tensor  # (B, H, W)
    y: Tensor
    horizon: Tensor  # (B, 1, 1)
    ground_x: Tensor  # (B, H, W) place on the ground plane, sideways
    ground_z: Tensor  # (B, H, W) and away from the eye
    tile: Tensor  # (B, H, W) fractal noise to cut textures from
    size: int

    def curve(self, salt: int, cells: int) -> Tensor:
        """(B, 1, W) smooth random curve in [0, 1]."""
        return smooth_curve(self.seeds, salt, cells, self.size)

    def ridge(self, salt: int, cells: int, height: float) -> Tensor:
        """(B, 1, W) screen height of a line of hills over the horizon."""
        return self.horizon - height * self.curve(salt, cells)

    def take(self, index: Tensor) -> View:
        """The chosen scenes."""
        return View(**{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "size"}, size=self.size)

    def texture(self, scale_x: float, scale_z: float) -> Tensor:
        """Ground texture in [-1, 1], in perspective, fading out towards the horizon."""
        near = ((self.y - self.horizon) * 25).clamp(0, 1)
        return (sample_wrapped(self.tile, self.ground_x * scale_x, self.ground_z * scale_z) * 2 - 1) * near

    def soft(self, value: Tensor) -> Tensor:
        """A step at zero, one pixel wide, for values in screen heights."""
        return (0.5 + value * self.size).clamp(0, 1)


def _colour(rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb).reshape(1, 3, 1, 1)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + (b - a) * share[:, None]


def _line(value: Tensor, size: int) -> Tensor:
    return torch.exp(-((value * size) ** 2) / 1.2)


def _beach(v: View) -> tuple[Tensor, ...]:
    wave = 0.012 * torch.sin(v.x * 17 + v.seeds.reshape(-1, 1, 1) % 7) + 0.02 * (1 - v.curve(11, 3))
    shore = v.horizon + 0.13 + wave
    sea = 1 - v.soft(v.y - shore)
    foam = torch.exp(-(((v.y - shore) * 55) ** 2)) + 0.5 * torch.exp(-(((v.y - shore + 0.045) * 75) ** 2))
    sand = _colour((0.87, 0.76, 0.55)) * (1 - 0.18 * torch.exp(-(v.y - shore).clamp(min=0) * 22))[:, None]
    water = _mix(_colour((0.08, 0.36, 0.50)), _colour((0.28, 0.66, 0.68)), ((v.y - v.horizon) / 0.15).clamp(0, 1))
    albedo = _mix(_mix(sand, water, sea), _colour((0.97, 0.98, 0.98)), (foam * 0.9).clamp(0, 1))
    relief = 0.55 * v.texture(0.35, 1.6) + 0.25 * v.texture(1.3, 0.9)
    return v.horizon.expand_as(v.y), albedo, relief, sea * (1 - foam.clamp(0, 1)), _line(v.y - shore, v.size)


def _meadow(v: View) -> tuple[Tensor, ...]:
    far, near = v.ridge(12, 3, 0.13), v.ridge(13, 2, 0.07)
    blades = v.texture(2.6, 0.35)
    patches = v.texture(0.16, 0.25)
    grass = _mix(_colour((0.25, 0.45, 0.13)), _colour((0.50, 0.62, 0.20)), (patches * 0.5 + 0.5).clamp(0, 1))
    hill = _mix(_colour((0.38, 0.52, 0.38)), _colour((0.27, 0.46, 0.22)), v.soft(v.y - near))
    albedo = _mix(hill, grass, v.soft(v.y - v.horizon))
    lattice = uniform_lattice(v.seeds, 14, v.size)[:, 0]
    daisies = ((lattice > 0.988) & (v.y > v.horizon + 0.06)).float()
    albedo = _mix(albedo, _colour((0.96, 0.94, 0.72)), daisies * 0.9)
    return (
        far.expand_as(v.y),
        albedo,
        blades * 1.1,
        torch.zeros_like(v.y),
        torch.maximum(_line(v.y - near, v.size), 0 * v.y),
    )


def _desert(v: View) -> tuple[Tensor, ...]:
    far = v.ridge(15, 2, 0.10)
    crest = v.horizon + 0.10 + 0.07 * torch.sin(v.x * 5 + v.seeds.reshape(-1, 1, 1) % 5)
    front = v.soft(v.y - crest)
    dune_far = _mix(_colour((0.80, 0.52, 0.30)), _colour((0.90, 0.64, 0.36)), ((v.y - far) * 9).clamp(0, 1))
    dune_near = _mix(_colour((0.93, 0.68, 0.38)), _colour((0.80, 0.52, 0.27)), ((v.y - crest) * 3).clamp(0, 1))
    ripples = torch.sin(v.ground_z * 26 + 7 * v.texture(0.2, 0.2)) * 0.7 + 0.35 * v.texture(1.6, 1.2)
    return (
        far.expand_as(v.y),
        _mix(dune_far, dune_near, front),
        ripples * 0.8,
        torch.zeros_like(v.y),
        _line(v.y - crest, v.size),
    )


def _snow(v: View) -> tuple[Tensor, ...]:
    peaks = v.ridge(16, 6, 0.24)
    saw = (v.x * 19 + 3 * v.curve(17, 5)) % 1.0
    pines = v.horizon + 0.015 - 0.085 * (1 - (saw - 0.5).abs() * 2) * (v.curve(18, 7) > 0.45).float()
    mountain = _mix(
        _colour((0.90, 0.93, 0.97)), _colour((0.50, 0.57, 0.68)), ((v.y - peaks) * 8 + 1.2 * (v.tile - 0.5)).clamp(0, 1)
    )
    drift = v.texture(0.10, 0.35)
    snow = _mix(_colour((0.95, 0.96, 0.98)), _colour((0.80, 0.86, 0.94)), (drift * 0.5 + 0.3).clamp(0, 1))
    wood = v.soft(v.y - pines) * (1 - v.soft(v.y - v.horizon - 0.01))
    albedo = _mix(_mix(mountain, snow, v.soft(v.y - v.horizon)), _colour((0.12, 0.23, 0.22)), wood)
    relief = 0.35 * v.texture(1.4, 1.0) * v.soft(v.y - v.horizon)
    return (
        torch.minimum(peaks, pines),
        albedo,
        relief,
        torch.zeros_like(v.y),
        torch.maximum(_line(v.y - v.horizon, v.size), 0 * v.y),
    )


def _sea(v: View) -> tuple[Tensor, ...]:
    depth = ((v.y - v.horizon) / (1 - v.horizon)).clamp(0, 1)
    crests = torch.sin(v.ground_z * 16 + 9 * v.texture(0.35, 0.5))
    chop = v.texture(0.7, 2.4)
    albedo = _mix(_colour((0.16, 0.45, 0.60)), _colour((0.04, 0.22, 0.36)), depth)
    albedo = _mix(
        albedo, _colour((0.75, 0.88, 0.92)), ((crests - 0.75) * 2.2 + 0.5 * chop).clamp(0, 0.75) * depth.sqrt()
    )
    return (
        v.horizon.expand_as(v.y),
        albedo,
        0.8 * chop + 0.3 * crests,
        torch.ones_like(v.y),
        _line(crests * 0.03 - 0.022, v.size) * (depth > 0.08),
    )


PLACES: dict[str, Callable[[View], tuple[Tensor, ...]]] = {
    "beach": _beach,
    "meadow": _meadow,
    "desert": _desert,
    "snow": _snow,
    "sea": _sea,
}


def make_view(seeds: Tensor, size: int) -> View:
    """The pixel grid and ground plane of each scene; the horizon's height follows from the seed."""
    axis = (torch.arange(size) + 0.5) / size
    x, y = axis.expand(len(seeds), size, size), axis[:, None].expand(len(seeds), size, size)
    horizon = 0.44 + 0.12 * uniform_numbers(seeds, 1, 1).reshape(-1, 1, 1)
    distance = 0.16 / (y - horizon).clamp(min=0.012)
    tile = fractal_noise(seeds, 21, 16, 4, size, gain=0.62)
    return View(seeds, x, y, horizon, (x - 0.5) * distance * 2.2, distance, tile, size)


def draw_backdrop(view: View, place_names: Sequence[str], lights: Sequence[Light], light_x: Tensor) -> Backdrop:
    """Sky and land of each scene; `light_x` (B, 1, 1) in [-1, 1] is where the light stands."""

    def stack(name: str) -> Tensor:
        return torch.tensor([getattr(light, name) for light in lights]).reshape(len(lights), -1, 1, 1)

    height = stack("height")[:, 0]
    up = ((view.horizon - view.y) / view.horizon).clamp(0, 1)
    sky = _mix(stack("horizon"), stack("zenith"), up**0.75)
    numbers = uniform_numbers(view.seeds, 2, 3).reshape(-1, 3, 1, 1)
    stretched = sample_wrapped(
        fractal_noise(view.seeds, 31, 3, 5, view.size), view.x, (view.y * (1.2 + numbers[:, 0])) % 1.0
    )
    cloud = ((stretched - 0.62 + 0.25 * numbers[:, 1]) * 3.2).clamp(0, 1) * (0.35 + 0.65 * up.sqrt())
    sun_x = 0.5 + 0.42 * light_x
    sun_y = view.horizon * (1 - height * 0.9)
    away = torch.hypot(view.x - sun_x, view.y - sun_y)
    glow = (0.5 + (0.042 - away) * view.size).clamp(0, 1) + 0.55 * torch.exp(-away * 9) + 0.25 * torch.exp(-away * 3)
    is_night = (stack("zenith").mean(dim=1) < 0.1).float()
    stars = (uniform_lattice(view.seeds, 41, view.size)[:, 0] > 0.991).float() * is_night * up.sqrt()
    ridge, albedo, relief, water, shore = draw_by_group(
        place_names, lambda place, where: PLACES[place](view.take(where))
    )
    land = view.soft(view.y - ridge)
    return Backdrop(
        sky,
        cloud,
        stack("cloud"),
        glow * (1 - 0.45 * is_night),
        stack("disc"),
        stars,
        land,
        albedo,
        relief,
        water * land,
        torch.maximum(shore, _line(view.y - ridge, view.size)),
    )
