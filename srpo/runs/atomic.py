"""Files and folders that appear whole or not at all, even when the process is killed or the power fails; and
locks on them.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"  # how the names of unfinished files and folders end; no finished one's does


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replaces the file's content by `text` in one step.

    durable=False does not wait for the disk: after a power failure the file may be the old one, or empty.
    """
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=durable)


def write_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Replaces the file by what `write(temporary path)` writes, in one step. The old file stays where that fails."""
    with replaced(path, durable=durable) as temporary:
        write(temporary)


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path; what was written there takes the file's place at the end, where nothing was raised."""
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync(path.parent)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Makes the new folder from what `write(temporary folder)` puts there, in one step.

    FileExistsError where the folder is there already.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        write(temporary)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Removes the folder, if there is one. It is gone in one step; a kill leaves at most a temporary one."""
    doomed = _temporary(path)
    try:
        os.rename(path, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def remove_temporary(folder: Path) -> None:
    """Removes what killed processes left unfinished in the folder. Nobody may be writing there meanwhile."""
    for left in folder.glob(f"*{TEMPORARY}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A sibling, so that the rename stays on one file system; no two writers, threads included, share one."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flock(opened: int, *, exclusive: bool) -> bool:
    """True where the lock on the open file was taken, False where another has one.

    ValueError where the system or the file system has no such locks.
    """
    try:
        import fcntl  # missing on Windows, where the rest of this package can still be read
    except ImportError as error:
        raise ValueError("training needs Linux or macOS: on Windows, use WSL") from error
    try:
        fcntl.flock(opened, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise ValueError("the file system of this folder has no locks: choose a folder on a local disk") from error
        raise
    return True
