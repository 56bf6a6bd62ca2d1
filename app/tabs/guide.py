"""The Guide tab: the method in six steps, each with live pictures that the reader can poke at.

`Handlers` are plain functions of what the page holds; `build` lays out the page and wires them. A step's figure asks
for itself when it comes into view, so nothing is computed that nobody looks at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app.blocks import told
from app.components.curves import curves, curves_value
from app.components.guide import figure_value, guide_figure, not_now_value, stale_value, steps
from app.components.stage import error_value
from app.services.guide import (
    DISCOUNTS,
    MAX_SIGMA,
    NUM_PAIRS,
    NUM_PICTURES,
    NUM_SAMPLES,
    Figure,
    Guide,
    NotNow,
    Subject,
)
from app.services.requests import BadInput
from app.services.studio import Studio
from app.tabs.compare import UNEXPECTED, WORKING, account, visitor

log = logging.getLogger(__name__)

JOBS = ("guide-look", "guide-train", "guide-pairs")  # what a page's Stop buttons stop, and closing it
INTRO = """<h2>SRPO in six steps</h2>
<p>For whoever knows diffusion models. Every picture and number below is computed when you come to it, by the model of
this page and the functions that train it: change a prompt, a word or a noise level, and look.</p>"""
JUDGED = "A judge, which is never a reward, names the style of each."
TRAINED = "A real training, now, on a copy of the weights that is forgotten afterwards."
CLOSED = "Nothing is trained on this page: you see the SRPO weights it has."
# Moving one σ moves the other, and what hangs on it is drawn again once it is in view.
FOLLOW = "(sigma) => [sigma, { stale: String(performance.now()) }]"
TO_TOP = "() => { window.scrollTo({ top: 0 }); return []; }"


class Handlers:
    """What the tab's events do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.guide = studio, Guide(studio)

    # What takes seconds

    def look(self, request: gr.Request, prompt: str, seed: object) -> Iterator[tuple]:
        """(figure, Paint, Stop, the subject, the figures of steps 2 to 4): six pictures, from which the steps go on."""

        def begin(stop: Any) -> Iterator[Figure]:
            return self.guide.look(self.guide.request(prompt, seed), stop)

        def more(view: Figure | None) -> tuple:
            if view is None or view.phase in WORKING:
                return (gr.skip(),) * 4
            subject = Subject(self.guide.request(prompt, seed), view.chosen)
            return subject, *_stale(subject)

        yield from self._work(request, JOBS[0], begin, more)

    def train(self, request: gr.Request, subject: Subject) -> Iterator[tuple]:
        """(figure, Run, Stop, curves): ten updates."""

        def begin(stop: Any) -> Iterator[Figure]:
            return self.guide.training(subject, stop)

        def more(view: Figure | None) -> tuple:
            return (gr.skip() if view is None else curves_value("short-run", view.charts),)

        yield from self._work(request, JOBS[1], begin, more)

    def pairs(self, request: gr.Request, prompt: str) -> Iterator[tuple]:
        """(figure, Paint, Stop): FLUX and SRPO on one prompt."""

        def begin(stop: Any) -> Iterator[Figure]:
            return self.guide.before_and_after(self.guide.request(prompt, 0, NUM_PAIRS), stop)

        yield from self._work(request, JOBS[2], begin)

    def _work(
        self,
        request: gr.Request,
        job: str,
        begin: Callable[[Any], Iterator[Figure]],
        more: Callable[[Figure | None], tuple] = lambda view: (),
    ) -> Iterator[tuple]:
        """(figure, start, stop, then `more` of the figure, of None for an error) at each moment of the work.

        Its end is shown after it has left: whoever sees it can start again. `ready` gives the buttons back.
        """
        try:
            with self.studio.jobs.flag(visitor(request, job), account(request)) as stop:
                for view in begin(stop):
                    if view.phase in WORKING:
                        yield figure_value(view), *_busy(True), *more(view)
            yield figure_value(view), gr.skip(), gr.skip(), *more(view)
        except ValueError as error:
            yield error_value(str(error)), gr.skip(), gr.skip(), *more(None)
        except Exception:
            log.exception("A step of the guide failed.")
            yield error_value(UNEXPECTED), gr.skip(), gr.skip(), *more(None)

    def ready(self, request: gr.Request) -> tuple:
        """(start, stop) of each job given back, but for those at work."""
        running = [self.studio.jobs.is_running(visitor(request, job)) for job in JOBS]
        return tuple(button for works in running for button in ((gr.skip(),) * 2 if works else _busy(False)))

    def stop(self, request: gr.Request, job: str) -> None:
        self.studio.jobs.stop(visitor(request, job))

    def leave(self, request: gr.Request) -> None:
        """A page was closed: its work ends."""
        for job in JOBS:
            self.stop(request, job)

    # What takes a moment

    def choose(self, subject: Subject, event: gr.EventData) -> tuple:
        """(subject, the figures of steps 2 to 4): another of the six pictures goes on."""
        seed = told(event, "seed")
        if not isinstance(seed, int) or seed not in subject.request.seeds or seed == subject.seed:
            return (gr.skip(),) * 4
        chosen = Subject(subject.request, seed)
        return chosen, *_stale(chosen)

    def noise(self, subject: Subject, sigma: object, noise: object) -> dict:
        return self._at_once(lambda: self.guide.noising(subject, sigma, noise))

    def recover(self, subject: Subject, sigma: object, d_sigma: object, noise: object) -> dict:
        return self._at_once(lambda: self.guide.recovering(subject, sigma, d_sigma, noise))

    def words(self, subject: Subject, positive: object, negative: object) -> dict:
        return self._at_once(lambda: self.guide.wording(subject, positive, negative))

    def _at_once(self, make: Callable[[], Figure]) -> dict:
        """The figure, or why there is none: one sentence."""
        try:
            return figure_value(make())
        except NotNow as error:
            return not_now_value(str(error))
        except ValueError as error:
            return error_value(str(error))
        except Exception:
            log.exception("A step of the guide failed.")
            return error_value(UNEXPECTED)

    def weight(self, discounts: object) -> dict:
        """The curve of the net weight."""
        try:
            return curves_value("net-weight", [self.guide.net_weight(discounts)])
        except BadInput as error:
            return error_value(str(error))


def opens(tab: str) -> Callable[[], gr.Tabs]:
    """A handler that opens the tab of that id."""
    return lambda: gr.Tabs(selected=tab)


def build(studio: Studio, tabs: gr.Tabs) -> None:
    """Lays out the tab inside the Blocks that are open, and wires it. Its links lead to the tabs built before it."""
    do = Handlers(studio)
    examples = do.guide.examples()
    trains = studio.options.local_paths
    there = {tab.id for tab in tabs.children}
    texts = iter(
        steps(judge=JUDGED if studio.options.judge is not None else "", training=TRAINED if trains else CLOSED)
    )
    subject = gr.State(do.guide.first_subject())
    press: dict[str, Any] = {
        "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple", "queue": False
    }  # fmt: skip

    def text() -> None:
        gr.HTML(next(texts), elem_classes="guide-text", apply_default_css=False)

    def step(number: int) -> gr.Column:
        return gr.Column(elem_id=f"guide-{number}", elem_classes=["pane", "guide-step"])

    def deeper(**ways: str) -> None:
        """Links into the tabs that go deeper, as far as the page has them."""
        for tab, label in ways.items():
            if tab in there:
                link = gr.Button(label, elem_classes="guide-deeper", size="sm")
                link.click(opens(tab), outputs=tabs, js=TO_TOP, **press)

    def buttons(name: str, start: str) -> tuple[gr.Button, gr.Button]:
        with gr.Row(elem_classes="guide-go"):
            started = gr.Button(start, variant="primary", elem_id=f"guide-{name}")
            return started, gr.Button("Stop", interactive=False, elem_id=f"guide-{name}-stop")

    sigma_slider: dict[str, Any] = {"minimum": 0, "maximum": MAX_SIGMA, "step": 0.01, "value": 0.9}
    with gr.Column(elem_id="guide"):
        gr.HTML(INTRO, elem_classes="guide-intro", apply_default_css=False)
        with step(1):
            with gr.Column(elem_classes="guide-ask"):
                text()
                with gr.Row():
                    prompt = gr.Textbox(examples[0], label="Prompt", scale=3, min_width=190, elem_id="guide-prompt")
                    seed = gr.Number(0, label="First seed", step=1, min_width=90, elem_id="guide-seed")
                paint, stop_paint = buttons("paint", f"Paint {NUM_PICTURES} pictures")
                deeper(compare="Compare models on your prompts")
            with gr.Column(elem_classes="guide-show"):
                looks = guide_figure("Six pictures of one prompt", NUM_PICTURES, columns=3, elem_id="guide-look")
        with step(2):
            with gr.Column(elem_classes="guide-ask"):
                text()
                sigma = gr.Slider(**sigma_slider, label="Noise level σ", elem_id="guide-sigma")
                noise = gr.Radio(
                    [("fresh", "fresh"), ("the one it was painted from", "own")],
                    value="fresh",
                    label="Noise ε",
                    elem_id="guide-noise",
                )
                deeper(recoveries="Noise a picture of your own")
            with gr.Column(elem_classes="guide-show"):
                noised = guide_figure("A picture, noise, and their mixture", 4, elem_id="guide-noising")
        with step(3):
            with gr.Column(elem_classes="guide-ask"):
                text()
                same_sigma = gr.Slider(**sigma_slider, label="Noise level σ", elem_id="guide-sigma-3")
                d_sigma = gr.Slider(
                    0.005, 0.5, value=0.075, step=0.005, label="The model’s step d_σ", elem_id="guide-d"
                )
                deeper(recoveries="See all noise levels at once")
            with gr.Column(elem_classes="guide-show"):
                recovered = guide_figure("One-step prediction and Direct-Align", 4, elem_id="guide-recovering")
        with step(4):
            with gr.Column(elem_classes="guide-ask"):
                text()
                with gr.Row():
                    positive = gr.Textbox("Photo", label="Positive word", min_width=110, elem_id="guide-positive")
                    negative = gr.Textbox("Painting", label="Negative word", min_width=110, elem_id="guide-negative")
                discounts = gr.Radio(list(DISCOUNTS), value="paper", label="Strengths k₊ and k₋", elem_id="guide-k")
                deeper(words="Try whole sets of control words")
            with gr.Column(elem_classes="guide-show"):
                worded = guide_figure("Scores under two words", NUM_PICTURES, elem_id="guide-wording")
                weight = curves(studio.plotly, elem_id="guide-weight")
        with step(5):
            with gr.Column(elem_classes="guide-ask"):
                text()
                train, stop_train = buttons("train", "Run ten updates" if trains else "Show the SRPO weights")
                deeper(finetune="Train for real")
            with gr.Column(elem_classes="guide-show"):
                trained = guide_figure("Pictures during ten updates", NUM_SAMPLES, asks=False, elem_id="guide-training")
                scores = curves(studio.plotly, elem_id="guide-scores")
        with step(6):
            with gr.Column(elem_classes="guide-ask"):
                text()
                last_prompt = gr.Textbox(examples[1], label="Prompt", elem_id="guide-last-prompt")
                both, stop_both = buttons("pairs", "Paint both")
                deeper(compare="Flip, slide and measure them in Compare")
            with gr.Column(elem_classes="guide-show"):
                pairs = guide_figure("FLUX and SRPO, before and after", NUM_PAIRS, elem_id="guide-pairs-figure")

    # As in the Compare tab: only long work goes through the queue, and its buttons come back after the stream.
    work: dict[str, Any] = {
        "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple", "concurrency_limit": 8
    }  # fmt: skip
    # One event for each figure that follows a field, asked again where the field moved meanwhile.
    follow: dict[str, Any] = press | {"trigger_mode": "always_last"}
    moments = [noised, recovered, worded]
    long = [paint, stop_paint, train, stop_train, both, stop_both]

    def runs(triggers: list, fn: Callable, inputs: list, outputs: list) -> None:
        gr.on(triggers, fn, inputs, outputs, **work).then(do.ready, outputs=long, **press)

    runs([paint.click, prompt.submit, seed.submit, looks.submit], do.look, [prompt, seed],
         [looks, paint, stop_paint, subject, *moments])  # fmt: skip
    runs([train.click], do.train, [subject], [trained, train, stop_train, scores])
    runs([both.click, last_prompt.submit, pairs.submit], do.pairs, [last_prompt], [pairs, both, stop_both])
    for button, job in zip((stop_paint, stop_train, stop_both), JOBS, strict=True):
        button.click(_stopping(do, job), **press)
    looks.select(do.choose, subject, [subject, *moments], **press)
    gr.on([noised.submit, sigma.input, noise.input], do.noise, [subject, sigma, noise], noised, **follow)
    gr.on(
        [recovered.submit, same_sigma.input, d_sigma.input],
        do.recover,
        [subject, same_sigma, d_sigma, noise],
        recovered,
        **follow,
    )
    gr.on([worded.submit, positive.change, negative.change], do.words, [subject, positive, negative], worded, **follow)
    gr.on([worded.submit, discounts.input], do.weight, discounts, weight, **follow)
    sigma.input(None, sigma, [same_sigma, recovered], js=FOLLOW, **press)
    same_sigma.input(None, same_sigma, [sigma, noised], js=FOLLOW, **press)
    noise.input(None, None, recovered, js="() => ({ stale: String(performance.now()) })", **press)
    gr.context.Context.root_block.unload(do.leave)


def _stopping(do: Handlers, job: str) -> Callable[[gr.Request], None]:
    def stop(request: gr.Request) -> None:
        do.stop(request, job)

    return stop


def _stale(subject: Subject) -> tuple[dict, dict, dict]:
    """The figures of steps 2 to 4 for another subject."""
    return (stale_value(f"{subject.seed} {subject.prompt}"),) * 3


def _busy(running: bool) -> tuple:
    """The start and the stop button while work runs, or while none does."""
    return gr.update(interactive=not running), gr.update(interactive=running)
