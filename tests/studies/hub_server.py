"""The few addresses of the Hub that keeping studies there uses, on loopback, with datasets in memory."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tests.hub import HubHandler, serving

TOKEN = "hf_of_these_tests"


@dataclass
class HubServer:
    """What is there, and what has been asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # of the one dataset, as committed last
    exists: bool = False
    private: bool = True
    fails: bool = False  # answers everything by 500
    commits: list[list[str]] = field(default_factory=list)  # the names in each
    strangers: list[str] = field(default_factory=list)  # requests that came without the token, or mean nothing here
    address: str = ""

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def journals(self) -> list[dict]:
        """The lines of all journals."""
        texts = (data.decode() for name, data in sorted(self.files.items()) if name.startswith("journals/"))
        return [json.loads(line) for text in texts for line in text.splitlines()]


@contextmanager
def hub_server():
    """A HubServer that answers for as long as the block runs."""
    hub = HubServer()

    class Handler(HubHandler):
        def body(self):
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self):
            method = self.command
            body, path = self.body(), unquote(urlsplit(self.path).path)
            if hub.fails:
                return self.send(500, b"{}")
            if path == "/api/agent-harnesses":  # the library's own question, which every program of it asks
                return self.send(404, b"{}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                hub.strangers.append(f"{method} {path} without the token")
                return self.send(401, b"{}")
            if path == "/api/repos/create":
                asked = json.loads(body)
                assert asked["type"] == "dataset" and (asked.get("private") or asked.get("visibility") == "private")
                status, hub.exists = (409 if hub.exists else 200), True
                return self.send(status, json.dumps({"url": f"{hub.address}/datasets/owner/votes"}).encode())
            if re.fullmatch(r"/api/datasets/owner/votes(/revision/\w+)?", path):
                info = {"id": "owner/votes", "sha": hub.sha, "private": hub.private}
                info["siblings"] = [{"rfilename": name} for name in sorted(hub.files)]
                return self.send(200, json.dumps(info).encode())
            if path.startswith("/api/datasets/owner/votes/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in sorted(hub.files.items())
                ]
                return self.send(200, json.dumps(tree).encode())
            if path == "/api/datasets/owner/votes/preupload/main":
                modes = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
                return self.send(200, json.dumps({"files": modes}).encode())
            if path == "/api/datasets/owner/votes/commit/main":
                lines = [json.loads(line) for line in body.splitlines()]
                added = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
                hub.files |= {name: base64.b64decode(value["content"]) for name, value in added.items()}
                hub.commits.append(list(added))
                done = {
                    "success": True,
                    "commitOid": hub.sha,
                    "commitUrl": f"{hub.address}/datasets/owner/votes/commit/{hub.sha}",
                }
                return self.send(200, json.dumps(done).encode())
            found = re.fullmatch(r"/datasets/owner/votes/resolve/\w+/(.+)", path)
            if found and found[1] in hub.files:
                data = hub.files[found[1]]
                heads = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": hub.sha}
                return self.send(200, data, heads)
            hub.strangers.append(f"{method} {path}")
            return self.send(404, b"{}")

    with serving(Handler) as hub.address:
        yield hub
