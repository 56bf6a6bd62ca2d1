"""Recoveries in charts: their errors, their rewards and their weights against the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from app.curves import Chart, Line

if TYPE_CHECKING:
    from srpo.evaluation.recoveries import Method
    from srpo.evaluation.recovery_errors import Tally
    from srpo.evaluation.shares import Mean

# Key, title, hint; the keys are names of measures.
TITLES = {
    "psnr": ("PSNR, decibels", "Higher is nearer to the original; the VAE’s own loss is left out."),
    "ssim": ("SSIM", "Structural similarity to the original, 1 for an equal picture."),
    "embedding": ("Distance in the reward’s eyes", "1 − cosine of the reward’s image embeddings: lower is nearer."),
    "lpips": ("LPIPS", "Perceptual distance by AlexNet: lower is nearer."),
    "reward": ("Reward under the prompt", "What the reward says of each recovery; dotted, of the original."),
}
DASHES = ("solid", "dash")  # of the first and the second model


def recovery_charts(
    methods: Sequence[Method],
    sigmas: Sequence[float],
    models: Sequence[str],
    tallies: Sequence[Tally],
    reward: float | None,
) -> tuple[Chart, ...]:
    """The charts of a grid, as far as its cells are measured; a measure of which there is nothing has none.

    One tally per model; `reward` is what the original has, None where there is no reward.
    """
    charts = []
    for key, (title, hint) in TITLES.items():
        lines = [
            line
            for colour, method in enumerate(methods)
            for number, tally in enumerate(tallies)
            if not (number and method.kind == "noisy")  # the same for every model
            and (line := _line(tally, method, sigmas, key, _named(method, models, number), colour, DASHES[number]))
        ]
        if key == "reward" and reward is not None:
            lines.append(Line("Original", list(sigmas), [reward] * len(sigmas), 7, "dot"))
        if lines:
            charts.append(_chart(key, title, hint, tuple(lines)))
    weights = tuple(
        Line(method.name, list(sigmas), [_weight(method, sigma) for sigma in sigmas], colour, points=True)
        for colour, method in enumerate(methods)
        if method.kind != "noisy"
    )
    hint = "|σ − σ target| / (1 − σ target): how much of its error reaches the picture, and of a gradient the model."
    return (*charts, _chart("weight", "Weight of the model’s step", hint, weights))


def _chart(key: str, title: str, hint: str, lines: tuple[Line, ...]) -> Chart:
    # One legend is enough: the lines are the same in all, and the table's rows have their colours.
    return Chart(
        f"recovery-{key}", title, hint, lines, x_title="noise level σ", falling=True, legend=key == next(iter(TITLES))
    )


def _named(method: Method, models: Sequence[str], number: int) -> str:
    return f"{method.name}, {models[number]}" if len(models) > 1 and method.kind != "noisy" else method.name


def _line(
    tally: Tally, method: Method, sigmas: Sequence[float], measure: str, name: str, colour: int, dash: str
) -> Line | None:
    """The means over the noises with their intervals; None without any value."""
    means = [tally.mean(method, sigma, measure) for sigma in sigmas]
    if not any(means):
        return None

    def column(part: Callable[[Mean], float]) -> list[float | None]:
        values = [math.nan if mean is None else part(mean) for mean in means]
        return [value if math.isfinite(value) else None for value in values]

    middle, low, high = (column(part) for part in (lambda m: m.mean, lambda m: m.low, lambda m: m.high))
    return Line(name, list(sigmas), middle, colour, dash, points=True, low=low, high=high)


def _weight(method: Method, sigma: float) -> float | None:
    target = method.target(sigma)
    return None if target is None else method.weight(sigma, target.sigma)
