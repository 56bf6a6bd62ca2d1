"""The LAION aesthetic predictor against its published forward pass by hand."""

import pytest
import torch
import torch.nn.functional as F

from srpo.rewards.aesthetic import WEIGHTS_NAME, AestheticReward
from srpo.rewards.base import EmbeddingReward, Reward
from srpo.rewards.load import load_reward
from tests.rewards.published import MEAN, STD, head_output, head_shapes, random_weights
from tests.tiny import tiny_clip

WIDTH = 16  # of the tiny CLIP's vectors; 768 as published


@pytest.fixture(scope="module")
def head():
    return random_weights(head_shapes("layers.", WIDTH), torch.float32)


@pytest.fixture(scope="module")
def folder(head, tmp_path_factory):
    path = tmp_path_factory.mktemp("aesthetic")
    tiny_clip(path)
    torch.save(head, path / WEIGHTS_NAME)
    return path


@pytest.fixture(scope="module")
def reward(folder):
    return AestheticReward.from_published(folder, width=WIDTH)


def test_scores_and_pixel_gradients_equal_the_published_forward_pass(reward, head):
    """CLIP's projected vector of the picture, made a unit vector, through every layer of the head."""
    ours = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    model = tiny_clip().model
    seen = model.visual_projection(model.vision_model(pixel_values=(theirs - MEAN) / STD).pooler_output)
    expected = head_output(head, "layers.", F.normalize(seen, dim=-1))
    scores = reward.score(ours, ["", "", ""])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    scores.sum().backward()
    expected.sum().backward()
    assert theirs.grad.abs().max() > 1e-5
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_it_reads_no_text_and_has_no_text_vectors(reward):
    image = torch.rand(1, 3, 40, 56)
    assert torch.equal(reward.score(image, ["a red ball"]), reward.score(image, ["a blue tree"]))
    assert isinstance(reward, Reward) and not isinstance(reward, EmbeddingReward)
    with pytest.raises(ValueError, match="1 images and 2 texts"):
        reward.score(image, ["a", "b"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pictures_of_any_type_get_gradients_in_theirs(reward, dtype):
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    reward.score(image, ["a"]).sum().backward()
    assert image.grad.dtype == dtype and image.grad.abs().max() > 0


def test_files_that_are_missing_or_foreign_are_refused(folder, head, tmp_path):
    with pytest.raises(ValueError, match="improved-aesthetic-predictor"):
        load_reward(f"aesthetic:{tmp_path}")
    with pytest.raises(ValueError, match=r"layers\.0\.weight is \(1024, 16\), not \(1024, 768\)"):
        load_reward(f"aesthetic:{folder}")  # the published head is wider
    tiny_clip(tmp_path)
    torch.save(random_weights(head_shapes("layers.", 24), torch.float32), tmp_path / WEIGHTS_NAME)
    with pytest.raises(ValueError, match="reads 24 numbers and this encoder gives 16"):
        AestheticReward.from_published(tmp_path, width=24)
