"""What one running app shares among its visitors: the catalogue, the engine, the device's line, the pictures."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.services.device import Device, Jobs, StopFlag, Stopped
from app.services.finetune import FineTune
from app.services.lending import studio_here
from app.services.models import MINIATURE_GUIDANCE, MINIATURE_SIDE, SRPO, Catalogue
from app.services.pictures import PictureStore
from app.services.public import Budget, Limits
from app.services.requests import MAX_STEPS, BadInput, Settings
from app.services.studies import Studies
from app.state import Options
from srpo.loading import import_module
from srpo.policies import families
from srpo.policies.placement import MODES

if TYPE_CHECKING:
    from app.services.engine import Engine

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
DISTILLED = "This FLUX.2 klein is distilled: it is made for 4 steps, and guidance changes nothing."


@dataclass(frozen=True)
class Status:
    """How far the models are."""

    phase: str  # "loading", "ready" or "failed"
    message: str


class Studio:
    """The services behind the page. Building it loads nothing: the page comes first, `start()` after it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.catalogue = Catalogue(options)
        self.limits = Limits.of(options, self.catalogue.native_side)
        self.device = Device(options.device, Budget(options.can_sign_in, options.owners) if options.is_public else None)
        self.jobs = Jobs()
        self.pictures = PictureStore()
        self.finetune = FineTune(options, self.device, self.pictures)
        self.studies = Studies(options)
        self.memory = options.memory  # as it was asked for; another one may be chosen while the app runs
        self._engine: Engine | None = None
        self._failure: str | None = None
        self._warning: str | None = None
        self._progress: str | None = None  # of what comes before the loading
        self._download: subprocess.Popen | None = None
        self._thread: threading.Thread | None = None
        self._started_s = 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """A copy in a worker's hands is the studio that the worker was forked with."""
        return studio_here, ()

    @property
    def max_steps(self) -> int:
        """What the page offers."""
        return MAX_STEPS if self.limits is None else self.limits.steps

    @cached_property
    def plotly(self) -> Path:
        """plotly.min.js of the installed package, as a file that the page may be given: no network is asked for it.

        It is copied, as the package may lie below a folder that is closed to the page.
        """
        package = Path(importlib.util.find_spec("plotly").origin).parent
        return Path(shutil.copy(package / "package_data" / "plotly.min.js", self.pictures.root))

    def start(self, *, fetch: bool = False) -> None:
        """Loads the models in the background, unless that is done or under way. A failed load is tried again.

        fetch: what is named by an id of the hub and is not here is downloaded first; else nothing is, but said.
        """
        with self._lock:
            if self._engine is not None or (self._thread is not None and self._thread.is_alive()):
                return
            self._failure, self._started_s = None, time.monotonic()
            self._thread = threading.Thread(target=self._load, args=(fetch,), name="models", daemon=True)
            self._thread.start()

    def load(self) -> None:
        """Loads the models before the page is there: where a device is lent, what is loaded later never reaches it."""
        self._started_s = time.monotonic()
        self._load(fetch=True)

    def _load(self, fetch: bool) -> None:
        try:
            if fetch and self.options.downloads and self.options.absent:
                self._fetch(self.options.absent)
            engine = import_module("app.services.engine")  # torch and diffusers: seconds, spent behind the page
            self._engine = engine.Engine.load(replace(self.options, memory=self.memory))
        except ValueError as error:  # a sentence about the folder
            self._failure = str(error)
            log.error(self._failure)
            return
        except (OSError, RuntimeError, ImportError) as error:
            log.exception("The models could not be loaded.")
            text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self._failure = f"The models could not be loaded: {text}"
            return
        for model in (model for model in self.catalogue.models() if model.id == SRPO):  # what the page shows at first
            try:
                for message in self._engine.convert([model], StopFlag()):
                    self._progress = message
                self._progress = None
                self._engine.policies([model])
            except BadInput as error:  # the other models work
                self._warning = f"{model.label} cannot be used: {error}"
                log.error(self._warning)

    def rearrange(self, memory: str) -> None:
        """Loads the models anew in another memory mode, behind the page. Where it does not fit, the one before is back.

        BadInput for a mode that does not exist, or while the models are at work or still loading.
        """
        if memory not in MODES:
            raise BadInput(f"The memory mode is one of {', '.join(MODES)}, not {memory[:40]!r}.")
        with self.device.turn() as turn:
            if turn.ahead() or turn.acquire() is not None:
                raise BadInput("The device is at work: choose another memory mode when that has ended.")
            with self._lock:
                if self._thread is not None and self._thread.is_alive():
                    raise BadInput("The models are still loading: choose another memory mode when they are there.")
                before, self.memory = self.memory, memory
                self._engine = self._warning = self._failure = None
                gc.collect()  # what the models held is free before it is measured
                self._started_s = time.monotonic()
                self._thread = threading.Thread(target=self._reload, args=(before,), name="models", daemon=True)
                self._thread.start()

    def _reload(self, before: str) -> None:
        """Loads the models; in the mode before, where this one is refused."""
        self._load(fetch=False)
        if self._engine is None:
            refused, self.memory, self._failure = self._failure, before, None
            self._load(fetch=False)
            self._warning = self._warning or refused

    def arrangement(self) -> str:
        """How the models are kept and run, and why, in sentences; nothing while they load."""
        engine = self._engine  # looked at once: another memory mode takes it away
        return "" if engine is None else engine.manner()

    def status(self) -> Status:
        """The state of the models, in a sentence for the page."""
        if self._engine is not None and not (self._thread is not None and self._thread.is_alive()):
            return Status("ready", self._warning or "Models ready")
        if self._failure is not None:
            if self.options.absent and self.options.downloads:
                return Status(
                    "loading", f"Not here yet: {' and '.join(self.options.absent)}. The first picture downloads it."
                )
            return Status("failed", self._failure)
        if self._progress is not None:
            return Status("loading", self._progress)
        elapsed_s = time.monotonic() - self._started_s if self._started_s else 0.0
        return Status("loading", f"Loading models … {elapsed_s:.0f} s")

    def engine_when_ready(self, stop: StopFlag) -> Generator[str, None, Engine]:
        """Messages while the models load; returns the engine. BadInput if they cannot load."""
        if self._engine is None:
            self.start(fetch=True)
        while self._engine is None:
            try:
                stop.check()
            except Stopped:
                if self._download is not None:  # what has come of it is kept
                    self._download.terminate()
                raise
            if self._failure is not None:
                raise BadInput(self._failure)
            yield self._progress or "The models are still loading; this starts by itself."
            self._thread.join(0.25)
        return self._engine

    def _fetch(self, ids: list[str]) -> None:
        """Downloads them, by a process of its own that can be ended at any moment. BadInput where that fails."""
        command = [sys.executable, "-m", "srpo.download", "--json", *ids]
        said = ""
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            self._download = process
            for line in process.stderr:
                said = line.strip()
                self._progress = f"Downloading {_in_words(said)}"
        self._download, self._progress = None, None
        self.options.look_again()
        if process.returncode:
            stopped = "The download was stopped; what has come is kept, and the next start goes on from there."
            raise BadInput(said.removeprefix("error: ") if said.startswith("error: ") else stopped)

    def count_tokens(self, text: str) -> tuple[int, int] | None:
        """Tokens of a text and how many the model reads; None while the models load."""
        engine = self._engine  # as above
        return None if engine is None else engine.base.count_tokens(text)

    def notice(self, settings: Settings) -> str:
        """What a visitor should know about these settings, or nothing."""
        if not self.options.is_miniature:
            return DISTILLED if families.is_distilled(self.options.model) else ""
        said = []
        if (settings.width, settings.height) != (MINIATURE_SIDE, MINIATURE_SIDE):
            said.append(
                f"The miniature is trained at {MINIATURE_SIDE} × {MINIATURE_SIDE}; other sizes are an experiment."
            )
        low, high = MINIATURE_GUIDANCE
        if not low <= settings.guidance <= high:
            said.append(
                f"The miniature learnt guidance {low:g} to {high:g}; {settings.guidance:g} is beyond what it knows."
            )
        return " ".join(said)

    def made_with(self) -> dict[str, Any]:
        """What decides a picture's pixels beside its settings and the models of its sides, for its record."""
        return {"base": self.catalogue.base_facts(), "text_tokens": self.options.max_sequence_length}


def _in_words(line: str) -> str:
    """A line of srpo.download: a plan as it is, a step in words."""
    try:
        step = json.loads(line)
        return f"{step['repository']}: {step['done'] / 1e9:.1f} of {step['total'] / 1e9:.1f} GB"
    except (ValueError, KeyError, TypeError):
        return line
