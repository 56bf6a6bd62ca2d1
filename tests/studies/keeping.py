"""Studies in a store, for tests of what is kept there."""

from __future__ import annotations

import secrets

from srpo.studies.schedule import pictures
from srpo.studies.schema import Plan
from srpo.studies.store import Picture, Rater, Store, Study
from tests.studies.plans import make_plan


def picture_rows(plan: Plan) -> list[Picture]:
    """A row for every picture of the plan; there are no such files."""
    return [Picture(shown, f"{secrets.token_hex(8)}.png", "0" * 64, "1" * 64, 64, 64) for shown in pictures(plan)]


def open_study(store: Store, plan: Plan | None = None) -> Study:
    """An open study with all of its pictures."""
    plan = plan or make_plan(prompts=12)
    study = store.create(plan)
    store.add_pictures(study.id, picture_rows(plan))
    return store.open(study.id)


def vote_next(store: Store, rater: Rater, answer: str = "left") -> bool:
    """Answers the rater's next trial; False where there is none."""
    shown = store.showings(rater.code)
    if not shown:
        return False
    return store.vote(rater.code, shown[0].ticket, {"overall": answer}, 2.0).recorded
