"""Early stopping on what is not trained on: pictures of fixed prompts and seeds, scored beside the objective.

N pictures
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from srpo.evaluation import measures
from srpo.evaluation.sampling import sample_images
from srpo.evaluation.shares import mean, share
from srpo.policies.base import Policy
from srpo.runs.records import BestRecord, ValidationRecord
from srpo.training.config import Limits, ValidationConfig

Measure = Callable[[Tensor, Sequence[str]], Tensor]  # images (N, 3, H, W), prompts -> (N,), bool where it is a share

MEASURES: dict[str, Measure] = {
    name: lambda images, prompts, measure=measure: measure(images)
    for name, measure in (
        ("saturation", measures.saturation),
        ("clipped", measures.clipped),
        ("sharpness", measures.sharpness),
        ("diversity", measures.diversity),
    )
}
CONFIRMATIONS = 2  # validations that say so before a run is stopped as over-optimised


class Validation:
    """Samples and scores the same pictures again and again, and says which checkpoint was the best."""

    def __init__(
        self,
        config: ValidationConfig,
        prompts: Sequence[str],
        *,
        size: tuple[int, int],
        updates: int,
        batch: int | None = None,
        more: Mapping[str, Measure] | None = None,
    ) -> None:
        """Measures of `more` come before those that any picture has. batch: pictures sampled at once; None: all.

        ValueError where the rule names a score that there is none of.
        """
        self.config, self.updates, self.size = config, updates, size
        self._all_prompts = list(prompts)
        self.prompts = spread(prompts, config.num_prompts)
        self.seeds = list(range(config.first_seed, config.first_seed + len(self.prompts)))
        self.batch = batch or len(self.prompts)
        self.measures = {**(more or {}), **MEASURES}
        self.images: Tensor | None = None  # (N, 3, H, W) of the last validation
        for name in (config.maximise, *config.limits):
            if name not in self.measures:
                raise ValueError(f"validation has no score {name!r} here: choose among {', '.join(self.measures)}")

    def with_config(self, config: ValidationConfig) -> Validation:
        """The same with other settings."""
        return Validation(
            config, self._all_prompts, size=self.size, updates=self.updates, batch=self.batch, more=self.measures
        )

    @property
    def num_samples(self) -> int:
        """How many of the pictures are worth keeping, from the first."""
        return min(self.config.num_samples, len(self.prompts))

    def due(self, update: int) -> bool:
        """True before the first update, after every so many, and after the last."""
        return self.config.every > 0 and (update % self.config.every == 0 or update == self.updates)

    @torch.no_grad()
    def validate(self, policy: Policy, update: int) -> ValidationRecord:
        """The scores of the policy's pictures now; they stay in `images`."""
        start = time.perf_counter()
        height, width = self.size
        self.images = sample_images(
            policy,
            self.prompts,
            self.seeds,
            num_steps=self.config.num_steps,
            guidance=self.config.guidance,
            height=height,
            width=width,
            batch=self.batch,
        )
        scores, intervals = {}, {}
        for name, measure in self.measures.items():
            values = measure(self.images, self.prompts).cpu()
            middle, low, high, _ = share(values) if values.dtype == torch.bool else mean(values)
            scores[name], intervals[name] = middle, (low, high)
        return ValidationRecord(update, scores, intervals, time.perf_counter() - start)

    def best(self, records: Sequence[ValidationRecord]) -> BestRecord | None:
        """The best update of these, None without any; a function of the records and the rule alone."""
        return best_of(records, self.config.maximise, self.config.limits)

    def should_stop(self, records: Sequence[ValidationRecord]) -> bool:
        """True where the rule stops runs, and the last two validations both say that this one is over-optimised."""
        best = self.best(records)
        if not self.config.stop or best is None or best.over_optimised_from is None:
            return False
        return len([r for r in records if r.update >= best.over_optimised_from]) >= CONFIRMATIONS


def best_of(records: Sequence[ValidationRecord], maximise: str, limits: Limits) -> BestRecord | None:
    """The first update with the most of `maximise` among those within the limits, counted from the first record.

    A run is over-optimised from the first update after the best from which on every validation is worse: its score lies
    below the best one's interval, or it breaks a limit.
    """
    if not records:
        return None
    start = records[0]

    def within(record: ValidationRecord) -> bool:
        moves = {name: record.scores[name] - start.scores[name] for name in limits}
        return all(limits[name][0] <= move <= limits[name][1] for name, move in moves.items())

    best = max((record for record in records if within(record)), key=lambda record: record.scores[maximise])
    worse_from = None
    for record in records:
        worse = record.scores[maximise] < best.intervals[maximise][0] or not within(record)
        if record.update <= best.update or not worse:
            worse_from = None
        elif worse_from is None:
            worse_from = record.update
    return BestRecord(best.update, best.scores[maximise], rule_in_words(maximise, limits), worse_from)


def rule_in_words(maximise: str, limits: Limits) -> str:
    """The rule as a sentence for a reader of the run."""
    bounds = []
    for name, (lowest, highest) in limits.items():
        parts = [f"falls by at most {-lowest:g}"] if lowest > -1 else []
        parts += [f"rises by at most {highest:g}"] if highest < 1 else []
        bounds.append(f"{name} {' and '.join(parts) or 'does as it likes'}")
    return f"the most {maximise}" + (f", where {'; '.join(bounds)}" if bounds else "")


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """`count` of the prompts, evenly spaced among them; where there are fewer, they come again."""
    if len(prompts) >= count:
        return [prompts[place * len(prompts) // count] for place in range(count)]
    return [prompts[place % len(prompts)] for place in range(count)]
