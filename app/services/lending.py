"""A device that is lent by the call, as ZeroGPU of Hugging Face's Spaces does, behind one decorator.

There the device exists within a call of a function that `spaces.GPU` has decorated, and for as long as the call has
asked for. The call runs in a worker that was forked from this process: what it is given and what it yields is pickled,
what it changes in memory is lost, and a process that it starts has no device. So all work that uses the device is
`by_the_call`: a plain function everywhere else, and on ZeroGPU its twin in a worker, with the same snapshots, the same
stop and the same sentences.

What is asked for is honest. It begins with figures that are known: a FLUX.1-dev picture of 1024 x 1024 takes 5.58 s for
28 steps on a whole H200 (published, plain diffusers), of which a call gets 60 of 132 multiprocessors; a pair of the
miniature's takes 0.966 s on two cores of a CPU (python -m benchmarks), and no longer on a GPU. From then on it follows
what the calls have really taken here.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.services.device import Device, StopFlag
from app.services.requests import BadInput, Settings, sentence

if TYPE_CHECKING:
    from app.services.studio import Studio
    from srpo.training.config import TrainConfig

SPACES_VARIABLE = "SPACES_ZERO_GPU"
LONGEST_S = 120.0  # of one call
MARGIN_S = 3.0  # before the device is taken back, work that is not finished stops by itself
START_S = {True: 20.0, False: 6.0}  # a worker, and the weights on their way to the device; by whether they are FLUX's
FLUX_PIXEL_STEP_S = 5.58 / 28 * 132 / 60 / 1024**2
MINIATURE_PIXEL_STEP_S = 0.966 / 56 / 128**2
BACKWARD = 3  # forward passes that one pass with its gradient costs
REMEMBERED, SAFETY = 8, 1.25  # calls whose time counts, and how much more than the longest of them is asked for


@dataclass(frozen=True)
class Shown:
    """A snapshot of the work."""

    view: Any


@dataclass(frozen=True)
class Raised:
    """How the work ended, where it did not end well: an error that is meant to be read, or a stop."""

    error: Exception


@dataclass(frozen=True)
class Ended:
    """The work is done; its arguments as it has left them."""

    arguments: tuple[Any, ...]


Call = Callable[[str, tuple[Any, ...], float], Iterator[Shown | Raised | Ended]]


class Lender:
    """What lends the device to one studio."""

    def __init__(self, studio: Studio, call: Call) -> None:
        self.studio, self.call = studio, call
        self._ratios: deque[float] = deque(maxlen=REMEMBERED)  # of the time taken to the time known beforehand

    def seconds(self, arguments: Sequence[Any], steps: int | None) -> float:
        """What to ask for; see `by_the_call`. BadInput, one sentence, where no call can last as long as that takes."""
        known_s = self._known_s(arguments, steps)
        if known_s is None:
            return LONGEST_S
        if known_s > LONGEST_S:
            raise BadInput(
                f"This takes about {known_s:.0f} s of the device, which is lent here for at most {LONGEST_S:.0f} s at "
                "a time: ask for less."
            )
        return min(max(known_s * SAFETY * max(self._ratios, default=1.0), 2 * MARGIN_S), LONGEST_S)

    def took(self, arguments: Sequence[Any], steps: int | None, seconds: float) -> None:
        """Notes how long a finished call has really taken."""
        if (known_s := self._known_s(arguments, steps)) is not None:
            self._ratios.append(min(max(seconds / known_s, 0.1), 10.0))

    def _known_s(self, arguments: Sequence[Any], steps: int | None) -> float | None:
        """What the work should take, as far as anything tells how much it is."""
        side, is_miniature = self.studio.catalogue.native_side, self.studio.options.is_miniature
        pixel_steps = sum(map(_pixel_steps, arguments)) or (steps or 0) * side * side
        if not pixel_steps:
            return None
        return START_S[not is_miniature] + pixel_steps * (MINIATURE_PIXEL_STEP_S if is_miniature else FLUX_PIXEL_STEP_S)


_lender: Lender | None = None
_works: dict[str, tuple[Callable, int | None]] = {}


def is_lent() -> bool:
    """Whether this machine lends its device by the call."""
    return os.environ.get(SPACES_VARIABLE, "").lower() in ("1", "t", "true")


def begin(studio: Studio) -> None:
    """From now on, work that is `by_the_call` runs in workers that know this studio. Before the page is launched."""
    import spaces  # there is one wherever a device is lent, and nowhere else

    global _lender
    _lender = Lender(studio, spaces.GPU(duration=lambda name, arguments, seconds: round(seconds))(_in_worker))


def studio_here() -> Studio:
    """The studio of this process, or of the one that this worker was forked from: how a pickled one is found again."""
    return _lender.studio


def by_the_call(work: Callable | None = None, *, steps: int | None = None) -> Callable:
    """The same function, whose work is done where the device is. Arguments are positional, and can be pickled.

    steps: evaluations of a model, where no argument tells how much the work is; without it the work is taken to be what
    can be stopped and goes on at the next call, which therefore lasts as long as one may.
    """
    if work is None:
        return partial(by_the_call, steps=steps)
    name = f"{work.__module__}.{work.__qualname__}"
    _works[name] = work, steps
    is_generator = inspect.isgeneratorfunction(work)

    @wraps(work)
    def lent(*arguments: Any) -> Any:
        if _lender is None:
            return work(*arguments)
        views = _lend(_lender, name, arguments)
        return views if is_generator else next(views)

    return lent


def _lend(lender: Lender, name: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
    """The snapshots of the work in a worker, its errors, and its changes to the arguments."""
    stop = next((argument for argument in arguments if isinstance(argument, StopFlag)), None) or StopFlag()
    budget = lender.studio.device.budget
    if budget is not None:
        budget.require(stop.user)
    steps = _works[name][1]
    seconds, began_s = lender.seconds(arguments, steps), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="srpo-call-") as folder:
        stop.share(Path(folder) / "stop")
        try:
            for outcome in lender.call(name, arguments, seconds):
                if isinstance(outcome, Raised):
                    raise outcome.error
                if isinstance(outcome, Ended):
                    lender.took(arguments, steps, time.monotonic() - began_s)
                    _take_over(arguments, outcome.arguments)
                else:
                    yield outcome.view
        except Exception as error:
            # What lends the device says by errors of its own that it has none, or that the visitor's quota is spent.
            if (told := getattr(error, "message", None)) is None:
                raise
            raise BadInput(sentence(str(told))) from None
        finally:
            if budget is not None:
                budget.charge(stop.user, time.monotonic() - began_s)


def _in_worker(name: str, arguments: tuple[Any, ...], seconds: float) -> Iterator[Shown | Raised | Ended]:
    """What the named work yields, in the process that has the device."""
    studio = studio_here()
    studio.device = Device(studio.device.name)  # this process's own: its line is empty, and the other one pays
    for argument in arguments:
        if isinstance(argument, StopFlag):
            argument.until_s = time.monotonic() + seconds - MARGIN_S
    work, _ = _works[name]
    try:
        if inspect.isgeneratorfunction(work):
            for view in work(*arguments):
                yield Shown(view)
        else:
            yield Shown(work(*arguments))
    except Exception as error:
        if not isinstance(error, ValueError) and not type(error).__module__.startswith("app."):
            raise  # a defect: its traceback belongs into the log
        yield Raised(error)
    else:
        yield Ended(arguments)


def _take_over(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """Gives records that may change, a page's memory of its last work, what the worker has written into its copy."""
    for record, changed in zip(mine, theirs, strict=True):
        if is_dataclass(record) and not record.__dataclass_params__.frozen:
            vars(record).update(vars(changed))


def _pixel_steps(argument: Any) -> float:
    """Evaluations of a model times the pixels of each, as far as an argument asks for any."""
    if isinstance(argument, Settings):
        return argument.num_pictures * argument.steps * argument.width * argument.height
    config = getattr(argument, "config", None)  # of the order of a run
    return training_pixel_steps(config) if hasattr(config, "prompts_per_update") else 0.0


def training_pixel_steps(config: TrainConfig) -> float:
    """Evaluations of a model times the pixels of each, in a whole run."""
    objective, validation = config.objective, config.validation
    branches = 2 if objective.inversion else 1
    passes = config.updates * config.prompts_per_update * (objective.rollout_steps + BACKWARD * branches)
    if validation.every:
        validations = 1 + -(-config.updates // validation.every)
        passes += validations * validation.num_prompts * validation.num_steps
    return passes * objective.height * objective.width
