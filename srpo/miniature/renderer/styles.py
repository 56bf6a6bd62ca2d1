"""The four styles: how geometry and light become a picture.

Each style takes the same `Staging` and returns an image (B, 3, H, W) in about [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from srpo.miniature.renderer.noise import fractal_noise, sample_image, smooth_noise, uniform_lattice
from srpo.miniature.renderer.places import Backdrop
from srpo.miniature.renderer.subjects import Layer

LUMA = torch.tensor((0.299, 0.587, 0.114)).reshape(1, 3, 1, 1)


@dataclass
class Staging:
    """A scene before it is drawn."""

    seeds: Tensor  # (B,)
    x: Tensor  # (B, H, W) screen coordinates in [0, 1]
    y: Tensor
    backdrop: Backdrop
    subject: Layer
    light: Tensor  # (B, 3, 1, 1) direction to the light: right, up, towards the eye
    sun: Tensor  # (B, 3, 1, 1) colour of the direct light
    ambient: Tensor  # (B, 3, 1, 1)
    haze: Tensor  # (B, 3, 1, 1) colour of the air at the horizon
    shadow: Tensor  # (B, H, W) share of direct light that the subject keeps from the land
    disc_position: Tensor  # (B, 2, 1, 1) of sun or moon on the screen
    foot: Tensor  # (B, 1, 1) screen height of the subject's foot

    def take(self, index: Tensor) -> Staging:
        """The chosen scenes."""
        return _take(self, index)


def _take(record, index: Tensor):
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return type(record)(
        **{name: value[index] if isinstance(value, Tensor) else _take(value, index) for name, value in values.items()}
    )


def saturate(image: Tensor, factor: float | Tensor) -> Tensor:
    """The image with its distance from grey multiplied by `factor`."""
    grey = (image * LUMA).sum(dim=1, keepdim=True)
    return grey + (image - grey) * factor


def _over(below: Tensor, above: Tensor, cover: Tensor) -> Tensor:
    return below + (above - below) * cover[:, None]


def _lit_subject(s: Staging, *, wrap: float, detail: Tensor | None) -> Tensor:
    """Lambert shading with sky light from above and a Blinn highlight."""
    normal = F.normalize(s.subject.normal, dim=1)
    facing = ((normal * s.light).sum(dim=1) * (1 - wrap) + wrap).clamp(min=0)
    half = F.normalize(s.light + torch.tensor((0.0, 0.0, 1.0)).reshape(1, 3, 1, 1), dim=1)
    highlight = s.subject.gloss * (normal * half).sum(dim=1).clamp(min=0) ** 40
    sky_share = 0.75 + 0.35 * normal[:, 1]
    albedo = s.subject.albedo if detail is None else s.subject.albedo * (1 + detail)[:, None]
    occlusion = (0.72 + 0.28 * (s.subject.v / 0.25).clamp(0, 1))[:, None]
    return (
        albedo * (s.ambient * sky_share[:, None] + s.sun * facing[:, None]) + s.sun * 0.75 * highlight[:, None]
    ) * occlusion


def _lit_backdrop(s: Staging, *, relief: float, cloud_softness: float) -> Tensor:
    """Sky with clouds, sun and stars over land with relief, shadow, water and haze."""
    b = s.backdrop
    cloud = b.cloud if cloud_softness > 0 else (b.cloud > 0.35).float()
    sky = _over(b.sky, b.cloud_colour, 0.85 * cloud)
    sky = sky + b.disc * (b.glow * (1 - 0.5 * cloud))[:, None] * (0.85 - sky * 0.4) + 0.75 * b.stars[:, None]
    direct = s.sun * (0.70 + 0.25 * s.light[:, 1:2]) * (1 - s.shadow)[:, None]
    land = (
        b.albedo
        * (s.ambient * (1 - 0.45 * s.shadow)[:, None] + direct)
        * (1 + relief * b.relief * (1 - 0.5 * b.water))[:, None]
    )
    below = (s.y - s.disc_position[:, 1]).clamp(min=0)
    glitter = torch.exp(-(((s.x - s.disc_position[:, 0]) / (0.05 + 0.22 * below)) ** 2)) * (0.35 + b.relief).clamp(0, 1)
    mirror = _over(s.haze.expand_as(land), land, torch.full_like(s.x, 0.62))
    land = _over(land, mirror + (s.sun * glitter[:, None]), b.water * 0.85)
    haze = torch.exp(-(s.y - 0.40).clamp(min=0) * 11) * 0.45 * (1 - 0.3 * b.water)
    return _over(sky, _over(land, s.haze.expand_as(land), haze), b.land)


def _reflect(s: Staging, image: Tensor, lit: Tensor) -> Tensor:
    """The image with the subject mirrored, broken by waves, on the water under its foot."""
    size = image.shape[-1]
    row = (2 * s.foot - s.y) * size - 0.5
    ripple = s.backdrop.relief * 1.6 + 1.2 * torch.sin(s.y * size * 0.9)
    mirrored = sample_image(torch.cat((lit, s.subject.alpha[:, None]), dim=1), s.x * size - 0.5 + ripple, row)
    depth = (s.y - s.foot) * size
    cover = mirrored[:, 3] * s.backdrop.water * (depth > 0) * 0.55 * torch.exp(-depth.clamp(min=0) / 22)
    return _over(image, mirrored[:, :3] * 0.8, cover)


def photo(s: Staging) -> Tensor:
    size = s.x.shape[-1]
    detail = (fractal_noise(s.seeds, 51, 10, 4, size, gain=0.75) - 0.5) * 0.40 * (1 - 0.6 * s.subject.gloss)
    lit = _lit_subject(s, wrap=0.12, detail=detail)
    image = _lit_backdrop(s, relief=0.34, cloud_softness=1.0)
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    image = _over(image, blurred, (1.6 - (s.y - 0.45) * 8).clamp(0, 0.9))  # the distance is a little out of focus
    image = _reflect(s, image, lit)
    image = saturate(_over(image, lit, s.subject.alpha), 0.80)
    vignette = 1 - 0.55 * ((s.x - 0.5) ** 2 + (s.y - 0.5) ** 2)
    noise = uniform_lattice(s.seeds, 52, size, 2).sum(dim=1, keepdim=True) - 1  # triangular, standard deviation 0.408
    return image * vignette[:, None] + 0.036 * noise


def painting(s: Staging) -> Tensor:
    size = s.x.shape[-1]
    lit = _lit_subject(s, wrap=0.25, detail=None)
    image = _reflect(s, _lit_backdrop(s, relief=0.16, cloud_softness=1.0), lit)
    image = saturate(_over(image, lit, s.subject.alpha), 1.45)
    angle = (smooth_noise(s.seeds, 61, 3, size) - 0.5) * 4.5 * (
        1 - 0.75 * s.backdrop.land
    ) + s.subject.alpha * s.subject.u * 2.5
    step_x, step_y = angle.cos(), angle.sin()
    px, py = s.x * size - 0.5, s.y * size - 0.5
    bristles = F.interpolate(uniform_lattice(s.seeds, 62, size // 2), size=size, mode="bilinear", align_corners=False)
    dragged = sum(
        sample_image(bristles, px + k * step_x, py + k * step_y) for k in (-4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5)
    )
    stroke = ((dragged[:, 0] / 7 - 0.5) * 4.2).clamp(-1, 1)
    jump = 3.0 * stroke * (1 - 0.4 * s.subject.alpha)  # colour is carried along and across the stroke
    moved = sample_image(image, px + jump * (step_x - step_y), py + jump * (step_y + step_x))
    return (moved * (1 + 0.20 * stroke)[:, None] + 0.02).clamp(0, 1) ** 0.92


def anime(s: Staging) -> Tensor:
    b = s.backdrop
    normal = F.normalize(s.subject.normal, dim=1)
    facing = (normal * s.light).sum(dim=1)
    step = ((facing - 0.32) * 14).clamp(0, 1)
    glint = ((facing - 0.93) * 30).clamp(0, 1) * (s.subject.gloss > 0.8)
    tone = 0.5 * (s.ambient + s.sun) + 0.36
    lit = s.subject.albedo * tone * (0.66 + 0.40 * step)[:, None] + 0.5 * glint[:, None]
    flat = _lit_backdrop(s, relief=0.0, cloud_softness=0.0)
    tufts = (b.relief > 0.62).float() * b.land * ((s.y - 0.55) * 9).clamp(0, 1)
    flat = flat * (1 - 0.14 * tufts)[:, None]
    grey = (flat.clamp(0, 1) * LUMA).sum(dim=1, keepdim=True).clamp(min=0.02)
    flat = flat * ((grey * 6).round().clamp(min=0.5) / 6 / grey)  # few tones, hue kept
    image = saturate(_over(flat, lit, s.subject.alpha), 1.18)
    ink = torch.maximum(s.subject.line * 0.95, b.shore * 0.45 * (1 - s.subject.alpha))
    return _over(image.clamp(0, 1), torch.tensor((0.07, 0.05, 0.10)).reshape(1, 3, 1, 1).expand_as(image), ink)


def concept_art(s: Staging) -> Tensor:
    size = s.x.shape[-1]
    rim = (1 - F.normalize(s.subject.normal, dim=1)[:, 2]).clamp(0, 1) ** 2
    lit = _lit_subject(s, wrap=0.05, detail=None) * 1.05 + 0.55 * rim[:, None] * s.haze * s.subject.alpha[:, None]
    image = _lit_backdrop(s, relief=0.25, cloud_softness=1.0)
    towards = torch.atan2(s.y - s.disc_position[:, 1], s.x - s.disc_position[:, 0])
    shafts = (torch.sin(towards * 15 + s.seeds.reshape(-1, 1, 1) % 11) * 0.5 + 0.5) ** 2 * torch.exp(-s.y * 1.3) * 0.28
    grey = (image * LUMA).sum(dim=1, keepdim=True).clamp(0, 1)
    teal, amber = (
        torch.tensor((0.05, 0.22, 0.27)).reshape(1, 3, 1, 1),
        torch.tensor((1.0, 0.82, 0.55)).reshape(1, 3, 1, 1),
    )
    graded = teal * (1 - grey) + amber * grey**1.2
    image = image * 0.72 + graded * 0.28 + amber * shafts[:, None]
    image = _over(image, lit * 0.92 + graded * 0.08, s.subject.alpha)
    image = _over(_facets(s, image, cells=size // 6), image, 0.15 + 0.5 * s.subject.alpha)
    frame = 1 - 1.25 * (((s.x - 0.5) ** 2 + (s.y - 0.5) ** 2) - 0.12).clamp(min=0)
    sketch = sample_image(s.subject.line[:, None], s.x * size + 0.9, s.y * size - 1.6)[:, 0]
    contrasted = image + (image - 0.45) * 0.25
    return contrasted * frame[:, None] + 0.30 * sketch[:, None] * amber


def _facets(s: Staging, image: Tensor, cells: int) -> Tensor:
    """Slanted, angular dabs: every pixel takes the colour at the nearest of the jittered grid's points."""
    size = image.shape[-1]
    jitter_x = uniform_lattice(s.seeds, 71, cells + 2)
    jitter_y = uniform_lattice(s.seeds, 72, cells + 2)
    rows = torch.arange(cells + 2).reshape(1, 1, -1, 1)
    columns = torch.arange(cells + 2).reshape(1, 1, 1, -1)
    points = torch.cat(((columns - 1 + jitter_x) / cells, (rows - 1 + jitter_y) / cells), dim=1)
    column, row = (s.x * cells).floor().long() + 1, (s.y * cells).floor().long() + 1
    flat = points.flatten(2)
    best = torch.full_like(s.x, 1e9)
    best_x, best_y = torch.zeros_like(s.x), torch.zeros_like(s.x)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            index = ((row + dy).clamp(0, cells + 1) * (cells + 2) + (column + dx).clamp(0, cells + 1)).flatten(1)
            near = flat.gather(2, index[:, None].expand(-1, 2, -1)).unflatten(2, (size, size))
            gap_x, gap_y = near[:, 0] - s.x, near[:, 1] - s.y
            along, across = gap_x + gap_y * 0.6, gap_y - gap_x * 0.6
            gap = (along * 0.75) ** 2 + (across * 1.35) ** 2
            closer = gap < best
            best = torch.where(closer, gap, best)
            best_x, best_y = torch.where(closer, near[:, 0], best_x), torch.where(closer, near[:, 1], best_y)
    return sample_image(image, best_x * size - 0.5, best_y * size - 0.5)


DRAW: dict[str, Callable[[Staging], Tensor]] = {
    "photo": photo,
    "painting": painting,
    "anime": anime,
    "concept art": concept_art,
}
