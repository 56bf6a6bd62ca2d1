"""HPSv3 against transformers' own Qwen2-VL, and against its package, on random weights in the published layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from srpo.miniature import paths
from srpo.miniature.tokens import byte_letters
from srpo.rewards.base import EmbeddingReward, Reward, image_tensor
from srpo.rewards.hpsv3 import (
    INSTRUCTION_FILE,
    WEIGHTS_NAME,
    HPSv3Reward,
    Instruction,
    Network,
    fitted_size,
    published_name,
    to_patches,
)
from srpo.rewards.load import load_reward
from tests.rewards.hpsv3_package import REQUIREMENTS
from tests.rewards.packages import installed
from tests.rewards.published import MEAN, STD, random_weights

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE = 56  # of the pictures that the small reward looks at
TEXTS = ["a red ball", "blue, and much more than that"]
STAND_IN = (
    'INSTRUCTION = """Rate it.\nTextual prompt - {text_prompt}\n"""\nprompt_with_special_token = "So: <|Reward|>\\n"\n'
)


def write_qwen(folder):
    """The settings and the tokenizer of a small Qwen2-VL, in the files that Qwen publishes."""
    letters = byte_letters()
    marks = {mark: len(letters) + number for number, mark in enumerate(MARKS)}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "in_chans": 3, "spatial_patch_size": 14}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": marks[MARKS[0]], "eos_token_id": marks[MARKS[2]], "image_token_id": marks["<|image_pad|>"]}
    ids |= {"vision_start_token_id": marks[MARKS[3]], "vision_end_token_id": marks[MARKS[4]], "video_token_id": 0}
    more = {"num_key_value_heads": 2, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    more |= {"vocab_size": 512, "model_type": "qwen2_vl", "vision_config": vision | {"model_type": "qwen2_vl"}}
    more |= {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(text | ids | more))
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(number): {"content": mark, **plain} for mark, number in marks.items()},
        "additional_special_tokens": MARKS[1:],
        "pad_token": MARKS[0],
        "eos_token": MARKS[2],
        "unk_token": None,
        "bos_token": None,
        "model_max_length": 32768,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_weights(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(tokenizer) + 1
    shapes = {published_name(name): tuple(it.shape) for name, it in Network(config).state_dict().items()}
    shapes["lm_head.weight"] = (len(tokenizer) + 1, 32)
    save_file(random_weights(shapes, torch.float32), folder / WEIGHTS_NAME, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As a user puts it together, with an instruction of our own in the place of the package's."""
    path = tmp_path_factory.mktemp("hpsv3")
    write_qwen(path)
    write_weights(path)
    (path / INSTRUCTION_FILE).parent.mkdir(parents=True)
    (path / INSTRUCTION_FILE).write_text("raise RuntimeError('the package is read, not run')\n" + STAND_IN)
    return path


@pytest.fixture(scope="module")
def reward(folder):
    return HPSv3Reward.from_published(folder, pixels=SIDE * SIDE)


def draw(count=2, side=SIDE):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_scores_and_pixel_gradients_equal_the_published_forward_pass(reward, folder):
    """Token by token: the chat by hand, the picture's four tokens in it, plain positions, the head on the mark."""
    weights = load_file(folder / WEIGHTS_NAME)
    config = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(weights["model.embed_tokens.weight"])
    model = Qwen2VLModel(config).eval()
    renamed = {name.replace("model.", "language_model.", 1): it for name, it in weights.items()}
    model.load_state_dict({name: it for name, it in renamed.items() if not name.startswith(("rm_head", "lm_head"))})
    pieces = [*byte_letters(), *MARKS, "<|Reward|>"]
    ours = draw().requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    expected = []
    for image, text in zip(theirs, TEXTS, strict=True):
        said = f"Rate it.\nTextual prompt - {text}\nSo: "
        tokens = [MARKS[1], *as_letters("user\n"), MARKS[3], *[MARKS[5]] * 4, MARKS[4], *as_letters(said), "<|Reward|>"]
        ids = torch.tensor([[pieces.index(piece) for piece in tokens]])  # what follows the mark cannot change it
        pixels = ((image - MEAN) / STD)[None]
        patches = torch.stack(
            [
                torch.stack([pixels[0, :, y : y + 14, x : x + 14]] * 2, dim=1).reshape(-1)
                for top in (0, 28)
                for left in (0, 28)
                for y in (top, top + 14)
                for x in (left, left + 14)
            ]
        )
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        words = model.get_input_embeddings()(ids).clone()
        words[ids == pieces.index(MARKS[5])] = model.visual(patches, grid_thw=torch.tensor([[1, 4, 4]])).pooler_output
        state = model.language_model(inputs_embeds=words, position_ids=positions).last_hidden_state[0, -1]
        for number in (0, 3, 5):
            state = weights[f"rm_head.{number}.weight"] @ state + weights[f"rm_head.{number}.bias"]
            state = state.relu() if number < 5 else state
        expected.append(state[0])
    expected = torch.stack(expected)
    scores = reward.score(ours, TEXTS)
    assert expected.detach().std() > 1e-2
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    scores.sum().backward()
    expected.sum().backward()
    assert theirs.grad.abs().max() > 1e-4
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def as_letters(text):
    """Bytes under the names that the tokenizer has for them; ours are printable, a space and a line's end."""
    return [{" ": "Ġ", "\n": "Ċ"}.get(letter, letter) for letter in text]


def test_a_batch_scores_as_its_pictures_alone_however_long_its_texts_are(reward):
    image = draw(3, 70)
    texts = ["a", "a red ball on a beach at sunset, seen from far away", "blue"]
    together = reward.score(image, texts)
    alone = torch.cat([reward.score(image[[i]], [text]) for i, text in enumerate(texts)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (reward.score(image, texts[::-1]) - together).abs().max() > 1e-3  # it reads the texts


def test_weights_stored_in_bfloat16_keep_it_and_the_head_is_float32(reward, folder, tmp_path):
    write_qwen(tmp_path)
    (tmp_path / INSTRUCTION_FILE).parent.mkdir(parents=True)
    (tmp_path / INSTRUCTION_FILE).write_text(STAND_IN)
    half = {name: it.bfloat16() for name, it in load_file(folder / WEIGHTS_NAME).items()}
    save_file(half, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    rounded = HPSv3Reward.from_published(tmp_path, pixels=SIDE * SIDE)
    kinds = {it.dtype for it in rounded.model.backbone.parameters()}
    assert kinds == {torch.bfloat16} and rounded.model.head[0].weight.dtype == torch.float32
    image = draw().requires_grad_()
    scores = rounded.score(image, TEXTS)
    assert scores.dtype == torch.float32
    assert 0 < (scores - reward.score(draw(), TEXTS)).abs().max() < 0.5
    scores.sum().backward()
    assert image.grad.abs().max() > 0


def test_patches_equal_those_of_qwens_own_processor():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8))
    theirs = Qwen2VLImageProcessorPil()(picture, return_tensors="pt")
    assert theirs.image_grid_thw.tolist() == [[1, 4, 6]]
    ours = to_patches((image_tensor(picture) - MEAN) / STD)
    torch.testing.assert_close(ours, theirs.pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((448, 448), (448, 448)), ((1024, 1024), (448, 448)), ((720, 1280), (336, 588)), ((100, 100), (448, 448))],
)
def test_pictures_are_fitted_to_about_200000_pixels(size, expected):
    assert fitted_size(*size) == expected


def test_it_is_a_reward_without_text_vectors_and_counts_what_it_reads(reward):
    assert isinstance(reward, Reward) and not isinstance(reward, EmbeddingReward)
    assert reward.name == "hpsv3" and len(reward.sha256) == 64
    empty, limit = reward.count_tokens("")
    assert reward.count_tokens("abc") == (empty + 3, limit) and limit == 8192


def test_inputs_that_do_not_belong_together_are_refused(reward):
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        reward.score(draw(), ["a"])
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\), got \(3, 56, 56\)"):
        reward.score(draw()[0], ["a"])
    for mark in ("<|Reward|>", "<|image_pad|>"):
        with pytest.raises(ValueError, match="which HPSv3 keeps for itself"):
            reward.score(draw(1), [f"a {mark}"])
    with pytest.raises(ValueError, match="up to 200 times as long as wide"):
        reward.score(torch.rand(1, 3, 2, 1000), ["a"])


def test_files_that_are_missing_or_foreign_are_refused_in_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"HPSv3 .* is not at .*nowhere: hf download"):
        load_reward(f"hpsv3:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"HPSv3 lacks .*HPSv3\.safetensors: hf download"):
        load_reward(f"hpsv3:{tmp_path}")
    (tmp_path / WEIGHTS_NAME).write_bytes((folder / WEIGHTS_NAME).read_bytes())
    with pytest.raises(ValueError, match=r"HPSv3 lacks .*data_collator_qwen\.py: .*pip install --no-deps"):
        load_reward(f"hpsv3:{tmp_path}")
    (tmp_path / INSTRUCTION_FILE).parent.mkdir(parents=True)
    for text, said in (("x = 1", "no instruction"), (STAND_IN.replace("<|Reward|>", ""), "another instruction")):
        (tmp_path / INSTRUCTION_FILE).write_text(text)
        with pytest.raises(ValueError, match=said):
            load_reward(f"hpsv3:{tmp_path}")
    (tmp_path / INSTRUCTION_FILE).write_text(STAND_IN)
    with pytest.raises(ValueError, match=r"lacks the config\.json or the tokenizer of Qwen2-VL-7B-Instruct"):
        load_reward(f"hpsv3:{tmp_path}")
    write_qwen(tmp_path)
    weights = load_file(folder / WEIGHTS_NAME)
    del weights["rm_head.5.bias"]
    save_file(weights, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is not HPSv3: it lacks 1 of \d+ weights, first rm_head\.5\.bias"):
        load_reward(f"hpsv3:{tmp_path}")


@pytest.mark.slow
def test_scores_and_sizes_equal_those_of_the_package_itself(folder, tmp_path_factory):
    """hpsv3 1.0.0 over transformers 4.45 on the same weights, picture files and texts: 1e-5 of the largest score."""
    own = tmp_path_factory.mktemp("hpsv3-package")
    package = installed(own, "HPSV3_PACKAGE", *REQUIREMENTS)
    rng, images = np.random.default_rng(0), [own / "one.png", own / "two.png"]
    for image in images:  # of the very size that is read: Pillow and torch resize a little differently
        Image.fromarray(rng.integers(0, 256, (448, 448, 3), dtype=np.uint8)).save(image)
    sizes = rng.integers(30, 3000, (200, 2)).tolist()
    asked = {"folder": str(folder), "images": [str(image) for image in images], "texts": TEXTS, "sizes": sizes}
    done = subprocess.run(
        [sys.executable, "-m", "tests.rewards.hpsv3_package"],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, str(paths.REPOSITORY)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    reward = HPSv3Reward.from_published(folder)
    reward.instruction = Instruction.read(Path(package))
    ours = reward.score(torch.cat([image_tensor(Image.open(image)) for image in images]), TEXTS).tolist()
    assert abs(ours[0] - ours[1]) > 1e-2
    assert ours == pytest.approx(theirs["scores"], abs=1e-5 * max(map(abs, theirs["scores"])))
    assert [list(fitted_size(*size)) for size in sizes] == theirs["sizes"]
