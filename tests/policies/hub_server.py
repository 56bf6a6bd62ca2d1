"""A small server with the endpoints of the Hugging Face hub that a download uses. It misbehaves when told to."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub import HubHandler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_into(cache: Path, repository: str, write: Callable[[Path], object]) -> Path:
    """The folder of a repository in the hub's cache, as a download leaves it; `write` fills it."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    write(folder)
    return folder


@dataclass
class Repository:
    """One repository: its files, and who may read them."""

    files: dict[str, bytes]
    gated: str | bool = False
    token: str | None = None  # that may read a gated one
    cut_after: dict[str, int] = field(default_factory=dict)  # bytes of a file after which the next reading breaks off


@dataclass
class Hub:
    """The server's repositories by id, and what was asked of it."""

    repositories: dict[str, Repository]
    address: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    is_broken: bool = False  # it breaks off every reading
    wait_s: float = 0  # before a file's content


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """The hub while it answers."""

    class Handler(HubHandler):
        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?", path)
            if match:
                self._list(match[1], as_tree=match[2] == "tree")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._file(match[1], match[2])
            else:
                self.send(404, b"{}")

        def _list(self, name: str, *, as_tree: bool) -> None:
            if (repository := hub.repositories.get(name)) is None:
                self.send(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                return
            sizes = {path: len(content) for path, content in repository.files.items()}
            if as_tree:
                listed: object = [
                    {"type": "file", "path": path, "size": size, "oid": _etag(repository.files[path])}
                    for path, size in sizes.items()
                ]
            else:
                siblings = [{"rfilename": path, "size": size} for path, size in sizes.items()]
                listed = {"id": name, "sha": COMMIT, "siblings": siblings, "gated": repository.gated}
            self.send(200, json.dumps(listed).encode())

        def _file(self, name: str, path: str) -> None:
            repository = hub.repositories[name]
            given = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            if repository.gated and given != repository.token:
                status = 401 if given is None else 403
                self.send(status, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
                return
            content = repository.files[path]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted else 0
            if wanted:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            if self.command == "HEAD":
                self.send(200, content, headers)
                return
            time.sleep(hub.wait_s)
            last = repository.cut_after.get(path)
            if last is None:
                self.send(206 if wanted else 200, content[first:], headers)
                return
            if not hub.is_broken:
                del repository.cut_after[path]
            self.send(
                206 if wanted else 200, content[first:last], {**headers, "Content-Length": str(len(content) - first)}
            )
            self.close_connection = True

    with serving(Handler) as hub.address:
        yield hub


def _etag(content: bytes) -> str:
    """As the hub: of a large file its SHA-256, of a small one git's shorter hash."""
    return (hashlib.sha256 if len(content) > 10**6 else hashlib.sha1)(content).hexdigest()
