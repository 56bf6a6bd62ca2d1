"""Where Direct-Align injects its noise: pairs of steps, one per branch, that end at the same noise level.

The denoise branch comes from the noisier side, the inversion branch from the cleaner one. Every step has a discount
index in 0 (cleanest) ... 999 (noisiest), which belongs to its cleaner end (`rewards/control_words.py`).

B prompts
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from srpo.flow.recovery import MAX_SIGMA_TARGET, Branch, step_target
from srpo.flow.schedule import linear_sigmas, shift_sigmas
from srpo.rewards.control_words import NUM_INDICES, Discounts, net_weight


@dataclass(frozen=True)
class BranchSteps:
    """One branch's steps of Direct-Align, one per prompt, on the CPU."""

    branch: Branch
    sigma: Tensor  # (B,) float32, the noise level the model is asked at
    sigma_target: Tensor  # (B,) float32, where its step ends and the known noise is removed
    index: Tensor  # (B,) discount index, whole or fractional
    shortened: Tensor  # (B,) bool, True where the range left no room for a whole step

    def __getitem__(self, prompts: slice) -> BranchSteps:
        """The steps of some of the prompts."""
        parts = (self.sigma, self.sigma_target, self.index, self.shortened)
        return BranchSteps(self.branch, *(part[prompts] for part in parts))


@dataclass(frozen=True)
class TableLevels:
    """The reference trainer's draw: a whole index s per prompt into a table S, with a capped span.

    S has 1000 levels between two levels of the shifted 50-step schedule: 0.9643 ... 0.75 (PickScore ... 0.6667). The
    cap collapses the span towards both ends of the range, in 19 % of the draws.
    """

    kind: Literal["table"] = "table"
    shift: float = 3.0
    noisiest_step: int = 5  # of 50
    cleanest_step: int = 25  # of 50; 30 with PickScore
    margin: int = 5  # s is drawn from margin ... 1000 - margin, both included
    max_span: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.noisiest_step < self.cleanest_step <= 50:
            raise ValueError(
                f"steps {self.noisiest_step} ... {self.cleanest_step}; expected 0 < noisiest < cleanest <= 50"
            )
        if not (1 <= self.margin < NUM_INDICES // 2 and 1 <= self.max_span < NUM_INDICES):
            raise ValueError(f"margin {self.margin}, max_span {self.max_span}; expected 1 ... 499 and 1 ... 999")

    def sigmas(self) -> Tensor:
        """(1000,) descending noise levels: the table S."""
        steps = shift_sigmas(linear_sigmas(50), self.shift).tolist()
        return torch.linspace(steps[self.noisiest_step], steps[self.cleanest_step], NUM_INDICES, dtype=torch.float32)

    def draw(self, count: int, generator: torch.Generator, previous: Tensor | None = None) -> Tensor:
        """(count,) whole indices s, uniform. Takes `count` integers from the generator, in the prompts' order."""
        return torch.randint(self.margin, NUM_INDICES - self.margin + 1, (count,), generator=generator)

    def spread(self, count: int) -> Tensor:
        """(count,) evenly spaced draws from the cleanest to the noisiest, for a chart."""
        return torch.linspace(self.margin, NUM_INDICES - self.margin, count).round().long()

    def denoise(self, drawn: Tensor) -> BranchSteps:
        """From a span noisier to S[1000 - s]."""
        sigma, target, place = _denoise_in_table(self.sigmas(), drawn, span := self._span(drawn))
        return BranchSteps("denoise", sigma, target, place, span < self.max_span)

    def inversion(self, drawn: Tensor) -> BranchSteps:
        """From a span cleaner to S[1000 - s], or to its noisier neighbour where s <= 100 ends the table."""
        sigma, target, place = _inversion_in_table(self.sigmas(), drawn, span := self._span(drawn))
        return BranchSteps("inversion", sigma, target, place, span < self.max_span)

    def _span(self, drawn: Tensor) -> Tensor:
        return torch.minimum(NUM_INDICES - drawn, drawn).clamp(max=self.max_span)


@dataclass(frozen=True)
class StepLevels:
    """The later trainer's draw: one of T = 100 levels per injection, with a long span that can only shrink.

    S has T evenly spaced levels, 0.9 ... 0.2. The span of an injection is at most that of the injection before it in
    the same update, as that trainer carries it over.
    """

    kind: Literal["steps"] = "steps"
    num_levels: int = 100  # T
    sigma_max: float = 0.9
    sigma_min: float = 0.2
    margin: int = 2  # s is drawn from margin ... T - margin, both included
    max_span: int = 41  # a d_sigma of up to 0.29

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max <= MAX_SIGMA_TARGET:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; "
                f"expected 0 <= sigma_min < sigma_max <= {MAX_SIGMA_TARGET}"
            )
        if self.num_levels < 4:
            raise ValueError(f"num_levels is {self.num_levels}; expected at least 4")
        if not (1 <= self.margin < self.num_levels // 2 and 1 <= self.max_span < self.num_levels):
            raise ValueError(
                f"margin {self.margin}, max_span {self.max_span}; expected 1 ... {self.num_levels // 2 - 1} "
                f"and 1 ... {self.num_levels - 1}"
            )

    def sigmas(self) -> Tensor:
        """(T,) descending noise levels: the table S."""
        return torch.linspace(self.sigma_max, self.sigma_min, self.num_levels, dtype=torch.float32)

    def draw(self, count: int, generator: torch.Generator, previous: Tensor | None = None) -> Tensor:
        """(count, 2) a whole index s, uniform, and its span; `previous` is the draw before it in the same update.

        Takes `count` integers from the generator, in the prompts' order.
        """
        s = torch.randint(self.margin, self.num_levels - self.margin + 1, (count,), generator=generator)
        return self._with_span(s, None if previous is None else previous[:, 1])

    def spread(self, count: int) -> Tensor:
        """(count, 2) evenly spaced first draws from the cleanest to the noisiest, for a chart."""
        return self._with_span(torch.linspace(self.margin, self.num_levels - self.margin, count).round().long())

    def denoise(self, drawn: Tensor) -> BranchSteps:
        """From a span noisier to S[T - s]."""
        sigma, target, place = _denoise_in_table(self.sigmas(), *drawn.unbind(-1))
        return BranchSteps("denoise", sigma, target, self._index(place), drawn[:, 1] < self.max_span)

    def inversion(self, drawn: Tensor) -> BranchSteps:
        """From a span cleaner to S[T - s], as `TableLevels`; that trainer itself has no such branch."""
        sigma, target, place = _inversion_in_table(self.sigmas(), *drawn.unbind(-1))
        return BranchSteps("inversion", sigma, target, self._index(place), drawn[:, 1] < self.max_span)

    def _with_span(self, s: Tensor, longest: Tensor | None = None) -> Tensor:
        span = torch.minimum(self.num_levels - s, s).clamp(max=self.max_span)
        return torch.stack([s, span if longest is None else torch.minimum(span, longest)], dim=-1)

    def _index(self, place: Tensor) -> Tensor:
        return (NUM_INDICES - 1) * (place / self.num_levels)


@dataclass(frozen=True)
class UniformLevels:
    """A continuous draw: the noisiest level is uniform in a range, both steps are `d_sigma` long.

    The denoise branch goes from sigma to sigma - d_sigma; the inversion branch comes to that same level from
    sigma - 2 d_sigma. So no step collapses, and none ends near 1, where a recovery amplifies the model's error.
    """

    kind: Literal["uniform"] = "uniform"
    sigma_min: float = 0.70
    sigma_max: float = 0.95
    d_sigma: float = 0.08

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min <= self.sigma_max <= 1:
            raise ValueError(
                f"sigma_min is {self.sigma_min} and sigma_max {self.sigma_max}; "
                "expected 0 < sigma_min <= sigma_max <= 1"
            )
        if not 0 < self.d_sigma <= 1:
            raise ValueError(f"d_sigma is {self.d_sigma}; expected a step above 0 and at most 1")
        if self.sigma_max - self.d_sigma > MAX_SIGMA_TARGET:
            raise ValueError(
                f"a step of d_sigma {self.d_sigma} from sigma_max {self.sigma_max} ends above {MAX_SIGMA_TARGET}, "
                "where a recovery is all error: lower sigma_max, or raise d_sigma"
            )

    def draw(self, count: int, generator: torch.Generator, previous: Tensor | None = None) -> Tensor:
        """(count,) noisiest levels, uniform. Takes `count` floats from the generator, in the prompts' order."""
        return self._between(torch.rand(count, generator=generator, dtype=torch.float32))

    def spread(self, count: int) -> Tensor:
        """(count,) evenly spaced draws from the cleanest to the noisiest, for a chart."""
        return self._between(torch.linspace(0, 1, count, dtype=torch.float32))

    def denoise(self, drawn: Tensor) -> BranchSteps:
        """From the drawn level, `d_sigma` cleaner."""
        target = step_target(drawn, self.d_sigma, "denoise")
        return BranchSteps("denoise", drawn, target.sigma, self._index(target.sigma), target.shortened)

    def inversion(self, drawn: Tensor) -> BranchSteps:
        """From 2 `d_sigma` cleaner than the drawn level to where the denoise branch ends."""
        target = step_target(drawn, self.d_sigma, "denoise").sigma
        sigma = (target - self.d_sigma).clamp(min=0)
        return BranchSteps("inversion", sigma, target, self._index(sigma), target < self.d_sigma)

    def _between(self, share: Tensor) -> Tensor:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * share

    def _index(self, cleaner_end: Tensor) -> Tensor:
        """The place in a table that would span all levels the two branches visit, as S does the reference's."""
        lowest = max(self.sigma_min - 2 * self.d_sigma, 0)
        return (NUM_INDICES - 1) * (cleaner_end - lowest) / (self.sigma_max - lowest)


Levels = TableLevels | StepLevels | UniformLevels


@dataclass(frozen=True)
class NetWeightAxis:
    """What the net weight is drawn over, whatever the discounts: draws from the cleanest to the noisiest level."""

    sigma: Tensor  # (N,) where a draw stands: its denoise branch's target
    denoise_index: Tensor  # (N,) discount index of each branch
    inversion_index: Tensor | None  # (N,) None where there is no such branch
    ends: tuple[float, float]  # the noise levels of index 0 and 999, where the lines of k+ and k- begin and end


def net_weight_axis(levels: Levels, num_points: int = 200, *, inversion: bool = True) -> NetWeightAxis:
    """The axis of these levels, `num_points` draws long."""
    drawn = levels.spread(num_points)
    denoise = levels.denoise(drawn)
    first, last = denoise.index[0].item(), denoise.index[-1].item()
    slope = (denoise.sigma_target[-1] - denoise.sigma_target[0]).item() / (last - first)
    lowest = denoise.sigma_target[0].item() - first * slope
    return NetWeightAxis(
        denoise.sigma_target,
        denoise.index,
        levels.inversion(drawn).index if inversion else None,
        (lowest, lowest + (NUM_INDICES - 1) * slope),
    )


def net_weight_curve(
    levels: Levels, discounts: Discounts, num_points: int = 200, *, inversion: bool = True
) -> tuple[Tensor, Tensor]:
    """(N,) noise levels and (N,) net weights of the general reward there: the curve to draw and to edit.

    Each draw stands at its denoise branch's target. Without the inversion branch k- takes no part.
    """
    axis = net_weight_axis(levels, num_points, inversion=inversion)
    if axis.inversion_index is None:
        return axis.sigma, discounts.k_positive(axis.denoise_index)
    return axis.sigma, net_weight(axis.denoise_index, axis.inversion_index, discounts)


def _denoise_in_table(table: Tensor, s: Tensor, span: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) each: sigma, sigma_target and the place of a step from S[T - s - span] down to S[T - s]."""
    return table[len(table) - s - span], table[len(table) - s], s


def _inversion_in_table(table: Tensor, s: Tensor, span: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) each: sigma, sigma_target and the place m of a step from S[T - m], m = s - span, up to S[T - m - span]."""
    start = (s - span).clamp(min=1)
    end = (start + span).clamp(max=len(table))
    return table[len(table) - start], table[len(table) - end], start
