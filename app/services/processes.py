"""Work that is a process of its own, and outlives the app: begun once the device is free, measured before that."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from app.services.device import Device, StopFlag, wait_for_device
from app.services.requests import BadInput, sentence
from srpo.miniature import paths
from srpo.runs import Busy

PROBE_S = 3600  # a measurement that takes longer is given up
T = TypeVar("T")


def begin_when_free(device: Device, begin: Callable[[], T], stop: StopFlag) -> Generator[str, None, T]:
    """Messages until the pictures under way are finished; returns what `begin` does.

    Other work is not waited for: it refuses the start, by BadInput.
    """
    while True:
        try:
            return begin()
        except (ValueError, OSError) as error:
            if not (isinstance(error, Busy) and device.is_ours()):
                raise BadInput(sentence(error)) from None
        stop.check()
        yield "This starts when the pictures under way are finished."
        time.sleep(0.25)


def probe(device: Device, arguments: Sequence[str], what: str, stop: StopFlag) -> Generator[str, None, dict[str, Any]]:
    """Messages while `python -m` these arguments measures `what`, on our turn; returns the JSON that it printed.

    BadInput where it cannot be measured, in the words that a start would use.
    """
    with device.turn() as turn:
        while ahead := turn.wait(timeout_s=0.25):
            stop.check()
            yield f"Waiting for the device: {ahead} ahead of you."
        yield from wait_for_device(turn, stop)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-m", *arguments], cwd=paths.REPOSITORY, **pipes) as process:
            try:
                out, said = yield from _wait_for(process, what, stop)
            finally:
                process.kill()
    if process.returncode != 0:
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        raise BadInput(sentence(errors[-1].removeprefix("error: ") if errors else "the measurement failed"))
    return json.loads(out.strip().splitlines()[-1])


def _wait_for(process: subprocess.Popen, what: str, stop: StopFlag) -> Generator[str, None, tuple[str, str]]:
    """Messages while a process runs; returns what it printed and what it complained of."""
    began_s, said_at = time.monotonic(), -1
    while True:
        try:
            return process.communicate(timeout=0.1)
        except subprocess.TimeoutExpired:
            stop.check()
            elapsed_s = int(time.monotonic() - began_s)
            if elapsed_s > PROBE_S:
                raise BadInput(f"{what} takes over an hour here: choose a smaller model or size.") from None
            if elapsed_s != said_at:
                said_at = elapsed_s
                yield f"Measuring {what[0].lower()}{what[1:]}, models loaded for it first: {elapsed_s} s …"
