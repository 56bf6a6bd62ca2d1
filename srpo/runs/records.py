"""What a run folder says, as typed records."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Status = Literal["starting", "running", "finished", "stopped", "failed", "lost"]
STATUSES = get_args(Status)
LIVE = ("starting", "running")  # a job works on the run, or should
MOST = 2**53  # beyond every count of ours

Record = TypeVar("Record")


@dataclass(frozen=True)
class UpdateRecord:
    """One update of a training: a line of progress.jsonl."""

    update: int  # counts from 1
    loss: float  # the mean over prompts, branches and injections
    grad_norm: float  # before clipping
    lr: float
    seconds: float
    scores: dict[str, float]  # "denoise/positive", "inversion/reward", ...: means over the update's prompts
    warning: str = ""  # one sentence, where something looks wrong from this update on


@dataclass(frozen=True)
class ValidationRecord:
    """What the fixed prompts and seeds scored after an update: a line of validation.jsonl. Update 0 is the start."""

    update: int
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # of the same names: low and high
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "intervals", {name: tuple(ends) for name, ends in self.intervals.items()})


@dataclass(frozen=True)
class BestRecord:
    """The best checkpoint so far, by the rule that the run declared: best.json."""

    update: int
    score: float
    rule: str  # one sentence
    over_optimised_from: int | None  # the first update from which validation only got worse


@dataclass(frozen=True)
class RunState:
    """What a run is doing, or how it ended: state.json."""

    status: Status
    update: int  # the last finished one, 0 before the first
    message: str = ""  # one sentence: why it failed, from where it goes on
    phase: str = ""  # while it runs: "loading models", "training", "validating", "saving"
    updates: int = 0  # how many are planned, 0 while that is not known

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"a run's status is {self.status!r}; expected one of {', '.join(STATUSES)}")


@dataclass(frozen=True)
class JobRecord:
    """The process that works on a run, so described that no later process can be taken for it: job.json."""

    pid: int
    started: str  # when the process began, in the words of its system
    boot_id: str  # of the machine's last start
    host: str
    device: str
    began: str  # ISO 8601, UTC
    in_process: bool = False  # True: a part of a larger program, which must not be signalled


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life: heartbeat.json. Times are seconds since 1970."""

    time: float  # of this sign
    phase: str
    update: int
    active: float = field(default=0.0)  # when the work itself last moved; a hung device stops this, not the signs


def as_record(kind: type[Record], said: Any) -> Record:
    """The record that `said`, as it was read from JSON, stands for; whole numbers in it are counts.

    ValueError, a phrase, where a field is missing, unknown or of another type: a file may have been edited, or be
    another program's, and whoever reads it relies on what the record says of itself.
    """
    if not isinstance(said, dict):
        raise ValueError("an object is expected")
    hints = _hints(kind)
    for name, value in said.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    try:
        return kind(**said)
    except TypeError as error:
        raise ValueError(str(error)) from None


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON, which has lists for tuples, is what the annotation says."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is int:
        return type(value) is int and 0 <= value < MOST
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < MOST)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is Literal:  # the record names its choices itself
        return isinstance(value, str)
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    return type(value) is hint
