"""Starting, stopping, taking up, repeating and deleting runs from outside: what a page's buttons do.

A job is `python -m srpo.training` in a session of its own, so it outlives whoever started it. Nothing but the run
folder, its locks and two signals passes between them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal

from srpo.runs.atomic import remove_folder
from srpo.runs.claim import Handover, take_run
from srpo.runs.environment import SOURCES
from srpo.runs.folder import RunFolder
from srpo.runs.locks import DeviceLock, FileLock
from srpo.runs.processes import is_alive, is_here, job_of, kill_group, send, this_host
from srpo.runs.records import LIVE, JobRecord, RunState

JOB = ("-m", "srpo.training")
STALLED_AFTER_S = 15.0  # three heartbeats of five seconds
HUNG_AFTER_S = 600.0  # signs of life, but the work itself has not moved: a device that hangs
GRACE_S = 10.0
SAVING_GRACE_S = 1800.0  # a large checkpoint is not torn off while it is being written
KILLED_WITHIN_S = 10.0  # after SIGKILL; what takes longer hangs in the kernel
BEGINS_WITHIN_S = 5.0  # a process that was announced

Liveness = Literal["running", "stalled", "lost", "ended", "not begun"]


def start_run(
    root: str | Path,
    name: str | None = None,
    preset: str | None = None,
    assignments: Sequence[str] = (),
    *,
    device: str | None = None,
    like: RunFolder | None = None,
) -> RunFolder:
    """A new run below `root`, starting in a process of its own.

    preset, assignments: as the command line's --preset and --set. device: the setting of that name; where it is not
    given, that of the assignments, of `like`, or the CPU. like: takes the settings of that run instead of a preset's.
    Returns at once; what is wrong with the settings is then in the state.
    ValueError where the name does not fit or is taken, or nothing can be written there; Busy where the device is.
    """
    name = name or f"{datetime.now():%Y%m%d-%H%M%S}-{like.name if like else preset or 'studio'}"
    folder = Path(root).resolve() / require_name(name)
    if folder.exists():
        raise ValueError(f"there is a run {name!r} already: choose another name")
    device = device or _device_of(assignments, like)
    source = ["--like", str(like.path.resolve())] if like else ["--preset", preset or "studio"]
    with _taken(device, name) as lock:
        run = RunFolder.prepare(folder)
        _launch(run, lock, [*source, "--out", str(folder)], assignments)
    return run


def duplicate_run(
    run: RunFolder, name: str | None = None, assignments: Sequence[str] = (), *, device: str | None = None
) -> RunFolder:
    """A new run beside this one, with its settings but for these changes. Errors as for `start_run`."""
    return start_run(run.path.parent, name, assignments=assignments, device=device, like=run)


def resume_run(
    run: RunFolder,
    updates: int | None = None,
    from_update: int | None = None,
    *,
    device: str | None = None,
    despite_changes: bool = False,
) -> RunFolder:
    """The run, taken up again in a process of its own.

    updates: how many it shall have in all, to extend it. from_update: goes back to the checkpoint of that update, or
    to the start with 0; what came later is removed. ValueError where there is no such checkpoint; Busy where the
    device, or the run, is in use.
    """
    if run.is_new():
        raise ValueError(f"{run.name} has never begun: start a new run")
    device = device or run.config()["device"]
    arguments = ["--resume", str(run.path.resolve())]
    if from_update is not None:
        require_way_back(run, from_update)
        arguments += ["--from-update", str(from_update)]
    if updates is not None:
        require_more(run, updates, from_update)
    if despite_changes:
        arguments.append("--despite-changes")
    with _taken(device, run.name) as lock:
        _launch(run, lock, arguments, [f"updates={updates}"] if updates is not None else [])
    return run


def require_more(run: RunFolder, updates: int, from_update: int | None = None) -> None:
    """Nothing where the run would have something to do up to that many updates; else ValueError."""
    state = run.state()
    done = from_update if from_update is not None else (state.update if state else 0)
    if updates <= done:
        raise ValueError(f"{run.name} has done {done} updates: ask for more than that, not for {updates} in all")


def require_way_back(run: RunFolder, update: int) -> None:
    """Nothing where the run can go back to that update; else ValueError."""
    if update not in (there := [0, *run.checkpoint_updates()]):
        raise ValueError(f"{run.name} cannot go back to update {update}: choose one of {', '.join(map(str, there))}")
    if later := [kept for kept in run.kept() if kept > update and kept in there]:
        raise ValueError(
            f"going back to update {update} would remove the checkpoint of update {later[0]}, which is to be kept: "
            "unmark it, or start a new run with these settings"
        )


def liveness(run: RunFolder) -> Liveness:
    """Whether a job works on the run: by its process's identity, its heartbeat and the run's lock.

    "lost": it should, but its process is gone. "stalled": no sign of life for three heartbeats, or none of the work
    itself for ten minutes. ValueError where the folder's records cannot be read.
    """
    state, job = run.state(), run.job()
    if state is None:
        return "not begun"
    if state.status not in LIVE:
        return "lost" if state.status == "lost" else "ended"
    if job is not None and job.host != this_host():  # of its processes nothing is known but the heartbeat
        return "lost" if _is_stalled(run, job) else "running"
    if job is not None and is_alive(job):
        return "stalled" if _is_stalled(run, job) else "running"
    announced = state.status == "starting" and FileLock(run.path).is_held()  # its process comes in a moment
    return "running" if announced else "lost"


def settle(run: RunFolder) -> RunState | None:
    """The run's state, after one whose process is gone was marked as lost, with what its log says last."""
    state = run.state()
    if state is None or state.status not in LIVE or liveness(run) != "lost":
        return state
    words = next((line for line in reversed(run.log_tail().splitlines()) if line.strip()), "")
    message = f"its process ended without a word: killed, out of memory, or the machine was restarted; {_goes_on(run)}"
    return _close(run, "lost", message + (f" (last in its log: {words.strip()[:200]})" if words else ""))


def request_stop(run: RunFolder) -> JobRecord | None:
    """Asks the run's job to save and end, without waiting; None where none works on it.

    ValueError where the job cannot be reached from here.
    """
    if liveness(run) not in ("running", "stalled"):
        return None
    job = _job_at_last(run)
    if job is None:
        return None
    if not is_here(job):
        raise ValueError(f"{run.name} runs on {job.host}: stop it there")
    if job.in_process:
        raise ValueError(f"{run.name} runs inside process {job.pid}: stop it where it was started")
    return job if send(job, signal.SIGTERM) else None


def stop_run(run: RunFolder, grace_s: float = GRACE_S) -> RunState | None:
    """The run's state after its job has ended: asked first, after the grace killed with all that it started.

    A job that is writing a checkpoint gets more time. Errors as for `request_stop`.
    """
    job = request_stop(run)
    if job is None:
        return settle(run)
    asked, killed_at = time.monotonic(), None
    while is_alive(job):
        now = time.monotonic()
        if killed_at is None and now - asked > (SAVING_GRACE_S if _is_saving(run) else grace_s):
            kill_group(job)
            killed_at = now
        if killed_at is not None and now - killed_at > KILLED_WITHIN_S:
            raise ValueError(f"process {job.pid} cannot be ended, it waits for its disk or device: restart the machine")
        time.sleep(0.02)
    state = run.state()
    if state is None or state.status not in LIVE:  # it has said itself how it ended
        return state
    how = "it was ended before it could say so" if killed_at is None else f"it did not answer within {grace_s:g} s"
    return _close(run, "stopped", f"{how}; {_goes_on(run)}")


def delete_run(run: RunFolder) -> None:
    """Removes the run and everything in its folder. Busy while a job works on it."""
    lock = take_run(RunFolder.open(run.path))
    try:
        remove_folder(run.path)
    finally:
        lock.release()


def require_name(name: str) -> str:
    """The name, where it can be that of a run's folder; else ValueError."""
    if not re.fullmatch(r"\w[\w .+-]{0,99}", name) or name.endswith((".", " ", ".tmp")):
        raise ValueError(
            f"a run cannot be named {name[:120]!r}: use up to 100 letters, digits, spaces, '-', '_', '+' and '.', "
            "and no parts of a path"
        )
    return name


@contextmanager
def _taken(device: str, name: str) -> Iterator[DeviceLock]:
    """The device, held here until the job has inherited it."""
    lock = DeviceLock(device)
    lock.require(f"run {name}")
    try:
        yield lock
    finally:
        lock.release()


def _launch(run: RunFolder, device: DeviceLock, arguments: list[str], assignments: Sequence[str]) -> None:
    """Starts the job of a run. It inherits both locks; ours are let go."""
    lock = take_run(run)
    try:
        before = None if run.is_prepared() else run.state()
        if before:
            run.write_state("starting", before.update, updates=before.updates)
        handover = Handover([device.fileno(), lock.fileno()], before)
        process = _spawn(run, handover, [*arguments, *_set(assignments, device.device)])
        device.name_holder(f"run {run.name} (process {process.pid})")
        with suppress(ProcessLookupError):  # it has ended already; `settle` will find its last words
            run.write_job(job_of(process.pid, device.device))
        threading.Thread(target=process.wait, daemon=True).start()  # takes its remains away when it ends
    finally:
        lock.release()


def _spawn(run: RunFolder, handover: Handover, arguments: list[str]) -> subprocess.Popen:
    try:
        with run.log.open("ab") as log:
            return spawn([*JOB, *arguments], log, handover)
    except OSError as error:
        message = f"no process could be started: {error}"
        run.write_state("failed", handover.before.update if handover.before else 0, message)
        raise ValueError(message) from error


def spawn(arguments: Sequence[str], log: BinaryIO, handover: Handover) -> subprocess.Popen:
    """Python with these arguments, as a process that outlives this one: its words go to the log, the locks to it."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=handover.locks,
        env=_environment() | handover.told(),
    )


def _device_of(assignments: Sequence[str], like: RunFolder | None) -> str:
    named = [value for name, _, value in (change.partition("=") for change in assignments) if name == "device"]
    return [like.config()["device"] if like else "cpu", *named][-1]


def _set(assignments: Sequence[str], device: str) -> list[str]:
    return [part for change in [*assignments, f"device={device}"] for part in ("--set", change)]


def _environment() -> dict[str, str]:
    """Ours, in which the library is found from any folder, and threads wait for one another as suits a run.

    Where several share a product, a thread that sleeps at once costs the miniature half as much time again, one that
    spins on (libgomp's default: for milliseconds) several times as much wherever another program wants its core; so it
    spins briefly.
    """
    paths = [str(SOURCES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000", "PYTHONFAULTHANDLER": "1"}
    return waiting | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _job_at_last(run: RunFolder) -> JobRecord | None:
    """The process that works on the run, waited for where it is only announced; None where it ended meanwhile."""
    give_up = time.monotonic() + BEGINS_WITHIN_S
    while (job := run.job()) is None or (job.host == this_host() and not is_alive(job)):
        if time.monotonic() > give_up or liveness(run) != "running":
            return None
        time.sleep(0.02)
    return job


def _close(run: RunFolder, status: Literal["stopped", "lost"], message: str) -> RunState | None:
    """Writes how a run ended whose job cannot any more; not where another job has just taken it up."""
    lock = FileLock(run.path)
    if not lock.acquire():
        return run.state()
    state = run.state()
    try:
        if state is not None and state.status in LIVE:
            run.write_state(status, state.update, message, updates=state.updates)
        return run.state()
    except OSError:  # a folder that can only be read
        return RunState(status, state.update, message, updates=state.updates)
    finally:
        lock.release()


def _goes_on(run: RunFolder) -> str:
    updates = run.checkpoint_updates()
    return f"it can go on from update {updates[-1]}" if updates else "it has no checkpoint yet and begins anew"


def _is_stalled(run: RunFolder, job: JobRecord) -> bool:
    try:
        began = datetime.fromisoformat(job.began).timestamp()
    except OverflowError as error:  # a year that no clock here knows
        raise ValueError(f"{run.name} says of its process that it began at {job.began[:40]!r}") from error
    beat, now = run.heartbeat(), time.time()
    if beat is None or beat.time < began:  # an earlier job's
        return now - began > STALLED_AFTER_S
    return now - beat.time > STALLED_AFTER_S or now - max(beat.active, began) > HUNG_AFTER_S


def _is_saving(run: RunFolder) -> bool:
    beat = run.heartbeat()
    return beat is not None and beat.phase == "saving" and time.time() - beat.time < STALLED_AFTER_S
