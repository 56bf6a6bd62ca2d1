"""What a run must keep to be the same run when it goes on: its settings, its versions and the files it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from srpo.rewards.catalogue import place_of
from srpo.runs import RunFolder
from srpo.runs.environment import differences, environment
from srpo.training.config import TrainConfig, config_dict

# Where a run reads. The places may change, what lies there may not: its fingerprint is compared.
INPUTS = (
    "model",
    "reward",
    "prompts",
    "offline.folder",
    "validation.judge",
    "validation.reward",
    "validation.prompts",
)
REWARDS = ("reward", "validation.reward")  # named by kind and place
MAY_CHANGE = ("updates", "checkpoint_every", "device", "local_files_only", "validation.stop", *INPUTS)


def pinned_settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting that must stay, by its name with dots; of a reward's name KIND:PLACE, the kind."""
    flat = dict(_flat(config_dict(config)))
    kinds = {name: flat[name].removesuffix(place_of(flat[name])) for name in REWARDS if flat[name] is not None}
    return {name: value for name, value in flat.items() if name not in MAY_CHANGE} | {
        f"the kind of {name}": kind for name, kind in kinds.items() if kind
    }


def inputs(config: TrainConfig) -> dict[str, str]:
    """Where the run reads, by the setting that says so."""
    named = {name: value for name, value in _flat(config_dict(config)) if name in INPUTS and value is not None}
    return {name: place_of(value) if name in REWARDS else value for name, value in named.items()}


def changes_since(run: RunFolder, config: TrainConfig) -> list[str]:
    """One phrase for each version or file that is not what it was when the run began."""
    return differences(run.environment(), environment(inputs(config)))


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each setting that is not as it was: "lr was 1e-05 and is 2e-05 now"."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return [f"{name} was {then.get(name, 'not set')} and is {now.get(name, 'not set')} now" for name in names]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
