"""The guide's steps: each figure holds what the library's functions give when they are called by hand."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from app.components.guide import steps
from app.services import guide_work as work
from app.services.device import StopFlag
from app.services.engine import to_pil
from app.services.guide import DISCOUNTS, FRESH_NOISE, NUM_PICTURES, NUM_UPDATES, Guide, NotNow, Subject
from app.services.models import SRPO
from app.services.requests import BadInput
from app.services.studio import Studio
from app.tabs.compare import UNEXPECTED
from app.tabs.guide import CLOSED, JUDGED, TRAINED, Handlers
from srpo.evaluation.sampling import sample_images
from srpo.flow.path import interpolate
from srpo.flow.recovery import one_step_x0, recover_exactly, recover_x0
from srpo.objectives.levels import net_weight_curve
from srpo.training.assemble import assemble
from srpo.training.lanes import NUM_LANES
from srpo.training.presets import preset

PROMPT = "a red ball on a beach"
SEEDS = [4, 5, 6, 7, 8, 9]
SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def studio(options):
    """A studio that reads short texts, and a guide of small pictures: what is tested is no matter of size."""
    studio = Studio(replace(options, text_tokens=64))
    studio.start()
    studio._thread.join()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.services.guide.MAX_SIDE", 32)
        yield studio
    studio.pictures.close()


@pytest.fixture(scope="module")
def guide(studio):
    return Guide(studio)


@pytest.fixture(scope="module")
def request_of_six(guide):
    return guide.request(PROMPT, SEEDS[0])


@pytest.fixture(scope="module")
def looked(guide, request_of_six):
    """The snapshots of step 1."""
    return list(guide.look(request_of_six, StopFlag()))


@pytest.fixture(scope="module")
def subject(request_of_six, looked):
    """The second of the six pictures."""
    return Subject(request_of_six, SEEDS[1])


@pytest.fixture
def do(studio):
    return Handlers(studio)


def pixels(picture):
    """Of a file or of a data address."""
    source = io.BytesIO(base64.b64decode(picture.split(",")[1])) if isinstance(picture, str) else picture
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def same(picture, image):
    """Whether a shot's picture is that image (1, 3, H, W)."""
    return (pixels(picture) == pixels_of(image)).all()


def pixels_of(image):
    return np.asarray(to_pil(image)).astype(int)


# 1: the AI look


def test_the_six_pictures_are_those_of_the_library_under_the_judges_verdict(studio, looked, request_of_six):
    last = looked[-1]
    assert last.phase == "done" and last.chosen == SEEDS[0]
    (row,) = last.rows
    assert [shot.seed for shot in row.shots] == SEEDS
    images = sample_images(studio._engine.base, [PROMPT] * 6, SEEDS, **SIZE)
    photos = 0
    for number, shot in enumerate(row.shots):
        image = images[number : number + 1]
        assert np.abs(pixels(shot.picture) - pixels_of(image)).max() <= 1
        verdict = studio._engine.scorer.judge.verdict(image)[0]["style"]
        assert shot.name == verdict and shot.is_photo == (verdict == "photo") and shot.note.endswith("% photo")
        photos += verdict == "photo"
    assert last.said == f"The judge takes {photos} of 6 for photos."


def test_the_pictures_come_one_after_the_other_and_each_is_seen_coming(looked):
    running = [view for view in looked if view.phase == "running"]
    finished = [sum(shot.picture is not None and not shot.live for shot in view.rows[0].shots) for view in running]
    assert finished == sorted(finished) and finished[-1] == NUM_PICTURES
    live = [view for view in running if any(shot.live for shot in view.rows[0].shots)]
    assert len(live) == 28 * NUM_PICTURES
    shares = [view.share_done for view in live]
    assert shares == sorted(shares) and shares[-1] == 1


def test_pictures_that_are_remembered_take_no_step_of_the_model(guide, request_of_six, looked, studio, monkeypatch):
    monkeypatch.setattr(type(studio._engine.base), "velocity", lambda *arguments: pytest.fail("painted again"))
    again = list(guide.look(request_of_six, StopFlag()))[-1]
    for first, second in zip(looked[-1].rows[0].shots, again.rows[0].shots, strict=True):
        assert (pixels(first.picture) == pixels(second.picture)).all()


def test_no_more_pictures_are_remembered_than_there_is_room_for(studio, monkeypatch):
    monkeypatch.setattr("app.services.guide.MAX_KEPT", 2)
    guide = Guide(studio)
    list(guide.look(guide.request(PROMPT, 20), StopFlag()))
    assert [seed for _, seed in guide._kept] == [24, 25]


def test_stop_ends_the_painting_within_a_step(studio, monkeypatch):
    evaluations, stop = [], StopFlag()
    whole = type(studio._engine.base).velocity
    monkeypatch.setattr(type(studio._engine.base), "velocity", lambda *a: evaluations.append(1) or whole(*a))
    guide = Guide(studio)
    views = []
    for view in guide.look(guide.request(PROMPT, 40), stop):
        views.append(view)
        if len(evaluations) == 30:
            stop.set()
    assert len(evaluations) == 30 and views[-1].phase == "stopped"
    assert [shot.picture is not None for shot in views[-1].rows[0].shots] == [True] + [False] * 5


# 2 and 3: noise, and the ways back


@pytest.mark.parametrize("noise", ["fresh", "own"])
def test_noising_and_its_exact_undoing_are_equations_3_and_4(guide, studio, subject, noise):
    figure = guide.noising(subject, 0.7, noise)
    policy = studio._engine.base
    x0 = guide._recall(subject.prompt, subject.seed).x0
    eps = policy.initial_noise(subject.seed + (FRESH_NOISE if noise == "fresh" else 0), 32, 32)
    with torch.no_grad():
        x_t = interpolate(x0, eps, 0.7)
        again = recover_exactly(x_t, eps, 0.7)
        expected = [policy.decode(latents) for latents in (x0, eps, x_t, again)]
    (row,) = figure.rows
    assert all(same(shot.picture, image) for shot, image in zip(row.shots, expected, strict=True))
    worst = float((again - x0).abs().max())
    assert 0 < worst < 1e-4
    assert float(re.search(r"by more than (.*)\.$", figure.said)[1]) == float(f"{worst:.1g}")


def test_the_chosen_picture_is_what_its_seed_gives(guide, studio, subject):
    image = sample_images(studio._engine.base, [PROMPT], [subject.seed], **SIZE)
    assert np.abs(pixels(guide.noising(subject, 0, "own").rows[0].shots[0].picture) - pixels_of(image)).max() <= 1


def test_the_two_ways_back_are_equations_2_and_5_from_one_evaluation(guide, studio, subject, monkeypatch):
    evaluations = []
    policy, whole = studio._engine.base, type(studio._engine.base).velocity
    monkeypatch.setattr(type(policy), "velocity", lambda *a: evaluations.append(a[2]) or whole(*a))
    figure = guide.recovering(subject, 0.8, 0.1, "fresh")
    assert evaluations == [0.8]
    kept = guide._recall(subject.prompt, subject.seed)
    eps = policy.initial_noise(subject.seed + FRESH_NOISE, 32, 32)
    with torch.no_grad():
        x_t = interpolate(kept.x0, eps, 0.8)
        velocity = policy.velocity(x_t, 0.8, policy.encode_prompts([PROMPT]), 3.5)
        images = [
            policy.decode(one_step_x0(x_t, velocity, 0.8)),
            policy.decode(recover_x0(x_t, velocity, eps, 0.8, 0.8 - 0.1)),
        ]
    _, noisy, one_step, aligned = figure.rows[0].shots
    assert same(noisy.picture, policy.decode(x_t).detach())
    errors = [-10 * np.log10(float((image - kept.image).square().mean())) for image in images]
    for shot, image, error in zip((one_step, aligned), images, errors, strict=True):
        assert same(shot.picture, image) and shot.note == f"{error:.1f} dB"
    assert [bar.value for bar in figure.bars] == ["0.80", f"{0.1 / 0.3:.2f}"]
    assert figure.said == f"Direct-Align comes {errors[1] - errors[0]:.1f} dB nearer to the picture."


def test_without_noise_nothing_has_to_be_recovered(guide, subject):
    figure = guide.recovering(subject, 0, 0.075, "fresh")
    assert [shot.note for shot in figure.rows[0].shots[2:]] == ["no error", "no error"]


def test_a_step_that_does_not_fit_says_so_and_is_the_one_step_prediction(guide, subject):
    figure = guide.recovering(subject, 0.2, 0.5, "fresh")
    assert "cut short" in figure.said
    assert figure.bars[0].end == pytest.approx(figure.bars[1].end)
    assert (pixels(figure.rows[0].shots[2].picture) == pixels(figure.rows[0].shots[3].picture)).all()


def test_a_forgotten_picture_is_painted_again(studio, subject, guide):
    elsewhere = Guide(studio)
    figure = elsewhere.noising(subject, 0.5, "fresh")
    assert (
        pixels(figure.rows[0].shots[0].picture) == pixels(guide.noising(subject, 0.5, "fresh").rows[0].shots[0].picture)
    ).all()


def test_work_of_a_moment_does_not_wait_for_the_device(guide, studio, subject, monkeypatch):
    monkeypatch.setattr("app.services.guide.PATIENCE_S", 0.01)
    with studio.device.turn(), pytest.raises(NotNow, match="1 ahead of you"):
        guide.noising(subject, 0.5, "fresh")
    monkeypatch.setattr(studio.device, "_lock", SimpleNamespace(acquire=lambda name: False, release=lambda: None))
    with pytest.raises(NotNow, match="The device is in use by"):
        guide.recovering(subject, 0.5, 0.1, "fresh")


def test_before_the_models_are_there_the_page_is_told_to_ask_again(unloaded):
    studio = unloaded()
    do = Handlers(studio)
    first = do.noise(do.guide.first_subject(), 0.5, "fresh")
    assert first["phase"] == "later" and "still loading" in first["message"]
    studio._thread.join()
    assert do.noise(do.guide.first_subject(), 0.5, "fresh")["phase"] == "done"


# 4: two words, one reward


def test_the_words_scores_are_the_rewards_own_and_rank_the_six(guide, studio, subject):
    figure = guide.wording(subject, "Photo", "Oil")
    reward = studio._engine.scorer.reward
    images = torch.cat([guide._recall(PROMPT, seed).image for seed in SEEDS])
    texts = [f"Photo. {PROMPT}", f"Oil. {PROMPT}", PROMPT]
    scores = {text: reward.score(images, [text] * 6) for text in texts}
    mine = [float(scores[text][1]) for text in texts]
    gaps = scores[texts[0]] - scores[texts[1]]
    assert [bar.value for bar in figure.bars[:3]] == [f"{value:.3f}".replace("-", "−") for value in mine]
    assert figure.bars[3].value == f"{float(gaps[1]):+.3f}".replace("-", "−")
    (row,) = figure.rows
    assert [shot.name for shot in row.shots] == [
        f"{gap:+.3f}".replace("-", "−") for gap in sorted(gaps.tolist(), reverse=True)
    ]
    (chosen,) = [shot for shot in row.shots if shot.chosen]
    assert same(chosen.picture, images[1:2]) and chosen.note == "your picture"
    wish, other = ("Photo", "Oil") if gaps[1] > 0 else ("Oil", "Photo")
    assert figure.said == f"To this reward your picture is more {wish} than {other}."


def test_words_are_scored_while_the_device_is_in_use(guide, studio, subject):
    with studio.device.turn():
        assert guide.wording(subject, "Real", "Flat").phase == "done"


def test_without_a_reward_the_words_say_how_to_have_one(unloaded):
    studio = unloaded(reward=None)
    studio.start()
    studio._thread.join()
    guide = Guide(studio)
    with pytest.raises(BadInput, match=r"no reward to ask: start the app with --reward FOLDER"):
        guide.wording(guide.first_subject(), "Photo", "Painting")


@pytest.mark.parametrize("name", DISCOUNTS)
def test_the_net_weight_is_the_librarys_curve_of_that_setting(guide, name):
    chart = guide.net_weight(name)
    config = preset(DISCOUNTS[name])
    sigmas, weights = net_weight_curve(config.objective.levels, config.signal.discounts)
    (line,) = chart.lines
    assert line.x == sigmas.tolist() and line.y == weights.tolist() and chart.x_title == "noise level σ"


def test_the_papers_net_weight_passes_its_three_points(guide):
    (line,) = guide.net_weight("paper").lines
    order = np.argsort(line.x)
    at = np.interp([0.751, 0.862, 0.963], np.array(line.x)[order], np.array(line.y)[order])
    assert at == pytest.approx([-0.199, 0, 0.237], abs=0.002)


# 5: ten updates


@pytest.fixture(scope="module")
def config(guide):
    """A run as short as can be, of what step 5 would run."""
    whole = guide.short_config()
    small = replace(whole.objective, **SIZE, rollout_steps=2)
    return replace(whole, updates=2, objective=small, prompts_per_update=2)


def test_step_5_is_the_first_preset_on_fewer_prompts_and_faster(guide, options):
    config, whole = guide.short_config(), preset("studio")
    assert config.signal == whole.signal and config.objective == whole.objective
    assert (config.updates, config.prompts_per_update, config.lr) == (NUM_UPDATES, 4, 2 * whole.lr)
    assert config.validation.every == 0 and config.model == str(options.model)


def test_the_short_run_is_the_trainers_own(config):
    moments = list(work.short_run(config, PROMPT, SEEDS[:2], 2, StopFlag()))
    assert [(moment.update, moment.images is not None) for moment in moments] == [
        (0, True), (1, False), (2, True)
    ]  # fmt: skip
    trainer = assemble(config)
    words = config.signal.words

    def look():
        return sample_images(trainer.policy, [PROMPT] * 2, SEEDS[:2], **SIZE)

    for moment in (moments[0], moments[-1]):
        images = look()
        assert torch.equal(moment.images, images)
        for side, chosen in (("positive", words.positive), ("negative", words.negative)):
            scores = [trainer.reward.score(images, [words.apply(word, PROMPT)] * 2) for word in chosen]
            assert torch.allclose(getattr(moment.scores, side), torch.stack(scores).mean(0), atol=1e-6)
        assert torch.allclose(moment.scores.plain, trainer.reward.score(images, [PROMPT] * 2), atol=1e-6)
        assert torch.allclose(moment.scores.difference, moment.scores.positive - moment.scores.negative, atol=1e-6)
        list(trainer.updates())
    assert not torch.equal(moments[0].images, moments[-1].images)


def test_a_training_stops_before_the_next_pass_of_the_transformer(config, studio, monkeypatch):
    from app.services.device import Stopped

    passes, stop = [], StopFlag()
    whole = type(studio._engine.base).velocity
    monkeypatch.setattr(type(studio._engine.base), "velocity", lambda *a: passes.append(1) or whole(*a))
    run = work.short_run(config, PROMPT, SEEDS[:1], 2, stop)
    assert next(run).update == 0 and next(run).update == 1
    stop.set()
    before = len(passes)
    with pytest.raises(Stopped):
        next(run)
    # The calls that the flag ended before the transformer's pass, one for each part of an update.
    assert 1 <= len(passes) - before <= NUM_LANES


@pytest.fixture
def quick(guide, config, monkeypatch):
    """The guide, its training cut to two small updates."""
    monkeypatch.setattr(guide, "short_config", lambda: config)
    monkeypatch.setattr("app.services.guide.NUM_UPDATES", 2)
    return guide


def test_ten_updates_show_before_and_now_and_leave_the_pages_model_alone(quick, studio, subject):
    weights = [weight.clone() for weight in studio._engine.base.transformer.parameters()]
    views = list(quick.training(subject, StopFlag()))
    last = views[-1]
    assert last.phase == "done" and last.message.startswith("2 updates in")
    assert [row.name for row in last.rows] == ["Before", "After update 2"]
    assert [shot.alt for shot in last.rows[0].shots] == [
        f"{PROMPT}, seed {seed}, after 0 updates" for seed in SEEDS[:4]
    ]
    assert (pixels(last.rows[0].shots[0].picture) != pixels(last.rows[1].shots[0].picture)).any()
    (chart,) = last.charts
    assert [line.x for line in chart.lines] == [[0, 2]] * 3
    first, second = (chart.lines[0].y[at] - chart.lines[1].y[at] for at in (0, 1))
    ends = re.match(r"Difference (\S+) → (\S+), raw reward", last.said).groups()
    assert [float(end.replace("−", "-")) for end in ends] == pytest.approx([first, second], abs=6e-4)
    assert "The judge takes" in last.said
    assert all(torch.equal(a, b) for a, b in zip(weights, studio._engine.base.transformer.parameters(), strict=True))


def test_a_stopped_training_keeps_what_it_has_shown_and_gives_the_device_back(quick, studio, subject):
    stop, views = StopFlag(), []
    for view in quick.training(subject, stop):
        views.append(view)
        if view.message == "Update 1 of 2":
            stop.set()
    view = views[-1]
    assert view.phase == "stopped" and view.message == "Stopped: Update 1 of 2."
    assert all(shot.picture for shot in view.rows[0].shots)
    with studio.device.turn() as turn:
        assert turn.ahead() == 0 and turn.acquire() is None


def test_where_training_is_closed_the_srpo_weights_are_shown_and_nothing_is_trained(unloaded, subject, monkeypatch):
    monkeypatch.setattr(work, "short_run", lambda *arguments: pytest.fail("trained on a closed page"))
    studio = unloaded(local_paths=False)
    last = list(Guide(studio).training(subject, StopFlag()))[-1]
    assert last.phase == "done" and last.said.startswith("Nothing is trained on this page")
    assert [row.name for row in last.rows][1] == studio.catalogue.find(SRPO).label
    assert all(shot.picture for row in last.rows for shot in row.shots)


# 6: before and after


def test_before_and_after_are_both_models_from_one_noise(guide, studio):
    views = list(guide.before_and_after(guide.request(PROMPT, 4, 3), StopFlag()))
    assert any(shot.live for view in views for shot in view.rows[1].shots)
    last = views[-1]
    engine = studio._engine
    models = engine.policies([studio.catalogue.find(name) for name in ("base", "srpo")])
    photos = []
    for row, policy in zip(last.rows, models, strict=True):
        images = sample_images(policy, [PROMPT] * 3, [4, 5, 6], **SIZE)
        for number, shot in enumerate(row.shots):
            assert np.abs(pixels(shot.picture) - pixels_of(images[number : number + 1])).max() <= 1
        photos.append(sum(verdict["style"] == "photo" for verdict in engine.scorer.judge.verdict(images)))
    assert last.said.startswith(f"Judged photo: {photos[0]} of 3 before, {photos[1]} of 3 after.")


# The tab


def test_looking_hands_the_pictures_on_when_they_are_there(do, request_of):
    outputs = list(do.look(request_of(), PROMPT, 60))
    assert [output[0]["phase"] for output in outputs[-2:]] == ["running", "done"]
    assert [button["interactive"] for button in outputs[0][1:3]] == [False, True]
    _, start, stop, subject, *moments = outputs[-1]
    assert "interactive" not in start and "interactive" not in stop
    assert (subject.prompt, subject.seed) == (PROMPT, 60)
    assert all(set(value) == {"stale"} for value in moments) and len(moments) == 3
    assert [button["interactive"] for button in do.ready(request_of())] == [True, False] * 3


def test_a_chosen_picture_goes_on_and_no_other_can(do, subject):
    chosen, *moments = do.choose(subject, SimpleNamespace(_data={"seed": SEEDS[3]}))
    assert chosen == Subject(subject.request, SEEDS[3])
    assert [value["stale"] for value in moments] == [f"{SEEDS[3]} {PROMPT}"] * 3
    for data in ({"seed": 99}, {"seed": subject.seed}, {"seed": [1]}, {}, None):
        kept = do.choose(subject, SimpleNamespace(_data=data))
        assert all(not isinstance(value, Subject) and "stale" not in value for value in kept)


@pytest.mark.parametrize(
    ("prompt", "seed", "says"),
    [
        ("", 0, "The prompt is empty"),
        (None, 0, "The prompt is empty"),
        ("ball " * 600, 0, "tokens and this model reads 64"),
        ("x" * 5000, 0, "5,000 characters"),
        (PROMPT, -1, "The seed must be a whole number"),
        (PROMPT, "", "The seed must be a number"),
    ],
)
def test_a_picture_that_cannot_be_painted_is_one_sentence(do, request_of, prompt, seed, says):
    last = list(do.look(request_of(), prompt, seed))[-1]
    assert last[0]["phase"] == "error" and says in last[0]["message"]
    assert last[0]["message"].endswith(".") and "\n" not in last[0]["message"]
    assert not any(isinstance(value, Subject) for value in last)
    if seed == 0:
        assert list(do.pairs(request_of(), prompt))[-1][0]["message"] == last[0]["message"]


@pytest.mark.parametrize(
    ("sigma", "d_sigma", "noise", "says"),
    [
        (1.0, 0.1, "fresh", "The noise level σ must lie between 0 and 0.99, not at 1."),
        (-0.1, 0.1, "fresh", "The noise level σ must lie between 0 and 0.99"),
        ("much", 0.1, "fresh", "The noise level σ must be a number"),
        (None, 0.1, "fresh", "The noise level σ must be a number"),
        (float("nan"), 0.1, "fresh", "The noise level σ must be a finite number"),
        (0.5, 0.6, "fresh", "The model's step d_σ must lie between 0.005 and 0.5"),
        (0.5, 0.1, "mine", "'noise' has a form that cannot be read"),
    ],
)
def test_a_level_out_of_range_is_one_sentence(do, subject, sigma, d_sigma, noise, says):
    value = do.recover(subject, sigma, d_sigma, noise)
    assert value["phase"] == "error" and value["message"].startswith(says)
    assert value["message"].endswith(".") and "\n" not in value["message"]


@pytest.mark.parametrize(
    ("positive", "negative", "says"),
    [
        ("", "Painting", "The positive word is empty"),
        ("Photo", " . ", "The negative word is empty"),
        ("Photo", None, "The negative word is empty"),
        ("w" * 61, "Painting", "The positive word has 61 characters and may have 60."),
        ("w" * 60, "Painting", "tokens and the reward reads 77"),
    ],
)
def test_a_word_that_cannot_be_read_is_one_sentence(do, subject, positive, negative, says):
    value = do.words(subject, positive, negative)
    assert value["phase"] == "error" and says in value["message"]
    assert value["message"].endswith(".") and "\n" not in value["message"]


def test_unknown_discounts_are_one_sentence(do):
    value = do.weight("mine")
    assert value["phase"] == "error" and value["message"] == "The discounts are paper, PickScore, studio, not 'mine'."


def test_each_page_has_one_work_of_a_kind_and_closing_it_ends_all(do, request_of, subject):
    look, pairs = do.look(request_of(), PROMPT, 80), do.pairs(request_of(), PROMPT)
    next(look)
    assert next(pairs)[0]["phase"] == "waiting"  # it is behind the first in the device's line
    (refused,) = do.look(request_of(), PROMPT, 80)
    assert "at work already" in refused[0]["message"]
    do.leave(request_of("another page"))
    assert next(look)[0]["phase"] in ("waiting", "running")
    do.leave(request_of())
    assert list(look)[-1][0]["phase"] == "stopped" and list(pairs)[-1][0]["phase"] == "stopped"


def test_a_defect_is_logged_and_leaves_a_usable_page(do, request_of, subject, studio, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("cuda is on fire")

    monkeypatch.setattr(studio._engine, "encode", fail)
    assert do.recover(subject, 0.5, 0.1, "fresh") == {"phase": "error", "message": UNEXPECTED}
    assert list(do.look(request_of(), "never painted", 0))[-1][0] == {"phase": "error", "message": UNEXPECTED}
    assert [str(record.exc_info[1]) for record in caplog.records] == ["cuda is on fire"] * 2


@pytest.mark.parametrize("training", [TRAINED, CLOSED])
def test_the_texts_are_short_and_their_formulas_are_mathml(training):
    texts = steps(judge=JUDGED, training=training)
    assert len(texts) == 6
    for number, text in enumerate(texts, start=1):
        root = ElementTree.fromstring(f"<step>{text}</step>")
        assert root.find("h2/span").text == str(number)
        paragraph = " ".join("".join(root.find("p").itertext()).split())
        assert 20 <= len(paragraph.split()) <= 60 and "{" not in paragraph
        assert root.findall(".//math") and "http" not in text


def test_the_page_links_only_to_tabs_it_has(studio):
    from app import ui

    components = ui.build(studio).config["components"]
    tabs = [entry["props"]["id"] for entry in components if entry["type"] == "tabitem"]
    assert tabs[-1] == "guide"
    links = [
        entry["props"]["value"] for entry in components if "guide-deeper" in (entry["props"].get("elem_classes") or [])
    ]
    reached = {"compare": 2, "finetune": 1, "recoveries": 2, "words": 1}
    assert len(links) == sum(count for tab, count in reached.items() if tab in tabs)
