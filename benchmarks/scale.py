"""How much is measured: enough to believe the figures, or just enough to see that every measurement runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts of everything that is repeated."""

    pairs: int = 5
    steps: int = 28
    rounds: int = 7  # of the loop beside the pipeline
    pictures: int = 256
    updates: int = 30
    watches: int = 3  # of a run by a page
    updates_watched: int = 5  # in each of these, and as many unwatched
    prompts_per_update: int = 8
    kills: int = 300  # of processes that store votes
    studies: int = 10_000  # random ones, for their schedules
    simulations: int = 2000  # of votes, for every spread of prompts
    boards: int = 50  # simulated ones, for strengths and for each defect
    votes: int = 20  # of each of 50 raters
    crowd: int = 500  # raters who vote at once, twice each
    app_kills: int = 10  # of the whole app while raters vote
    rounds_of_flux: int = 3  # updates at FLUX.1-dev's size
    rounds_of_pictures: int = 3  # by each kernel, at that size
    steps_of_memory: int = 4  # of a pair in each memory mode
    quick: bool = False
    cold_start: bool = True  # start the app once more, with its libraries' files out of the memory


FULL = Scale()
QUICK = Scale(
    pairs=1,
    steps=2,
    rounds=1,
    pictures=8,
    updates=1,
    watches=1,
    updates_watched=1,
    prompts_per_update=2,
    kills=2,
    studies=20,
    simulations=200,
    boards=3,
    votes=2,
    crowd=100,
    app_kills=1,
    rounds_of_flux=1,
    rounds_of_pictures=1,
    steps_of_memory=2,
    quick=True,
    cold_start=False,
)
