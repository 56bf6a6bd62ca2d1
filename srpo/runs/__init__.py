"""Run folders: the only thing that passes between a training and everything else. Standard library only."""

from srpo.runs.control import (
    delete_run,
    duplicate_run,
    liveness,
    request_stop,
    resume_run,
    settle,
    start_run,
    stop_run,
)
from srpo.runs.folder import LORA_NAME, WEIGHTS_NAME, RunFolder, Samples, list_runs
from srpo.runs.locks import Busy, DeviceLock, device_holder
from srpo.runs.records import BestRecord, Heartbeat, JobRecord, RunState, UpdateRecord, ValidationRecord

__all__ = [
    "LORA_NAME",
    "WEIGHTS_NAME",
    "BestRecord",
    "Busy",
    "DeviceLock",
    "Heartbeat",
    "JobRecord",
    "RunFolder",
    "RunState",
    "Samples",
    "UpdateRecord",
    "ValidationRecord",
    "delete_run",
    "device_holder",
    "duplicate_run",
    "list_runs",
    "liveness",
    "request_stop",
    "resume_run",
    "settle",
    "start_run",
    "stop_run",
]
