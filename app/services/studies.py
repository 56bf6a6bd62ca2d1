"""Where the studies of this app live: a database, a folder of served pictures for each study, a copy on the Hub."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path

from app.state import Options
from srpo.studies.hub import Hub
from srpo.studies.store import Store


class Studies:
    """The store of studies, opened when it is first asked for, and its pictures."""

    def __init__(self, options: Options) -> None:
        self.root = options.studies
        self._database = options.database
        self._dataset = options.votes_dataset
        self._lock = threading.Lock()
        self.hub: Hub | None = None  # once started, and if one is wanted

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

    @property
    def is_whole(self) -> bool:
        """Whether no study is still to come back from the Hub."""
        return self._dataset is None or (self.hub is not None and self.hub.is_restored)

    def start(self) -> None:
        """Begins to keep the studies on the Hub, where a dataset is named for them. ValueError, one sentence."""
        if self._dataset is not None and self.hub is None:
            self.hub = Hub(self._dataset, self.store, self.folder, self.root / "hub")
            self.hub.start()

    def close(self) -> None:
        """Brings what is left to the Hub; nothing is stored after it."""
        if self.hub is not None:
            self.hub.stop()

    def folder(self, identity: str) -> Path:
        """Where the served pictures of the study lie; each is named by its `Picture.file`."""
        return self.root / "pictures" / identity
