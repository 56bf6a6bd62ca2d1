"""Preference studies: votes that survive kills, schedules that keep their rules, statistics that hold what they say."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import optimize, special

from app.services.studies import Studies
from app.state import Options
from benchmarks import app_process
from benchmarks.figures import Figure
from benchmarks.raters import Raters
from benchmarks.scale import Scale
from srpo.studies.bradley_terry import PRIOR_SD, fit
from srpo.studies.criteria import PAPER, WHOLE
from srpo.studies.estimates import clustered
from srpo.studies.health import health
from srpo.studies.images import keep
from srpo.studies.schedule import broken_rules, pictures, schedule
from srpo.studies.schema import FixedStop, Plan, SequentialStop
from srpo.studies.simulation import (
    World,
    answers_from_a_list,
    clicks_fast,
    clicks_left,
    example_plan,
    prompt_shares,
    simulate,
    votes_for,
)
from srpo.studies.stopping import ALPHA, e_values
from srpo.studies.store import Picture, Store, Study

PROMPT_SDS = (0.0, 0.5, 1.0, 1.5)  # logits
VOTERS = 50
CHOICES = ("left", "right", "tie", "both bad")

FIGURES = (
    Figure("kill -9 of a process that stores votes", "kills"),
    Figure("votes acknowledged before the kills", "votes"),
    Figure("acknowledged votes lost", "votes", at_most=0),
    Figure("votes stored twice or otherwise than sent", "votes", at_most=0),
    Figure("rules that random schedules break", "rules", at_most=0),
    Figure("95 % interval, votes clustered: lowest coverage", "%", at_least=93),
    Figure("95 % interval, votes clustered: highest coverage", "%", at_most=97),
    Figure("sequential stop: most false wins", "%", at_most=5),
    Figure("strengths beside scipy's minimum, largest difference", "logits", at_most=1e-6),
    Figure("planted defects that are flagged", "%", at_least=95),
    Figure("clean boards with a flag", "%", at_most=1),
    Figure("a vote, 50 raters at once: 95th percentile", "s", at_most=0.7),
    Figure("requests of the 50 that were not answered", "requests", at_most=0),
    Figure("a crowd at once: requests told to come back", "requests"),
    Figure("a crowd at once: requests that failed otherwise", "requests", at_most=0),
    Figure("a crowd at once: acknowledged votes lost or changed", "votes", at_most=0),
    Figure("kill -9 of the whole app while raters vote", "kills"),
    Figure("votes acknowledged before the app's kills", "votes"),
    Figure("acknowledged votes that the app's kills lost", "votes", at_most=0),
    Figure("votes that the app's kills doubled or changed", "votes", at_most=0),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. No weights are needed."""
    names = [figure.name for figure in FIGURES]
    with tempfile.TemporaryDirectory() as folder:
        yield from zip(names[:4], kill_writers(str(Path(folder) / "studies.db"), scale.kills), strict=True)
    yield "rules that random schedules break", broken_schedules(scale.studies)
    coverages = [coverage(sd, scale.simulations) for sd in PROMPT_SDS]
    yield "95 % interval, votes clustered: lowest coverage", 100 * min(coverages)
    yield "95 % interval, votes clustered: highest coverage", 100 * max(coverages)
    yield "sequential stop: most false wins", 100 * max(false_wins(sd, scale.simulations) for sd in PROMPT_SDS)
    yield "strengths beside scipy's minimum, largest difference", strength_difference(scale.boards)
    found, clean = flags(scale.boards)
    yield "planted defects that are flagged", 100 * found
    yield "clean boards with a flag", 100 * clean
    with tempfile.TemporaryDirectory() as folder:
        yield from zip(names[-4:], kill_app(options, Path(folder), scale.app_kills), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        yield from crowded(options, Path(folder), scale.votes, scale.crowd)


# Kills


def kill_writers(place: str, kills: int) -> tuple[int, int, int, int]:
    """(kills, votes acknowledged, of them lost, stored twice or otherwise than sent).

    Forked writers vote, send each vote a second time with another answer, take some back, and tell through a pipe what
    they are about to do and what was acknowledged. Each is killed at a random moment, and the next goes on.
    place: as for Store; no connection to it may be open in this process.
    """
    rng = random.Random(0)
    with contextlib.closing(Store(place)) as store:
        study = open_study(store, example_plan(prompts=200))
        codes = [store.join(study.id).code for _ in range(3)]
    # By (rater, trial): what may be stored, None for nothing. More than one where the kill came before the receipt.
    possible: dict[tuple[int, int], set[str | None]] = {}
    acknowledged = 0
    for _ in range(kills):
        for line in _told_by_a_writer(place, codes, rng.uniform(0.0, 0.2)):
            is_done, rater, trial, answer = json.loads(line)
            if is_done:
                possible[rater, trial] = {answer}
                acknowledged += answer is not None
            else:
                possible.setdefault((rater, trial), {None}).add(answer)
        with contextlib.closing(Store(place)) as store:
            if not any(store.showings(code, 20)[19:] for code in codes):
                codes = [store.join(study.id).code for _ in range(3)]
    with contextlib.closing(Store(place)) as store:
        stored = [((vote.rater, vote.trial.number), vote.answers[WHOLE.key]) for vote in store.votes(study.id)]
    there = dict(stored)
    lost = sum(None not in answers and key not in there for key, answers in possible.items())
    other = sum(answer not in possible.get(key, {None}) for key, answer in there.items())
    return kills, acknowledged, lost, other + len(stored) - len(there)


def _told_by_a_writer(place: str, codes: Sequence[str], after_s: float) -> list[bytes]:
    """The lines of a forked writer, which is killed so long after its first receipt."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with contextlib.suppress(BaseException):
            _write(place, codes, writer)
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = [pipe.readline(), pipe.readline()]  # what it is about to do, and its receipt
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        told += pipe.readlines()  # whole lines: so short a write to a pipe is never torn
    os.waitpid(child, 0)
    if not told[1]:
        raise RuntimeError("a process that should store votes ended by itself")
    return told


def _write(place: str, codes: Sequence[str], pipe: int) -> None:
    """Votes until it is killed."""
    store, rng = Store(place), random.Random(os.getpid())

    def tell(is_done: bool, *what: object) -> None:
        os.write(pipe, json.dumps([is_done, *what]).encode() + b"\n")

    while True:
        code = rng.choice(codes)
        if not (shown := store.showings(code)):
            continue
        rater, trial = store.rater(code).number, int(shown[0].ticket.split("-")[0])
        answer, other = rng.sample(CHOICES, 2)
        tell(False, rater, trial, answer)
        store.vote(code, shown[0].ticket, {WHOLE.key: answer}, 1.0)
        tell(True, rater, trial, answer)
        store.vote(code, shown[0].ticket, {WHOLE.key: other}, 1.0)
        if rng.random() < 0.1:
            tell(False, rater, trial, None)
            store.undo(code)
            tell(True, rater, trial, None)


# Schedules


def random_plan(rng: random.Random) -> Plan:
    """Any plan that can be made, of up to some hundred trials."""
    mode = rng.choice(["pairwise", "pairwise", "rating"])
    votes = rng.randint(1, 5)
    sequential = mode == "pairwise" and rng.random() < 0.3
    prompts, models, seeds = rng.randint(1, 14), rng.randint(2, 4), rng.randint(1, 3)
    lanes = models * (models - 1) // 2 if mode == "pairwise" else models
    return example_plan(
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


def broken_schedules(studies: int) -> int:
    """How many rules of the design the schedules of so many random studies break."""
    broken = 0
    for number in range(studies):
        rng = random.Random(number)
        plan = random_plan(rng)
        broken += len(broken_rules(plan, {rater: schedule(plan, rater) for rater in range(rng.randint(1, 7))}))
    return broken


# Statistics


def coverage(prompt_sd: float, simulations: int) -> float:
    """The share of studies of 40 prompts with 1 to 9 votes whose interval holds the win rate, which is 1/2."""
    rng = np.random.default_rng(int(10 * prompt_sd))
    covered = 0
    for _ in range(simulations):
        chances = special.expit(prompt_sd * rng.standard_normal(40))
        found = clustered(*prompt_shares(40, rng.integers(1, 10, 40), chances, rng))
        covered += found.low <= 0.5 <= found.high
    return covered / simulations


def false_wins(prompt_sd: float, simulations: int) -> float:
    """The share of studies without a difference, of 200 prompts with 3 votes, that the sequential stop ends."""
    rng = np.random.default_rng(int(10 * prompt_sd))
    chances = special.expit(prompt_sd * rng.standard_normal((simulations, 200)))
    return float((e_values(rng.binomial(3, chances) / 3).max(axis=1) >= 1 / ALPHA).mean())


def strength_difference(boards: int) -> float:
    """The largest difference of our strengths to scipy's minimum of the same penalised likelihood."""
    largest = 0.0
    for number in range(boards):
        rng = np.random.default_rng(number)
        num_models = int(rng.integers(2, 9))
        wins = rng.integers(0, 40, (num_models, num_models)) * (1 - np.eye(num_models))

        def penalised(theta: np.ndarray, wins: np.ndarray = wins) -> tuple[float, np.ndarray]:
            lost = wins * special.expit(theta[None, :] - theta[:, None])
            value = -(wins * special.log_expit(theta[:, None] - theta[None, :])).sum() + theta @ theta / (
                2 * PRIOR_SD**2
            )
            return value, lost.sum(axis=0) - lost.sum(axis=1) + theta / PRIOR_SD**2

        start = np.zeros(len(wins))
        theirs = optimize.minimize(penalised, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
        largest = max(largest, float(np.abs(fit(wins) - theirs).max()))
    return largest


def flags(boards: int) -> tuple[float, float]:
    """(the share of planted defects that are flagged, the share of clean boards that raise any flag)."""
    plan = example_plan(prompts=40)
    planted = {
        "side": {1: clicks_left},
        "fast": {2: clicks_fast},
        "alike": {1: answers_from_a_list, 4: answers_from_a_list},
        "one model": {3: votes_for("model-1")},
        "drift": dict.fromkeys(range(6), votes_for("model-1", late_only=True)),
    }
    world = World(strengths={"model-1": 0.4})
    found = clean = 0
    for seed in range(boards):
        for kind, behaviours in planted.items():
            votes = simulate(plan, 6, seed, world, behaviours)
            found += kind in {flag.kind for flag in health(plan, votes).flags}
        clean += bool(health(plan, simulate(plan, 6, seed, world)).flags)
    return found / (boards * len(planted)), clean / boards


# Load


def crowded(options: Options, root: Path, votes_each: int, crowd: int) -> Iterator[tuple[str, float]]:
    """(name, value) of what raters meet over HTTP: 50 who look at every pair and vote without a pause, then a crowd."""
    with _voting(options, root, 1 + VOTERS + crowd, votes_each + 2) as (app, studies, study, codes):
        app.wait_for_models()  # loading them is not what is measured
        first = Raters(app.address, study.id, codes[:1])
        _join(first.vote(1))  # what a first request imports and caches
        some = Raters(app.address, study.id, codes[1 : 1 + VOTERS], looks=True)
        _join(some.vote(votes_each))
        yield "a vote, 50 raters at once: 95th percentile", statistics.quantiles(some.seconds, n=20)[-1]
        yield "requests of the 50 that were not answered", some.outcomes.total() - some.outcomes["answered"]
        many = Raters(app.address, study.id, codes[1 + VOTERS :])
        _join(many.vote(2))
        if some.acknowledged != VOTERS * votes_each or many.acknowledged != 2 * crowd:
            raise RuntimeError(f"{many.acknowledged} of {2 * crowd} votes were acknowledged: {dict(many.outcomes)}")
        refused = many.outcomes.pop("refused", 0)
        yield "a crowd at once: requests told to come back", refused
        yield (
            "a crowd at once: requests that failed otherwise",
            many.outcomes.total() - many.outcomes["answered"],
        )
        lost = sum(sum(raters.lost_and_doubled(studies.store)) for raters in (some, many))
        yield "a crowd at once: acknowledged votes lost or changed", lost


def kill_app(options: Options, root: Path, kills: int) -> tuple[int, int, int, int]:
    """(kills, votes acknowledged, of them lost, stored twice or otherwise than sent) of the app, killed and restarted.

    Eight raters vote all the time. While there is no app they send the same votes until it is back.
    """
    rng, over = random.Random(0), threading.Event()
    studies = Studies(replace(options, studies=root))
    study = open_study(studies.store, example_plan(prompts=2000))
    codes = [studies.store.join(study.id).code for _ in range(8)]
    studies.store.close()
    raters = Raters("", study.id, codes)
    threads: list[threading.Thread] = []
    for _ in range(kills):
        with app_process.started(options, studies=root) as app:
            app.wait_for_page()
            raters.address, before = app.address, raters.acknowledged
            threads = threads or raters.vote(until=over.is_set)
            _wait_for_votes(raters, before)
            time.sleep(rng.uniform(0.0, 2.0))
            app.process.kill()
            app.process.wait()
    over.set()
    _join(threads)
    with contextlib.closing(Store(root / "studies.db")) as store:
        return kills, raters.acknowledged, *raters.lost_and_doubled(store)


@contextlib.contextmanager
def _voting(
    options: Options, root: Path, raters: int, trials: int
) -> Iterator[tuple[app_process.App, Studies, Study, list[str]]]:
    """(the app, its studies, an open one of that many trials for each rater, the codes of so many raters)."""
    studies = Studies(replace(options, studies=root))
    try:
        study = drawn_study(studies, example_plan(prompts=max(trials, 12)), side=128)
        codes = [studies.store.join(study.id).code for _ in range(raters)]
        with app_process.started(options, studies=root) as app:
            app.wait_for_page()
            yield app, studies, study, codes
    finally:
        studies.store.close()


def _join(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(app_process.LIMIT_S)
        if thread.is_alive():
            raise RuntimeError(f"raters were not done within {app_process.LIMIT_S:g} s")


def _wait_for_votes(raters: Raters, before: int) -> None:
    """Until more than so many votes are acknowledged."""
    ends_s = time.monotonic() + app_process.LIMIT_S
    while raters.acknowledged <= before:
        if time.monotonic() > ends_s:
            raise RuntimeError(f"no vote was acknowledged within {app_process.LIMIT_S:g} s: {dict(raters.outcomes)}")
        time.sleep(0.01)


# Studies to measure on


def picture_rows(plan: Plan) -> list[Picture]:
    """A row for every picture of the plan; there are no such files."""
    return [Picture(shown, f"{secrets.token_hex(16)}.png", "0" * 64, "1" * 64, 64, 64) for shown in pictures(plan)]


def drawn_study(studies: Studies, plan: Plan, side: int = 64) -> Study:
    """An open study with all its pictures as files: a disc on a ground, of other colours in each."""
    study = studies.store.create(plan)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    made = []
    for number, shown in enumerate(pictures(plan)):
        rng = np.random.default_rng(number)
        ground, disc = rng.integers(40, 216, (2, 3))
        (cx, cy), radius = rng.uniform(-0.4, 0.4, 2), rng.uniform(0.2, 0.6)
        inside = (((x - cx) ** 2 + (y - cy) ** 2) < radius**2)[..., None]
        shaded = np.where(inside, disc, ground) + 30 * (x + y)[..., None]
        image = Image.fromarray(shaded.clip(0, 255).astype(np.uint8))
        made.append(keep(studies.folder(study.id), shown, image, f"{number:064x}"))
    studies.store.add_pictures(study.id, made)
    return studies.store.open(study.id)


def open_study(store: Store, plan: Plan) -> Study:
    """An open study with the rows of all its pictures."""
    study = store.create(plan)
    store.add_pictures(study.id, picture_rows(plan))
    return store.open(study.id)
