"""Files of one JSON object per line that grow at their end: appended, followed, cut back, and read in part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

Record = TypeVar("Record")
BLOCK = 1 << 16  # bytes


class Lines(list[Record], Generic[Record]):
    """The records of a growing file so far, in order, and the place up to which it was read."""

    end: int = 0  # bytes: behind the last whole line that was read
    last: bytes = b""  # that line; while it still stands before `end`, nothing behind us was cut back


def read_lines(
    path: Path, parse: Callable[[dict], Record], after: Lines[Record] | None = None, at_most: int | None = None
) -> Lines[Record]:
    """All records of the file; a last line without its line break is being written, or torn, and left out.

    after: what an earlier call returned: only what has been added since is read. Where the file was cut back meanwhile,
    it is read anew.
    at_most: of a log with more than twice as many unread lines, about that many evenly spread ones are read, the first
    and the last among them.
    ValueError, naming the line, where one cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return Lines()
    with file:
        lines: Lines[Record] = Lines()
        if after and _still_stands(file, after):
            lines.extend(after)
            lines.end, lines.last = after.end, after.last
        for offset, line in _unread(file, lines.end, at_most):
            try:
                lines.append(parse(json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"line {_number(file, offset)} of {path} cannot be read: {error}") from error
            lines.end, lines.last = offset + len(line), line
    return lines


def append_line(path: Path, record: dict) -> None:
    """Adds a line, and sees it on the disk."""
    with path.open("ab") as file:
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def cut_back(path: Path, keep: Callable[[dict], bool]) -> None:
    """Cuts the file before the first line that is not to be kept, or that a kill has torn.

    ValueError, naming the line, where a whole one cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = 0
        for offset, line in _unread(file, 0, None):
            try:
                if not keep(json.loads(line)):
                    break
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(f"line {_number(file, offset)} of {path} cannot be read: {error}") from error
            end = offset + len(line)
        file.truncate(end)
        os.fsync(file.fileno())


def _still_stands(file: BinaryIO, after: Lines) -> bool:
    file.seek(after.end - len(after.last))
    return file.read(len(after.last)) == after.last


def _unread(file: BinaryIO, start: int, at_most: int | None) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the whole lines from `start` on, or of some of them."""
    file.seek(start)
    first = file.readline()
    size = file.seek(0, os.SEEK_END) - start
    if at_most is not None and size > 2 * at_most * max(len(first), 1):
        yield from _spread(file, start, size, at_most)
        return
    file.seek(start)
    for line in file:
        if line.endswith(b"\n"):
            yield start, line
        start += len(line)


def _spread(file: BinaryIO, start: int, size: int, count: int) -> list[tuple[int, bytes]]:
    """Whole lines at about `count` evenly spread places, the first and the last line among them."""
    found = {}
    for place in range(count):
        file.seek(start + place * size // count)
        if place:
            file.readline()  # the rest of a line
        offset = file.tell()
        line = file.readline()
        if line.endswith(b"\n"):
            found[offset] = line
    offset, line = _last_line(file, start, start + size)
    found[offset] = line
    return sorted(found.items())


def _last_line(file: BinaryIO, start: int, end: int) -> tuple[int, bytes]:
    """(offset, line) of the last whole line of a stretch that begins with a line and holds one at least."""
    block = BLOCK
    while True:
        begin = max(start, end - block)
        file.seek(begin)
        whole = file.read(end - begin).rpartition(b"\n")[0]
        before, found, line = whole.rpartition(b"\n")
        if found or begin == start:
            return begin + len(before) + len(found), line + b"\n"
        block *= 2


def _number(file: BinaryIO, offset: int) -> int:
    """Which line begins at the offset, counted from 1."""
    file.seek(0)
    return 1 + sum(file.read(min(BLOCK, offset - at)).count(b"\n") for at in range(0, offset, BLOCK))
