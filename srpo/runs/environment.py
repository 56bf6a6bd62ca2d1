"""What a run was made with: versions, our own code, and the files it read; and how two such accounts differ."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
SOURCES = Path(__file__).resolve().parents[1]  # of the library
MAY_DIFFER = ("commit", "despite")  # the sources themselves are compared; `despite` tells of earlier differences
BLOCKS, BLOCK = 64, 1 << 16  # of a large file, so many blocks of so many bytes stand for the whole


def environment(inputs: Mapping[str, str]) -> dict[str, str]:
    """Versions, commit and sources, and the fingerprint of every input: a folder, a file, or the id of a model."""
    account = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in PACKAGES:
        try:
            account[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            account[package] = "not installed"
    account["commit"] = _commit()
    account["sources"] = _digest_of_files(SOURCES, SOURCES.rglob("*.py"))
    return account | {name: fingerprint(path) for name, path in inputs.items()}


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One phrase for each thing that is not as it was: "torch was 2.12.0 and is 2.13.0 now"."""
    names = [name for name in {**then, **now} if name not in MAY_DIFFER and then.get(name) != now.get(name)]
    called = {"sources": "the code of srpo"}
    return [
        f"{called.get(name, name)} was {then.get(name, 'not recorded')} and is {now.get(name, 'not recorded')} now"
        for name in names
    ]


def fingerprint(path: str | Path) -> str:
    """16 hexadecimal digits of a file's or a folder's names, sizes and contents; an id that is no path stays as it is.

    Of files above 4 MB, evenly spread blocks are read: that tells any two trainings apart, and takes milliseconds.
    """
    path = Path(path)
    if path.is_file():
        return _digest_of_files(path.parent, [path])
    if path.is_dir():
        return _digest_of_files(path, (file for file in path.rglob("*") if file.is_file()))
    return str(path)


def _digest_of_files(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root)} {size}\n".encode())
        with file.open("rb") as opened:
            if size <= BLOCKS * BLOCK:
                digest.update(opened.read())
                continue
            for block in range(BLOCKS):
                opened.seek(block * (size - BLOCK) // (BLOCKS - 1))
                digest.update(opened.read(BLOCK))
    return digest.hexdigest()[:16]


def _commit() -> str:
    """The commit that is checked out, or "none"."""
    command = ["git", "-C", os.fspath(SOURCES), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"
