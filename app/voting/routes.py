"""The addresses of the raters' page: they read a request, hand it to the rules of voting, and write the answer.

Nothing here knows a model. Every address is relative to /vote/, so that a proxy may put the app below any path.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from app.services.requests import BadInput, parse
from app.services.voting import JoinRequest, PlaceRequest, Refusal, UndoRequest, VoteRequest, Voting

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
FILES = {"vote.css": "text/css; charset=utf-8", "vote.js": "text/javascript; charset=utf-8"}
MAX_BODY_BYTES = 16 * 1024
THREADS, PLACES = 4, 64  # of calls to the database: at work, and at work or waiting; more are refused
PICTURE_THREADS, PICTURE_PLACES = 2, 256

# No script, style, picture or address but our own; only this app's own page, or a Space's, may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self' https://huggingface.co"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address names the study
    "X-Robots-Tag": "noindex",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The same for every picture: no date and no tag that could tell one from another.
PICTURE_HEADERS = HEADERS | {"Cache-Control": "private, max-age=86400, immutable"}
FRESH = HEADERS | {"Cache-Control": "no-store"}

CROWDED = "Many are voting at this moment: nothing was stored, and trying again in a second is safe."
UNEXPECTED = "Something went wrong here: trying again is safe, as no vote counts twice."


class Gate:
    """A few calls at work in threads, a few more waiting for them, and the rest refused at once."""

    def __init__(self, threads: int, places: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._places, self._taken = places, 0  # the event loop alone counts

    async def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` returns. Refusal where all places are taken."""
        if self._taken >= self._places:
            raise Refusal(503, CROWDED, 1)
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        finally:
            self._taken -= 1


def routes(voting: Voting) -> list[Route]:
    """What is served below /vote/. No Mount: below a proxy's root path, Starlette finds no route inside one."""
    database = Gate(THREADS, PLACES, "votes")
    pictures = Gate(PICTURE_THREADS, PICTURE_PLACES, "vote-pictures")

    def asks(kind: type[BaseModel], work: Callable[[str, Any], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            asked = parse(kind, await _body(request))
            return _json(await database.call(work, request.path_params["study"], asked))

        return _plain_refusals(answer)

    async def invitation(request: Request) -> Response:
        return _json(await database.call(voting.invitation, request.path_params["study"]))

    async def picture(request: Request) -> Response:
        data = await pictures.call(voting.picture, request.path_params["study"], request.path_params["file"])
        return Response(data, media_type="image/png", headers=PICTURE_HEADERS)

    def post(name: str, kind: type[BaseModel], work: Callable[[str, Any], Any]) -> Route:
        return Route(f"/vote/{{study}}/{name}", asks(kind, work), methods=["POST"])

    return [
        Route("/vote/files/{name}", _plain_refusals(_file)),
        Route("/vote/{study}", _page),
        Route("/vote/{study}/", _without_slash),
        Route("/vote/{study}/study", _plain_refusals(invitation)),
        Route("/vote/{study}/pictures/{file}", _plain_refusals(picture)),
        post("join", JoinRequest, voting.join),
        post("place", PlaceRequest, voting.place),
        post("vote", VoteRequest, voting.vote),
        post("undo", UndoRequest, voting.undo),
    ]


async def _page(request: Request) -> Response:
    """One page for every study: it asks for what it shows."""
    headers = HEADERS | {"Cache-Control": "no-cache"}
    return Response((HERE / "vote.html").read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


async def _without_slash(request: Request) -> Response:
    """The page's one address, said relatively: behind a proxy this app knows neither its name nor its scheme.

    The name is anything that was sent, and a header holds no line break and no letter beyond Latin-1.
    """
    return Response(status_code=307, headers=HEADERS | {"Location": f"../{quote(request.path_params['study'], '')}"})


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES:
        raise Refusal(404, "There is no such file here.")
    return Response((HERE / name).read_bytes(), media_type=FILES[name], headers=HEADERS | {"Cache-Control": "no-cache"})


def _plain_refusals(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The same handler, whose refusals and failures are one sentence as JSON."""

    async def handle(request: Request) -> Response:
        try:
            return await answer(request)
        except Refusal as refusal:
            more = {} if refusal.retry_s is None else {"Retry-After": str(refusal.retry_s)}
            return _json({"sentence": refusal.sentence}, refusal.status, more)
        except BadInput as error:
            return _json({"sentence": str(error)}, 422)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:
            log.exception("A rater's request failed.")
            return _json({"sentence": UNEXPECTED}, 500)

    return handle


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent. Refusal for anything else, and for more than MAX_BODY_BYTES."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Requests are JSON here: reload the page.")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise Refusal(413, "The request is too large: reload the page.")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Refusal(400, "The request cannot be read: reload the page.")
    return content


def _json(content: Any, status: int = 200, more: dict[str, str] | None = None) -> Response:
    return Response(
        json.dumps(content, default=_plain, allow_nan=False, separators=(",", ":")),
        status,
        media_type="application/json",
        headers=FRESH | (more or {}),
    )


def _plain(value: Any) -> Any:
    """A record as JSON writes it."""
    return value.model_dump() if isinstance(value, BaseModel) else asdict(value)
