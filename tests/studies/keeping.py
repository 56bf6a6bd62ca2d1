"""Voting in a store, for tests of what is kept there."""

from __future__ import annotations

from srpo.studies.store import Rater, Store


def vote_next(store: Store, rater: Rater, answer: str = "left") -> bool:
    """Answers the rater's next trial; False where there is none."""
    shown = store.showings(rater.code)
    if not shown:
        return False
    return store.vote(rater.code, shown[0].ticket, {"overall": answer}, 2.0).recorded
