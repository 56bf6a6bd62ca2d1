"""Plans for tests: small ones by hand, and random ones of every shape."""

from __future__ import annotations

import random
from collections.abc import Sequence

from srpo.studies.criteria import PAPER, WHOLE
from srpo.studies.schema import FixedStop, Model, Plan, Prompt, SequentialStop


def make_plan(
    prompts: int = 4,
    models: int | Sequence[Model] = 2,
    seeds: int = 1,
    texts: Sequence[str] | None = None,
    **changes: object,
) -> Plan:
    """A plan of that size, or of those texts and models; everything else is its default or a change."""
    if isinstance(models, int):
        models = [Model(key=f"model-{number}", label=f"Model {number}") for number in range(models)]
    fields = {
        "title": "Is it better?",
        "prompts": [
            Prompt(text=text) for text in texts or [f"a thing of number {number}" for number in range(prompts)]
        ],
        "models": models,
        "seeds": list(range(seeds)),
    }
    return Plan(**fields | changes)


def random_plan(rng: random.Random) -> Plan:
    """Any plan that can be made, of up to some hundred trials."""
    mode = rng.choice(["pairwise", "pairwise", "rating"])
    votes = rng.randint(1, 5)
    sequential = mode == "pairwise" and rng.random() < 0.3
    prompts, models, seeds = rng.randint(1, 14), rng.randint(2, 4), rng.randint(1, 3)
    lanes = models * (models - 1) // 2 if mode == "pairwise" else models
    return make_plan(
        prompts,
        models,
        seeds,
        mode=mode,
        criteria=PAPER if mode == "rating" else (WHOLE,),
        trials_per_rater=rng.choice([None, rng.randint(1, prompts * seeds * lanes)]),
        repeats=rng.choice([0.0, 0.1, 0.1, 0.1, 0.3]),
        gold=rng.choice([0.0, 0.05, 0.05, 0.05, 0.2]),
        stop=SequentialStop(votes_per_item=votes) if sequential else FixedStop(votes_per_item=votes),
        seed=rng.randrange(2**32),
    )
