"""Aesthetic v2.5 against its published forward pass by hand, and against its package, on random weights."""

import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipVisionModel

from srpo.rewards.aesthetic import V25_WEIGHTS_NAME, AestheticReward
from srpo.rewards.base import EmbeddingReward, Reward, image_tensor
from srpo.rewards.load import load_reward
from tests.rewards.packages import installed
from tests.rewards.published import random_weights

WIDTH, SIDE = 32, 28  # of the small tower; 1152 and 384 as published
NUMBERS = {0: (1024, WIDTH), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 8: (1, 16)}  # of the head's layers


@pytest.fixture(scope="module")
def head():
    shapes = {f"scoring_head.{number}.weight": shape for number, shape in NUMBERS.items()}
    shapes |= {f"scoring_head.{number}.bias": shape[:1] for number, shape in NUMBERS.items()}
    return OrderedDict(random_weights(shapes, torch.float32))  # as published: the package asks for one


def save_siglip(folder):
    """A small SiglipModel as Google publishes the large one: both towers in one file, and the image processor."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = tower | {"image_size": SIDE, "patch_size": 14}, tower | {"vocab_size": 50}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()
        for weight in model.parameters():  # a new tower's numbers are so small that its pictures look alike
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(head, tmp_path_factory):
    path = tmp_path_factory.mktemp("aesthetic-v2.5")
    save_siglip(path)
    torch.save(head, path / V25_WEIGHTS_NAME)
    return path


@pytest.fixture(scope="module")
def reward(folder):
    return AestheticReward.from_published_v25(folder, width=WIDTH)


def test_scores_and_pixel_gradients_equal_the_published_forward_pass(reward, folder, head):
    """SigLIP's pooled vector of the picture in -1 ... 1, made a unit vector, through every layer of the head."""
    ours = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    seen = SiglipVisionModel.from_pretrained(folder)(pixel_values=2 * theirs - 1).pooler_output
    expected = seen / seen.norm(dim=-1, keepdim=True)
    for number in NUMBERS:
        expected = F.linear(expected, head[f"scoring_head.{number}.weight"], head[f"scoring_head.{number}.bias"])
    scores = reward.score(ours, ["", "", ""])
    assert expected.detach().std() > 1e-2
    torch.testing.assert_close(scores, expected[:, 0], atol=1e-5, rtol=1e-5)
    scores.sum().backward()
    expected.sum().backward()
    assert theirs.grad.abs().max() > 1e-5
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_batch_scores_as_its_pictures_alone_and_wide_pictures_are_squeezed(reward):
    """Squeezed, not cropped: what lies at the ends of a wide picture counts."""
    image = torch.rand(2, 3, 30, 90, generator=torch.Generator().manual_seed(1))
    together = reward.score(image, ["", ""])
    alone = torch.cat([reward.score(image[[i]], [""]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    changed = image.clone()
    changed[..., :10] = 0
    assert (reward.score(changed, ["", ""]) - together).abs().min() > 1e-3


def test_pictures_are_prepared_as_by_siglips_own_processor(reward, folder):
    """To two of 255 colours: Pillow rounds them after it resizes, and cuts off what overshoots."""
    ramp = np.linspace(40, 200, 56 * 84 * 3).reshape(56, 84, 3).astype(np.uint8)
    picture = Image.fromarray(ramp)
    expected = SiglipImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    seen = []
    hook = reward.encoder.model.register_forward_pre_hook(
        lambda model, arguments, named: seen.append(named["pixel_values"]), with_kwargs=True
    )
    reward.score(image_tensor(picture), [""])
    hook.remove()
    torch.testing.assert_close(seen[0], expected, atol=2 * 2 / 255, rtol=0)


def test_it_reads_no_text_and_is_called_by_its_name(reward):
    image = torch.rand(1, 3, 40, 56)
    assert torch.equal(reward.score(image, ["a red ball"]), reward.score(image, ["a blue tree"]))
    assert isinstance(reward, Reward) and not isinstance(reward, EmbeddingReward)
    assert reward.name == "aesthetic-v2.5" and len(reward.sha256) == 64
    assert reward.count_tokens("a red ball") == (0, 0)
    with pytest.raises(ValueError, match="1 images and 2 texts"):
        reward.score(image, ["a", "b"])


def test_files_that_are_missing_or_foreign_are_refused_in_one_sentence(folder, head, tmp_path):
    with pytest.raises(ValueError, match=r"is not at .*nowhere: hf download google/siglip-so400m-patch14-384"):
        load_reward(f"aesthetic-v2.5:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"lacks .*aesthetic_predictor_v2_5\.pth: hf download"):
        load_reward(f"aesthetic-v2.5:{tmp_path}")
    with pytest.raises(ValueError, match=r"scoring_head\.0\.weight is \(1024, 32\), not \(1024, 1152\)"):
        load_reward(f"aesthetic-v2.5:{folder}")  # the published head is wider
    torch.save(head, tmp_path / V25_WEIGHTS_NAME)
    with pytest.raises(ValueError, match="no SigLIP at"):
        AestheticReward.from_published_v25(tmp_path, width=WIDTH)
    save_siglip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.head.probe"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"it lacks 1 of \d+ weights, first vision_model\.head\.probe"):
        AestheticReward.from_published_v25(tmp_path, width=WIDTH)


@pytest.mark.slow
def test_scores_and_gradients_equal_those_of_the_package_itself(reward, folder, tmp_path_factory, monkeypatch):
    """aesthetic-predictor-v2-5 on the same weights and pixels: 1e-5."""
    own = tmp_path_factory.mktemp("aesthetic-package")
    package = installed(own, "AESTHETIC_V25_PACKAGE", "aesthetic-predictor-v2-5==2024.12.18.1")
    monkeypatch.setattr(sys, "path", [package, *sys.path])
    from aesthetic_predictor_v2_5 import convert_v2_5_from_siglip

    model, processor = convert_v2_5_from_siglip(folder / V25_WEIGHTS_NAME, str(folder))
    pictures = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for seed in range(3)]
    theirs = processor(images=[Image.fromarray(it) for it in pictures], return_tensors="pt").pixel_values
    theirs = theirs.clone().requires_grad_()
    expected = model(pixel_values=theirs, return_dict=True).logits[:, 0]
    ours = torch.cat([image_tensor(Image.fromarray(it)) for it in pictures]).requires_grad_()
    scores = reward.score(ours, ["", "", ""])
    assert expected.detach().std() > 1e-2
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    scores.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, 2 * theirs.grad, atol=1e-5, rtol=1e-4)  # theirs are of -1 ... 1
