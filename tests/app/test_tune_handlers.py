"""The Fine-tune tab's handlers, called as plain functions."""

import logging
import time
from dataclasses import replace

import pytest

from app.services import finetune
from app.services.device import OURS
from app.services.requests import BadInput
from app.services.training_requests import with_lines
from app.state import Watching
from app.tabs import finetune as tab
from app.tabs.compare import UNEXPECTED
from app.tabs.finetune import FILLED, OWN_FILE, TYPED, Form, Handlers, Live
from srpo.runs import DeviceLock, RunFolder
from tests.app.folders import checkpoint, make_run, pretend_to_run, record
from tests.app.serving import PATIENCE_S

EMPTY = {name: None for name in Form._fields} | {"preset": "studio", "name": "", "more": "", "sinks": []}


@pytest.fixture
def do(unloaded, tmp_path):
    return Handlers(unloaded(runs=tmp_path / "runs"))


@pytest.fixture
def root(do):
    return do.tune.root


@pytest.fixture
def started(monkeypatch):
    """The names of runs that were asked for; each appears as if its process had just begun."""
    names = []

    def start(root, name, preset, assignments, *, device):
        names.append(name)
        run = RunFolder.prepare(root / (name or "unnamed"))
        pretend_to_run(run, time.time(), 0)
        return run

    monkeypatch.setattr(finetune, "start_run", start)
    return names


def form(**values):
    return tuple((EMPTY | values)[name] for name in Form._fields)


def live_of(output):
    return Live(*output[-len(Live._fields) :])


def changed(live):
    """The names of the parts that are sent anew."""
    return {name for name, value in live._asdict().items() if value is not tab.NOTHING_NEW.head and not is_skip(value)}


def is_skip(value):
    return isinstance(value, dict) and set(value) == {"__type__"}


def is_busy(output):
    """Start, Measure and Stop as they are while the form's work is under way."""
    return [button["interactive"] for button in output[1:4]] == [False, False, True]


def is_ready(buttons):
    return [button["interactive"] for button in buttons] == [True, True, False]


def test_a_start_shows_the_run_as_soon_as_it_has_begun(do, request_of, started):
    watching = Watching()
    before = time.monotonic()
    *_, last = do.start(request_of(), watching, *form(name="mine"))
    assert time.monotonic() - before < 20  # the training's own imports, once
    live = live_of(last)
    assert "Run mine started." in last[0] and is_busy(last) and is_ready(do.asked(request_of()))
    assert 'data-status="starting"' in live.head and live.run["value"] == "mine"
    assert live.stop["interactive"] and not live.resume["interactive"]
    assert watching.run == "mine" and started == ["mine"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"updates": 0}, "whole number from 1"),
        ({"lr": float("nan")}, "finite"),
        ({"prompt_source": TYPED, "prompts": ""}, "no prompts"),
        ({"prompt_source": TYPED, "prompts": None}, "no prompts"),
        ({"prompt_source": OWN_FILE}, "No prompt file was chosen"),
        ({"prompt_source": "/etc/passwd"}, "not among the ones offered"),
        ({"model": "/nowhere"}, "There is no pipeline"),
        ({"name": "a/b"}, "cannot be named"),
        ({"more": "colour=blue"}, "no setting"),
        ({"positive": ""}, "no positive"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_started(do, request_of, started, values, said):
    *_, last = do.start(request_of(), Watching(), *form(**values))
    assert said in last[0] and "failed" in last[0] and is_ready(do.asked(request_of()))
    assert changed(live_of(last)) == set() and started == []


def test_a_file_that_is_no_text_is_one_sentence(do, request_of, started, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    values = {"prompt_source": OWN_FILE, "prompt_file": str(tmp_path / "picture.png")}
    *_, last = do.start(request_of(), Watching(), *form(**values))
    assert "not UTF-8" in last[0] and started == []


def test_a_second_click_while_the_first_is_at_work_starts_nothing(do, request_of, started):
    first = do.start(request_of(), Watching(), *form(name="mine"))
    next(first)
    (second,) = do.start(request_of(), Watching(), *form(name="again"))
    assert "at work already" in second[0]
    assert all(is_skip(button) for button in do.asked(request_of()))  # the first press is still at work
    list(first)
    assert is_ready(do.asked(request_of()))
    assert started == ["mine"]


def test_a_defect_is_logged_and_leaves_a_usable_page(do, request_of, monkeypatch, caplog):
    def fail(*arguments, **more):
        raise RuntimeError("the sky fell")

    monkeypatch.setattr(finetune, "start_run", fail)
    with caplog.at_level(logging.ERROR):
        *_, last = do.start(request_of(), Watching(), *form())
    assert UNEXPECTED.split(";")[0] in last[0] and "the sky fell" in caplog.text
    assert is_ready(do.asked(request_of()))


def test_a_new_page_finds_the_living_run_and_shows_all_of_it(do, root):
    """What a page does after the app was killed and started again: within one look, every point, each once."""
    run = make_run(root, "alive", updates=3, status="running")
    pretend_to_run(run, time.time(), 3)
    make_run(root, "younger", status="stopped")
    live = do.look(Watching())
    assert live.run["value"] == "alive" and set(live.run["choices"]) == {"younger", "alive"}
    assert "update 3 of 10" in live.head
    lines = {line["name"]: line for chart in live.charts["charts"] for line in chart["lines"]}
    assert lines["Difference"]["x"] == [1, 2, 3]
    assert live.film["updates"] == [0, 3]


def test_a_page_is_sent_only_what_it_does_not_show(do, root):
    run, watching = make_run(root), Watching()
    assert changed(do.look(watching)) >= {"run", "head", "charts", "film", "stop"}
    assert changed(do.look(watching)) == set()
    run.append_progress(record(4))
    assert changed(do.look(watching)) == {"charts"}
    run.write_state("finished", 4, updates=10)
    assert changed(do.look(watching)) == {"head", "stop", "resume", "open", "checkpoint", "export_update"}
    make_run(root, "second")
    assert changed(do.look(watching)) == {"run"}
    assert changed(do.look(Watching())) >= {"run", "head", "charts", "film", "stop"}  # another page


def test_a_page_looks_less_often_once_the_first_point_is_there(do, root):
    run, watching = make_run(root, updates=0, status="running"), Watching()
    pretend_to_run(run, time.time(), 0)
    assert do.tick(watching)[-1].value == tab.FIRST_LOOKS_S
    run.append_progress(record(1))
    run.write_state("running", 1, phase="training", updates=10)
    assert do.tick(watching)[-1].value == tab.LOOKS_S > tab.FIRST_LOOKS_S
    assert is_skip(do.tick(watching)[-1])


def test_what_is_picked_from_the_checkpoints_stays_picked_while_the_run_goes_on(do, root):
    run, watching = make_run(root, status="running"), Watching()
    pretend_to_run(run, time.time(), 3)
    for update in (2, 3):
        checkpoint(run, update)
    live = do.look(watching)
    assert live.checkpoint["value"] == live.export_update["value"] == 3  # the best one, of those that are there
    checkpoint(run, 1)
    live = do.look(watching)
    assert [value for _, value in live.checkpoint["choices"]] == [1, 2, 3]
    assert "value" not in live.checkpoint and "value" not in live.export_update


def test_where_the_best_checkpoint_is_gone_the_newest_is_offered_and_stays_picked(do, root):
    run, watching = make_run(root, status="running"), Watching()
    run.write_best(replace(run.best(), update=1))
    pretend_to_run(run, time.time(), 3)
    assert do.look(watching).checkpoint["value"] is None
    for update in (2, 3):
        checkpoint(run, update)
    live = do.look(watching)
    assert live.checkpoint["value"] == live.export_update["value"] == 3
    checkpoint(run, 4)
    live = do.look(watching)
    assert "value" not in live.checkpoint and "value" not in live.export_update


def test_a_page_without_runs_says_how_to_have_one(do):
    watching = Watching()
    assert "Start one" in do.look(watching).head
    assert changed(do.look(watching)) == set()


def test_a_chosen_run_stays_although_a_younger_one_begins(do, root):
    make_run(root, "first")
    watching = Watching()
    do.choose(watching, "first")
    make_run(root, "second")
    do.look(watching)
    assert watching.run == "first"


def test_a_run_that_goes_away_under_the_page_is_said_once(do, root):
    import shutil

    run, watching = make_run(root), Watching()
    do.look(watching)
    shutil.rmtree(run.path)
    live = do.look(watching)
    assert "gone" in live.head and live.run["choices"] == [] and live.run["value"] is None
    assert "Start one" in do.look(watching).head
    assert changed(do.look(watching)) == set()


def test_a_folder_that_cannot_be_read_is_one_sentence(do, root):
    run = make_run(root)
    (run.path / "progress.jsonl").write_text("no json\n" * 3)
    live = do.look(Watching())
    assert "cannot be read" in live.head and "line 1" in live.head


def test_a_failed_run_says_why_even_where_it_never_had_settings(do, root):
    run = RunFolder.prepare(root / "one")
    run.write_state("failed", 0, "the reward is missing: set reward")
    live = do.look(Watching())
    assert 'data-status="failed"' in live.head and "The reward is missing: set reward." in live.head
    assert live.resume["interactive"] and is_skip(live.export_form)


def test_names_and_messages_are_text_and_never_markup(do, root):
    run = make_run(root)
    run.write_state("failed", 3, "<img src=x onerror=alert(1)>", updates=10)
    assert "<img" not in do.look(Watching()).head


def test_the_form_is_filled_by_a_preset_and_gives_back_the_same_run(do):
    """What is filled in and sent back unchanged asks for the preset and nothing else."""
    preset, *filled = do.open_page()
    assert preset["value"] == "studio" and len(filled) == len(FILLED)
    values = dict(zip(FILLED, filled, strict=True))
    assert values["updates"] >= 1 and values["positive"].startswith("Natural-lighting\n")
    assert "objective.rollout_steps=12" in values["more"] and "updates=" not in values["more"].split()
    sent = {name: value for name, value in values.items() if name in Form._fields and not is_skip(value)}
    asked = do.tune.check(do.read_form(*form(**sent)))
    assert [line.split("=")[0] for line in asked] == ["model", "max_sequence_length", "reward", "validation.judge"]


@pytest.mark.slow
def test_the_recipe_for_flux_runs_from_the_form_and_is_validated_without_a_judge(
    unloaded, options, tmp_path, request_of, monkeypatch
):
    """A LoRA in bf16 on tiny weights that stand in for FLUX.1-dev's; another reward looks on."""
    monkeypatch.setattr(finetune, "is_full_size", lambda model: True)
    do, watching = Handlers(unloaded(runs=tmp_path / "runs", judge=None)), Watching()
    preset, *filled = do.open_page()
    values = dict(zip(FILLED, filled, strict=True))
    assert preset["value"] == "studio_flux" and values["weights"] == "lora"
    tiny = ["objective.height=32", "objective.width=32", "objective.rollout_steps=2", "lora.rank=2", "lora.alpha=2"]
    tiny += ["validation.num_prompts=2", "validation.num_samples=2", "validation.num_steps=2"]
    tiny += [f"validation.reward={options.reward}"]
    asked = {name: value for name, value in values.items() if name in Form._fields}
    asked |= {"preset": "studio_flux", "name": "flux", "prompt_source": TYPED, "prompts": "a red ball\na blue house"}
    asked |= {"updates": 2, "prompts_per_update": 2, "validate_every": 1, "more": with_lines(values["more"], tiny)}
    *_, last = do.start(request_of(), watching, *form(**asked))
    assert "Run flux started." in last[0]
    run = RunFolder.open(do.tune.root / "flux")
    deadline = time.monotonic() + PATIENCE_S
    while do.tune.snapshot("flux").view().is_live:
        assert time.monotonic() < deadline, run.log_tail()
        time.sleep(0.5)
    live = do.look(watching)
    assert 'data-status="finished"' in live.head, run.log_tail()
    assert run.config()["numerics"] == "bf16" and run.config()["device"] == "cpu"
    scores = {"reward", "saturation", "clipped", "sharpness", "diversity"}
    assert [set(record.scores) for record in run.validation()] == [scores] * 3
    assert run.best().rule.startswith("the most sharpness, where saturation rises by at most 0.05")
    charts = {chart["key"] for chart in live.charts["charts"]}
    assert charts == {"difference", "scores", "loss", "gradient"} | {f"validation-{score}" for score in scores}
    assert [form for _, form in live.export_form["choices"]] == ["lora", "kohya", "full"]
    assert live.film["updates"] == [0, 1, 2]


def test_an_unknown_preset_leaves_the_form(do):
    assert all(is_skip(value) for value in do.fill("nothing of that name"))


def test_the_chosen_prompts_show_their_field(do):
    shown = {source: [field["visible"] for field in do.prompt_fields(source)] for source in (OWN_FILE, TYPED, "a set")}
    assert shown == {OWN_FILE: [True, False], TYPED: [False, True], "a set": [False, False]}


def test_start_says_what_it_will_do(do):
    assert do.cost(15, 8)["value"] == "Start 15 updates of 8 prompts"
    assert do.cost(None, 8)["value"] == "Start"


@pytest.mark.parametrize(
    "act",
    [
        lambda do, request: list(do.resume(request, Watching()))[-1][0],
        lambda do, request: list(do.extend(request, Watching("one"), 0))[-1][0],
        lambda do, request: list(do.extend(request, Watching("one"), "ten"))[-1][0],
        lambda do, request: list(do.go_back(request, Watching("one"), None))[-1][0],
        lambda do, request: list(do.go_back(request, Watching("one"), 77))[-1][0],
        lambda do, request: do.stop(request, Watching())[0],
        lambda do, request: do.keep(Watching("one"), None),
        lambda do, request: do.keep(Watching("one"), 5),
        lambda do, request: do.copy(Watching())[0],
        lambda do, request: do.ask_delete(Watching())[1],
        lambda do, request: do.open_in_compare(Watching("one"))[0],
        lambda do, request: list(do.export(Watching("one"), None, None, "float32"))[-1][0],
        lambda do, request: list(do.export(Watching("one"), "full", "final", "float32"))[-1][0],
        lambda do, request: list(do.overrule(request, Watching("one")))[-1][0],
        lambda do, request: do.compare([])[0],
        lambda do, request: do.compare(None)[0],
    ],
)
def test_what_cannot_be_done_is_one_sentence(do, root, request_of, act):
    make_run(root)
    said = act(do, request_of())
    assert 'class="note failed"' in said and said.count(". ") <= 1 and UNEXPECTED not in said


def test_deleting_asks_first_and_shows_another_run_after_it(do, root):
    make_run(root, "one")
    make_run(root, "two")
    watching = Watching("two")
    row, question = do.ask_delete(watching)
    assert row["visible"] and "Delete the run two" in question
    hidden, said, *live = do.delete(watching)
    assert not hidden["visible"] and "Deleted the run two" in said
    assert Live(*live).run["value"] == "one" and watching.run == "one"
    do.ask_delete(watching)
    _, _, *live = do.delete(watching)
    assert Live(*live).film == {"updates": []} and Live(*live).charts["charts"] == []


def test_the_run_that_is_deleted_is_the_one_that_the_question_named(do, root):
    for name in ("one", "two"):
        make_run(root, name)
    watching = Watching("two")
    do.ask_delete(watching)
    _, _, download, question, *_ = do.choose(watching, "one")
    assert not question["visible"] and not download["visible"]
    _, said, *_ = do.delete(watching)  # pressed before the question went
    assert "Deleted the run two" in said and watching.run == "one"
    _, said, *_ = do.delete(watching)
    assert "No run was named" in said and (root / "one").exists()


def test_a_note_on_a_run_under_way_goes_when_the_run_has_ended(do, root):
    run, watching = make_run(root, status="running"), Watching()
    pretend_to_run(run, time.time(), 3)
    assert is_skip(do.tick(watching)[0])
    run.write_state("finished", 3, updates=3)
    assert do.tick(watching)[0] == ""
    assert is_skip(do.tick(watching)[0])


def test_open_in_compare_puts_the_run_on_one_side(do, root):
    checkpoint(make_run(root), 3)
    said, tabs, left, right = do.open_in_compare(Watching("one"))
    assert is_skip(said) and tabs["selected"] == "compare"
    assert (left["value"], right["value"]) == ("base", "run:one@3")
    assert "run:one@3" in [identity for _, identity in right["choices"]]


def test_the_settings_in_which_runs_differ_are_a_table_of_text(do, root):
    make_run(root, "a", config={"note": "<b>bold</b>"})
    make_run(root, "b")
    _, charts, table, samples = do.compare(["a", "b"])
    assert "&lt;b&gt;bold" in table and "<b>bold" not in table
    assert charts["charts"] and samples["models"] == ["a, update 3", "b, update 3"]
    assert samples["rows"][0]["pictures"][0].startswith("gradio_api/file=/")


def test_a_page_beyond_the_loopback_has_no_such_tab(unloaded):
    from app import ui

    def functions(studio):
        functions = [block.fn for block in ui.build(studio).fns.values() if block.fn is not None]
        return {function.__name__ for function in functions if function.__module__ == tab.__name__}

    assert {"start", "resume", "delete", "export", "measure", "extend", "go_back", "stop", "look"} <= functions(
        unloaded()
    )
    assert functions(unloaded(local_paths=False)) == set()


@pytest.fixture
def endless(do, monkeypatch):
    """A measurement that ends when it is told to."""

    def measure(request, stop):
        while True:
            yield "Measuring"
            stop.check()

    monkeypatch.setattr(do.tune, "measure", measure)


@pytest.mark.parametrize("end", ["stop_asking", "leave"])
def test_a_measurement_is_shown_while_it_runs_and_can_be_stopped_or_left(do, request_of, endless, end):
    steps = do.measure(request_of(), *form())
    next(steps)
    shown = next(steps)
    assert "Measuring" in shown[0] and is_busy(shown)
    getattr(do, end)(request_of("another page"))
    assert "Measuring" in next(steps)[0]
    getattr(do, end)(request_of())
    (last,) = steps
    assert "The measurement was stopped." in last[0] and is_ready(do.asked(request_of()))


def test_bad_input_to_a_measurement_is_one_sentence(do, request_of):
    *_, last = do.measure(request_of(), *form(updates=-1))
    assert "failed" in last[0] and is_ready(do.asked(request_of()))


def test_a_refused_run_names_what_has_changed_and_offers_to_go_on_all_the_same(do, root, request_of, monkeypatch):
    asked = []

    def resume(run, updates, from_update, *, device, despite_changes):
        asked.append((run.name, updates, from_update, despite_changes))

    monkeypatch.setattr(finetune, "resume_run", resume)
    run, other = make_run(root), make_run(root, "other")
    run.write_environment(run.environment() | {"torch": "<1.0>"})
    watching = Watching("one")
    *_, (said, *live) = do.extend(request_of(), watching, 5)
    live = Live(*live)
    assert said == "" and live.refusal["visible"] and "torch was &lt;1.0&gt; and is" in live.changes and asked == []
    assert {"refusal", "changes"}.isdisjoint(changed(do.look(watching)))
    away = Live(*do.choose(watching, other.name)[4:])
    assert not away.refusal["visible"] and away.changes == ""
    assert "Nothing was refused" in list(do.overrule(request_of(), watching))[-1][0]
    back = Live(*do.choose(watching, "one")[4:])
    assert back.refusal["visible"] and "torch was" in back.changes
    *_, (said, *live) = do.overrule(request_of(), watching)
    assert "Run one goes on." in said and asked == [("one", 15, None, True)]
    assert not Live(*live).refusal["visible"] and watching.refusal is None


def test_a_run_that_waits_to_go_on_can_be_stopped(do, root, request_of):
    make_run(root)
    lock = DeviceLock("cpu")
    assert lock.acquire(OURS)
    watching = Watching("one")
    do.look(watching)
    steps = do.resume(request_of(), watching)
    next(steps)
    said, *live = next(steps)
    assert "pictures under way" in said and Live(*live).stop["interactive"]
    do.stop(request_of(), watching)
    (last,) = steps
    lock.release()
    assert "Nothing was started." in last[0]
    assert not do.look(watching).stop["interactive"]


def test_without_a_run_nothing_is_assumed():
    with pytest.raises(BadInput, match="choose one first"):
        tab._shown(Watching())
