"""Quick votes: "Which is better?" under a finished comparison, one click, stored as a kind of its own.

Both sides are labelled there, so these votes are not blind: they say what somebody liked, and prove nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, StringConstraints

from app.services.compare import Comparison
from app.services.requests import BadInput, CompareRequest, parse, sentence
from app.services.studio import Studio
from srpo.studies.estimates import Estimate, clustered
from srpo.studies.export import as_csv
from srpo.studies.store import QuickVote, Unavailable

NOT_BLIND = "Stored. The sides have names here, so this vote is not blind; a study’s votes are."


class QuickRequest(BaseModel):
    """One press of one of the four buttons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair: Annotated[str, StringConstraints(max_length=64)]
    answer: Literal["left", "right", "tie", "both bad"]


@dataclass(frozen=True)
class Offer:
    """What a press needs to know of a pair, kept by the server: the page sends its name alone."""

    prompt: str
    seed: int
    left: str
    right: str
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Tally:
    """All quick votes on two models; the share is the first one's, ties and both bad as half."""

    first: str
    second: str
    first_won: int
    second_won: int
    ties: int
    both_bad: int
    share: Estimate

    @property
    def votes(self) -> int:
        return self.share.votes


def offers(view: Comparison, request: CompareRequest) -> dict[str, Offer]:
    """The finished pairs that can be voted on, by name; none where both sides are one model."""
    if view.is_one_model:
        return {}
    names = ("steps", "guidance", "width", "height", "control_word")
    facts = {name: getattr(request, name) for name in names}
    facts |= {"left_model": request.left[:1000], "right_model": request.right[:1000]}
    return {pair.id: Offer(request.prompt, pair.seed, *view.names, facts) for pair in view.pairs}


def quick_vote(studio: Studio, offered: Mapping[str, Offer], raw: Mapping[str, object]) -> str:
    """A sentence, once the vote is on the disk; a second press on the same pair changes nothing and says so."""
    asked = parse(QuickRequest, dict(raw))
    pair = offered.get(asked.pair)
    if pair is None:
        raise BadInput("This pair is not on the stage any more: generate it again to vote on it.")
    vote = QuickVote(asked.pair, pair.prompt, pair.seed, pair.left, pair.right, asked.answer, pair.facts)
    try:
        new = studio.studies.store.quick_vote(vote)
    except (ValueError, Unavailable) as error:
        raise BadInput(sentence(error)) from None
    return NOT_BLIND if new else "There is a vote on this pair already; it stays as it is."


def tallies(votes: Sequence[QuickVote]) -> list[Tally]:
    """One for each pair of models, the one with most votes first. The interval takes a prompt as one observation."""
    by_pair: dict[tuple[str, str], list[QuickVote]] = {}
    for vote in votes:
        by_pair.setdefault(tuple(sorted((vote.left, vote.right))), []).append(vote)
    found = [_tally(*names, own) for names, own in by_pair.items()]
    return sorted(found, key=lambda tally: (-tally.votes, tally.first, tally.second))


def _tally(first: str, second: str, votes: Sequence[QuickVote]) -> Tally:
    sides = [{"left": vote.left, "right": vote.right}.get(vote.answer, vote.answer) for vote in votes]
    counts = Counter(sides)
    prompts = np.array([vote.prompt for vote in votes])
    scores = [1.0 if side == first else 0.0 if side == second else 0.5 for side in sides]
    return Tally(
        *(first, second, counts[first], counts[second], counts["tie"], counts["both bad"]),
        clustered(prompts, np.array(scores)),
    )


def quick_csv(votes: Sequence[QuickVote]) -> bytes:
    """All quick votes as a table that no spreadsheet runs."""
    return as_csv(
        {
            **{"prompt": vote.prompt, "seed": vote.seed, "left": vote.left, "right": vote.right},
            **{"answer": vote.answer, "at_us": vote.at_us},
            **{name: vote.facts.get(name) for name in sorted({key for other in votes for key in other.facts})},
        }
        for vote in votes
    )
