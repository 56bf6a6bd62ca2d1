"""Names of rewards, their cards, and what is loaded for a name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srpo.miniature import paths
from srpo.rewards.base import EmbeddingReward
from srpo.rewards.catalogue import CARDS, Named, card_of, place_of, read_name, resolved
from srpo.rewards.load import load_reward
from tests.tiny import tiny_clip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hpsv2.1:models/HPS_v2.1_compressed.pt", Named("hpsv2.1", "models/HPS_v2.1_compressed.pt")),
        ("hpsv2+srpo:a.pt", Named("hpsv2", "a.pt", "srpo")),
        ("pickscore:yuvalkirstain/PickScore_v1", Named("pickscore", "yuvalkirstain/PickScore_v1")),
        ("yuvalkirstain/PickScore_v1", Named("pickscore", "yuvalkirstain/PickScore_v1")),
        ("/hub/models--yuvalkirstain--PickScore_v1/snapshots/1", None),
        ("models/HPS_v2.1_compressed.pt", Named("hpsv2.1", "models/HPS_v2.1_compressed.pt")),
        ("openai/clip-vit-large-patch14", Named("clip", "openai/clip-vit-large-patch14")),
        ("some/folder", Named("clip", "some/folder")),
        (str(paths.REWARD), Named("clip", str(paths.REWARD))),
    ],
)
def test_a_name_says_the_kind_and_the_place(name, expected):
    named = read_name(name)
    assert named == (expected or Named("pickscore", name))
    assert place_of(name) == named.place
    assert read_name(str(named)) == named


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hpsv4:a.pt", "no kind of reward 'hpsv4': choose clip, pickscore"),
        ("pickscore+srpo:a", "pickscore has no preprocessing 'srpo'"),
        ("hpsv2+crop:a", "hpsv2 has no preprocessing 'crop'"),
        ("hpsv2.1:", "names no place: hf download"),
    ],
)
def test_a_name_that_cannot_be_loaded_is_answered_in_one_sentence(name, said):
    with pytest.raises(ValueError, match=said):
        read_name(name)
    assert card_of(name) is None


def test_a_folder_tells_its_kind_by_what_is_recorded_in_it(tmp_path):
    assert read_name(tmp_path).kind == "clip"
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "yuvalkirstain/PickScore_v1"}))
    assert read_name(tmp_path).kind == "pickscore"
    (tmp_path / "reward.json").write_text(json.dumps({"reward": "hpsv2.1"}))
    assert read_name(tmp_path).kind == "hpsv2.1"
    (tmp_path / "reward.json").write_text("[]")
    assert read_name(tmp_path).kind == "pickscore"


def test_a_folder_with_a_colon_in_its_name_is_a_place(tmp_path):
    folder = tmp_path / "clip:mine"
    folder.mkdir()
    assert read_name(folder) == Named("clip", str(folder))
    assert place_of(folder) == str(folder)


def test_a_name_is_resolved_for_processes_that_start_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.pt").touch()
    assert resolved("hpsv2+srpo:a.pt") == f"hpsv2+srpo:{tmp_path / 'a.pt'}"
    assert resolved(Path("a.pt")) == str(tmp_path / "a.pt")
    assert resolved("pickscore:yuvalkirstain/PickScore_v1") == "pickscore:yuvalkirstain/PickScore_v1"


def test_every_card_is_filled_in_and_says_how_to_get_the_reward():
    for kind, card in CARDS.items():
        assert card.kind == kind
        for field in ("title", "reads", "range", "bias", "licence", "download", "get", "checked"):
            text = getattr(card, field)
            assert text and text.strip() == text and not text.endswith("."), (kind, field)
        assert any(word in card.get for word in ("hf download", "pip install", "github.com"))
    assert CARDS["pickscore"].scale == CARDS["hpsv2"].scale == CARDS["hpsv2.1"].scale == 100
    assert "AGPL" in CARDS["aesthetic-v2.5"].licence


def test_names_and_cards_need_no_torch():
    code = "import sys, srpo.rewards.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_dual_encoder_is_scored_in_the_unit_its_authors_publish(tmp_path):
    tiny_clip(tmp_path)
    image, texts = torch.rand(2, 3, 40, 56), ["a red ball", "a boat"]
    clip, pickscore = load_reward(tmp_path), load_reward(f"pickscore:{tmp_path}")
    assert (clip.name, pickscore.name) == (tmp_path.name, "pickscore")
    assert isinstance(clip, EmbeddingReward) and isinstance(pickscore, EmbeddingReward)
    torch.testing.assert_close(pickscore.score(image, texts), 100 * clip.score(image, texts))
    training = load_reward(f"pickscore:{tmp_path}", scale=5)
    torch.testing.assert_close(training.score(image, texts), 5 * clip.score(image, texts))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no CLIP reward at .*missing"):
        load_reward(f"clip:{tmp_path / 'missing'}")
