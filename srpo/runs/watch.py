"""What looks wrong in a run's curve: a reward that says nothing, and one that runs away."""

from __future__ import annotations

from collections.abc import Sequence

from srpo.runs.records import UpdateRecord

CONSTANT_FOR = 3  # updates; each draws other noise, levels and prompts, so a reward that sees its pictures moves
EXPLODES_AT = 10  # times what was largest in all updates before
LOOKS_BACK = 20  # updates
NEEDED = 5  # updates before anything can be called large


def warning(records: Sequence[UpdateRecord]) -> str:
    """One sentence about what looks wrong at the last of these updates; empty where nothing does."""
    return _constant(records[-CONSTANT_FOR:]) or _exploding(records[-LOOKS_BACK - 1 :])


def _constant(records: Sequence[UpdateRecord]) -> str:
    if len(records) < CONSTANT_FOR:
        return ""
    for name, values in _rewards(records).items():
        if len(set(values)) == 1:
            return (
                f"{name} has been {values[-1]:g} for {CONSTANT_FOR} updates: the reward does not see the pictures, "
                "or they are all alike; stop and look at the reward and the samples"
            )
    return ""


def _exploding(records: Sequence[UpdateRecord]) -> str:
    if len(records) <= NEEDED:
        return ""
    curves = _rewards(records) | {"the gradient's norm": [record.grad_norm for record in records]}
    for name, values in curves.items():
        before = max(map(abs, values[:-1]))
        if abs(values[-1]) > EXPLODES_AT * before > 0:
            return (
                f"{name} is {values[-1]:.3g}, {abs(values[-1]) / before:.0f} times its largest value before: "
                "the run is about to diverge; stop, go back to a checkpoint and lower lr"
            )
    return ""


def _rewards(records: Sequence[UpdateRecord]) -> dict[str, list[float]]:
    """The rewards of the branches that all of these updates have."""
    names = [name for name in records[-1].scores if name.endswith("/reward")]
    curves = {name: [record.scores.get(name) for record in records] for name in names}
    return {name: values for name, values in curves.items() if None not in values}
