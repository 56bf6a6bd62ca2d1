"""What a reward sees of pictures, whether it perceives words, and a short run: the services, on tiny weights."""

import pytest
import torch
from PIL import Image

from app.services.device import StopFlag
from app.services.metadata import read_request
from app.services.requests import BadInput, parse
from app.services.word_preview import PreviewRequest, preview, preview_config
from app.services.words import MAX_SEEN, PerceiveRequest, SeeRequest, perceived, prompts_for, see
from srpo.rewards.base import image_tensor
from srpo.rewards.control_words import cfg_like, cfg_like_paper, relative_to_noise, sgp, srp

WORDS = {"name": "Mine", "positive": ["Real", "Detail"], "negative": ["Oil"], "k_positive": [0.2, 0.4]}
SEE = {"words": WORDS, "model": "base", "prompts": "a red ball\na blue house", "seed": 1, "num_seeds": 2, "steps": 1}
CHECK = {"words": WORDS, "model": "base", "others": "Dark, Florp", "per_word": 8, "seed": 1, "steps": 1}
RUN = {"words": WORDS, "prompts": "a red ball\na blue house", "updates": 2, "seed": 5}
SMALL = {"width": 32, "height": 32}


def asked(kind, base, **changes):
    return parse(kind, base | SMALL | changes)


def last(views):
    *_, end = views
    return end


@pytest.fixture(scope="module")
def seen(studio):
    return last(see(studio, asked(SeeRequest, SEE), StopFlag()))


def test_every_picture_is_scored_under_every_word(studio, seen):
    assert seen.phase == "done" and [picture.label for picture in seen.pictures] == ["seed 1", "seed 2"] * 2
    assert seen.words == ("Real", "Detail", "Oil") and seen.sides == ("positive", "positive", "negative")
    reward = studio._engine.scorer.reward
    for picture, under, without in zip(seen.pictures, seen.under, seen.without, strict=True):
        image = image_tensor(Image.open(picture.path))  # 8 bits of what was scored
        texts = [picture.prompt, *(f"{word}. {picture.prompt}" for word in seen.words)]
        scores = reward.score(image.expand(4, -1, -1, -1), texts).tolist()
        assert scores == pytest.approx([without, *under], abs=2e-2)
    for under, without, difference, rank in zip(seen.under, seen.without, seen.difference, seen.rank, strict=True):
        assert difference == pytest.approx([one - without for one in under], abs=1e-6)
        assert [difference[rank.index(place)] for place in (1, 2, 3)] == sorted(difference, reverse=True)


def test_the_forms_are_the_librarys_for_every_pair_of_words(studio, seen):
    reward = studio._engine.scorer.reward
    picture = seen.pictures[0]
    f_img = reward.embed_image(image_tensor(Image.open(picture.path)))
    assert seen.paired == (("Real", "Detail"), ("Oil",))
    values = {row.label: row.values[0][1][0] for row in seen.forms}  # Detail against Oil
    c_pos, c_neg = (reward.embed_text([f"{word}. {picture.prompt}"]) for word in ("Detail", "Oil"))
    for label, form, k in (
        ("SGP", sgp, 0.0),
        ("SRP", srp, 0.0),
        ("CFG-like, published code", cfg_like, 0.3),  # the middle of k+
        ("CFG-like, paper", cfg_like_paper, 0.9),
    ):
        assert values[label] == pytest.approx(form(f_img, c_pos, c_neg, k).item(), abs=2e-2), label
    assert "k = 0.3" in seen.forms[2].formula and "k = 0.9" in seen.forms[3].formula


def test_own_pictures_are_cut_to_size_and_scored_without_a_model(studio, tmp_path):
    for number in range(2):
        Image.new("RGB", (60, 40 + number), (200, 30 * number, 10)).save(tmp_path / f"own{number}.png")
    files = [str(tmp_path / f"own{number}.png") for number in range(2)]
    found = last(see(studio, asked(SeeRequest, SEE, files=files, prompts="a ball", model="nothing"), StopFlag()))
    assert [picture.label for picture in found.pictures] == ["own0.png", "own1.png"]
    with Image.open(found.pictures[0].path) as image:
        assert image.size == (32, 32)
        expected = relative_to_noise(studio._engine.scorer.reward, image_tensor(image), ["a ball"], seed=0)
    assert found.against_noise[0] == pytest.approx(expected.difference.item(), abs=1e-5)


def test_a_painted_picture_can_be_restored_in_compare(seen):
    found = read_request(seen.pictures[1].path)
    assert (found.settings.prompt, found.settings.seed, found.settings.steps) == ("a red ball", 2, 1)
    assert found.settings.left == found.settings.right == "base"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": "\n  \n"}, "no prompt"),
        ({"prompts": "a\nb", "files": ["x.png"]}, "leave one line"),
        ({"prompts": "\n".join("abc"), "num_seeds": 16}, f"at most {MAX_SEEN}"),
        ({"words": None}, "no word set"),
        ({"words": {"positive": ["a"]}}, "needs negative words"),
        ({"words": WORDS | {"template": "{word}"}}, "must contain"),
        ({"words": WORDS | {"positive": ["Real", "Real"]}}, "twice"),
        ({"seed": "x"}, "seed must be a number"),
        ({"steps": 0}, "Steps must be"),
        ({"model": ""}, "Choose a model"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_in_a_sentence(changes, said):
    with pytest.raises(BadInput, match=said):
        asked(SeeRequest, SEE, **changes)


def test_what_only_the_models_can_tell_is_told_before_any_picture(studio, tmp_path):
    with pytest.raises(BadInput, match="no model at"):
        last(see(studio, asked(SeeRequest, SEE, model="nothing"), StopFlag()))
    with pytest.raises(BadInput, match=r"with its prompt, .*shorten one of them"):
        last(see(studio, asked(SeeRequest, SEE, prompts="red ball " * 11), StopFlag()))
    (tmp_path / "own.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="cannot be read as a picture"):
        last(see(studio, asked(SeeRequest, SEE, prompts="a", files=[tmp_path / "own.png"]), StopFlag()))


def test_without_a_reward_it_is_said_how_to_have_one(unloaded):
    studio = unloaded(reward=None, judge=None)
    with pytest.raises(BadInput, match=r"this page has none.*--reward FOLDER"):
        last(see(studio, asked(SeeRequest, SEE), StopFlag()))


class StopAfter(StopFlag):
    """Set by the so-manieth look at it."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def check(self):
        self.looks -= 1
        if self.looks < 0:
            self.set()
        super().check()


@pytest.mark.parametrize(
    ("work", "kind", "base"),
    [(see, SeeRequest, SEE), (perceived, PerceiveRequest, CHECK), (preview, PreviewRequest, RUN)],
)
def test_stop_ends_the_work_before_the_next_evaluation_and_gives_the_device_back(studio, work, kind, base):
    stop = StopAfter(3)
    steps = {} if kind is PreviewRequest else {"steps": 9}
    view = last(work(studio, asked(kind, base, **steps), stop))
    assert view.phase == "stopped" and stop.looks == -1
    with studio.device.turn() as turn:
        assert turn.ahead() == 0 and turn.acquire() is None


def test_words_are_checked_by_pictures_of_the_same_prompts_and_noise(studio):
    views = list(perceived(studio, asked(PerceiveRequest, CHECK), StopFlag()))
    found = views[-1]
    assert found.phase == "done" and [row.word for row in found.rows] == ["Real", "Detail", "Oil", "Dark", "Florp"]
    assert [row.side for row in found.rows] == ["positive", "positive", "negative", "other", "other"]
    assert all(row.kind in ("perceived", "entangled", "weak") and row.reason.endswith(".") for row in found.rows)
    assert all(row.separation[1] <= row.separation[0] <= row.separation[2] for row in found.rows)
    assert len(found.correlation) == len(found.told_apart) == 5
    assert len(found.without) == len(found.rows[0].pictures) == len(found.prompts) == 3
    shares = [view.share_done for view in views if view.phase == "running"]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 6  # one for each word and for none
    plain, real = read_request(found.without[0]).settings, read_request(found.rows[0].pictures[0]).settings
    assert real.prompt == f"Real. {plain.prompt}" and real.seed == plain.seed == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"others": "Real"}, "'Real' is in the set already"),
        ({"others": ",".join("abcdefghi")}, "At most 8 words"),
        ({"others": "x" * 61}, "61 characters"),
        ({"others": 3}, "must be text"),
        ({"per_word": 7}, "Pictures per word must be a whole number from 8"),
        ({"per_word": 32, "words": WORDS | {"positive": [f"w{n}" for n in range(20)]}}, "at most 640"),
    ],
)
def test_a_check_that_cannot_be_made_is_refused_in_a_sentence(changes, said):
    with pytest.raises(BadInput, match=said):
        asked(PerceiveRequest, CHECK, **changes)


def test_prompts_come_evenly_from_those_that_come_along(studio):
    prompts = prompts_for(studio, 8)
    assert len(set(prompts)) == 8


@pytest.fixture
def small_run(monkeypatch):
    """Settings that make an update of the tiny model take a moment, as a person would write them into the form."""
    import app.services.word_preview as module

    def config(studio, request):
        from srpo.training.config import with_settings

        changes = ["objective.height=32", "objective.width=32", "objective.rollout_steps=2", "prompts_per_update=2"]
        return with_settings(preview_config(studio, request), [*changes, "validation.num_steps=1", "lr=0.01"])

    monkeypatch.setattr(module, "preview_config", config)


def test_a_short_run_shows_the_same_pictures_after_every_update_and_leaves_nothing(studio, small_run):
    runs = {path: path.stat().st_mtime for path in studio.options.runs.rglob("*")}
    views = list(preview(studio, asked(PreviewRequest, RUN), StopFlag()))
    assert views[-1].phase == "done" and views[-1].message.startswith("2 updates in")
    film = views[-1].film
    assert film.updates == (0, 1, 2) and film.prompts == (("a red ball", 5), ("a blue house", 6))
    pictures = [[Image.open(path).tobytes() for path in row] for row in film.pictures]
    assert pictures[0][0] != pictures[2][0]
    assert views[-1].said.startswith("After 2 updates: positive − negative words ")
    assert {path: path.stat().st_mtime for path in studio.options.runs.rglob("*")} == runs


def test_a_short_run_has_the_sets_words_and_settings(studio):
    words = WORDS | {"positive": [{"word": "Real", "weight": 2}, "Detail"], "levels": "later", "form": "srp"}
    config = preview_config(studio, asked(PreviewRequest, RUN, words=words))
    assert config.signal.words.positive == ("Real", "Detail") and config.signal.words.positive_weights == (2.0, 1.0)
    assert config.signal.form == "srp" and config.objective.levels.kind == "steps" and not config.objective.inversion
    assert (config.updates, config.validation.every, config.seed) == (2, 0, 5)
    assert config.model == str(studio.options.model.resolve()) and config.device == "cpu"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": ""}, "one to 4 prompts"),
        ({"prompts": "a\nb\nc\nd\ne"}, "one to 4 prompts"),
        ({"updates": 11}, "The number of updates must be a whole number from 1 to 10"),
    ],
)
def test_a_short_run_that_cannot_be_is_refused_in_a_sentence(changes, said):
    with pytest.raises(BadInput, match=said):
        asked(PreviewRequest, RUN, **changes)


def test_settings_that_no_run_could_have_are_refused(studio):
    request = asked(PreviewRequest, RUN, words=WORDS | {"form": "cfg_like_paper"})
    with pytest.raises(BadInput, match="cfg_like_paper weighs its words"):
        last(preview(studio, request, StopFlag()))
    assert torch.is_grad_enabled()
