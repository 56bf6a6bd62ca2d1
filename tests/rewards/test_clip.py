"""ClipReward against CLIPModel's own scores and pixel gradients."""

import pytest
import torch
from PIL import Image

from srpo.rewards.base import EmbeddingReward, image_tensor, score_images
from srpo.rewards.clip import ClipReward
from srpo.rewards.preprocess import CLIP_MEAN, CLIP_STD
from tests.tiny import tiny_clip

TEXTS = ["a red ball", "Photo. a blue house on a beach at sunset"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    tiny_clip(path)
    return path


@pytest.fixture(scope="module")
def reward(folder):
    return ClipReward.from_pretrained(folder)


def pixel_values(image):
    """The tiny model's own input for pictures that already have its 32 x 32 pixels."""
    return (image - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def model_scores(image, texts):
    """(B,) cosines as CLIPModel's forward computes them, all texts in one padded batch."""
    clip = tiny_clip()
    tokens = clip.tokenizer(texts, padding=True, return_tensors="pt")
    logits = clip.model(**tokens, pixel_values=pixel_values(image)).logits_per_image
    return logits.diagonal() / clip.model.logit_scale.exp()


def test_scores_and_pixel_gradients_equal_the_models_own(reward):
    ours = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    scores, expected = reward.score(ours, TEXTS), model_scores(theirs, TEXTS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    scores.sum().backward()
    expected.sum().backward()
    assert theirs.grad.abs().max() > 1e-4
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_the_scale_multiplies_the_cosine_and_the_name_is_kept(folder, reward):
    image = torch.rand(2, 3, 40, 56)
    pickscore = ClipReward.from_pretrained(folder, name="pickscore", scale=5.0)
    assert pickscore.name == "pickscore" and isinstance(pickscore, EmbeddingReward)
    torch.testing.assert_close(pickscore.score(image, TEXTS), 5 * reward.score(image, TEXTS))


def test_embeddings_are_unit_vectors_and_the_reward_is_frozen(reward):
    image = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(reward.embed_image(image).norm(dim=-1), torch.ones(3))
    text = reward.embed_text(TEXTS)
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))
    assert not text.requires_grad
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in reward.model.parameters())


def test_a_text_has_one_embedding_whatever_it_is_asked_with_and_is_encoded_once(folder):
    first, second = ClipReward.from_pretrained(folder), ClipReward.from_pretrained(folder)
    alone = first.embed_text(["a red ball"])
    assert torch.equal(alone, second.embed_text([*TEXTS, "a red ball"])[2:])
    calls = []
    first.model.text_model.register_forward_hook(lambda *_: calls.append(1))
    first.embed_text(["a red ball", "a boat", "a boat"])
    assert len(calls) == 1


def test_the_text_cache_is_bounded_and_drops_the_longest_unused(folder, monkeypatch):
    monkeypatch.setattr("srpo.rewards.clip.CACHED_TEXTS", 2)
    reward = ClipReward.from_pretrained(folder)
    assert reward.embed_text(["a", "b", "c"]).shape == (3, 16)
    reward.embed_text(["b"])
    reward.embed_text(["d"])
    assert list(reward._text_cache) == ["b", "d"]


def test_long_texts_are_counted_and_cut_at_the_models_limit(reward):
    """The tiny tokenizer writes a letter per token; start and end count too."""
    assert reward.count_tokens("abc") == (5, 77)
    long = "x" * 200
    assert reward.count_tokens(long) == (202, 77)
    assert torch.equal(reward.embed_text([long]), reward.embed_text(["x" * 75 + "yyy"]))


def test_pictures_are_scored_as_their_tensors_in_their_order(reward):
    generator = torch.Generator().manual_seed(1)
    sizes = [(40, 40), (40, 40), (64, 32), (40, 40)]
    pictures = [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy())
        for h, w in sizes
    ]
    texts = ["a", "b", "c", "d"]
    expected = [reward.score(image_tensor(p), [t]).item() for p, t in zip(pictures, texts, strict=True)]
    assert score_images(reward, pictures, texts, batch_size=2) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="one text per picture"):
        score_images(reward, pictures, texts[:2])


def test_bad_input_is_named(reward, tmp_path):
    with pytest.raises(ValueError, match=r"no CLIP reward at .*missing"):
        ClipReward.from_pretrained(tmp_path / "missing")
    tiny_clip(tmp_path / "half")
    for file in (tmp_path / "half").glob("token*"):
        file.unlink()
    with pytest.raises(ValueError, match="expected the tokenizer files of this model"):
        ClipReward.from_pretrained(tmp_path / "half")
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        reward.score(torch.rand(2, 3, 32, 32), ["a"])
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\)"):
        reward.embed_image(torch.rand(3, 32, 32))
