"""Pictures of scenes: `render` draws a list of `Scene`s, all pixels of a batch at once.

The subject is built from signed distances (`subjects.py`), stands in a landscape under a light (`places.py`), and is
drawn in one of four styles (`styles.py`). All randomness is hashed from each scene's seed (`noise.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srpo.miniature.renderer import places, styles, subjects
from srpo.miniature.renderer.groups import draw_by_group
from srpo.miniature.world import TONE_WORDS, Scene

SIZE = 128
FOOT = (0.74, 0.88)  # screen heights between which a subject stands, by its size


@torch.no_grad()
def render(scenes: Sequence[Scene], size: int = SIZE) -> Tensor:
    """(B, 3, size, size) pictures in [0, 1], float32, one for each scene."""
    if not scenes:
        raise ValueError("render needs at least one scene")
    staging = _stage(scenes, size)
    (image,) = draw_by_group(
        [s.style for s in scenes], lambda style, where: (styles.DRAW[style](staging.take(where)).clamp(0, 1),)
    )
    tones = torch.tensor([TONE_WORDS.get(s.tone, (1.0, 1.0)) for s in scenes])
    exposure, saturation = tones[:, 0].reshape(-1, 1, 1, 1), tones[:, 1].reshape(-1, 1, 1, 1)
    image = styles.saturate(image, saturation).clamp(0, 1) ** (1 / exposure)
    return (image * exposure.clamp(max=1.0) ** 0.35).clamp(0, 1)


def _stage(scenes: Sequence[Scene], size: int) -> styles.Staging:
    """Geometry and light of the scenes."""
    lights = [places.LIGHTS[s.time] for s in scenes]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)

    def light_colour(name: str) -> Tensor:
        return torch.tensor([getattr(light, name) for light in lights]).reshape(-1, 3, 1, 1)

    seeds = torch.tensor([s.seed for s in scenes], dtype=torch.int64)
    view = places.make_view(seeds, size)
    light_x = column([s.light for s in scenes])
    elevation = column([light.height for light in lights])
    backdrop = places.draw_backdrop(view, [s.place for s in scenes], lights, light_x)

    height, centre = column([s.size for s in scenes]), column([s.x for s in scenes])
    foot = FOOT[0] + (FOOT[1] - FOOT[0]) * (height - 0.42) / 0.20 + 0.03 * torch.sin(seeds.float()).reshape(-1, 1, 1)
    layer = _draw_subjects(scenes, (view.x - centre) / height, (foot - view.y) / height, 1 / (size * height))

    direction = F.normalize(torch.stack((light_x * 0.9, elevation, torch.full_like(light_x, 0.65)), dim=1), dim=1)
    shadow = _shadow(view.x - centre, view.y - foot, height, light_x, elevation)
    shadow = shadow * backdrop.land * (1 - 0.65 * backdrop.water)
    disc = torch.stack((0.5 + 0.42 * light_x, view.horizon * (1 - elevation * 0.9)), dim=1)
    return styles.Staging(
        seeds=seeds,
        x=view.x,
        y=view.y,
        backdrop=backdrop,
        subject=layer,
        light=direction,
        sun=light_colour("sun"),
        ambient=light_colour("ambient"),
        haze=light_colour("horizon"),
        shadow=shadow,
        disc_position=disc,
        foot=foot,
    )


def _draw_subjects(scenes: Sequence[Scene], u: Tensor, v: Tensor, pixel: Tensor) -> subjects.Layer:
    colour = torch.tensor([subjects.PALETTE[s.colour] for s in scenes]).reshape(-1, 3, 1, 1)

    def draw(subject: str, where: Tensor) -> tuple[Tensor, ...]:
        layer = subjects.Layer.empty(u[where], v[where], pixel[where], colour[where])
        subjects.DRAW[subject](layer)
        return layer.alpha, layer.albedo, layer.normal, layer.gloss, layer.line

    return subjects.Layer(u, v, pixel, colour, *draw_by_group([s.subject for s in scenes], draw))


def _shadow(right: Tensor, down: Tensor, height: Tensor, light_x: Tensor, elevation: Tensor) -> Tensor:
    """(B, H, W) contact shadow under the foot and cast shadow away from the light, 0 ... 1."""
    contact = torch.exp(-((right / (0.34 * height)) ** 2) - (down / (0.05 * height)) ** 2)
    length = 0.35 + 0.55 * (1 - elevation)
    along = (right + light_x * length * height) / (0.42 * height * (0.6 + length))
    across = (down + 0.012) / (0.075 * height)
    return torch.maximum(0.8 * contact, 0.62 * torch.exp(-(along.abs() ** 3) - across.abs() ** 3))
