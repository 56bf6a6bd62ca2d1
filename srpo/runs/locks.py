"""Who uses a device, and who works on a run: locks that the system lets go when their holder ends, however it ends.

A lock is a `flock` on an open file. It belongs to the open file rather than to a process: a parent takes it, hands it
to the job by inheritance, and closes its own copy, so between "started" and "the job holds it" nobody comes in.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from srpo.runs.atomic import flock

RUNTIME_VARIABLE = "SRPO_RUNTIME_DIR"  # where the locks of devices lie, e.g. to share them between users
PATIENCE_S = 0.3  # a look at who holds a lock holds it for a moment, which must not refuse anybody


class Busy(ValueError):
    """The device, or the run, is in use; the sentence says by whom."""


class FileLock:
    """A lock on a file or a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """True once it is ours; False where another has it."""
        if self._file is not None:
            raise RuntimeError(f"the lock on {self.path} is already held here")
        opened = _open(self.path)
        give_up = time.monotonic() + PATIENCE_S
        while not flock(opened, exclusive=True):
            if time.monotonic() > give_up:
                os.close(opened)
                return False
            time.sleep(0.01)
        self._file = opened
        return True

    def release(self) -> None:
        """Lets it go, here; where a child has inherited it, the child goes on holding it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def fileno(self) -> int:
        """The open file that holds the lock, for a child to inherit."""
        if self._file is None:
            raise RuntimeError(f"the lock on {self.path} is not held here")
        return self._file

    def adopt(self, inherited: int) -> bool:
        """True where the open file is the one of this lock; then it is ours now, and closes with us."""
        try:
            theirs, ours = os.fstat(inherited), os.stat(self.path)
        except OSError:
            return False
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            return False
        os.set_inheritable(inherited, False)
        self._file = inherited
        return True

    def is_held(self) -> bool:
        """True where anybody holds it, ourselves included."""
        if self._file is not None:
            return True
        try:
            opened = _open(self.path)
        except OSError:  # no file, no holder
            return False
        try:
            return not flock(opened, exclusive=False)
        finally:
            os.close(opened)


class DeviceLock(FileLock):
    """The right to use a device. The file says who has it, so that others can name the holder."""

    def __init__(self, device: str) -> None:
        super().__init__(runtime_folder() / f"{device_key(device)}.lock")
        self.device = device

    def acquire(self, holder: str) -> bool:
        """True once it is ours; False, at once, where another has it. holder: who we are, in words for others."""
        try:
            self.path.touch(mode=0o600)
            taken = super().acquire()
        except OSError as error:
            raise ValueError(
                f"the lock {self.path} cannot be taken ({error.strerror}): set {RUNTIME_VARIABLE} to a folder of yours"
            ) from error
        if not taken:
            return False
        self.name_holder(holder)
        return True

    def name_holder(self, holder: str) -> None:
        """Says who has it; only for the one who does."""
        os.ftruncate(self.fileno(), 0)
        os.pwrite(self.fileno(), holder.encode(), 0)

    def require(self, holder: str) -> None:
        """Takes it. Busy, naming the holder, where another has it."""
        if not self.acquire(holder):
            raise self._refusal()

    def require_free(self) -> None:
        """Nothing where nobody has it now; else Busy, naming the holder."""
        if self.is_held():
            raise self._refusal()

    def holder(self) -> str | None:
        """Who has it, in words; None where nobody has."""
        if not self.is_held():
            return None
        try:
            return self.path.read_text(encoding="utf-8", errors="replace") or "another program"
        except FileNotFoundError:
            return None

    def _refusal(self) -> Busy:
        return Busy(
            f"the device {self.device} is in use by {self.holder() or 'another program'}: "
            "wait until that has ended, stop it, or choose another device"
        )


def device_holder(device: str) -> str | None:
    """Who uses the device, in words; None where nobody does."""
    return DeviceLock(device).holder()


def device_key(device: str) -> str:
    """The device's name on this machine: of "cuda" and "cuda:0" the same, and of the card behind it."""
    kind, _, index = device.strip().lower().partition(":")
    if kind != "cuda":
        return re.sub(r"\W", "-", kind)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    place = int(index) if index.isdigit() else 0
    return re.sub(r"[^\w-]", "-", f"cuda-{visible[place] if place < len(visible) else place}")


def runtime_folder() -> Path:
    """Where the locks of devices lie: one place per user, whatever session they are in. Made where it is missing.

    (XDG_RUNTIME_DIR is emptied at logout, while a run goes on.)
    """
    named = os.environ.get(RUNTIME_VARIABLE)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"srpo-studio-{user}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} is no folder for locks: set {RUNTIME_VARIABLE} to a folder of yours") from error
    return folder


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
