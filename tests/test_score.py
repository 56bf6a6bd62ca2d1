"""The command line that scores picture files."""

import json

import pytest
import torch
from PIL import Image

from srpo import score
from srpo.miniature import paths
from srpo.rewards.base import image_tensor
from srpo.rewards.catalogue import CARDS
from srpo.rewards.clip import ClipReward

PROMPT = "a red ball on a beach"


@pytest.fixture
def images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    files = [tmp_path / f"{name}.png" for name in ("one", "two", "wide")]
    for file, (height, width) in zip(files, ((128, 128), (128, 128), (96, 160)), strict=True):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(file)
    return files


def run(capsys, *arguments):
    status = score.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_every_picture_is_scored_by_every_reward(capsys, images):
    status, out, _ = run(
        capsys, *images, "--prompt", PROMPT, "--json", "--reward", paths.REWARD, "--reward", f"pickscore:{paths.REWARD}"
    )
    rows = json.loads(out)
    reward = ClipReward.from_pretrained(paths.REWARD)
    with torch.no_grad():
        expected = [reward.score(image_tensor(Image.open(image)), [PROMPT]).item() for image in images]
    assert status == 0
    assert [row["score"] for row in rows[:3]] == pytest.approx(expected, abs=1e-5)
    assert [row["score"] for row in rows[3:]] == pytest.approx([100 * value for value in expected], abs=1e-3)
    assert [row["image"] for row in rows] == [str(image) for image in images] * 2
    assert rows[3]["reward"] == f"pickscore:{paths.REWARD}" and rows[3]["prompt"] == PROMPT


def test_the_table_has_a_line_for_each_picture_and_the_miniature_judges_by_default(capsys, images):
    status, out, _ = run(capsys, *images, "--prompt", PROMPT)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 4
    assert lines[0].split() == ["image", f"clip:{paths.REWARD}"]
    assert len({len(line) for line in lines}) == 1
    assert [float(line.split()[1]) for line in lines[1:]]


def test_all_cards_are_listed(capsys):
    status, out, _ = run(capsys, "--list")
    assert status == 0
    for card in CARDS.values():
        assert f"{card.kind}: {card.title}" in out and card.licence.split(":")[0] in out
    assert max(map(len, out.splitlines())) <= 120
    status, out, _ = run(capsys, "--list", "--json")
    assert [card["kind"] for card in json.loads(out)] == list(CARDS)


def test_what_cannot_be_scored_is_answered_in_one_sentence(capsys, images, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for arguments, said in (
        ((), "name at least one picture"),
        (images, "and the text with --prompt"),
        ((tmp_path / "none.png", "--prompt", PROMPT), "there is no picture"),
        ((text, "--prompt", PROMPT), "cannot be read as a picture"),
        ((*images, "--prompt", PROMPT, "--reward", "hpsv9:a"), "no kind of reward 'hpsv9'"),
        ((*images, "--prompt", PROMPT, "--reward", f"hpsv2.1:{tmp_path}/HPS_v2.1_compressed.pt"), "hf download xswu"),
        ((*images, "--prompt", PROMPT, "--check", "hpsv2"), "wants one published file"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "") and err.startswith("error: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize(("theirs", "status"), [([0.25, 0.5, 0.75], 0), ([0.25, 0.5, 0.76], 1)])
def test_the_check_compares_cosines_picture_by_picture(capsys, images, monkeypatch, tmp_path, theirs, status):
    """Ours are in the published unit, 100 times the cosine; the package and the weights are stood in for."""
    file = tmp_path / "HPS_v2.1_compressed.pt"
    file.touch()
    ours = [{"score": 100 * cosine} for cosine in (0.25, 0.5, 0.75)]
    monkeypatch.setattr(score, "score_files", lambda *_: ours)
    monkeypatch.setattr("srpo.rewards.hpsv2_package.package_scores", lambda *_, **__: theirs)
    arguments = (*images, "--prompt", PROMPT, "--reward", f"hpsv2.1:{file}", "--check", "hpsv2")
    found, out, _ = run(capsys, *arguments)
    assert found == status and ("they agree" if status == 0 else "they differ") in out
    found, out, _ = run(capsys, *arguments, "--json")
    assert found == status and json.loads(out)["package"] == theirs
