"""The real trainer on a model of one linear layer: an update takes a millisecond, and everything around it is real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from srpo.objectives.base import Loss, Rollout
from srpo.policies.base import Conditioning
from srpo.runs import WEIGHTS_NAME, BestRecord, RunFolder, ValidationRecord
from srpo.training.config import TrainConfig, config_dict
from srpo.training.trainer import Trainer

PROMPTS = ["a red ball", "a blue house", "a green tree"]


class SmallPolicy:
    """A "transformer" that maps four numbers to four."""

    device = torch.device("cpu")
    weights_name = WEIGHTS_NAME

    def __init__(self, width: int = 4) -> None:
        self.weights_metadata = {"format": "pt"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.transformer = torch.nn.Linear(width, width)

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.transformer.parameters())

    def trained_weights(self) -> dict[str, Tensor]:
        return self.transformer.state_dict()

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 1), torch.zeros(len(prompts), 1))


class SmallObjective:
    """Pulls what the layer makes of noise towards one; keeps the generator's state at each update in `places`."""

    def __init__(self) -> None:
        self.places: dict[int, Tensor] = {}

    def rollout(
        self, policy: SmallPolicy, prompts: Sequence[str], cond: Conditioning, generator: torch.Generator
    ) -> Rollout:
        noise = torch.randn(len(prompts), 4, generator=generator)
        with torch.no_grad():
            return Rollout(prompts, cond, policy.transformer(noise), noise)

    def losses(
        self, policy: SmallPolicy, rollout: Rollout, reward: object, generator: torch.Generator, update: int
    ) -> Iterator[Loss]:
        self.places[update] = generator.get_state()
        drawn = rollout.noise + torch.randn(rollout.noise.shape, generator=generator)
        value = (policy.transformer(drawn) - 1).square().mean()
        told = dict.fromkeys(("denoise/reward", "denoise/plain", "denoise/difference"), -value.item())
        yield Loss(value, told | {"prompts": len(rollout.prompts)})


class SmallValidation:
    """Declares the update `best_at` the best of those it has seen, and the run over from `over_at` on."""

    prompts, seeds, num_samples = PROMPTS, [7, 8, 9], 2

    def __init__(self, every: int, best_at: int, over_at: int | None = None) -> None:
        self.every, self.best_at, self.over_at = every, best_at, over_at

    def due(self, update: int) -> bool:
        return update % self.every == 0

    def validate(self, policy: SmallPolicy, update: int) -> ValidationRecord:
        policy.transformer(torch.zeros(1, 4))  # a forward pass, where a stop is seen
        self.images = torch.full((3, 3, 16, 16), update / 255)
        score = -abs(update - self.best_at) / 10
        return ValidationRecord(update, {"photo": score}, {"photo": (score - 0.1, score + 0.1)}, 0.01)

    def best(self, records: Sequence[ValidationRecord]) -> BestRecord:
        best = max(records, key=lambda record: record.scores["photo"])
        return BestRecord(best.update, best.scores["photo"], "the highest photo share", self.over_at)

    def should_stop(self, records: Sequence[ValidationRecord]) -> bool:
        return self.over_at is not None and any(record.update >= self.over_at for record in records)


def small_config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"updates": 4, "checkpoint_every": 1, "prompts_per_update": 2, "lr": 1e-2, **changes})


def small_trainer(config: TrainConfig, validation: SmallValidation | None = None, width: int = 4) -> Trainer:
    return Trainer(SmallPolicy(width), SmallObjective(), None, PROMPTS, config, validation=validation)


def new_run(path: object, config: TrainConfig) -> RunFolder:
    return RunFolder.create(path, config_dict(config))
