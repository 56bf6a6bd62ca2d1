"""ImageReward against its published forward pass by hand, on random weights in its published layout."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from srpo.miniature import paths
from srpo.rewards.base import EmbeddingReward, Reward, image_tensor
from srpo.rewards.image_reward import PUBLISHED, Architecture, ImageReward, Network, published_name
from srpo.rewards.load import load_reward
from tests.rewards.image_reward_package import REQUIREMENTS
from tests.rewards.packages import installed
from tests.rewards.published import (
    MEAN,
    PIECES,
    STD,
    image_reward_scores,
    image_reward_shapes,
    random_weights,
    write_vocabulary,
)

SIZES = {"vision": 32, "vision_layers": 2, "image": 32, "patch": 8, "text": 24, "text_layers": 2, "feed_forward": 48}
VOCABULARY = len(PIECES) + 2  # BLIP adds two marks to BERT's
SMALL = Architecture(
    image_size=32,
    patch=8,
    vision_width=32,
    vision_layers=2,
    vision_heads=4,
    vocabulary=VOCABULARY,
    text_width=24,
    text_layers=2,
    text_heads=3,
    text_feed_forward=48,
)
TEXTS = ["a red ball", "blue"]


@pytest.fixture(scope="module")
def weights():
    return random_weights(image_reward_shapes(**SIZES, vocabulary=VOCABULARY), torch.float32)


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    """As published: the weights, the numbers 0, 1, 2 ... that BERT saves as well, and the vocabulary beside."""
    path = write_vocabulary(tmp_path_factory.mktemp("imagereward"))
    positions = {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({**weights, **positions}, path / "ImageReward.pt")
    return path


@pytest.fixture(scope="module")
def reward(folder):
    return ImageReward.from_published(folder, architecture=SMALL)


def padded_tokens(texts, length=35):
    """Letters by hand: [CLS], a word's first letter plain and its others with ##, [SEP], zeros."""
    tokens = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        pieces = [("##" if i else "") + letter for word in text.split() for i, letter in enumerate(word)]
        ids = [PIECES.index(piece) for piece in ["[CLS]", *pieces[: length - 2], "[SEP]"]]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def test_scores_and_pixel_gradients_equal_the_published_forward_pass(reward, weights):
    """Both texts are padded to 35 tokens there and to the longer one here: what is masked changes nothing."""
    ours = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    scores = reward.score(ours, TEXTS)
    expected = image_reward_scores(weights, 4, 3, (theirs - MEAN) / STD, padded_tokens(TEXTS))
    assert (expected[0] - expected[1]).abs() > 1e-2
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    scores.sum().backward()
    expected.sum().backward()
    assert theirs.grad.abs().max() > 1e-4
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_text_changes_the_score_and_is_cut_at_35_tokens(reward, weights):
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    long = "abc" * 30
    assert reward.count_tokens(long) == (92, 35)
    expected = image_reward_scores(weights, 4, 3, (image - MEAN) / STD, padded_tokens([long]))
    torch.testing.assert_close(reward.score(image, [long]), expected, atol=1e-5, rtol=1e-5)
    assert (reward.score(image, ["a"]) - reward.score(image, ["b"])).abs() > 1e-3


def test_a_batch_is_scored_as_its_pictures_alone(reward):
    image = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(2))
    texts = ["a red ball", "b", "a long text of many letters"]
    alone = torch.cat([reward.score(image[i : i + 1], [text]) for i, text in enumerate(texts)])
    torch.testing.assert_close(reward.score(image, texts), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pictures_of_any_type_get_gradients_in_theirs(reward, dtype):
    image = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    scores = reward.score(image, TEXTS)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert image.grad.dtype == dtype and image.grad.abs().max() > 0


def test_it_is_a_reward_without_text_vectors_and_frozen(reward):
    assert isinstance(reward, Reward) and not isinstance(reward, EmbeddingReward)
    assert not any(p.requires_grad or p.dtype != torch.float32 or p.is_meta for p in reward.model.parameters())


def test_the_layout_is_that_of_the_published_model():
    """1.79 GB in float32, as the file on the hub; the projections that pretraining left are in it too."""
    with torch.device("meta"):
        network = Network(PUBLISHED)
    ours = {published_name(name): tuple(weight.shape) for name, weight in network.state_dict().items()}
    sizes = {"vision": 1024, "vision_layers": 24, "image": 224, "patch": 16, "text": 768, "text_layers": 12}
    by_hand = image_reward_shapes(**sizes, feed_forward=3072, vocabulary=30524)
    assert ours == {name: shape for name, shape in by_hand.items() if "_proj." not in name}
    assert 1.78e9 < 4 * sum(int(np.prod(shape)) for shape in by_hand.values()) < 1.80e9


def test_files_that_are_missing_foreign_or_changed_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="hf download THUDM/ImageReward"):
        load_reward(f"imagereward:{tmp_path / 'nowhere'}")
    write_vocabulary(tmp_path)
    with pytest.raises(ValueError, match=r"lacks .*ImageReward\.pt: hf download"):
        ImageReward.from_published(tmp_path, architecture=SMALL)
    file = tmp_path / "ImageReward.pt"
    torch.save({name: weight for name, weight in weights.items() if name != "mlp.layers.7.bias"}, file)
    with pytest.raises(ValueError, match=r"lacks 1 of \d+ weights, first mlp\.layers\.7\.bias"):
        ImageReward.from_published(tmp_path, architecture=SMALL)
    torch.save(weights, file)
    sha256 = ImageReward.from_published(file, architecture=SMALL).sha256
    assert json.loads((tmp_path / "ImageReward.pt.known.json").read_text())["source"]["sha256"] == sha256
    torch.save({**weights, "mlp.layers.7.bias": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=f"SHA-256 was {sha256}"):
        ImageReward.from_published(tmp_path, architecture=SMALL)


def test_bad_input_is_named(reward):
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        reward.score(torch.rand(2, 3, 32, 32), ["a"])
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\)"):
        reward.score(torch.rand(3, 32, 32), ["a"])


@pytest.mark.slow
def test_scores_equal_those_of_the_package_itself(reward, folder, tmp_path_factory):
    """image-reward 1.5 on the same weights and picture files: 1e-5 of the largest score."""
    own = tmp_path_factory.mktemp("image-reward-package")
    package = installed(own, "IMAGE_REWARD_PACKAGE", *REQUIREMENTS)
    rng, images = np.random.default_rng(0), [own / "one.png", own / "two.png"]
    for image in images:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image)
    med_config = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2}
    med_config |= {"vocab_size": VOCABULARY, "encoder_width": 32, "add_cross_attention": True, "layer_norm_eps": 1e-12}
    (own / "med_config.json").write_text(json.dumps(med_config))
    texts = ["a red ball", "x" * 60, "café, naïve [sep]"]
    asked = {"sizes": SIZES, "vision_heads": 4, "texts": texts, "images": [str(image) for image in images]}
    asked |= {"file": str(folder / "ImageReward.pt"), "vocabulary": str(folder / "vocab.txt")}
    asked |= {"med_config": str(own / "med_config.json")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.rewards.image_reward_package"],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, str(paths.REPOSITORY)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = [reward.score(image_tensor(Image.open(image)), [text]).item() for text in texts for image in images]
    assert np.ptp(theirs) > 1
    assert ours == pytest.approx(theirs, abs=1e-5 * max(map(abs, theirs)))
