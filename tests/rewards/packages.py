"""Packages that cannot live beside ours, installed without their dependencies to folders of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def installed(folder: Path, variable: str, *requirements: str) -> str:
    """The folder named by an environment variable, or else this one with the requirements installed; or a skip."""
    if os.environ.get(variable):
        return os.environ[variable]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot be installed here: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return str(folder)
