"""Processes as they are known across restarts: pid, start time and the machine's boot together, never the pid alone.

Linux tells all three in /proc. Elsewhere (macOS) `ps` and `sysctl` are asked.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from srpo.runs.records import JobRecord

PROC = Path("/proc")


def this_job(device: str, *, in_process: bool = False) -> JobRecord:
    """This very process, as the job of a run."""
    return job_of(os.getpid(), device, in_process=in_process)


def job_of(pid: int, device: str, *, in_process: bool = False) -> JobRecord:
    """The record of a process that lives now. ProcessLookupError where it does not."""
    if (started := start_time(pid)) is None:
        raise ProcessLookupError(f"there is no process {pid}")
    began = datetime.now(UTC).isoformat(timespec="milliseconds")
    return JobRecord(pid, started, boot_id(), this_host(), device, began, in_process)


def is_alive(job: JobRecord) -> bool:
    """True where that very process runs on this machine; another one that got its pid later is a stranger."""
    return is_here(job) and start_time(job.pid) == job.started


def is_here(job: JobRecord) -> bool:
    """True where the job was begun on this machine, since it was started last."""
    return (job.host, job.boot_id) == (this_host(), boot_id())


def start_time(pid: int) -> str | None:
    """When the process began, in the words of its system; None where there is none, or only its remains."""
    if PROC.joinpath("self", "stat").exists():
        try:
            stat = PROC.joinpath(str(pid), "stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # from field 3 on: the name before it may hold anything
        return None if fields[0] in "ZX" else fields[19]  # field 22, in clock ticks since boot
    said = _said("ps", "-o", "state=,lstart=", "-p", str(pid)).split(maxsplit=1)
    return said[1].strip() if len(said) == 2 and not said[0].startswith("Z") else None


def this_host() -> str:
    return socket.gethostname()


@cache
def boot_id() -> str:
    """What tells this start of the machine from every other."""
    try:
        return PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _said("sysctl", "-n", "kern.bootsessionuuid").strip() or "unknown"


def send(job: JobRecord, number: signal.Signals) -> bool:
    """True where the signal was sent to the job's process; False where that has ended. A stranger never gets it."""
    try:
        process = os.pidfd_open(job.pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # not Linux, or one without them: the moment between look and signal stays
        if alive := is_alive(job):
            os.kill(job.pid, number)
        return alive
    try:
        if not is_alive(job):  # looked at after opening: what is open cannot be replaced by another any more
            return False
        signal.pidfd_send_signal(process, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(process)


def kill_group(job: JobRecord) -> None:
    """Ends the job's process, and all that it started where it leads a group of its own, without asking."""
    try:
        if is_alive(job) and os.getpgid(job.pid) == job.pid:
            os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    send(job, signal.SIGKILL)


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
