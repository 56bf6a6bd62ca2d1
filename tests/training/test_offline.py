"""Pictures from a folder: every form, what is wrong with one, and an update that takes them."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from srpo.objectives.direct_align import DirectAlign
from srpo.policies.flux import FluxPolicy
from srpo.training import store
from srpo.training.assemble import assemble
from srpo.training.config import OfflineConfig, ValidationConfig
from srpo.training.offline import OfflinePictures, nearest_size
from srpo.training.presets import studio
from tests.tiny import tiny_flux_pipeline

SIZES = ((32, 32), (32, 48))


@pytest.fixture
def policy():
    return FluxPolicy(tiny_flux_pipeline(), max_sequence_length=16)


def picture(path, size=(40, 40), colour=(200, 30, 30)):
    """A plain picture; size (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def imagefolder(tmp_path):
    """Hugging Face's form: three square pictures and one wide one, one of them in a folder of its own."""
    lines = []
    for number, name in enumerate(["a.png", "b.jpg", "more/c.png", "wide.png"]):
        picture(tmp_path / name, (90, 60) if name == "wide.png" else (40, 44), (60 * number, 90, 30))
        lines.append(json.dumps({"file_name": name, "text": f"caption {number}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def settings(flux_folder, clip_folder, tmp_path):
    """`studio` on the tiny model."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue house\na green tree\na boat\n")
    config = studio()
    return replace(
        config,
        model=str(flux_folder),
        reward=str(clip_folder),
        prompts=str(prompts),
        max_sequence_length=16,
        prompts_per_update=2,
        updates=2,
        validation=ValidationConfig(),
        objective=replace(config.objective, height=32, width=32, rollout_steps=2),
    )


def test_an_imagefolder_gives_each_caption_its_picture_at_the_size_of_its_proportions(imagefolder, policy):
    pictures = OfflinePictures.open(imagefolder, SIZES).pictures
    assert [(p.caption, p.path.name, p.size) for p in pictures] == [
        ("caption 0", "a.png", (32, 32)),
        ("caption 1", "b.jpg", (32, 32)),
        ("caption 2", "c.png", (32, 32)),
        ("caption 3", "wide.png", (32, 48)),
    ]


def test_text_files_beside_the_images_are_captions_too(tmp_path):
    for name in ("one", "two"):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f" a caption\nof {name} ")
    assert [p.caption for p in OfflinePictures.open(tmp_path, SIZES).pictures] == [
        "a caption of one",
        "a caption of two",
    ]


def test_latents_are_the_policys_encoding_of_the_resized_picture_and_are_made_once(tmp_path, policy, monkeypatch):
    picture(tmp_path / "red.png", (64, 48), (255, 0, 0))
    (tmp_path / "red.txt").write_text("red")
    pictures = OfflinePictures.open(tmp_path, ((32, 32),))
    captions, x0, noise = pictures.latents(policy, seed=0, number=1, count=2, own=slice(0, 2))
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    with torch.no_grad():
        expected = policy.encode_image(red)
    torch.testing.assert_close(x0, expected.repeat(2, 1, 1, 1))
    assert (captions, noise) == (["red", "red"], None)
    monkeypatch.setattr(policy, "encode_image", lambda image: pytest.fail("encoded again"))
    pictures.latents(policy, seed=0, number=2, count=1, own=slice(0, 1))


def test_a_rollouts_pictures_are_of_one_size_come_once_each_and_depend_on_seed_and_number_alone(imagefolder, policy):
    pictures = OfflinePictures.open(imagefolder, SIZES)
    shapes = set()
    for number in range(1, 20):
        captions, x0, _ = pictures.latents(policy, 0, number, 3, slice(0, 3))
        shapes.add(x0.shape[-2:])
        assert len(set(captions)) == (3 if x0.shape[-1] == 4 else 1)
    assert shapes == {(4, 4), (4, 6)}
    captions, x0, _ = pictures.latents(policy, 0, 7, 2, slice(0, 2))
    last, x0_of_last, _ = pictures.latents(policy, 0, 7, 2, slice(1, 2))  # what the second of two processes sees
    assert last == captions[1:] and torch.equal(x0_of_last, x0[1:])


def test_the_nearest_proportions_are_measured_as_ratios():
    assert nearest_size((720, 1280), ((512, 512), (384, 672), (672, 384))) == (384, 672)
    assert nearest_size((100, 90), ((512, 512), (384, 672), (672, 384))) == (512, 512)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: picture(f / "x.png"), r"1 images of .* have no caption, first x\.png"),
        (lambda f: (f / "a.png").unlink(), r"1 captions of .* have no image, first that of a\.png"),
        (lambda f: (f / "metadata.jsonl").write_text("{}\n"), 'line 1 .* must be like {"file_name"'),
        (lambda f: (f / "metadata.jsonl").write_text("not json\n"), "line 1 .* must be like"),
        (lambda f: (f / "metadata.jsonl").write_text('{"file_name": "../a.png", "text": "b"}'), "outside its folder"),
        (lambda f: (f / "metadata.jsonl").write_text('{"file_name": "a.png", "text": " "}'), "empty caption"),
        (lambda f: (f / "a.png").write_bytes(b"no picture"), r"a\.png is no image that can be read"),
    ],
)
def test_a_spoiled_folder_gets_one_sentence(spoil, message, imagefolder):
    spoil(imagefolder)
    with pytest.raises(ValueError, match=message) as caught:
        OfflinePictures.open(imagefolder, SIZES)
    assert "\n" not in str(caught.value)


def test_captions_in_text_files_are_missed_too(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        OfflinePictures.open(tmp_path, SIZES)
    (tmp_path / "lonely.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"have no image, first that of lonely"):
        OfflinePictures.open(tmp_path, SIZES)
    (tmp_path / "lonely.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        OfflinePictures.open(tmp_path, SIZES)


def test_an_update_takes_the_pictures_until_the_last_that_should_and_samples_then(imagefolder, settings, monkeypatch):
    config = replace(settings, offline=OfflineConfig(str(imagefolder), until=1), updates=2)
    trainer = assemble(config)
    sampled, sample = [], DirectAlign.rollout
    monkeypatch.setattr(DirectAlign, "rollout", lambda *arguments: sampled.append(1) or sample(*arguments))
    before = trainer.weights()
    trainer.run_update()
    assert sampled == []
    assert any(not torch.equal(before[name], value) for name, value in trainer.weights().items())
    trainer.run_update()
    assert sampled == [1] * len(trainer.lanes)


def test_stored_rollouts_train_as_the_sampled_ones_do(settings, tmp_path, capsys, monkeypatch):
    """They are the latents and the noise that the run itself would have sampled; only their order is drawn anew."""
    options = [f"--set={name}={getattr(settings, name)}" for name in ("model", "reward", "prompts")]
    options += ["--set=max_sequence_length=16", "--set=prompts_per_update=2", "--set=validation.every=0"]
    options += [f"--set=objective.{name}" for name in ("height=32", "width=32", "rollout_steps=2")]
    folder = tmp_path / "stored"
    assert store.main([*options, "--rollouts", "2", "--out", str(folder)]) == 0
    pictures = OfflinePictures.open(folder, ((32, 32),))
    assert len(pictures.pictures) == 4
    trainer = assemble(settings)
    (first, _) = store.sampled(trainer, 2)
    captions, x0, noise = pictures.latents(trainer.policy, 0, 1, 4, slice(0, 4))
    for prompt, latents, drawn in zip(first.prompts, first.x0, first.noise, strict=True):
        place = captions.index(prompt)
        torch.testing.assert_close(x0[place], latents)
        assert torch.equal(noise[place], drawn)

    trainer = assemble(replace(settings, offline=OfflineConfig(str(folder))))
    with monkeypatch.context() as patched:
        patched.setattr(DirectAlign, "rollout", lambda *arguments: pytest.fail("sampled"))
        assert len(list(trainer.updates())) == 2

    assert store.main([*options, "--rollouts", "1", "--out", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(ValueError, match="do not belong here; store them anew"):
        OfflinePictures.open(folder, ((64, 64),))
