"""The services of the Fine-tune tab: what they start, refuse, measure and compare."""

import json
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from app.services import finetune
from app.services.device import OURS, StopFlag, Stopped
from app.services.finetune import Cost, said_bytes, said_s
from app.services.requests import BadInput, parse
from app.services.training_requests import TrainRequest
from app.state import Resumption
from srpo.runs import Busy, DeviceLock, RunFolder, control, list_runs
from srpo.runs.processes import kill_group
from tests.app.folders import CONFIG, checkpoint, make_run, pretend_to_run


@pytest.fixture
def tune(unloaded, tmp_path):
    """The services over an empty folder of runs; no model is loaded."""
    return unloaded(runs=tmp_path / "runs").finetune


def ask(**changes):
    return parse(TrainRequest, {"preset": "studio"} | changes)


@pytest.fixture
def started(monkeypatch):
    """What was asked of the process control; nothing is started."""
    calls = []

    def start(root, name, preset, assignments, *, device):
        calls.append((name, preset, list(assignments), device))
        return make_run(root, name or "unnamed", updates=1)

    monkeypatch.setattr(finetune, "start_run", start)
    return calls


@pytest.fixture
def pictures():
    """Pictures under way in another app of ours: `release()` ends them."""
    lock = DeviceLock("cpu")
    assert lock.acquire(OURS)
    yield lock
    lock.release()


def test_the_presets_are_those_of_the_models_size(tune):
    assert next(iter(tune.presets)) == "studio"
    assert "paper" not in tune.presets and "studio_flux" not in tune.presets
    studio = tune.presets["studio"]
    assert studio.summary.startswith("SRPO on the miniature") and "Cost" in studio.details
    assert studio.settings["objective.rollout_steps"] == 12


def test_a_start_names_the_apps_own_model_and_only_what_was_changed(tune, started, options):
    settings = tune.presets["studio"].settings
    unchanged = "\n".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    (run,) = tune.start(ask(name="mine", updates=7, more=unchanged + "\nseed=3"), StopFlag())
    assert run.name == "mine"
    ((name, preset, assignments, device),) = started
    assert (name, preset, device) == ("mine", "studio", "cpu")
    assert f"model={json.dumps(str(options.model.resolve()))}" in assignments
    assert f"reward={json.dumps(str(options.reward.resolve()))}" in assignments
    assert assignments[-2:] == ["updates=7", "seed=3"]
    assert not any(line.startswith("objective") for line in assignments)


def test_own_prompts_are_on_the_disk_before_the_run_is(tune, started):
    list(tune.start(ask(prompts="a ball\na boat"), StopFlag()))
    ((_, _, assignments, _),) = started
    (line,) = [line for line in assignments if line.startswith("prompts=")]
    path = json.loads(line.removeprefix("prompts="))
    assert Path(path).read_text() == "a ball\na boat\n"
    assert tune.prompts_of(path) == (None, "a ball\na boat\n")
    assert [run.name for run in list_runs(tune.root)] == ["unnamed"]  # the prompts' folder is no run


@pytest.mark.parametrize("missing", ["image", "caption"])
def test_images_and_captions_must_belong_together_before_anything_is_started(tune, started, tmp_path, missing):
    if missing == "caption":
        Image.new("RGB", (64, 64)).save(tmp_path / "alone.png")
    else:
        (tmp_path / "alone.txt").write_text("a caption")
    with pytest.raises(BadInput, match="alone"):
        list(tune.start(ask(preset="offline", more=f"offline.folder={tmp_path}"), StopFlag()))
    assert started == []


def test_without_a_judge_the_best_checkpoint_goes_by_what_needs_none(unloaded, tmp_path):
    tune = unloaded(runs=tmp_path, judge=None).finetune
    settings = tune.presets["studio"].settings
    assert settings["validation.judge"] is None and settings["validation.maximise"] == "sharpness"
    assert not any(name.startswith("validation.limits.") for name in settings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "stduio"}, "no preset 'stduio' here: choose studio"),
        ({"preset": "paper"}, "no preset 'paper' here"),
        ({"more": "learning_rate=1"}, "There is no setting 'learning_rate'"),
        ({"more": "objectve.hinge=1"}, "did you mean objective.hinge"),
        ({"more": "lr=-1"}, "Lr is -1"),
        ({"more": "objective.levels.sigma_min=0.9\nobjective.levels.sigma_max=0.8"}, "sigma_min"),
        ({"more": "objective.levels.sigma_min=NaN"}, "sigma_min"),
        ({"more": "objective.rollout_steps=0"}, "at least 1"),
        ({"more": "updates=lots"}, "Updates"),
        ({"more": "prompts=/nowhere.txt"}, "No prompts in '/nowhere.txt'"),
        ({"more": "reward=/nowhere/at/all"}, "Reward is '/nowhere/at/all', but there is nothing"),
        ({"preset": "offline"}, "There is no folder offline: set offline.folder"),
        ({"name": "taken"}, "There is a run 'taken' already"),
        ({"sinks": ["trackio"]}, "Trackio is not installed here"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_starts_nothing(tune, started, monkeypatch, changes, said):
    make_run(tune.root, "taken")
    monkeypatch.setattr("srpo.tracking.importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput) as refused:
        list(tune.start(ask(**changes), StopFlag()))
    text = str(refused.value)
    assert said in text and text.endswith((".", "?")) and "\n" not in text
    assert started == []


def test_a_start_waits_for_the_pictures_under_way_and_says_so(tune, pictures, monkeypatch):
    """The real process control; only the process itself is replaced by one that ends at once."""
    monkeypatch.setattr(control, "JOB", ("-c", ""))
    steps = tune.start(ask(name="late"), StopFlag())
    assert "pictures under way" in next(steps) and not (tune.root / "late").exists()
    pictures.release()
    assert [step.name for step in steps if isinstance(step, RunFolder)] == ["late"]


def test_a_start_that_waits_can_be_stopped(tune, pictures):
    stop = StopFlag()
    steps = tune.start(ask(name="never"), stop)
    next(steps)
    stop.set()
    with pytest.raises(Stopped):
        list(steps)
    assert not (tune.root / "never").exists()


def test_a_start_beside_another_run_is_refused_with_its_name(tune):
    lock = DeviceLock("cpu")
    assert lock.acquire("run other (process 1)")
    with pytest.raises(BadInput, match=r"in use by run other \(process 1\)"):
        list(tune.start(ask(name="second"), StopFlag()))
    lock.release()
    assert not (tune.root / "second").exists()


def test_fifty_starts_at_once_make_exactly_one_run(tune, monkeypatch):
    """The real process control; only the process itself is replaced by one that waits."""
    monkeypatch.setattr(control, "JOB", ("-c", "import time; time.sleep(600)"))
    gate = threading.Barrier(50)

    def start(number):
        gate.wait()
        try:
            return list(tune.start(ask(name=f"run-{number}"), StopFlag()))[-1].name
        except BadInput as error:
            return str(error)

    assert tune.presets  # imported before, so that all arrive together
    try:
        with ThreadPoolExecutor(50) as pool:
            said = list(pool.map(start, range(50)))
    finally:
        jobs = [run.job() for run in list_runs(tune.root)]
        for job in jobs:
            kill_group(job)
    began = [name for name in said if name.startswith("run-")]
    assert len(began) == len(jobs) == 1
    assert [run.name for run in list_runs(tune.root)] == began
    assert all("in use by" in text for text in said if text not in began)


def test_the_living_run_is_found_again_whoever_started_it(tune):
    make_run(tune.root, "old", status="finished")
    assert tune.living() is None
    run = make_run(tune.root, "new", status="running")
    pretend_to_run(run, time.time(), 3)
    make_run(tune.root, "younger", status="stopped")
    assert tune.living().name == "new"


@pytest.fixture
def resumed(monkeypatch):
    """What was asked of the process control; nothing goes on."""
    calls = []
    monkeypatch.setattr(finetune, "resume_run", lambda run, *how, **more: calls.append((run.name, *how, more)))
    return calls


def test_a_run_goes_on_as_is_asked(tune, resumed):
    make_run(tune.root)
    assert tune.planned("one") == 10
    for asked in (Resumption("one", updates=15), Resumption("one", from_update=2)):
        (run,) = tune.resume(asked, StopFlag())
        assert run.name == "one"
    rest = {"device": "cpu", "despite_changes": False}
    assert resumed == [("one", 15, None, rest), ("one", None, 2, rest)]


def test_a_run_of_which_something_has_changed_is_refused_until_that_is_overruled(tune, resumed):
    run = make_run(tune.root)
    run.write_environment(run.environment() | {"torch": "1.0", "model": "another"})
    asked = Resumption("one", updates=15)
    (refusal,) = tune.resume(asked, StopFlag())
    assert refusal.asked == asked and resumed == []
    assert [change.partition(" was ")[0] for change in refusal.changes] == ["torch", "model"]
    assert "torch was 1.0 and is " in refusal.changes[0]
    list(tune.resume(asked, StopFlag(), despite_changes=True))
    assert resumed == [("one", 15, None, {"device": "cpu", "despite_changes": True})]


@pytest.mark.parametrize(
    "act",
    [
        lambda tune: tune.snapshot("nobody"),
        lambda tune: tune.stop("nobody"),
        lambda tune: list(tune.resume(Resumption("nobody"), StopFlag())),
        lambda tune: tune.planned("nobody"),
        lambda tune: tune.delete("nobody"),
        lambda tune: tune.delete("../runs"),
        lambda tune: tune.delete("one/../../runs"),
        lambda tune: tune.keep("one", 7),
        lambda tune: list(tune.resume(Resumption("one", from_update=99), StopFlag())),
        lambda tune: list(tune.resume(Resumption("one", updates=1), StopFlag())),
        lambda tune: tune.model_id("one"),
        lambda tune: tune.export("one", "full", None, "float32"),
        lambda tune: tune.export("one", "kohya", None, "float32"),
        lambda tune: tune.compare(["one"]),
        lambda tune: tune.compare(["one", "nobody"]),
        lambda tune: tune.compare([f"r{number}" for number in range(7)]),
        lambda tune: tune.settings_like("nobody"),
    ],
)
def test_what_cannot_be_done_with_a_run_is_one_sentence(tune, act):
    make_run(tune.root)
    before = sorted(path.name for path in tune.root.rglob("*"))
    with pytest.raises(BadInput) as refused:
        act(tune)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert sorted(path.name for path in tune.root.rglob("*")) == before


def test_a_run_is_deleted_after_its_size_was_named(tune):
    run = make_run(tune.root)
    make_run(tune.root, "two")
    assert "Delete the run one" in tune.what_deleting_takes("one") and "kB" in tune.what_deleting_takes("one")
    assert tune.delete("one").startswith("Deleted the run one")
    assert not run.path.exists() and [left.name for left in tune.runs()] == ["two"]


def test_a_run_under_way_is_not_deleted(tune):
    from srpo.runs.locks import FileLock

    run = make_run(tune.root, status="running")
    lock = FileLock(run.path)
    assert lock.acquire()
    with pytest.raises(BadInput, match="stop it first"):
        tune.delete("one")
    lock.release()
    assert run.path.exists()


def test_the_settings_of_a_run_lead_back_to_its_preset(tune, started):
    settings = dict(tune.presets["plain"].settings) | {"lr": 1e-6}
    nested = {}
    for name, value in settings.items():
        *parents, leaf = name.split(".")
        owner = nested
        for parent in parents:
            owner = owner.setdefault(parent, {})
        owner[leaf] = value
    run = make_run(tune.root)
    run.write_config(nested)
    preset, found = tune.settings_like("one")
    assert preset == "plain" and found == settings
    assert tune.check(ask(preset=preset, more="\n".join(finetune.lines_of(found))))[-1] == "lr=1e-06"


def test_compared_runs_show_what_differs_and_the_same_samples(tune):
    make_run(tune.root, "a")
    make_run(tune.root, "b", updates=5, config={"lr": 1e-5, "signal": CONFIG["signal"] | {"form": "plain"}})
    found = tune.compare(["a", "b"])
    assert found.differing == (("lr", ("4e-05", "1e-05")), ("signal.form", ("cfg_like", "plain")))
    assert [line.name for line in found.charts[0].lines] == ["a", "b"]
    assert found.samples.heads == ("a, update 3", "b, update 5")
    rows = [(row.prompt, row.seed, len(row.pictures)) for row in found.samples.rows]
    assert rows == [("a ball", 1, 2), ("a boat", 2, 2)]


def test_runs_without_a_common_sample_say_so(tune):
    make_run(tune.root, "a")
    shutil.rmtree(make_run(tune.root, "b").path / "samples")
    found = tune.compare(["a", "b"])
    assert found.samples is None and "share no sample" in found.note


def test_an_unfinished_run_opens_at_its_best_checkpoint_else_its_last(tune, unloaded):
    run = make_run(tune.root, updates=3)
    checkpoint(run, 2)
    assert tune.model_id("one") == "run:one@2"
    checkpoint(run, 3)
    assert tune.model_id("one") == "run:one@3"  # the best
    catalogue = unloaded(runs=tune.root).catalogue
    assert catalogue.find("run:one@2").weights == run.checkpoint_weights(2)
    labels = [model.label for model in catalogue.models()]
    assert "Run one, best, update 3" in labels and "Run one" not in labels
    for name in ("run:one@9", "run:one@x", "run:one", "run:../one@2"):
        with pytest.raises(BadInput, match="There is no finished run"):
            catalogue.find(name)


def test_a_finished_run_is_offered_with_its_best_checkpoint_where_that_is_another(tune, unloaded):
    run = make_run(tune.root, updates=3, status="finished")
    run.weights.write_bytes(b"weights")
    checkpoint(run, 3)
    catalogue = unloaded(runs=tune.root).catalogue
    assert [model.id for model in catalogue.models() if model.id.startswith("run:")] == ["run:one"]
    checkpoint(run, 2)
    run.write_best(type(run.best())(2, 0.4, "the highest photo share", 3))
    assert [model.id for model in catalogue.models() if model.id.startswith("run:")] == ["run:one", "run:one@2"]
    assert tune.model_id("one") == "run:one"


def test_an_export_can_be_downloaded_as_one_file(tune, monkeypatch, tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "README.md").write_text("a card")
    make_run(tune.root)
    monkeypatch.setattr("srpo.export.export", lambda run, form, update, dtype: folder)
    found, archive = tune.export("one", "full", None, "float32")
    assert found == folder and archive.is_relative_to(tune.pictures.root)
    with zipfile.ZipFile(archive) as zipped:
        assert "README.md" in zipped.namelist()
    monkeypatch.setattr(finetune, "MAX_ZIPPED_BYTES", 1)
    assert tune.export("one", "full", None, "float32") == (folder, None)


def test_the_cost_is_the_sum_of_its_parts():
    cost = Cost(10.0, 4.0, 2.0, 1_300_000_000, 5.0, 20_000_000, updates=15, validations=4, checkpoints=4)
    assert cost.total_s == 10 + 4 + 14 * 2 + 4 * 5
    assert "2.0 s per update" in cost.said() and "about 62 s for 15 updates and 4 validations of 5.0 s" in cost.said()
    assert "1.3 GB of memory" in cost.said() and "80 MB on the disk" in cost.said()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (89, "89 s"), (150, "2 min"), (4800, "1 h 20 min"), (7200, "2 h")],
)
def test_durations_are_said_in_fitting_units(seconds, said):
    assert said_s(seconds) == said


def test_sizes_are_said_in_fitting_units():
    assert [said_bytes(size) for size in (900, 2e6, 1.31e9)] == ["1 kB", "2 MB", "1.3 GB"]


def test_the_device_is_busy_for_pictures_while_a_run_has_it(tune):
    device = tune.device
    with device.turn() as turn:
        assert turn.wait(0) == 0
        lock = DeviceLock("cpu")
        assert lock.acquire("run other (process 1)")
        assert turn.acquire() == "run other (process 1)"
        lock.release()
        assert turn.acquire() is None and turn.acquire() is None
        with pytest.raises(Busy, match=r"SRPO Studio \(pictures"):
            DeviceLock("cpu").require("run second")
        assert device.is_ours()
    assert not device.is_ours() and lock.acquire("run third")
    lock.release()


def test_a_measurement_is_a_real_update_and_leaves_no_run(tune, options):
    """The tiny model, measured in a process of its own."""
    tiny = ["objective.height=32", "objective.width=32", "objective.rollout_steps=2", "validation.every=0"]
    request = ask(prompts="a red ball\na blue house", prompts_per_update=2, updates=4, more="\n".join(tiny))
    *messages, cost = tune.measure(request, StopFlag())
    assert messages and all("Measuring" in message for message in messages)
    assert 0 < cost.seconds_per_update < 60 and cost.peak_bytes > 10**7 and cost.updates == 4
    assert tune.runs() == [] and not tune.device.is_ours()


def test_a_measurement_that_cannot_run_says_why(tune, tmp_path):
    """The folder is there, so only loading it tells that it holds no reward."""
    with pytest.raises(BadInput) as refused:
        list(tune.measure(ask(more=f"reward={tmp_path}"), StopFlag()))
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")
