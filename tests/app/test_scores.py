"""The scores table is made of any reward that has a name."""

from pathlib import Path

import pytest
import torch

from app.services.scores import Scorer
from srpo.miniature import paths
from srpo.rewards.clip import ClipReward
from tests.rewards.published import save_aesthetic


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 128, 128, generator=generator) for _ in range(2)]


def test_a_dual_encoder_shows_its_words_in_its_own_unit(sides):
    rows = Scorer.load(Path(f"pickscore:{paths.REWARD}"), None).rows(*sides, "a red ball")
    assert len(rows) == 4
    plain = ClipReward.from_pretrained(paths.REWARD, scale=100).score(torch.cat(sides), ["a red ball"] * 2)
    assert [rows[-1].left, rows[-1].right] == pytest.approx(plain.tolist(), abs=1e-3)
    assert rows[2].left == pytest.approx(rows[0].left - rows[1].left, abs=1e-4)


def test_a_reward_without_text_vectors_shows_its_one_score(sides, tmp_path):
    scorer = Scorer.load(Path(f"aesthetic:{save_aesthetic(tmp_path)}"), None)
    assert scorer.note == ""
    (row,) = scorer.rows(*sides, "a red ball")
    expected = scorer.reward.score(torch.cat(sides), ["", ""])
    assert [row.left, row.right] == pytest.approx(expected.tolist(), abs=1e-5)
    assert "aesthetic" in row.hint


def test_a_reward_that_is_missing_says_how_to_get_it():
    note = Scorer.load(Path("hpsv2.1:nowhere/HPS_v2.1_compressed.pt"), None).note
    assert note.startswith("Some scores are off: there are no weights of hpsv2.1") and "hf download" in note
