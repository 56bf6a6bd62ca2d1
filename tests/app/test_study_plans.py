"""Plans of studies made from the page's form, and the form filled from a plan again."""

import csv
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from app.services.device import StopFlag, Stopped
from app.services.requests import BadInput
from app.services.study_plans import (
    FOLDER,
    Brought,
    brought_from,
    form_of,
    plan_of,
    prompt_lines,
    read_form,
    read_sources,
    rows_and_lines,
    save_plan,
    what_saving_does,
)
from app.services.study_power import power_of, raters_needed, smallest_found
from app.tabs.studies import Handlers
from srpo.studies.schedule import schedule
from srpo.studies.schema import FixedStop, SequentialStop, changes
from srpo.studies.simulation import example_plan
from srpo.studies.stopping import prompts_needed
from tests.app.study_forms import values_of

EVIL = "<script>window.hacked = 1</script> {{7*7}} =1+1"


@pytest.fixture
def do(unloaded, tmp_path):
    return Handlers(unloaded(studies=tmp_path / "studies"))


def asked(do, **changes):
    """The request of a small plan's form."""
    return read_form(do.read_fields(values_of(do, **changes)))


def plan(do, **changes):
    return plan_of(do.studio, asked(do, **changes))


def saved(do, identity=None, brought=(), table=None, **changes):
    """The study that a form becomes."""
    saving = save_plan(do.studio, asked(do, **changes), brought, table, identity, StopFlag())
    try:
        while True:
            next(saving)
    except StopIteration as end:
        return end.value


def test_a_form_becomes_a_plan(do):
    made = plan(do, num_seeds=2, seed=7, criteria=["detail", "overall"], own_criteria="Mood: Which is calmer?")
    assert [(prompt.text, prompt.category) for prompt in made.prompts][:2] == [
        ("a red ball", "things"), ("a blue house", "places")
    ]  # fmt: skip
    assert [model.key for model in made.models] == ["base", "srpo"] and made.seeds == (7, 8)
    assert all(len(model.weights_sha256) == 64 for model in made.models)
    assert [known.key for known in made.criteria] == ["overall", "detail", "mood"]
    assert made.settings["steps"] == 1 and made.settings["width"] == 32
    assert (made.repeats, made.gold, made.filters.min_gold, made.filters.min_repeats) == (0.2, 0.2, 0.5, None)


def test_what_is_empty_filters_nothing_and_ratings_derive_the_overall(do):
    made = plan(do, mode="rating", criteria=["detail", "overall"], min_gold=0, min_dwell_s=None)
    assert [known.key for known in made.criteria] == ["detail"]
    assert made.filters.min_gold is made.filters.min_dwell_s is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"title": " "}, "The title is empty"),
        ({"title": "x" * 300}, "300 characters and may have 200"),
        ({"models": ["base"]}, "2 to 12 models"),
        ({"models": ["base", "/nowhere"]}, "no model at"),
        ({"models": ["base", "run:gone"]}, "no finished run"),
        ({"models": None}, "2 to 12 models"),
        ({"prompts": ""}, "no prompts"),
        ({"prompts": None}, "no prompts"),
        ({"prompts": "a ball\nA Ball"}, "is there twice"),
        ({"prompts": "x" * 5000}, "may have 4,000"),
        ({"prompts": "a\n" * 2001}, "At most 2,000 prompts"),
        ({"prompt_source": "/etc/passwd"}, "not among the ones offered"),
        ({"prompt_source": "own file"}, "No prompt file was chosen"),
        ({"take": -1}, "number of prompts to take"),
        ({"width": 33}, "multiple of 16"),
        ({"width": 2048, "height": 2048}, "at most"),
        ({"steps": 0}, "Steps must be"),
        ({"num_seeds": 17}, "number of seeds"),
        ({"seed": -1}, "The seed must be"),
        ({"guidance": float("nan")}, "finite"),
        ({"criteria": []}, "No criterion"),
        ({"criteria": ["beauty"]}, "no criterion 'beauty'"),
        ({"own_criteria": "just a word"}, "has no question"),
        ({"own_criteria": "\n".join(f"a{n}: b?" for n in range(5))}, "At most 4 own criteria"),
        ({"mode": "rating", "stop": "sequential", "criteria": ["detail"]}, "Only a pairwise study"),
        ({"votes_per_item": 0}, "number of votes on each pair"),
        ({"votes_per_item": None}, "must be a number"),
        ({"repeats": 31}, "share of repeats, in per cent, must lie between 0 and 30"),
        ({"gold": 50}, "between 0 and 20"),
        ({"smallest_win_rate": 50}, "smallest win rate"),
        ({"min_gold": 101}, "between 0 and 100"),
        ({"min_dwell_s": -1}, "between 0 and 600"),
        ({"trials_per_rater": 2.5}, "pairs that one rater sees"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_stores_nothing(do, change, says):
    with pytest.raises(BadInput, match=says) as refused:
        saved(do, **change)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert do.book.rows() == []


def test_prompts_come_from_a_set_a_file_or_what_was_typed(do, tmp_path):
    tune = do.studio.finetune
    (label, first), *trained = tune.prompt_sets_to_measure()
    # A study measures: it offers first what no run trains on, and training does not offer that.
    assert first.name == "test.txt" and label.startswith("test, held out") and trained == tune.prompt_sets()
    assert prompt_lines(tune, str(first), None, None) == first.read_text(encoding="utf-8")
    assert len(plan(do, prompt_source=str(first), take=5).prompts) == 5
    (tmp_path / "own.txt").write_text("a ball\n\n a  house \n")
    own = plan(do, prompt_source="own file", prompt_file=str(tmp_path / "own.txt"))
    assert [prompt.text for prompt in own.prompts] == ["a ball", "a house"]
    (tmp_path / "own.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        plan(do, prompt_source="own file", prompt_file=str(tmp_path / "own.txt"))


def test_weights_at_a_path_are_named_without_it(do, options):
    """The plan goes out with the export: no place of this machine may stand in it."""
    study = saved(do, models=["base", str(options.srpo)])
    assert study.plan.models[1].key == "weights:2" and study.plan.models[1].label == "srpo"
    assert str(options.srpo) not in study.plan.as_text()
    assert read_sources(do.studio, study.id).weights == {"weights:2": str(options.srpo)}
    assert form_of(do.studio, study)["models"] == ["base", str(options.srpo)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mode": "rating", "criteria": ["detail", "realism"], "min_gold": None},
        {"stop": "sequential", "num_seeds": 3, "seed": 5, "own_criteria": "Mood: Which is calmer?"},
        {"title": EVIL, "instructions": EVIL, "prompts": f"{EVIL} | {EVIL}\na ball", "trials_per_rater": 1},
    ],
)
def test_the_form_of_a_plan_gives_the_same_plan(do, change):
    study = saved(do, **change)
    filled = form_of(do.studio, study)
    again = plan_of(
        do.studio,
        read_form(do.read_fields(values_of(do, **change) | filled | {"prompt_source": "typed here"})),
        schedule_seed=study.plan.seed,
    )
    assert again.sha256 == study.sha256


def test_a_changed_plan_replaces_one_in_preparation_and_makes_a_version_of_one_that_is_open(do):
    study = saved(do)
    with pytest.raises(BadInput, match="Nothing has changed"):
        saved(do, study.id)
    changed = saved(do, study.id, votes_per_item=3)
    assert (changed.id, changed.version, changed.plan.stop.votes_per_item) == (study.id, 1, 3)
    assert "replaces" in what_saving_does(changed, 4) and "4 pictures" in what_saving_does(changed, 4)
    opened = replace(changed, state="open")
    assert "new version" in what_saving_does(opened, 4) and "Version 1 stays" in what_saving_does(opened, 4)


def test_who_guesses_the_form_does_not_know_the_sides(do):
    """All of a plan but its title can be as it came; two studies of it show the sides differently all the same."""
    prompts = "\n".join(f"a ball of number {number}" for number in range(40))
    one, other = saved(do, prompts=prompts), saved(do, prompts=prompts)
    assert changes(one.plan, other.plan).keys() == {"seed"}
    assert schedule(one.plan, 0) != schedule(other.plan, 0)
    again = saved(do, one.id, votes_per_item=3)  # what the old version told tells nothing of the new one
    assert again.plan.seed not in (one.plan.seed, other.plan.seed)


# Pictures that are brought


@pytest.fixture
def folders(tmp_path):
    """Two folders of four pictures, with a table in the first."""
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        for place in range(4):
            Image.new("RGB", (40, 32), (20 * place, 90 * number, 60)).save(tmp_path / name / f"{place}.png")
    with (tmp_path / "one" / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "prompt"], *([f"{place}.png", f"thing {place}"] for place in range(4))])
    return tmp_path


def rows(folders, *more):
    return [("One", str(folders / "one"), None), ("", str(folders / "two"), None), *more]


def test_folders_become_a_plan_with_their_own_prompts(do, folders):
    study = saved(do, None, brought_from(rows(folders)), source="bring")
    assert [model.label for model in study.plan.models] == ["One", "two"]
    assert [model.key for model in study.plan.models] == [f"{FOLDER}1", f"{FOLDER}2"]
    assert [prompt.text for prompt in study.plan.prompts] == [f"thing {place}" for place in range(4)]
    assert str(folders) not in study.plan.as_text()
    filled = form_of(do.studio, study)
    assert filled["source"] == "bring"
    assert filled["folders"] == [("One", str(folders / "one")), ("two", str(folders / "two"))]


def test_uploaded_files_with_a_table_are_as_good_as_folders(do, folders):
    files = [[str(path) for path in sorted((folders / name).glob("*.png"))] for name in ("one", "two")]
    brought = brought_from([("One", "", files[0]), ("Two", None, files[1])])
    study = saved(do, None, brought, folders / "one" / "prompts.csv", source="bring")
    assert len(study.plan.prompts) == 4


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "two" / "3.png").unlink(), "two lacks 3"),
        (lambda root: (root / "two" / "3.png").write_bytes(b"no picture"), "3.png cannot be read"),
        (lambda root: Image.new("RGB", (8, 8)).save(root / "two" / "3.png"), "3 is 8 x 8 and 40 x 32"),
        (lambda root: (root / "one" / "prompts.csv").unlink(), "Nothing says what the pictures show"),
        (lambda root: (root / "one" / "prompts.csv").write_text("file\n1"), "cannot be read"),
    ],
)
def test_folders_that_do_not_fit_are_refused_by_name(do, folders, spoil, says):
    spoil(folders)
    with pytest.raises(BadInput, match=says):
        saved(do, None, brought_from(rows(folders)), source="bring")
    assert do.book.rows() == []


def test_rows_that_are_half_filled_in_are_refused(folders):
    assert brought_from([("", "", None), ("A", "/a", None)])[0].label == "A"
    with pytest.raises(BadInput, match="has no pictures"):
        brought_from([("One", "", None)])
    with pytest.raises(BadInput, match="folder and uploaded files"):
        brought_from([("One", "/a", ["b.png"])])
    with pytest.raises(BadInput, match="no pictures yet"):
        brought_from([])


def test_more_models_than_the_form_has_rows_are_lines_of_text(do, folders, tmp_path):
    copies = [tmp_path / f"copy-{number}" for number in range(4)]
    for copy in copies:
        shutil.copytree(folders / "one", copy)
    further = f"Fifth = {copies[2]}\n\n  {folders / 'five'}  "
    shutil.copytree(folders / "one", folders / "five")
    four = [*rows(folders), *(("", str(copy), None) for copy in copies[:2])]
    study = saved(do, None, brought_from(four, further), source="bring")
    assert [model.label for model in study.plan.models] == ["One", "two", "copy-0", "copy-1", "Fifth", "five"]
    # The form of that plan holds all of them, and gives back the same.
    filled = form_of(do.studio, study)["folders"]
    shown, lines = rows_and_lines(filled)
    assert len(shown) == 4 and lines == f"Fifth = {copies[2]}\nfive = {folders / 'five'}"
    again = brought_from([(label, folder, None) for label, folder in shown], lines)
    assert [(each.label, str(each.place)) for each in again] == filled
    for bad in (5, "a\0b"):
        with pytest.raises(BadInput, match="one per line"):
            brought_from(rows(folders), bad)


def test_reading_folders_can_be_stopped(do, folders):
    stop = StopFlag()
    saving = save_plan(do.studio, asked(do, source="bring"), brought_from(rows(folders)), None, None, stop)
    assert "Reading" in next(saving)
    stop.set()
    with pytest.raises(Stopped):
        list(saving)
    assert do.book.rows() == []


def test_a_folder_that_is_none_is_refused(do, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is no folder"):
        saved(do, None, [Brought("A", tmp_path / "file"), Brought("B", tmp_path)], source="bring")


# Power


@pytest.mark.parametrize("prompts", [12, 40, 200])
def test_the_smallest_win_rate_that_is_found_is_the_first_that_needs_no_more_prompts(prompts):
    found = smallest_found(prompts, 5)
    assert prompts_needed(found, 1.0, 5) <= prompts < prompts_needed(found - 0.005, 1.0, 5)


def test_one_prompt_finds_nothing():
    assert smallest_found(1, 5) is None
    assert "no win rate" in power_of(example_plan(1)).sentences[-1]


@pytest.mark.parametrize("trials", [None, 3, 7])
def test_so_many_raters_give_every_item_its_votes_and_one_fewer_do_not(trials):
    plan = example_plan(10, 3, trials_per_rater=trials, stop=FixedStop(votes_per_item=4))

    def fewest_votes(raters):
        counts = {}
        for rater in range(raters):
            for trial in schedule(plan, rater):
                if trial.kind == "main":
                    item = trial.lane, trial.prompt, trial.left.seed
                    counts[item] = counts.get(item, 0) + 1
        return min(counts.values()) if len(counts) == plan.num_items else 0

    needed = raters_needed(plan)
    assert fewest_votes(needed) >= 4 > fewest_votes(needed - 1)


def test_the_outline_says_what_the_plan_asks_and_finds():
    size, trials, finds = power_of(example_plan(40)).sentences
    assert size == "40 prompts × 1 seed = 40 pairs, 200 votes."
    assert trials.startswith("A rater sees 47 (40 + 5 repeats + 2 gold)")
    assert "63.0% or more" in finds
    *_, late = power_of(example_plan(20, stop=SequentialStop(votes_per_item=5))).sentences
    assert "half of such studies end within" in late
