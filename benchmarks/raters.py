"""Simulated raters over HTTP: threads that vote as the raters' page does, and remember what they were told."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from srpo.studies.criteria import CHOICES, WHOLE
from srpo.studies.store import Store

RETRY_S = 0.2  # after a connection that failed
LIMIT_S = 60.0  # of one request


class Raters:
    """So many raters of one study, each in a thread of its own, and what they were told all together."""

    def __init__(self, address: str, study: str, codes: Sequence[str], *, looks: bool = False) -> None:
        """looks: they fetch the pictures of each pair before they vote."""
        self.address, self._looks = address, looks
        self.seconds: list[float] = []  # from sending a vote to its receipt, refusals and pauses left out
        self.outcomes: Counter[str] = (
            Counter()
        )  # of requests: "answered", "refused", "unreachable", or what else it was
        self._study, self._codes = study, codes
        self._lock = threading.Lock()
        # By (code, trial): the answers that may be stored. More than one as long as no receipt has come.
        self._possible: dict[tuple[str, int], set[str]] = {}
        self._acknowledged: dict[tuple[str, int], str] = {}

    @property
    def acknowledged(self) -> int:
        with self._lock:
            return len(self._acknowledged)

    def vote(self, votes_each: int | None = None, until: Callable[[], bool] = lambda: False) -> list[threading.Thread]:
        """Threads in which all of them vote from now on, each so often, and until `until()`."""
        threads = [
            threading.Thread(target=self._work, args=(code, votes_each, until), daemon=True) for code in self._codes
        ]
        for thread in threads:
            thread.start()
        return threads

    def lost_and_doubled(self, store: Store) -> tuple[int, int]:
        """(acknowledged votes that are not stored, votes stored twice or otherwise than sent)."""
        numbers = {store.rater(code).number: code for code in self._codes}
        mine = [vote for vote in store.votes(self._study) if vote.rater in numbers]
        stored = [((numbers[vote.rater], vote.trial.number), vote.answers[WHOLE.key]) for vote in mine]
        there = dict(stored)
        lost = sum(there.get(key) != answer for key, answer in self._acknowledged.items())
        other = sum(answer not in self._possible.get(key, ()) for key, answer in there.items())
        return lost, other + len(stored) - len(there)

    def _work(self, code: str, votes_each: int | None, until: Callable[[], bool]) -> None:
        rng, line = random.Random(code), _Line(self.address)
        ahead = self._ask(line, "place", {"code": code, "count": 3}, rng, until)
        given = 0
        while ahead and ahead["place"]["ahead"] and given != votes_each and not until():
            shown = ahead["place"]["ahead"][0]
            for file in (shown["left"], shown["right"]) if self._looks else ():
                self._ask(line, f"pictures/{file}", None, rng, until)
            ticket = shown["ticket"]
            answer = rng.choice(CHOICES)
            key = code, int(ticket.split("-")[0])
            with self._lock:
                self._possible.setdefault(key, set()).add(answer)
            body = {"code": code, "ticket": ticket, "answers": {WHOLE.key: answer}, "dwell_s": 1.0, "count": 3}
            receipt = self._ask(line, "vote", body, rng, until)
            if receipt is None:
                break
            with self._lock:
                self._acknowledged[key] = answer
            given += 1
            ahead = receipt["standing"]
        line.close()

    def _ask(
        self, line: _Line, what: str, body: dict | None, rng: random.Random, until: Callable[[], bool]
    ) -> dict | None:
        """The answer, asked for again until there is one; None after a refusal for good, or `until()`."""
        while not until():
            started_s = time.perf_counter()
            outcome, content, wait_s = line.ask(self.address, f"/vote/{self._study}/{what}", body)
            took_s = time.perf_counter() - started_s
            with self._lock:
                self.outcomes[outcome] += 1
                if outcome == "answered" and what == "vote":
                    self.seconds.append(took_s)
            if outcome == "answered":
                return content
            if outcome not in ("refused", "unreachable"):
                return None
            time.sleep(wait_s * (1 + rng.random()))
        return None


class _Line:
    """A connection that is kept, and made anew where it broke or the server has moved."""

    def __init__(self, address: str) -> None:
        self._address, self._connection = address, None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def ask(self, address: str, path: str, body: dict | None) -> tuple[str, dict, float]:
        """(what became of it, the answer, seconds after which to ask again). A clean refusal says both of these."""
        try:
            if self._connection is None or address != self._address:
                self.close()
                self._address = address
                self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=LIMIT_S)
            if body is None:
                self._connection.request("GET", path)
            else:
                self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            data, kind = answer.read(), answer.headers.get_content_type()
            content = json.loads(data) if kind == "application/json" else {}
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            return "unreachable", {}, RETRY_S
        if answer.status == 200:
            return "answered", content, 0.0
        retry = answer.headers.get("Retry-After")
        if answer.status in (429, 503) and retry and content.get("sentence"):
            return "refused", {}, float(retry)
        return f"status {answer.status}", {}, 0.0
