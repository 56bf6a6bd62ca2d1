"""What a file of weights holds, told by its first bytes: nothing is mapped, and no memory taken for what it claims.

safetensors   8 bytes of length, that many of JSON (each tensor's type, shape and place), then the data
GGUF          "GGUF", a version, two counts, settings, each tensor's name, shape, type and place, then the data

A file may come from anyone, so a header is believed only where it is short, where each tensor lies within the file and
beside the others, and where types, shapes and lengths agree. Everything else is refused by what it is: a pickle (a
program), a web page, a pointer, a download that was cut short. Standard library only: the page may ask.

Sources: the formats' descriptions in huggingface/safetensors and in ggml-org/ggml `docs/gguf.md`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 10_000_000  # FLUX.1's is 120 kB; what trainers write of their data sets into one, a few MB
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
FIRST_BYTES = 512  # enough to tell what a file is

# Bits of one number, by the name of its type in a safetensors header.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

# GGUF's types by their numbers: name, numbers in a block, bytes of a block. A row is a whole number of blocks.
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
QUANTISED = {name: number for number, (name, block, _) in GGML_TYPES.items() if block > 1}

# GGUF's kinds of settings: how a number is packed, by the kind's own number.
GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies on disk."""

    file: Path
    dtype: str  # in the words of the format: F32, F8_E4M3, Q4_K ...
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """All that a file says of itself before its data."""

    file: Path
    form: str  # "safetensors" or "gguf"
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Any]  # text by name; in a GGUF file numbers as well


class _BrokenError(Exception):
    """What of a header does not hold, as a phrase."""


def read_header(file: Path) -> Header:
    """The header of a safetensors or GGUF file, whatever its name.

    ValueError, one sentence, for every other file and for one that is damaged. OSError where it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(FIRST_BYTES)
        opened.seek(0)
        length = int.from_bytes(first[:8], "little")
        try:
            if first[:4] == b"GGUF":
                return _gguf(file, opened, size)
            # A short header's length can begin as a pickle does, so what begins like a header is looked at first.
            if first[8:9] == b"{" and length > 0:
                return _safetensors(file, opened, size)
        except (_BrokenError, KeyError, TypeError, AttributeError, ValueError, RecursionError, struct.error) as error:
            reason = error if isinstance(error, _BrokenError) else "its header makes no sense"
            raise ValueError(f"{file} is damaged: {reason}; download or choose it again.") from error
    raise ValueError(f"{file} is {_what_else(first)}")


def _what_else(first: bytes) -> str:
    """What a file is that is neither, by its first bytes, and what to do."""
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not first:
        return "empty; download it again."
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the weights it stands for; run `git lfs pull`, or download the file itself."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, saved instead of the weights; log in where they are offered and download them again."
    if first.startswith(b"PK\x03\x04") or (first[:1] == b"\x80" and 2 <= first[1] <= 5):
        return (
            "a pickle of PyTorch, or another archive, and a pickle is a program; it was not opened: "
            "choose the same weights as .safetensors or .gguf."
        )
    if text.startswith((b"{", b"[")):
        return "JSON text, not weights; download or choose the file itself."
    return "damaged, or no safetensors or GGUF file; download or choose it again."


def _safetensors(file: Path, opened: BinaryIO, size: int) -> Header:
    length = int.from_bytes(opened.read(8), "little")
    data = 8 + length
    if length > MAX_HEADER_BYTES:
        raise _BrokenError(f"its header claims {length:,} bytes")
    if data > size:
        raise _BrokenError("it ends within its header")
    listed = json.loads(opened.read(length), object_pairs_hook=_without_repeats)
    metadata = listed.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise _BrokenError("its metadata are not text")
    if len(listed) > MAX_TENSORS:
        raise _BrokenError(f"it claims {len(listed):,} tensors")
    entries = {}
    for name, said in listed.items():
        dtype, shape, (begin, end) = said["dtype"], said["shape"], said["data_offsets"]
        if not _are_counts([*shape, begin, end]) or len(shape) > MAX_DIMENSIONS:
            raise _BrokenError(f"{name[:100]} has no possible shape or place")
        if dtype not in BITS:
            raise _BrokenError(f"{name[:100]} is of the unknown type {str(dtype)[:20]}")
        if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
            raise _BrokenError(f"{name[:100]} has another length than its shape says")
        entries[name] = Entry(file, dtype, tuple(shape), data + begin, end - begin)
    _require_whole(entries, data, size, gaps=False)
    return Header(file, "safetensors", entries, metadata)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _BrokenError("its header repeats a name")
    return found


def _are_counts(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _require_whole(entries: dict[str, Entry], data: int, size: int, *, gaps: bool) -> None:
    """Nothing where the tensors lie one after the other and within the file.

    gaps: whether there may be room between them, and after the last.
    """
    at = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if entry.start < at or (entry.start > at and not gaps):
            raise _BrokenError(f"{name[:100]} does not lie where the tensor before it ends")
        at = entry.start + entry.num_bytes
    if at > size:
        raise _BrokenError(f"it is cut short, {size:,} of {at:,} bytes")
    if at < size and not gaps:
        raise _BrokenError(f"it has {size - at:,} bytes too many")


class _Cursor:
    """Reads numbers and texts one after the other, in all no more than a header may be long."""

    def __init__(self, opened: BinaryIO) -> None:
        self.opened = opened
        self.at = 0

    def take(self, num_bytes: int) -> bytes:
        if self.at + num_bytes > MAX_HEADER_BYTES:
            raise _BrokenError(f"its header is longer than {MAX_HEADER_BYTES:,} bytes")
        self.at += num_bytes
        taken = self.opened.read(num_bytes)
        if len(taken) != num_bytes:
            raise _BrokenError("it ends within its header")
        return taken

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def setting(self) -> Any:
        """The value of a setting; None for a list, which no question here is about."""
        kind = self.number("I")
        if kind == GGUF_STRING:
            return self.text()
        if kind != GGUF_ARRAY:
            return self.number(GGUF_SCALARS[kind])
        kind, length = self.number("I"), self.number("Q")
        if kind == GGUF_STRING:
            for _ in range(length):
                self.text()
        else:
            self.take(length * struct.calcsize(f"<{GGUF_SCALARS[kind]}"))
        return None


def _gguf(file: Path, opened: BinaryIO, size: int) -> Header:
    cursor = _Cursor(opened)
    cursor.take(4)
    if (version := cursor.number("I")) not in (2, 3):
        raise _BrokenError(f"its version is {version}, and 2 and 3 are known")
    num_tensors, num_settings = cursor.number("Q"), cursor.number("Q")
    if max(num_tensors, num_settings) > MAX_TENSORS:
        raise _BrokenError(f"it claims {num_tensors:,} tensors and {num_settings:,} settings")
    metadata = dict((cursor.text(), cursor.setting()) for _ in range(num_settings))
    listed = [_gguf_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise _BrokenError("its alignment is not possible")
    data = math.ceil(cursor.at / alignment) * alignment
    entries = {
        name: Entry(file, dtype, shape, data + offset, num_bytes) for name, dtype, shape, num_bytes, offset in listed
    }
    if len(entries) != len(listed):
        raise _BrokenError("it repeats a name")
    _require_whole(entries, data, size, gaps=True)
    return Header(file, "gguf", entries, metadata)


def _gguf_tensor(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, type, shape in the order of torch, bytes, place within the data)."""
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise _BrokenError(f"{name[:100]} has {dimensions:,} dimensions")
    sizes = [cursor.number("Q") for _ in range(dimensions)]
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in GGML_TYPES:
        raise _BrokenError(f"{name[:100]} is of type {number}, which is not read here")
    dtype, block, block_bytes = GGML_TYPES[number]
    if not sizes or not _are_counts([*sizes, offset]) or sizes[0] % block:
        raise _BrokenError(f"{name[:100]} has no possible shape or place")
    return name, dtype, tuple(reversed(sizes)), math.prod(sizes) // block * block_bytes, offset


def content_identity(files: list[Path]) -> str:
    """A key of these files' content: by their sizes, times of change and headers, so that no data is read."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(min(MAX_HEADER_BYTES, _header_end(file))))
    return digest.hexdigest()


def _header_end(file: Path) -> int:
    entries = read_header(file).entries.values()
    return min((entry.start for entry in entries), default=os.path.getsize(file))
