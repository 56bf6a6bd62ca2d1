"""The guide's six steps, each a real call of the library, as figures that the page draws.

Steps 1, 5 and 6 take seconds: generators that wait in the device's line and can be stopped. Steps 2, 3 and 4 take a
moment: they answer at once, or say by `NotNow` what they would have to wait for.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from app.curves import Chart, Line
from app.services import prompts
from app.services.compare import Comparison, compare, facts_of, narrate, prepare
from app.services.device import StopFlag, Stopped, wait_for_device
from app.services.lending import by_the_call
from app.services.metadata import comparison_texts
from app.services.models import BASE, SRPO, is_full_size
from app.services.pictures import data_uri
from app.services.requests import MAX_WORD_CHARACTERS, BadInput, CompareRequest, Settings, between, parse
from app.services.studio import Studio
from app.services.training_requests import TrainRequest
from srpo.evaluation.records import MAX_SEED, file_stem

if TYPE_CHECKING:
    from app.services.engine import Engine, Step
    from app.services.guide_work import Moment, Painted, Verdict, WordScores
    from srpo.training.config import TrainConfig

T = TypeVar("T")

MAX_SIDE = 512  # pixels: a guide answers quickly, whatever the model was trained for
NUM_PICTURES = 6  # of step 1
NUM_PAIRS = 3  # of step 6
NUM_SAMPLES = 4  # pictures that step 5 paints again and again
STEPS = Settings.model_fields["steps"].default  # of every picture of the guide
NUM_UPDATES, LOOK_EVERY = 10, 2
PROMPTS_PER_UPDATE, FASTER = 4, 2  # of step 5: fewer prompts than a preset takes, at so many times its rate
MAX_SIGMA = 0.99  # a recovery divides by 1 - sigma
FRESH_NOISE = 1_000_003  # from a picture's seed to that of a noise it was not painted from
MAX_KEPT = 8 * NUM_PICTURES  # pictures
PATIENCE_S = 1.0  # in the device's line, for work of a moment
NO_REWARD = "There is no reward to ask: start the app with --reward FOLDER, a CLIPModel such as PickScore."
DISCOUNTS = {"paper": "paper", "PickScore": "paper_pickscore", "studio": "studio"}  # names of the page, and presets


class NotNow(Exception):
    """Work of a moment would have to wait; the message says for what."""


@dataclass(frozen=True)
class Subject:
    """What a reader takes through the steps: six pictures of a prompt, one of them chosen."""

    request: CompareRequest
    seed: int

    @property
    def prompt(self) -> str:
        return self.request.prompt


@dataclass(frozen=True)
class Shot:
    """One picture of a figure, or the place for it."""

    name: str = ""
    note: str = ""
    picture: Path | str | None = None  # a file of the picture store, or a data address
    alt: str = ""
    seed: int | None = None  # where a click chooses it
    is_photo: bool | None = None  # to the judge
    live: bool = False  # still being painted
    chosen: bool = False  # the one that the step is about


@dataclass(frozen=True)
class Row:
    """Pictures side by side."""

    shots: tuple[Shot, ...]
    name: str = ""


@dataclass(frozen=True)
class Bar:
    """A number with its place on a scale from 0 to 1."""

    name: str
    value: str
    start: float
    end: float
    colour: int = 0  # as in app/curves.py


@dataclass(frozen=True)
class Figure:
    """Everything the page can show of a step at one moment."""

    phase: str  # "waiting", "running", "done" or "stopped"
    message: str = ""
    rows: tuple[Row, ...] = ()
    bars: tuple[Bar, ...] = ()
    said: str = ""  # what it shows, in a sentence
    chosen: int | None = None  # the seed that goes on to the next steps
    share_done: float = 0.0
    left_s: float | None = None  # seconds to go
    charts: tuple[Chart, ...] = ()


def _control_word(side: str) -> BeforeValidator:
    def check(value: object) -> str:
        if not isinstance(value, str) or not (word := " ".join(value.split()).rstrip(".")):
            raise ValueError(f"The {side} word is empty: write one, such as Photo or Painting.")
        if len(word) > MAX_WORD_CHARACTERS:
            raise ValueError(f"The {side} word has {len(word)} characters and may have {MAX_WORD_CHARACTERS}.")
        return word

    return BeforeValidator(check)


class LevelRequest(BaseModel):
    """Where on the path from a picture to noise, and how far the model may go from there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: Annotated[float, BeforeValidator(between("The noise level σ", 0.0, MAX_SIGMA))]
    d_sigma: Annotated[float, BeforeValidator(between("The model's step d_σ", 0.005, 0.5))] = 0.075
    noise: Literal["fresh", "own"] = "fresh"  # "own": what the picture was painted from, as in training


class WordsRequest(BaseModel):
    """Two words that are put in front of a prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive: Annotated[str, _control_word("positive")]
    negative: Annotated[str, _control_word("negative")]


class Guide:
    """The six steps over one studio's models; it remembers the last pictures, so that the steps share them."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.side = min(studio.catalogue.native_side, MAX_SIDE)
        self._kept: OrderedDict[tuple[str, int], Painted] = OrderedDict()  # the latest used last
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """A copy in a worker's hands is the worker's own, which remembers what it has painted itself."""
        return _guide_over, (self.studio,)

    def request(self, prompt: object, seed: object, num_seeds: int = NUM_PICTURES) -> CompareRequest:
        """What steps 1 and 6 are asked for. BadInput, one sentence, for what cannot be painted."""
        size = {"width": self.side, "height": self.side}
        return parse(
            CompareRequest, {"prompt": prompt, "seed": seed, "num_seeds": num_seeds, "left": BASE, "right": SRPO} | size
        )

    def first_subject(self) -> Subject:
        """What the steps are about before a reader has painted anything."""
        return Subject(self.request(self.examples()[0], 0), 0)

    def examples(self) -> tuple[str, ...]:
        return prompts.examples(is_full_size(self.studio.options.model))

    # 1: the AI look

    @by_the_call
    def look(self, request: CompareRequest, stop: StopFlag) -> Iterator[Figure]:
        """Six pictures of one prompt, one after the other, with the judge's verdicts."""
        blank = tuple(Shot(f"seed {seed}", seed=seed) for seed in request.seeds)
        view = Figure("waiting", rows=(Row(blank),), chosen=request.seed)
        try:
            for snapshot in self._look(request, view, stop):
                view = snapshot
                yield view
        except Stopped:
            shots = tuple(replace(shot, picture=None) if shot.live else shot for shot in view.rows[0].shots)
            yield replace(view, phase="stopped", message="Stopped.", rows=(Row(shots),), left_s=None)

    def _look(self, request: CompareRequest, view: Figure, stop: StopFlag) -> Iterator[Figure]:
        studio = self.studio
        model = studio.catalogue.find(BASE)
        with studio.device.turn() as turn:
            preparing = prepare(studio, turn, [model], request, [request.prompt], stop)
            engine, _ = yield from narrate(view, preparing)
            from app.services import guide_work as work  # torch is loaded by now
            from app.services.engine import to_pil

            facts, folder = facts_of(studio, engine, [model]), studio.pictures.new_folder()
            names = {"left": model.label, "right": request.right}
            found: list[Verdict | None] = []
            started_s = time.monotonic()
            for number, seed in enumerate(request.seeds):
                shot = replace(view.rows[0].shots[number], alt=_alt(request.prompt, seed))
                for event in self._painting(engine, request, seed, stop):
                    if isinstance(event, work.Painted):
                        painted = event
                        continue
                    live = replace(shot, picture=data_uri(event.previews[0]), live=True)
                    share = (number + event.done / event.total) / request.num_seeds
                    view = replace(
                        _with_shot(view, number, live),
                        phase="running",
                        message=f"Picture {number + 1} of {request.num_seeds}",
                        share_done=share,
                        left_s=(time.monotonic() - started_s) * (1 - share) / share,
                    )
                    yield view
                found += work.verdicts(engine.scorer.judge, painted.image)
                texts, name = (
                    comparison_texts(request, seed, "left", names, facts),
                    file_stem(request.prompt, seed, "flux"),
                )
                path = studio.pictures.save(folder, name, to_pil(painted.image), texts)
                view = _with_shot(view, number, _judged(replace(shot, picture=path), found[-1]))
                yield replace(view, phase="running")
            yield replace(view, phase="done", share_done=1.0, left_s=None, message="", said=_count_photos(found))

    # 2: noise that is known

    @by_the_call(steps=40)
    def noising(self, subject: Subject, sigma: object, noise: object) -> Figure:
        """The chosen picture at a noise level, and back from there without a model (eq. 3 and 4)."""
        asked = parse(LevelRequest, {"sigma": sigma, "noise": noise})
        with self._at_once() as engine:
            from app.services import guide_work as work

            painted, eps = self._painted(engine, subject), self._noise(engine, subject, asked)
            found = work.noised(engine.base, painted.x0, eps, asked.sigma)
        level, alt = asked.sigma, _alt(subject.prompt, subject.seed)
        shots = (
            Shot("(1 − σ) x₀", f"{1 - level:.2f} of the picture", work.shown(painted.image), alt),
            Shot("+ σ ε", f"{level:.2f} of the noise", work.shown(found.noise), "The noise, decoded"),
            Shot("= x at σ", "all that the model sees", work.shown(found.noisy), f"{alt}, at noise level {level:.2f}"),
            Shot("x₀ again", "(x − σ ε) / (1 − σ)", work.shown(found.recovered), f"{alt}, recovered"),
        )
        said = f"Back from {level:.0%} noise without a model: no latent is off by more than {_tiny(found.worst)}."
        return Figure("done", rows=(Row(shots),), said=said)

    # 3: one-step prediction against Direct-Align

    @by_the_call(steps=40)
    def recovering(self, subject: Subject, sigma: object, d_sigma: object, noise: object) -> Figure:
        """The two ways from a noise level to a clean picture, and how far each ends from the true one (eq. 2 and 5)."""
        asked = parse(LevelRequest, {"sigma": sigma, "d_sigma": d_sigma, "noise": noise})
        with self._at_once() as engine:
            from app.services import guide_work as work
            from srpo.evaluation.recoveries import Method, column, noisy_columns
            from srpo.evaluation.recovery_errors import psnr

            painted, eps = self._painted(engine, subject), self._noise(engine, subject, asked)
            cond = engine.encode(subject.prompt)
            methods = Method("noisy"), Method("one-step"), Method("denoise", asked.d_sigma)
            sigma, base, guidance = asked.sigma, engine.base, subject.request.guidance
            [(x_t, velocity)] = noisy_columns(base, painted.x0, eps, cond, [sigma], guidance)
            noisy, predicted, recovered = column(base, x_t, velocity, eps, sigma, methods)
        one_step, aligned = (psnr(cell.image.cpu(), painted.image).item() for cell in (predicted, recovered))
        level, alt = asked.sigma, _alt(subject.prompt, subject.seed)
        shots = (
            Shot("x₀", "the picture", work.shown(painted.image), alt),
            Shot("x at σ", f"{level:.0%} noise", work.shown(noisy.image), f"{alt}, at noise level {level:.2f}"),
            Shot("One step", _decibels(one_step), work.shown(predicted.image), f"{alt}, by one-step prediction"),
            Shot("Direct-Align", _decibels(aligned), work.shown(recovered.image), f"{alt}, by Direct-Align"),
        )
        factor = recovered.weight
        bars = (
            Bar("One step: error × σ", f"{level:.2f}", 0, level, 1),
            Bar("Direct-Align: error × d_σ / (1 − σ′)", f"{factor:.2f}", 0, factor, 0),
        )
        gain = aligned - one_step
        where = "nearer to" if gain >= 0 else "farther from"
        said = f"Direct-Align comes {abs(gain):.1f} dB {where} the picture." if math.isfinite(gain) else ""
        if recovered.shortened:
            said = f"{said} Its step was cut short: it cannot pass σ = 0.".strip()
        return Figure("done", rows=(Row(shots),), bars=bars, said=said)

    # 4: two words, one reward

    @by_the_call(steps=40)
    def wording(self, subject: Subject, positive: object, negative: object) -> Figure:
        """The chosen picture scored under two words, and its companions in the order of the difference."""
        asked = parse(WordsRequest, {"positive": positive, "negative": negative})
        engine = self._engine()
        import torch

        from app.services import guide_work as work
        from srpo.rewards.control_words import ControlWords

        reward = engine.scorer.reward
        if reward is None:
            raise BadInput(NO_REWARD)
        words, prompt = ControlWords((asked.positive,), (asked.negative,)), subject.prompt
        for word in (asked.positive, asked.negative):
            count, limit = reward.count_tokens(words.apply(word, prompt))
            if count > limit:
                raise BadInput(f"With {word!r} the prompt has {count} tokens and the reward reads {limit}: shorten it.")
        kept = {seed: self._recall(prompt, seed) for seed in subject.request.seeds}
        if kept[subject.seed] is None:
            with self._at_once():
                kept[subject.seed] = self._painted(engine, subject)
        seeds = [seed for seed, painted in kept.items() if painted is not None]
        images = torch.cat([kept[seed].image for seed in seeds])
        scores = work.word_scores(reward, images, prompt, words)
        at = seeds.index(subject.seed)
        ranked = scores.difference.argsort(descending=True).tolist()
        shots = tuple(
            Shot(
                _signed(float(scores.difference[place])),
                "your picture" if place == at else "",
                work.shown(images[place : place + 1]),
                _alt(prompt, seeds[place]),
                chosen=place == at,
            )
            for place in ranked
        )
        plus, minus, plain = (float(side[at]) for side in (scores.positive, scores.negative, scores.plain))
        gap = float(scores.difference[at])
        bars = (
            Bar(f"“{asked.positive}. …”", _score(plus), 0, plus, 0),
            Bar(f"“{asked.negative}. …”", _score(minus), 0, minus, 1),
            Bar("the prompt alone", _score(plain), 0, plain, 4),
            Bar("difference", _signed(gap), min(plus, minus), max(plus, minus), 2),
        )
        wish = asked.positive if gap > 0 else asked.negative
        said = f"To this reward your picture is more {wish} than {asked.negative if gap > 0 else asked.positive}."
        return Figure("done", rows=(Row(shots, "Your six, by the difference"),), bars=bars, said=said)

    def net_weight(self, name: object) -> Chart:
        """What both branches together leave of the general reward, over the noise levels of a published setting."""
        if not isinstance(name, str) or name not in DISCOUNTS:
            raise BadInput(f"The discounts are {', '.join(DISCOUNTS)}, not {str(name)[:40]!r}.")
        from srpo.objectives.levels import net_weight_curve
        from srpo.training.presets import preset

        config = preset(DISCOUNTS[name])
        curve = net_weight_curve(config.objective.levels, config.signal.discounts)
        sigmas, weights = (values.tolist() for values in curve)
        return Chart(
            "net-weight",
            "Net weight of the general reward, k₊ − k₋",
            f"{_signed(weights[0], 2)} at σ {sigmas[0]:.2f}, {_signed(weights[-1], 2)} at σ {sigmas[-1]:.2f}",
            (Line("k₊ − k₋", sigmas, weights, 0),),
            x_title="noise level σ",
        )

    # 5: ten updates

    def training(self, subject: Subject, stop: StopFlag) -> Iterator[Figure]:
        """Pictures and scores of a real short training as it runs; where training is closed, of the SRPO weights."""
        if not self.studio.options.local_paths:
            yield from self._trained_elsewhere(subject, stop)
            return
        seeds = subject.request.seeds[:NUM_SAMPLES]
        view = Figure("waiting", rows=_before_and_now((Shot(),) * len(seeds), (Shot(),) * len(seeds), "Then"))
        try:
            for snapshot in self._training(subject, seeds, view, stop):
                view = snapshot
                yield view
        except Stopped:
            yield replace(view, phase="stopped", message=f"Stopped: {view.message or 'before it began'}.", left_s=None)

    def _training(self, subject: Subject, seeds: list[int], view: Figure, stop: StopFlag) -> Iterator[Figure]:
        studio, prompt = self.studio, subject.prompt
        with studio.device.turn() as turn:
            preparing = prepare(studio, turn, [studio.catalogue.find(BASE)], subject.request, [subject.prompt], stop)
            engine, _ = yield from narrate(view, preparing)
            from app.services import guide_work as work

            folder, config = studio.pictures.new_folder(), self.short_config()
            facts = facts_of(studio, engine, [])
            before: tuple[Shot, ...] = ()
            history: list[tuple[int, WordScores]] = []
            yield (view := replace(view, phase="running", message="Copying the weights"))
            started_s = time.monotonic()
            for moment in work.short_run(config, prompt, seeds, LOOK_EVERY, stop):
                share = moment.update / NUM_UPDATES
                left_s = (time.monotonic() - started_s) * (1 - share) / share if share else None
                message = f"Update {moment.update} of {NUM_UPDATES}"
                view = replace(view, message=message, share_done=share, left_s=left_s)
                if moment.images is not None:
                    history.append((moment.update, moment.scores))
                    now, photos = self._samples(engine, folder, subject, moment, facts)
                    before = before or now
                    name = f"After update {moment.update}" if moment.update else "Now"
                    said = _run_said(history, photos)
                    rows = _before_and_now(before, now, name)
                    view = replace(view, rows=rows, said=said, charts=(_run_chart(history),))
                yield view
            took_s = time.monotonic() - started_s
            yield replace(view, phase="done", message=f"{NUM_UPDATES} updates in {took_s:.0f} s", left_s=None)

    def short_config(self) -> TrainConfig:
        """The settings of step 5: those of the first preset, faster, on fewer prompts. BadInput for what is missing."""
        from srpo.training.config import with_settings
        from srpo.training.presets import preset

        tune = self.studio.finetune
        chosen = next(iter(tune.presets.values()))
        request = TrainRequest(
            preset=chosen.name,
            prompt_set=tune.prompts_of(chosen.settings["prompts"])[0],
            updates=NUM_UPDATES,
            prompts_per_update=PROMPTS_PER_UPDATE,
            lr=FASTER * chosen.settings["lr"],
            validate_every=0,
        )
        more = [f"device={self.studio.options.device}", f"validation.num_steps={STEPS}"]
        return with_settings(preset(chosen.name), [*tune.check(request), *more])

    def _samples(
        self, engine: Engine, folder: Path, subject: Subject, moment: Moment, facts: dict[str, Any]
    ) -> tuple[tuple[Shot, ...], int | None]:
        """The pictures of a moment as files, and how many the judge takes for photos, where there is one."""
        from app.services import guide_work as work
        from app.services.engine import to_pil

        found = work.verdicts(engine.scorer.judge, moment.images)
        names = {"left": f"{self.studio.catalogue.base_name} after {moment.update} updates", "right": SRPO}
        shots = []
        for number, (seed, verdict) in enumerate(zip(subject.request.seeds, found, strict=False)):
            texts = comparison_texts(subject.request, seed, "left", names, facts)
            name = file_stem(subject.prompt, seed, f"update {moment.update:02d}")
            path = self.studio.pictures.save(folder, name, to_pil(moment.images[number : number + 1]), texts)
            alt = f"{_alt(subject.prompt, seed)}, after {moment.update} updates"
            shots.append(_judged(Shot(f"seed {seed}", picture=path, alt=alt), verdict))
        photos = sum(shot.is_photo for shot in shots) if engine.scorer.judge is not None else None
        return tuple(shots), photos

    def _trained_elsewhere(self, subject: Subject, stop: StopFlag) -> Iterator[Figure]:
        closed = "Nothing is trained on this page: these are the SRPO weights it has, after their whole training."
        request = subject.request.model_copy(update={"num_seeds": NUM_SAMPLES})
        for view in compare(self.studio, request, stop):
            figure = _pairs(view)
            yield replace(figure, said=f"{closed} {figure.said}".strip())

    # 6: before and after

    def before_and_after(self, request: CompareRequest, stop: StopFlag) -> Iterator[Figure]:
        """FLUX and SRPO on one prompt, from the same noises."""
        for view in compare(self.studio, request, stop):
            yield _pairs(view)

    # Inside

    def _engine(self) -> Engine:
        return _now(self.studio.engine_when_ready(StopFlag()))

    @contextmanager
    def _at_once(self) -> Iterator[Engine]:
        """The engine with the device ours, for work of a moment. NotNow where either would take a while."""
        self._engine()  # where it is not loaded, nobody waits for the device
        with self.studio.device.turn() as turn:
            if ahead := turn.wait(PATIENCE_S):
                raise NotNow(f"Waiting for the device: {ahead} ahead of you.")
            _now(wait_for_device(turn, StopFlag()))
            yield self._engine()  # the one of now: before our turn, another memory mode may have replaced it

    def _painting(self, engine: Engine, request: CompareRequest, seed: int, stop: StopFlag) -> Iterator[Step | Painted]:
        """Steps of the base model, then the picture, kept for the other steps. One that is kept takes no step."""
        kept = self._recall(request.prompt, seed)
        if kept is not None:
            yield kept
            return
        from app.services.engine import Step
        from app.services.guide_work import Painted

        cond = engine.encode(request.prompt)
        for event in engine.paint([engine.base], cond, request, seed, stop):
            if isinstance(event, Step):
                yield event
                continue
            painted = Painted(event.latents[0], event.images[0].cpu())
            with self._lock:
                self._kept[request.prompt, seed] = painted
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            yield painted

    def _painted(self, engine: Engine, subject: Subject) -> Painted:
        """The chosen picture; painted now, where it was forgotten."""
        engine.check(subject.request, [subject.prompt])
        *_, painted = self._painting(engine, subject.request, subject.seed, StopFlag())
        return painted

    def _recall(self, prompt: str, seed: int) -> Painted | None:
        with self._lock:
            kept = self._kept.get((prompt, seed))
            if kept is not None:
                self._kept.move_to_end((prompt, seed))
            return kept

    def _noise(self, engine: Engine, subject: Subject, asked: LevelRequest) -> Any:
        """(1, C, H/8, W/8) the noise that is added: the one the picture was painted from, or another."""
        seed = subject.seed if asked.noise == "own" else (subject.seed + FRESH_NOISE) % (MAX_SEED + 1)
        return engine.base.initial_noise(seed, subject.request.height, subject.request.width)


@cache
def _guide_over(studio: Studio) -> Guide:
    return Guide(studio)


def _now(messages: Generator[str, None, T]) -> T:
    """What `messages` returns; NotNow with the first of them where there is one."""
    try:
        raise NotNow(next(messages))
    except StopIteration as end:
        return end.value


def _with_shot(view: Figure, number: int, shot: Shot) -> Figure:
    shots = view.rows[0].shots
    return replace(view, rows=(Row((*shots[:number], shot, *shots[number + 1 :])),))


def _judged(shot: Shot, verdict: Verdict | None) -> Shot:
    """The shot under the judge's name for it, where there is a judge."""
    if verdict is None:
        return shot
    return replace(shot, name=verdict.style, note=f"{verdict.photo:.0%} photo", is_photo=verdict.style == "photo")


def _count_photos(found: list[Verdict | None]) -> str:
    photos = sum(verdict.style == "photo" for verdict in found if verdict is not None)
    return f"The judge takes {photos} of {len(found)} for photos." if None not in found else ""


def _before_and_now(before: tuple[Shot, ...], now: tuple[Shot, ...], name: str) -> tuple[Row, ...]:
    return Row(before, "Before"), Row(now, name)


def _run_said(history: list[tuple[int, WordScores]], photos: int | None) -> str:
    """What the updates have done so far."""
    first, last = history[0][1], history[-1][1]
    moved = f"Difference {_signed(float(first.difference.mean()))} → {_signed(float(last.difference.mean()))}"
    raw = f"raw reward {_score(float(first.plain.mean()))} → {_score(float(last.plain.mean()))}"
    judged = "" if photos is None else f" The judge takes {photos} of {len(last.plain)} for photos."
    return f"{moved}, {raw}.{judged}"


def _run_chart(history: list[tuple[int, WordScores]]) -> Chart:
    updates = [update for update, _ in history]

    def line(name: str, score: str, colour: int, dash: str = "solid") -> Line:
        values = [float(getattr(scores, score).mean()) for _, scores in history]
        return Line(name, updates, values, colour, dash, points=True)

    return Chart(
        "short-run",
        "The reward of these pictures",
        "SRPO drives the two sides apart; the raw reward is not its aim",
        (
            line("positive words", "positive", 0),
            line("negative words", "negative", 1),
            line("the prompt alone", "plain", 4, "dot"),
        ),
    )


def _pairs(view: Comparison) -> Figure:
    """A comparison as two rows of pictures, with what the judge says of them."""
    sides: dict[str, list[Shot]] = {"left": [], "right": []}
    photos, same = {"left": 0, "right": 0}, 0
    for pair in view.pairs:
        rows = {row.name: row for row in pair.rows}
        judged = "Judged style" in rows
        same += judged and rows["Judged content"].left == rows["Judged content"].right
        for side, shots in sides.items():
            shot = Shot(f"seed {pair.seed}", picture=getattr(pair, side), alt=_alt(view.prompt, pair.seed))
            if judged:
                style, sure = getattr(rows["Judged style"], side), getattr(rows["Judged photo"], side)
                shot = replace(shot, name=style, note=f"{sure:.0%} photo", is_photo=style == "photo")
                photos[side] += style == "photo"
            shots.append(shot)
    for number, shots in enumerate(sides.values()):
        if view.previews and len(shots) < view.num_seeds:
            alt = _alt(view.prompt, view.seed)
            shots.append(Shot(f"seed {view.seed}", picture=view.previews[number], alt=alt, live=True))
        shots += [Shot()] * (view.num_seeds - len(shots))
    said = ""
    if view.pairs and any(row.name == "Judged style" for row in view.pairs[0].rows):
        count = len(view.pairs)
        said = (
            f"Judged photo: {photos['left']} of {count} before, {photos['right']} of {count} after. "
            f"The judge sees the same things in {same} of {count} pairs."
        )
    rows = tuple(Row(tuple(shots), name) for shots, name in zip(sides.values(), view.names, strict=True))
    return Figure(view.phase, view.message, rows, said=said, share_done=view.share_done, left_s=view.left_s)


def _alt(prompt: str, seed: int | None) -> str:
    return f"{prompt}, seed {seed}"


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _score(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "no error"


def _tiny(value: float) -> str:
    """A small number without an exponent, to one digit."""
    return f"{value:.{max(1, 1 - math.floor(math.log10(value)) - 1)}f}" if value else "0"
