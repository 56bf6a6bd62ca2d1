"""Sets of control words on the page: found, saved, judged, and turned into what a training is told."""

import pytest

from app.services.requests import BadInput
from app.services.training_requests import lines_of
from app.services.word_sets import MAX_OWN, RECIPES, WordShelf, file_name, require_room, word_set
from srpo.objectives.levels import net_weight_curve
from srpo.rewards.word_sets import WordSet, word_set_of, word_set_text
from srpo.training.config import with_settings
from srpo.training.presets import preset, studio

PLAIN = {"name": "Mine", "positive": ["Real", {"word": "Detail", "weight": 2}], "negative": ["Oil"]}


@pytest.fixture
def shelf(unloaded, tmp_path):
    return WordShelf(unloaded(runs=tmp_path / "runs"))


def test_the_shelf_begins_with_the_set_for_its_model(shelf, unloaded):
    keys = [key for _, key in shelf.choices()]
    assert keys[0] == shelf.first == "paper"  # tiny weights are no miniature
    assert {"paper", "miniature", "dark", "bright", "comic", "renaissance", "cyberpunk"} == set(keys)
    assert shelf.load("comic").name == "Comic"


def test_a_saved_set_is_offered_and_comes_back(shelf):
    words = word_set(PLAIN)
    assert shelf.save(words) == "own/mine"
    assert ("Mine (saved)", "own/mine") in shelf.choices()
    assert shelf.load("own/mine") == words
    again = word_set(PLAIN | {"negative": ["Flat"]})
    assert shelf.save(again) == "own/mine" and shelf.load("own/mine") == again
    assert [path.name for path in shelf.own_folder.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("key", [None, "", "nothing", "../words/paper", "own/../../x", "own/paper", "paper.yaml"])
def test_only_what_is_offered_can_be_loaded(shelf, key):
    with pytest.raises(BadInput, match="no such word set"):
        shelf.load(key)


def test_a_foreign_file_in_the_folder_is_not_offered_and_harms_nobody(shelf):
    shelf.save(word_set(PLAIN))
    (shelf.own_folder / "broken.yaml").write_text("positive: [")
    assert [key for _, key in shelf.choices() if key.startswith("own/")] == ["own/mine"]
    for number in range(MAX_OWN + 5):
        (shelf.own_folder / f"z{number:04}.yaml").write_text("x")
    assert len(shelf.choices()) <= MAX_OWN + 7


def test_a_public_page_keeps_no_sets(unloaded, tmp_path):
    shelf = WordShelf(unloaded(runs=tmp_path / "runs", local_paths=False))
    with pytest.raises(BadInput, match="keeps no sets"):
        shelf.save(word_set(PLAIN))
    assert not (tmp_path / "runs").exists()


def test_an_uploaded_file_is_judged(shelf, tmp_path):
    file = tmp_path / "set.yaml"
    file.write_text(word_set_text(word_set(PLAIN)))
    assert shelf.upload(str(file)).name == "Mine"
    file.write_text("colour: red\npositive: [Real]\nnegative: [Oil]")
    with pytest.raises(BadInput, match=r"A word set has no 'colour': its keys are .*\.$"):
        shelf.upload(str(file))
    with pytest.raises(BadInput, match="No file was chosen"):
        shelf.upload(None)


@pytest.mark.parametrize("value", [None, "Real", ["Real"], 3])
def test_what_is_no_set_is_refused(value):
    with pytest.raises(BadInput, match="no word set"):
        word_set(value)


@pytest.mark.parametrize(("name", "stem"), [("The paper's", "the-paper-s"), ("../x", "x"), ("Темно", "words")])
def test_a_sets_file_has_a_plain_name(name, stem):
    assert file_name(word_set(PLAIN | {"name": name})) == stem


def test_every_recipe_is_its_presets(shelf):
    for recipe in shelf.recipes:
        config = preset(RECIPES[recipe.key])
        objective, signal = config.objective, config.signal
        assert (recipe.form, recipe.k_positive, recipe.k_negative) == (
            signal.form,
            signal.discounts.positive,
            signal.discounts.negative,
        )
        sigma, weights = net_weight_curve(
            objective.levels, signal.discounts, len(recipe.sigma), inversion=objective.inversion
        )
        assert recipe.sigma == tuple(sigma.tolist())
        assert (recipe.inversion_index is None) == (not objective.inversion)
        assert (recipe.factor is None) == (objective.discount_shift is None)
        assert len(weights) == len(recipe.denoise_index)
    later = shelf.recipes[-1]
    assert later.factor[0] < 0.1 and later.factor[-1] > 0.98 and list(later.factor) == sorted(later.factor)


@pytest.mark.parametrize("levels", RECIPES)
def test_what_a_training_is_told_is_the_set(shelf, levels):
    words = word_set(
        PLAIN | {"levels": levels, "form": "srp", "k_positive": [0.2, 0.3], "template": "{prompt}, {word}"}
    )
    chosen = words.control_words
    told = {"signal.words.positive": list(chosen.positive), "signal.words.negative": list(chosen.negative)}
    config = with_settings(studio(), lines_of(shelf.settings(words) | told))
    assert config.signal.words == chosen and chosen.positive_weights == (1.0, 2.0)
    assert config.signal.discounts == words.discounts and config.signal.form == "srp"
    expected = preset(RECIPES[levels]).objective
    assert config.objective.levels == expected.levels
    assert (config.objective.inversion, config.objective.discount_shift) == (
        expected.inversion,
        expected.discount_shift,
    )


def test_what_there_is_to_know_of_a_set(shelf, studio):
    assert shelf.check(word_set(PLAIN)).startswith("Turns in 20 updates, positive: Real 7, Detail 13.")
    alike = word_set(PLAIN | {"positive": ["Real", "Detail"]})
    assert shelf.check(alike) == "Each update takes the next word of each side."
    assert "tokens that the reward reads" in WordShelf(studio).check(alike)


def test_discounts_that_no_form_can_take_are_refused(shelf):
    with pytest.raises(BadInput, match=r"Form cfg_like_paper weighs its words"):
        shelf.check(word_set(PLAIN | {"form": "cfg_like_paper"}))


def test_a_word_beyond_the_text_window_is_refused_with_its_length(studio):
    """The tiny tokenizer has one token per byte, 77 at most with both marks."""
    reward = studio._engine.scorer.reward
    long = word_set(PLAIN | {"positive": ["x" * 60], "template": "{word}, as in a very long template. {prompt}"})
    with pytest.raises(BadInput, match=r"with no prompt at all, \d+ tokens and the reward reads 77: shorten it"):
        WordShelf(studio).check(long)
    with pytest.raises(BadInput, match=r"with its prompt, .*shorten one of them"):
        require_room(reward, word_set(PLAIN), ["a prompt " * 10])
    assert require_room(reward, word_set(PLAIN), ["a ball"])[1] == 77


def test_the_pages_form_of_a_set_is_the_librarys():
    """What the editor sends: every field, words as mappings."""
    sent = {
        "name": "Mine",
        "description": "",
        "positive": [{"word": "Real", "weight": 1, "enabled": True}],
        "negative": [{"word": "Oil", "weight": 1, "enabled": True}],
        "template": "{word}. {prompt}",
        "form": "cfg_like",
        "k_positive": [0.1, 0.25],
        "k_negative": [0.3, 0.01],
        "levels": "paper",
    }
    assert word_set(sent) == word_set_of(sent)
    assert isinstance(word_set(sent), WordSet)
    with pytest.raises(BadInput, match=r"^K_negative is None: expected a number\.$"):
        word_set(sent | {"k_negative": [None, 0.01]})
