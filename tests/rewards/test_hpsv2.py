"""HPSv2: converted weights against open_clip's forward pass by hand, and against the package itself."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel

from srpo.miniature import paths
from srpo.rewards.base import EmbeddingReward, image_tensor
from srpo.rewards.clip import ClipReward
from srpo.rewards.hpsv2 import (
    VIT_H_14,
    Architecture,
    clean_text,
    convert,
    load_hpsv2,
    open_clip_layout,
    open_clip_sources,
    published_tokenizer,
)
from srpo.rewards.hpsv2_package import package_scores
from srpo.rewards.load import load_reward
from tests.rewards.packages import installed
from tests.rewards.published import MEAN, STD, open_clip_cosines, open_clip_shapes, random_weights
from tests.tiny import tiny_clip_tokenizer

SIZES = {"text": 32, "text_layers": 2, "vision": 48, "vision_layers": 3, "embedding": 16, "image": 32, "patch": 8}
HEADS = 4
TEXTS = ["a red ball", "a blue house on a beach"]


def small(vocabulary):
    return Architecture(
        text_width=32,
        text_layers=2,
        vision_width=48,
        vision_layers=3,
        heads=HEADS,
        embedding=16,
        image_size=32,
        patch=8,
        vocabulary=vocabulary,
    )


@pytest.fixture(scope="module")
def weights():
    return random_weights(open_clip_shapes(**SIZES, vocabulary=len(tiny_clip_tokenizer())), torch.float16)


@pytest.fixture
def file(weights, tmp_path):
    """A published file of a small model, converted beside itself."""
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": weights}, path)
    tokenizer = tiny_clip_tokenizer()
    convert(path, path.with_suffix(".clip"), "hpsv2.1", architecture=small(len(tokenizer)), tokenizer=tokenizer)
    return path


def padded_tokens(texts):
    tokenizer = tiny_clip_tokenizer()
    tokens = torch.zeros(len(texts), 77, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        ids = tokenizer(text).input_ids
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def test_scores_and_pixel_gradients_equal_open_clips_forward_pass(file, weights):
    reward = load_reward(f"hpsv2.1:{file}")
    ours = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    scores = reward.score(ours, TEXTS)
    expected = 100 * open_clip_cosines(weights, HEADS, (theirs - MEAN) / STD, padded_tokens(TEXTS))
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-5)  # of 100: 1e-5 of a cosine
    scores.sum().backward()
    expected.sum().backward()
    assert theirs.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-4)


def test_the_layout_is_that_of_the_published_model():
    """ViT-H-14 of open_clip has 986,109,441 parameters: 1.97 GB in float16, as the file on the hub."""
    layout = open_clip_layout(VIT_H_14)
    assert sum(int(np.prod(shape)) for shape in layout.values()) == 986_109_441
    by_hand = open_clip_shapes(
        text=1024,
        text_layers=24,
        vision=1280,
        vision_layers=32,
        embedding=1024,
        image=224,
        patch=14,
        vocabulary=49408,
    )
    assert layout == by_hand
    assert len(open_clip_sources(VIT_H_14)) > len(layout)  # queries, keys and values are one matrix there


def test_the_converted_folder_is_a_clip_model_in_the_published_precision(file):
    folder = file.with_suffix(".clip")
    model = CLIPModel.from_pretrained(folder, local_files_only=True)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert isinstance(ClipReward.from_pretrained(folder), EmbeddingReward)
    assert load_reward(folder).name == "hpsv2.1"  # told by its reward.json


def test_the_official_preprocessing_pads_and_srpos_crops(file):
    official, srpo = load_reward(f"hpsv2.1:{file}"), load_reward(f"hpsv2.1+srpo:{file}")
    square, wide = torch.rand(1, 3, 48, 48), torch.rand(1, 3, 32, 64)
    text = ["a red ball"]
    torch.testing.assert_close(official.score(square, text), srpo.score(square, text))
    halves = torch.nn.functional.interpolate(wide, (16, 32), mode="bicubic", antialias=True, align_corners=False)
    padded = torch.cat([torch.zeros(1, 3, 8, 32), halves, torch.zeros(1, 3, 8, 32)], dim=2)
    torch.testing.assert_close(official.score(wide, text), official.score(padded, text))
    torch.testing.assert_close(srpo.score(wide, text), srpo.score(wide[..., 16:48], text))
    assert (official.score(wide, text) - srpo.score(wide, text)).abs() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pictures_of_any_type_are_scored_in_float32_and_get_gradients_in_theirs(file, dtype):
    reward = load_reward(f"hpsv2.1:{file}")
    image = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    scores = reward.score(image, TEXTS)
    torch.testing.assert_close(scores, reward.score(image.detach().float(), TEXTS))
    scores.sum().backward()
    assert image.grad.dtype == dtype and image.grad.abs().max() > 0


def test_texts_are_read_as_open_clip_reads_them(file):
    """Curled quotes, HTML's names and white space; and its tokens are counted after that."""
    assert clean_text("  “Caf&amp;eacute;” ") == '"Café"'
    reward = load_reward(f"hpsv2.1:{file}")
    assert torch.equal(reward.embed_text(["a &amp; b"]), reward.embed_text(["a & b"]))
    assert reward.count_tokens("a &amp; b")[0] == 5


def test_the_hash_is_remembered_and_a_changed_file_refused(file, weights):
    folder = file.with_suffix(".clip")
    record = json.loads((folder / "reward.json").read_text())
    first = record["source"]["sha256"]
    os.utime(file)  # touched, with the same content
    assert load_hpsv2(file, "hpsv2.1").sha256 == first
    torch.save({"state_dict": {**weights, "logit_scale": torch.tensor(1.0).half()}}, file)
    with pytest.raises(ValueError, match=rf"has changed: its SHA-256 was {first} and is .*remove .*\.clip"):
        load_hpsv2(file, "hpsv2.1")
    file.unlink()
    assert load_hpsv2(file, "hpsv2.1").name == "hpsv2.1"  # the converted folder is complete


def test_versions_are_not_mixed_up(file, tmp_path):
    with pytest.raises(ValueError, match=r"is hpsv2\.1, not hpsv2: their scores are not comparable"):
        load_hpsv2(file.with_suffix(".clip"), "hpsv2")
    other = tmp_path / "HPS_v2_compressed.pt"
    other.touch()
    with pytest.raises(ValueError, match="the other version"):
        convert(other, tmp_path / "made", "hpsv2.1")


def test_weights_that_are_not_as_published_are_refused_before_anything_is_made(weights, tmp_path):
    tokenizer = tiny_clip_tokenizer()
    architecture = small(len(tokenizer))

    def refuse(content, said):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=said):
            convert(tmp_path / "other.pt", tmp_path / "made", "hpsv2", architecture=architecture, tokenizer=tokenizer)
        assert not (tmp_path / "made").exists()

    without = {name: weight for name, weight in weights.items() if name != "visual.proj"}
    refuse({"state_dict": without}, r"lacks 1 of \d+ weights, first visual\.proj")
    refuse({"state_dict": {**weights, "extra": torch.zeros(1)}}, "1 weights too many, first extra")
    refuse({**weights, "visual.proj": torch.zeros(16, 48).half()}, r"visual\.proj is \(16, 48\), not \(48, 16\)")
    refuse({**weights, "visual.proj": torch.zeros(48, 16)}, r"visual\.proj is torch\.float32, not torch\.float16")


def test_missing_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(ValueError, match=r"hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt --revision [0-9a-f]{40}"):
        load_reward(f"hpsv2.1:{tmp_path / 'HPS_v2.1_compressed.pt'}")
    with pytest.raises(ValueError, match="name the published"):
        load_reward(f"hpsv2:{tmp_path}")


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(weights, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    architecture = small(len(tiny_clip_tokenizer()))
    monkeypatch.setattr(
        "srpo.rewards.hpsv2.open_clip_layout", lambda _: {k: tuple(w.shape) for k, w in weights.items()}
    )
    monkeypatch.setattr("srpo.rewards.hpsv2.published_tokenizer", lambda *_: tiny_clip_tokenizer())
    monkeypatch.setattr("srpo.rewards.hpsv2.write_folder", full)
    file = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"state_dict": weights}, file)
    with pytest.raises(ValueError, match=r"cannot be converted beside itself \(No space left on device\): copy it"):
        load_reward(file)
    monkeypatch.undo()
    convert(file, file.with_suffix(".clip"), "hpsv2", architecture=architecture, tokenizer=tiny_clip_tokenizer())
    assert load_reward(file).name == "hpsv2"  # a published file is known by its name


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tokenizer = tiny_clip_tokenizer()
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not CLIP's"):
        published_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of the package hpsv2: $HPSV2_PACKAGE, or installed for these tests from requirements-hpsv2.txt."""
    folder = tmp_path_factory.mktemp("hpsv2-package")
    return installed(folder, "HPSV2_PACKAGE", "-r", str(paths.REPOSITORY / "requirements-hpsv2.txt"))


@pytest.mark.slow
def test_scores_equal_those_of_the_package_itself(package, tmp_path, monkeypatch):
    """Random weights of a small model, CLIP's own vocabulary; squares, both orientations, one that rounds at a half."""
    architecture = Architecture(
        text_width=64, text_layers=2, vision_width=80, vision_layers=2, heads=4, embedding=32, image_size=56
    )
    file = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": random_weights(open_clip_layout(architecture), torch.float16)}, file)
    monkeypatch.syspath_prepend(package)  # where its vocabulary is found
    convert(file, file.with_suffix(".clip"), "hpsv2.1", architecture=architecture)
    reward = load_reward(f"hpsv2.1:{file}", scale=1)
    rng, images = np.random.default_rng(0), []
    for height, width in ((128, 128), (100, 160), (170, 90), (1341, 1344)):
        images.append(tmp_path / f"{height}x{width}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(images[-1])
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 56, "layers": 2, "width": 80, "head_width": 20, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    }
    for prompt in ("a red ball on the beach", "“Café” &amp; l’été — naïve 日本語 " * 8):
        theirs = package_scores(file, images, prompt, package=package, model_config=config)
        ours = [reward.score(image_tensor(Image.open(image)), [prompt]).item() for image in images]
        assert np.ptp(theirs) > 1e-3
        assert ours == pytest.approx(theirs, abs=1e-6)
