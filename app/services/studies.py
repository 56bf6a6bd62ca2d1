"""Where the studies of this app live: one database, and a folder of served pictures for each study."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path

from app.state import Options
from srpo.studies.store import Store


class Studies:
    """The store of studies, opened when it is first asked for, and its pictures."""

    def __init__(self, options: Options) -> None:
        self.root = options.studies
        self._database = options.database
        self._lock = threading.Lock()

    @property
    def store(self) -> Store:
        """The open store. ValueError, one sentence, where the database cannot be used."""
        with self._lock:  # two visitors may be the first
            return self._opened

    @cached_property
    def _opened(self) -> Store:
        if self._database is not None:
            return Store(self._database)
        self.root.mkdir(parents=True, exist_ok=True)
        return Store(self.root / "studies.db")

    def folder(self, identity: str) -> Path:
        """Where the served pictures of the study lie; each is named by its `Picture.file`."""
        return self.root / "pictures" / identity
