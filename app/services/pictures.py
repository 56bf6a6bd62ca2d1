"""Finished pictures as files: written once, served byte for byte, forgotten after a while."""

from __future__ import annotations

import atexit
import base64
import io
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

MAX_PUBLISHED_SIDE = 512  # pixels


def data_uri(image: Image.Image) -> str:
    """The picture as a `data:` address, for previews too short-lived for a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass
class Folder:
    """The pictures of one run."""

    path: Path
    born_s: float  # by time.monotonic
    num_bytes: int = 0


class PictureStore:
    """A private folder of finished pictures, each below an unguessable name; the oldest runs go first."""

    def __init__(self, max_folders: int = 400, max_bytes: int = 2**30, max_age_s: float = 24 * 3600) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="srpo-studio-")).resolve()
        self._max_folders, self._max_bytes, self._max_age_s = max_folders, max_bytes, max_age_s
        self._folders: dict[Path, Folder] = {}  # the oldest first
        self._published: dict[Path, tuple[int, Path]] = {}  # the state of an original, and its served copy
        self._lock = threading.Lock()
        atexit.register(self.close)

    def new_folder(self) -> Path:
        """A fresh folder for the pictures of one run; what is beyond the limits is removed."""
        path = self.root / secrets.token_urlsafe(12)
        path.mkdir()
        with self._lock:
            self._folders[path] = Folder(path, time.monotonic())
            self._forget(spared=path)
        return path

    def save(self, folder: Path, name: str, image: Image.Image, texts: PngImagePlugin.PngInfo) -> Path:
        """The path of the PNG written. Other runs' pictures make room for it."""
        path = folder / f"{name}.png"
        buffer = io.BytesIO()
        image.save(buffer, "PNG", pnginfo=texts)
        with self._lock:
            folder.mkdir(exist_ok=True)  # a long run may have been forgotten in the meantime
            path.write_bytes(buffer.getbuffer())
            run = self._folders.setdefault(folder, Folder(folder, time.monotonic()))
            run.num_bytes += buffer.tell()
            self._forget(spared=folder)
        return path

    def publish(self, folder: Path, original: Path) -> Path:
        """The served copy, no larger than MAX_PUBLISHED_SIDE, of a picture that lies where the page may not look.

        It is made at the first call, and anew when the original has changed or the copy was forgotten. OSError where
        the original is gone or no picture.
        """
        state = original.stat().st_mtime_ns
        known = self._published.get(original)
        if known is not None and known[0] == state and known[1].exists():
            return known[1]
        with Image.open(original, formats=["PNG"]) as image:
            image.thumbnail((MAX_PUBLISHED_SIDE, MAX_PUBLISHED_SIDE))
            name = f"{original.parent.name}-{original.stem}-{secrets.token_hex(4)}"
            copy = self.save(folder, name, image, PngImagePlugin.PngInfo())
        self._published[original] = state, copy
        return copy

    def _forget(self, spared: Path) -> None:
        """Removes the oldest runs until the rest is within the limits of number, bytes and age."""
        too_old_s = time.monotonic() - self._max_age_s
        for folder in [folder for folder in self._folders.values() if folder.path != spared]:
            num_bytes = sum(other.num_bytes for other in self._folders.values())
            within = len(self._folders) <= self._max_folders and num_bytes <= self._max_bytes
            if within and folder.born_s >= too_old_s:
                return
            shutil.rmtree(folder.path, ignore_errors=True)
            del self._folders[folder.path]
            for original, (_, copy) in list(self._published.items()):
                if copy.parent == folder.path:
                    del self._published[original]

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
