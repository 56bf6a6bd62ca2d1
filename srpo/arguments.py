"""How the commands read their arguments: each function here is a `type` of argparse, or makes one."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def numbers(kind: type, count: int | None = None) -> Callable[[str], tuple]:
    """Reads numbers with commas between them; exactly `count`, where that is given."""

    def read(text: str) -> tuple:
        try:
            found = tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected numbers with a comma between them, got {text!r}") from None
        if count is not None and len(found) != count:
            raise argparse.ArgumentTypeError(f"expected {count} numbers with a comma between them, got {text!r}")
        return found

    return read


def in_utf8(text: str) -> str:
    """Reads a text, whose bytes in another encoding no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:  # the interpreter's stand-ins for such bytes
        raise argparse.ArgumentTypeError("expected a text in UTF-8") from None
    return text
