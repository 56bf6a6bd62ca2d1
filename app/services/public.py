"""What a visitor of a page that anyone may open can ask for: limits of one request, and device time per hour.

Addresses can be forged and are all alike behind a proxy. So whoever has signed in has a budget of their own, and all
others share one. The owners, who pay for the device, have no limit.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

from app.services.requests import BadInput, Settings, sentence
from app.state import Options
from srpo.miniature import paths

HOUR_S = 3600.0
SHARED_S, OWN_S = 1200.0, 600.0  # of the device, in any hour: of all who have not signed in, and of each who has
SIGN_IN = " Sign in for time of your own."


@dataclass(frozen=True)
class Limits:
    """The most that one request of a public page may ask for."""

    side: int  # pixels
    steps: int
    prompt_characters: int
    pictures: int

    @classmethod
    def of(cls, options: Options, native_side: int) -> Limits | None:
        """Those of a public page; None where the page is for its own machine alone."""
        if not options.is_public:
            return None
        if options.is_miniature:  # 160 of its pictures cost less than one of FLUX.1-dev
            return cls(side=2 * native_side, steps=40, prompt_characters=500, pictures=160)
        return cls(side=native_side, steps=40, prompt_characters=1000, pictures=24)

    def check(self, settings: Settings, prompts: Sequence[str]) -> None:
        """BadInput, one sentence, for a request that is beyond them."""
        side, characters = max(settings.width, settings.height), max(map(len, prompts), default=0)
        for asked, most, unit in (
            (side, self.side, "pixels per side"),
            (settings.steps, self.steps, "steps"),
            (characters, self.prompt_characters, "characters of a prompt"),
            (settings.num_pictures, self.pictures, "pictures at once"),
        ):
            if asked > most:
                raise BadInput(f"This public page gives at most {most} {unit}, not {asked:,}: ask for less.")

    def __str__(self) -> str:
        """What visitors are told."""
        return (
            f"This page is open to everyone: up to {self.side} × {self.side} pixels, {self.steps} steps and "
            f"{self.pictures} pictures at once, within {SHARED_S / 60:.0f} minutes of the device in any hour for all "
            "visitors together"
        )


def allowed_place(options: Options, place: str | Path) -> Path:
    """The place, where this page lets it be named: at home any, to the owners of a public page what is theirs.

    That is what lies in the working folder, among the runs or the studies, or came with the app, and the weights that
    the app was started with. A link counts as what it leads to. BadInput for all else, be anything there or not.
    """
    try:
        found = Path(place).expanduser()
        if options.local_paths:
            return found
        real = found.resolve()
        allowed = Path.cwd(), paths.ROOT, paths.REPOSITORY / "assets", options.runs, options.studies
        started_with = options.model, options.srpo, options.reward, options.judge
        if any(real.is_relative_to(folder.resolve()) for folder in allowed):
            return found
        if any(named is not None and real == named.resolve() for named in started_with):
            return found
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a name too long, a user unknown
        raise BadInput(sentence(error)) from None
    raise BadInput("This page opens what lies in its working folder alone: put it there, or upload it.")


class Budget:
    """Seconds of the device, spent within the last hour, by account; None is everyone who has not signed in."""

    def __init__(
        self,
        can_sign_in: bool = False,
        owners: Collection[str] = (),
        shared_s: float = SHARED_S,
        own_s: float = OWN_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        """owners: accounts whose time is not counted."""
        self._owners = frozenset(owners)
        self._can_sign_in, self._shared_s, self._own_s, self._now = can_sign_in, shared_s, own_s, now
        self._spent: dict[str | None, deque[tuple[float, float]]] = {}  # (when, seconds), the oldest first
        self._lock = threading.Lock()

    def require(self, user: str | None) -> None:
        """BadInput, naming the time at which there is more, where that account's hour is spent."""
        if user in self._owners:
            return
        allowed_s = self._shared_s if user is None else self._own_s
        with self._lock:
            self._forget()
            spent = list(self._spent.get(user, ()))
        spent_s = sum(seconds for _, seconds in spent)
        if spent_s < allowed_s:
            return
        kept_s = [spent_s - gone_s for gone_s in accumulate(seconds for _, seconds in spent)]  # as each falls away
        enough = next(place for place, seconds in enumerate(kept_s) if seconds < allowed_s)
        again = datetime.fromtimestamp(math.ceil((spent[enough][0] + HOUR_S) / 60) * 60, UTC)
        whose = "for visitors who have not signed in" if user is None else f"for {user}"
        sign_in = SIGN_IN if user is None and self._can_sign_in else ""
        raise BadInput(
            f"The {allowed_s / 60:.0f} minutes of device time {whose} are spent for this hour: there is more at "
            f"{again:%H:%M} UTC.{sign_in}"
        )

    def charge(self, user: str | None, seconds: float) -> None:
        """Notes that the account has just used the device for so long."""
        if user in self._owners:
            return
        with self._lock:
            self._forget()
            self._spent.setdefault(user, deque()).append((self._now(), seconds))

    def _forget(self) -> None:
        """Drops what is an hour old, and accounts that have nothing left."""
        limit = self._now() - HOUR_S
        for user, spent in list(self._spent.items()):
            while spent and spent[0][0] <= limit:
                spent.popleft()
            if not spent:
                del self._spent[user]
