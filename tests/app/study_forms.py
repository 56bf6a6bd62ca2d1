"""Studies for the tests of the page: a form as the page sends it, and votes given through the store."""

from __future__ import annotations

from app.tabs.studies import FIELDS, Handlers
from srpo.studies.store import Store

# What the tiny model draws in a moment.
SMALL = {
    "title": "Which is better?",
    "prompt_source": "typed here",
    "prompts": "a red ball | things\na blue house | places\na green tree | places",
    "take": None,
    **{"steps": 1, "width": 32, "height": 32, "votes_per_item": 2, "repeats": 20, "gold": 20},
}


def values_of(do: Handlers, **changes: object) -> dict[str, object]:
    """Every field of a small plan's form, by name."""
    return do.first_form() | SMALL | changes


def form_of(do: Handlers, **changes: object) -> list[object]:
    """The same as the page sends it."""
    values = values_of(do, **changes)
    return [values[name] for name in FIELDS]


def vote_all(store: Store, identity: str, raters: int = 2, prefers: str = "srpo", most: int = 1000) -> int:
    """So many raters see all of their trials and prefer that model where it is shown. Returns the votes given."""
    given = 0
    for _ in range(raters):
        rater = store.join(identity)
        plan, models = store.study(identity).plan, store.pictures(identity)
        model_of = {made.file: shown for shown, made in models.items()}
        while given < most and (showings := store.showings(rater.code)):
            (shown,) = showings
            sides = {"left": model_of[shown.left], "right": model_of[shown.right]}
            honest = {side: not picture.spoiled for side, picture in sides.items()}
            better = [side for side in sides if honest[side] and sides[side].model == prefers]
            answer = better[0] if better else next((side for side in sides if honest[side]), "tie")
            answers = {criterion.key: answer for criterion in plan.criteria}
            assert store.vote(rater.code, shown.ticket, answers, 2.5).recorded
            given += 1
    return given
