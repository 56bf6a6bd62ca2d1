"""What is refused before Gradio sees it, as its own answer would be an exception whose traceback fills the log.

Anyone can ask for any address. These are of no use to the page: it joins the queue, and its files have short names.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

CALLS = "/gradio_api/call/"  # of clients that are not the page: every event here is private to it
FILE = "file="  # begins a whole path, whose parts Gradio looks at itself
MAX_NAME_BYTES = 255  # of a part of an address that may become a file's name


class Doors:
    """Middleware that answers such addresses by 404."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_of_no_use(scope["path"]):
            await JSONResponse({"detail": "This page has no such event."}, 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def is_of_no_use(path: str) -> bool:
    """Whether nothing of the page is at that address, whatever it holds."""
    parts = path.split("/")
    is_long = any(len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES for part in parts if not part.startswith(FILE))
    return CALLS in f"{path}/" or is_long or any(ord(letter) < 32 or ord(letter) == 127 for letter in path)


def unreadable(request: Request, error: Exception) -> JSONResponse:
    """The answer to a body that is none of the page's. FastAPI's own repeats it, and fails of half a character."""
    return JSONResponse({"detail": "The page sends no such request: reload it, and try again."}, status_code=422)
