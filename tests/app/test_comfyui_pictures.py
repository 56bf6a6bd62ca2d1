"""ComfyUI and the page: its workflows restore settings, and pictures made here open there with theirs."""

import json

import pytest
import torch
from PIL import Image, PngImagePlugin

from app.services.compare import compare
from app.services.device import StopFlag
from app.services.metadata import read_request
from app.services.requests import BadInput, CompareRequest
from app.tabs.compare import RESTORED, Handlers
from srpo import comfyui
from tests.policies.forms import save

SETTINGS = comfyui.Settings("a red ball", 7, 50, 2.5, 512, 768, "diffusion_pytorch_model.safetensors")


def workflow_file(tmp_path, settings=SETTINGS, form=comfyui.workflow):
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(form(settings)))
    return file


@pytest.mark.parametrize("form", [comfyui.workflow, comfyui.prompt])
def test_a_workflow_restores_its_settings_and_says_what_it_cannot(tmp_path, form):
    found = read_request(workflow_file(tmp_path, form=form))
    expected = {"prompt": "a red ball", "seed": 7, "steps": 50, "guidance": 2.5, "width": 512, "height": 768}
    assert found.settings == expected
    assert "the same seed gives another picture" in found.note
    assert "drawn with diffusion_pytorch_model.safetensors: choose the models here" in found.note


def test_what_is_out_of_range_here_is_left_out_and_said(tmp_path):
    settings = comfyui.Settings("a red ball", 2**40, 500, 2.5, 1000, 768)
    found = read_request(workflow_file(tmp_path, settings))
    assert found.settings == {"prompt": "a red ball", "guidance": 2.5, "height": 768}
    for said in ("The seed must be a whole number", "Steps must be", "Width must be a multiple of 16"):
        assert f"Left out: {said}" in found.note


def test_a_comfyui_picture_dropped_on_the_page_fills_its_fields(studio, tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", json.dumps(comfyui.prompt(SETTINGS)))
    Image.new("RGB", (8, 8)).save(tmp_path / "comfyui.png", pnginfo=texts)
    _, note, seed_mode, *updates = Handlers(studio).restore(str(tmp_path / "comfyui.png"))
    values = {name: update.get("value") for name, update in zip(RESTORED, updates, strict=True)}
    assert seed_mode == "fixed" and "Restored what the ComfyUI workflow says" in note
    assert (values["prompt"], values["seed"], values["steps"]) == ("a red ball", 7, 50)
    assert values["left"] is None and values["right"] is None  # as they were


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}', "The workflow is not in a form that ComfyUI writes."),
        (b'  {"1": {"class_type": "LoadImage", "inputs": {}}}', "The workflow has no samplers that are known here"),
        (b"{" + b" " * 8_100_000, "The workflow has 8,000,0"),
        (b"[1, 2]", "not a PNG picture"),
        (b"", "not a PNG picture"),
    ],
)
def test_another_file_is_one_sentence(tmp_path, content, said):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read_request(tmp_path / "file.json")


def test_pictures_made_here_carry_a_workflow_that_opens_there(studio, tmp_path):
    shapes = {"A": (1, 64), "B": (32, 1)}
    weights = {f"transformer.x_embedder.lora_{side}.weight": torch.ones(shape) for side, shape in shapes.items()}
    lora = save(weights, tmp_path / "style.safetensors")
    asked = CompareRequest(
        prompt="a red ball", seed=5, steps=2, width=32, height=48, left="srpo", right=f"{lora}@0.5", control_word="Real"
    )
    (pair,) = list(compare(studio, asked, StopFlag()))[-1].pairs
    expected = comfyui.Settings("Real. a red ball", 5, 2, 3.5, 32, 48, "srpo.safetensors")
    assert texts_of(pair.left) == expected
    with_lora = texts_of(pair.right)
    assert (with_lora.model, with_lora.loras) == (comfyui.BASE_NAME, (("style.safetensors", 0.5),))
    with Image.open(pair.difference) as image:
        assert "workflow" not in image.info
    assert read_request(pair.left).settings == asked.model_copy(update={"num_seeds": 1})  # ours comes first


def texts_of(path):
    with Image.open(path) as image:
        return comfyui.read_texts({"workflow": image.info["workflow"]}).settings


def test_the_miniatures_pictures_carry_none(studio, monkeypatch):
    monkeypatch.setattr(type(studio.options), "is_miniature", True)
    asked = CompareRequest(prompt="a red ball", seed=5, steps=1, width=32, height=32, left="base", right="base")
    (pair,) = list(compare(studio, asked, StopFlag()))[-1].pairs
    with Image.open(pair.left) as image:
        assert "workflow" not in image.info and "srpo_studio" in image.info


def test_the_command_prints_settings_and_writes_a_workflow(tmp_path, capsys):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", json.dumps(comfyui.prompt(SETTINGS)))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    assert comfyui.main([str(tmp_path / "a.png"), "--out", str(tmp_path / "w.json")]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a red ball"
    assert comfyui.read((tmp_path / "w.json").read_text()).settings == SETTINGS
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    for name, said in (("b.png", "it carries no workflow"), ("none.json", "No such file")):
        assert comfyui.main([str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
