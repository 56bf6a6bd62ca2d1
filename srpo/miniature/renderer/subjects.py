"""The eight subjects, each as a stack of parts: signed distances, own colours and normals.

Coordinates of a subject: u to the right, v up, the foot of the subject at (0, 0) and its top near v = 1.
B scenes, H W pixels. Signed distances are negative inside, in units of v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PALETTE = {
    "red": (0.80, 0.10, 0.09),
    "orange": (0.95, 0.48, 0.06),
    "yellow": (0.96, 0.84, 0.12),
    "green": (0.13, 0.56, 0.20),
    "blue": (0.11, 0.28, 0.80),
    "purple": (0.50, 0.14, 0.66),
    "white": (0.95, 0.95, 0.94),
    "black": (0.055, 0.055, 0.065),
}
BROWN = (0.42, 0.27, 0.16)
CREAM = (0.93, 0.88, 0.76)
LEAF = (0.22, 0.45, 0.16)
SLATE = (0.34, 0.31, 0.33)


@dataclass
class Layer:
    """What is known of the subject at each pixel, built up part by part, back to front."""

    u: Tensor  # (B, H, W)
    v: Tensor
    pixel: Tensor  # (B, 1, 1) width of a pixel in units of v
    colour: Tensor  # (B, 3, 1, 1) the scene's colour
    alpha: Tensor  # (B, H, W) how much of the pixel the subject covers
    albedo: Tensor  # (B, 3, H, W)
    normal: Tensor  # (B, 3, H, W) right, up, towards the eye
    gloss: Tensor  # (B, H, W) 0 matt ... 1 polished
    line: Tensor  # (B, H, W) 1 on the outline of a part, for the drawn styles

    @classmethod
    def empty(cls, u: Tensor, v: Tensor, pixel: Tensor, colour: Tensor) -> Layer:
        zero, three = torch.zeros_like(u), torch.zeros(u.shape[0], 3, *u.shape[1:])
        return cls(u, v, pixel, colour, zero, three, three.clone(), zero.clone(), zero.clone())

    def paint(
        self, distance: Tensor, albedo: Tensor | Sequence[float], normal: Tensor | Sequence[float], gloss: float = 0.1
    ) -> None:
        """Lay one part over what is there."""
        cover = (0.5 - distance / self.pixel).clamp(0, 1)
        below = self.alpha * (1 - cover)
        self.alpha = below + cover
        share = cover / self.alpha.clamp(min=1e-6)  # of this part in what covers the pixel
        self.albedo = self.albedo + (_as_field(albedo) - self.albedo) * share[:, None]
        self.normal = self.normal + (_as_field(normal) - self.normal) * share[:, None]
        self.gloss = self.gloss + (gloss - self.gloss) * share
        edge = torch.exp(-((distance / self.pixel) ** 2) / 1.6)
        self.line = torch.maximum(self.line * (1 - cover), edge)


def _as_field(value: Tensor | Sequence[float]) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value).reshape(1, 3, 1, 1)


def _circle(u: Tensor, v: Tensor, centre: tuple[float, float], radius: float) -> Tensor:
    return torch.hypot(u - centre[0], v - centre[1]) - radius


def _ellipse(u: Tensor, v: Tensor, centre: tuple[float, float], ru: float, rv: float) -> Tensor:
    k = torch.hypot((u - centre[0]) / ru, (v - centre[1]) / rv)
    return (k - 1) * min(ru, rv)


def _box(u: Tensor, v: Tensor, left: float, right: float, bottom: float, top: float) -> Tensor:
    return torch.maximum(
        (u - (left + right) / 2).abs() - (right - left) / 2, (v - (bottom + top) / 2).abs() - (top - bottom) / 2
    )


def _polygon(u: Tensor, v: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Distance to a convex polygon whose corners run counter-clockwise: the largest of the distances to its sides."""
    distance = torch.full_like(u, -1e9)
    for (u0, v0), (u1, v1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        du, dv = u1 - u0, v1 - v0
        distance = torch.maximum(distance, ((u - u0) * dv - (v - v0) * du) / (du * du + dv * dv) ** 0.5)
    return distance


def _dome_normal(u: Tensor, v: Tensor, centre: tuple[float, float], ru: float, rv: float) -> Tensor:
    """Normals of an ellipsoid seen from the front."""
    nu, nv = (u - centre[0]) / ru, (v - centre[1]) / rv
    flat = torch.hypot(nu, nv).clamp(min=1.0)
    nu, nv = nu / flat, nv / flat
    nz = (1 - nu * nu - nv * nv).clamp(min=0.0).sqrt()
    return torch.stack((nu, nv, nz), dim=1)


def _ball(s: Layer) -> None:
    centre, radius = (0.0, 0.43), 0.43
    s.paint(_circle(s.u, s.v, centre, radius), s.colour, _dome_normal(s.u, s.v, centre, radius, radius), gloss=0.9)


def _cube(s: Layer) -> None:
    s.paint(
        _polygon(s.u, s.v, [(-0.40, 0.04), (0.14, 0.0), (0.14, 0.60), (-0.40, 0.62)]),
        s.colour,
        (-0.35, 0.0, 0.94),
        0.25,
    )
    s.paint(
        _polygon(s.u, s.v, [(0.14, 0.0), (0.44, 0.14), (0.44, 0.68), (0.14, 0.60)]), s.colour, (0.85, 0.0, 0.52), 0.25
    )
    s.paint(
        _polygon(s.u, s.v, [(-0.40, 0.62), (0.14, 0.60), (0.44, 0.68), (-0.06, 0.74)]),
        s.colour,
        (0.0, 0.96, 0.28),
        0.25,
    )


def _pyramid(s: Layer) -> None:
    s.paint(_polygon(s.u, s.v, [(-0.52, 0.06), (0.12, 0.0), (0.0, 0.82)]), s.colour, (-0.55, 0.35, 0.76), 0.15)
    s.paint(_polygon(s.u, s.v, [(0.12, 0.0), (0.50, 0.13), (0.0, 0.82)]), s.colour, (0.82, 0.35, 0.45), 0.15)


def _tree(s: Layer) -> None:
    trunk_normal = torch.stack(((s.u / 0.07).clamp(-1, 1), 0 * s.u, (1 - (s.u / 0.07).clamp(-1, 1) ** 2).sqrt()), dim=1)
    s.paint(_box(s.u, s.v, -0.06, 0.06, 0.0, 0.45), BROWN, trunk_normal, 0.05)
    for centre, radius in (((-0.22, 0.52), 0.21), ((0.23, 0.54), 0.20), ((0.0, 0.76), 0.25), ((0.02, 0.52), 0.22)):
        s.paint(_circle(s.u, s.v, centre, radius), s.colour, _dome_normal(s.u, s.v, centre, radius, radius), 0.08)


def _house(s: Layer) -> None:
    s.paint(_box(s.u, s.v, 0.20, 0.30, 0.62, 0.92), BROWN, (0.3, 0.0, 0.95))
    s.paint(_box(s.u, s.v, -0.42, 0.42, 0.0, 0.52), s.colour, (-0.1, 0.0, 0.99), 0.12)
    s.paint(_polygon(s.u, s.v, [(-0.52, 0.50), (0.52, 0.50), (0.0, 0.90)]), SLATE, (0.0, 0.6, 0.8), 0.1)
    s.paint(_box(s.u, s.v, -0.10, 0.08, 0.0, 0.31), BROWN, (0.0, 0.0, 1.0))
    for left in (-0.34, 0.18):
        s.paint(_box(s.u, s.v, left, left + 0.16, 0.22, 0.38), (0.62, 0.76, 0.86), (0.0, 0.2, 0.98), 1.0)


def _boat(s: Layer) -> None:
    s.paint(_box(s.u, s.v, -0.02, 0.015, 0.2, 0.95), BROWN, (0.0, 0.0, 1.0))
    s.paint(_polygon(s.u, s.v, [(0.03, 0.31), (0.42, 0.31), (0.03, 0.93)]), CREAM, (0.4, 0.1, 0.9))
    s.paint(_polygon(s.u, s.v, [(-0.36, 0.31), (-0.04, 0.31), (-0.04, 0.84)]), CREAM, (-0.4, 0.1, 0.9))
    hull = torch.maximum(_ellipse(s.u, s.v, (0.0, 0.28), 0.56, 0.29), s.v - 0.27)
    s.paint(hull, s.colour, _dome_normal(s.u, s.v, (0.0, 0.34), 0.62, 0.42), 0.35)
    s.paint(_box(s.u, s.v, -0.55, 0.55, 0.245, 0.285), (0.86, 0.80, 0.68), (0.0, 0.5, 0.85))


def _flower(s: Layer) -> None:
    s.paint(_box(s.u, s.v, -0.025, 0.025, 0.0, 0.58), LEAF, (0.0, 0.0, 1.0))
    for side in (-1, 1):
        centre = (side * 0.14, 0.20)
        tilted_u = (s.u - centre[0]) * 0.87 + side * (s.v - centre[1]) * 0.5
        tilted_v = -side * (s.u - centre[0]) * 0.5 + (s.v - centre[1]) * 0.87
        s.paint(_ellipse(tilted_u, tilted_v, (0.0, 0.0), 0.15, 0.055), LEAF, (side * -0.3, 0.6, 0.74), 0.2)
    for k in range(6):
        angle = torch.tensor(k * torch.pi / 3 + torch.pi / 6)
        c, si = float(angle.cos()), float(angle.sin())
        pu, pv = s.u - 0.21 * c, s.v - (0.66 + 0.21 * si)
        along, across = pu * c + pv * si, -pu * si + pv * c
        normal = torch.stack(
            (0.35 * c + across * si * -3, 0.35 * si + across * c * 3, torch.full_like(pu, 0.85)), dim=1
        )
        s.paint(_ellipse(along, across, (0.0, 0.0), 0.17, 0.115), s.colour, normal, 0.1)
    s.paint(_circle(s.u, s.v, (0.0, 0.66), 0.105), (0.55, 0.36, 0.08), _dome_normal(s.u, s.v, (0.0, 0.66), 0.11, 0.11))


def _mushroom(s: Layer) -> None:
    stem_width = 0.12 + 0.05 * (0.5 - s.v).clamp(min=0)
    across = (s.u / stem_width).clamp(-1, 1)
    stem = torch.maximum(s.u.abs() - stem_width, torch.maximum(-s.v, s.v - 0.55))
    s.paint(stem, CREAM, torch.stack((across, 0 * across, (1 - across**2).sqrt()), dim=1), 0.05)
    s.paint(_ellipse(s.u, s.v, (0.0, 0.44), 0.42, 0.085), (0.78, 0.70, 0.58), (0.0, -0.5, 0.85))
    cap = torch.maximum(_ellipse(s.u, s.v, (0.0, 0.44), 0.47, 0.44), 0.44 - s.v)
    s.paint(cap, s.colour, _dome_normal(s.u, s.v, (0.0, 0.42), 0.50, 0.46), 0.5)
    dots = torch.where(s.colour.mean(dim=1) > 0.85, 0.72, 0.96)[:, None].expand(-1, 3, 1, 1)  # grey dots on a white cap
    for centre, radius in (((-0.20, 0.60), 0.065), ((0.07, 0.72), 0.075), ((0.27, 0.56), 0.055), ((-0.02, 0.52), 0.04)):
        s.paint(_ellipse(s.u, s.v, centre, radius, radius * 0.8), dots, (centre[0], 0.5, 0.8), 0.5)


DRAW: dict[str, Callable[[Layer], None]] = {
    "ball": _ball,
    "cube": _cube,
    "pyramid": _pyramid,
    "tree": _tree,
    "house": _house,
    "boat": _boat,
    "flower": _flower,
    "mushroom": _mushroom,
}
