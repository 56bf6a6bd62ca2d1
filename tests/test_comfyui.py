"""ComfyUI's workflows: what one says is read in either form, and what is written is read back and has no loose end."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from srpo import comfyui
from srpo.comfyui import OUTPUTS, SAMPLERS, WIDGETS, Settings, prompt, read, read_texts, workflow

SETTINGS = Settings(
    prompt="a red ball on a beach",
    seed=123,
    steps=50,
    guidance=3.5,
    width=1024,
    height=768,
    model="diffusion_pytorch_model.safetensors",
)
# The node types of SRPO's published workflow.
PUBLISHED = {
    *(
        "UNETLoader",
        "DualCLIPLoader",
        "VAELoader",
        "CLIPTextEncode",
        "FluxGuidance",
        "ModelSamplingFlux",
        "BasicGuider",
    ),
    *("BasicScheduler", "KSamplerSelect", "RandomNoise", "EmptySD3LatentImage", "SamplerCustomAdvanced", "VAEDecode"),
    "SaveImage",
}
# What each node demands besides its widgets, by ComfyUI's own definitions.
DEMANDED = {
    "CLIPTextEncode": {"clip"},
    "FluxGuidance": {"conditioning"},
    "ModelSamplingFlux": {"model"},
    "LoraLoaderModelOnly": {"model"},
    "BasicGuider": {"model", "conditioning"},
    "BasicScheduler": {"model"},
    "SamplerCustomAdvanced": {"noise", "guider", "sampler", "sigmas", "latent_image"},
    "VAEDecode": {"samples", "vae"},
    "SaveImage": {"images"},
}


def test_a_written_workflow_has_the_published_node_types_each_once():
    types = [node["class_type"] for node in prompt(SETTINGS).values()]
    assert set(types) == PUBLISHED and len(types) == len(PUBLISHED)


@pytest.mark.parametrize("loras", [(), (("a.safetensors", 0.8), ("b.safetensors", 1.0))])
def test_every_node_has_all_its_inputs_and_every_link_the_type_of_its_output(loras):
    run = prompt(Settings(**{**vars(SETTINGS), "loras": loras}))
    for node in run.values():
        linked = {name for name, value in node["inputs"].items() if isinstance(value, list)}
        assert linked == DEMANDED.get(node["class_type"], set())
        assert node["inputs"].keys() - linked == {name for name in WIDGETS.get(node["class_type"], ()) if name}
        for name in linked:
            origin, slot = node["inputs"][name]
            assert slot < len(OUTPUTS[run[origin]["class_type"]])


def test_the_editors_form_says_the_same_as_the_one_that_runs():
    run, shown = prompt(SETTINGS), workflow(SETTINGS)
    nodes = {node["id"]: node for node in shown["nodes"]}
    links = {link[0]: link for link in shown["links"]}
    assert shown["last_node_id"] == max(nodes) and shown["last_link_id"] == max(links)
    assert sorted(nodes) == sorted(map(int, run))
    for name, node in run.items():
        editors = nodes[int(name)]
        assert editors["type"] == node["class_type"]
        values = [value for value in node["inputs"].values() if not isinstance(value, list)]
        assert [value for value in editors["widgets_values"] if value != "fixed"] == values
        for slot, entry in enumerate(editors["inputs"]):
            number, origin, origin_slot, target, target_slot, what = links[entry["link"]]
            assert [str(origin), origin_slot] == node["inputs"][entry["name"]]
            assert (target, target_slot, what) == (int(name), slot, entry["type"])
            output = nodes[origin]["outputs"][origin_slot]
            assert number in output["links"] and output["type"] == what
    assert sum(len(output["links"]) for node in nodes.values() for output in node["outputs"]) == len(links)
    for link in links.values():  # a node comes after those it needs, and to their right
        assert nodes[link[1]]["order"] < nodes[link[3]]["order"]
        assert nodes[link[1]]["pos"][0] < nodes[link[3]]["pos"][0]
    assert len({tuple(node["pos"]) for node in nodes.values()}) == len(nodes)


@pytest.mark.parametrize("form", [prompt, workflow])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": 'ein “Ball” \\ "quoted"\nnew line', "seed": 2**63},
        {"loras": (("style.safetensors", 0.8), ("second.safetensors", -1.0))},
        {"model": "flux1-srpo-Q8_0.gguf"},
    ],
)
def test_what_is_written_is_read_back(form, changes):
    settings = Settings(**{**vars(SETTINGS), **changes})
    reading = read(json.dumps(form(settings)))
    assert reading.settings == settings and reading.notes == ()


def test_a_workflow_that_lacks_a_setting_is_not_written():
    with pytest.raises(ValueError, match="needs seed, steps as well"):
        prompt(Settings(prompt="x", guidance=1.0, width=16, height=16))


def test_a_path_becomes_the_name_that_comfyui_lists():
    run = prompt(Settings(**{**vars(SETTINGS), "model": "/home/me/models/srpo.safetensors"}))
    assert run["1"]["inputs"]["unet_name"] == "srpo.safetensors"


def edited(**changes):
    """The published workflow in the editor's form, with the widgets of some nodes changed."""
    shown = workflow(SETTINGS)
    for node in shown["nodes"]:
        node["widgets_values"] = changes.get(node["type"], node["widgets_values"])
    return shown


def test_what_has_no_place_here_is_named():
    shown = edited(
        BasicScheduler=["normal", 50, 0.6],
        KSamplerSelect=["dpmpp_2m"],
        UNETLoader=["srpo.safetensors", "fp8_e4m3fn"],
    )
    notes = " ".join(read(json.dumps(shown)).notes)
    for said in ("denoise is 0.6, and here it is 1", "sampler is dpmpp_2m", "“normal”", "into fp8 as it loads them"):
        assert said in notes


def test_a_ksampler_and_clip_text_encode_flux_are_read_too():
    run = {
        "3": {"class_type": "KSampler", "inputs": {
            "seed": 7, "steps": 20, "cfg": 1, "sampler_name": "euler", "scheduler": "simple", "denoise": 1,
            "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "flux1-dev-fp8.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncodeFlux", "inputs": {
            "clip": ["4", 1], "clip_l": "short", "t5xxl": "a long prompt", "guidance": 2.5}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "ugly"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }  # fmt: skip
    expected = Settings("a long prompt", 7, 20, 2.5, 512, 640, "flux1-dev-fp8.safetensors")
    assert read(json.dumps(run)).settings == expected
    assert read(json.dumps({"prompt": run, "client_id": "x"})).settings == expected


def test_values_from_primitive_nodes_reroutes_and_bypassed_nodes_are_followed():
    """As an editor has them: width from a primitive, the model through a reroute and a bypassed LoRA."""
    shown = workflow(SETTINGS)
    nodes = {node["type"]: node for node in shown["nodes"]}
    model = nodes["ModelSamplingFlux"]["inputs"][0]
    nodes["ModelSamplingFlux"]["widgets_values"][2] = 16
    nodes["EmptySD3LatentImage"]["widgets_values"][0] = 16
    nodes["EmptySD3LatentImage"]["inputs"].append(
        {"name": "width", "type": "INT", "link": 90, "widget": {"name": "width"}}
    )
    shown["links"] += [[90, 50, 0, 11, 0, "INT"], [91, 1, 0, 51, 0, "MODEL"], [92, 51, 0, 52, 0, "MODEL"],
                       [93, 52, 0, 4, 0, "MODEL"]]  # fmt: skip
    model["link"] = 93
    shown["nodes"] += [
        {"id": 50, "type": "PrimitiveNode", "outputs": [{"links": [90]}], "widgets_values": [832, "fixed"]},
        {"id": 51, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 91}], "outputs": []},
        {
            "id": 52,
            "type": "LoraLoaderModelOnly",
            "mode": 4,
            "inputs": [{"name": "model", "type": "MODEL", "link": 92}],
            "outputs": [{"type": "MODEL"}],
            "widgets_values": ["off.safetensors", 1.0],
        },
    ]
    assert read(json.dumps(shown)).settings == Settings(**{**vars(SETTINGS), "width": 832})


def test_of_several_samplers_the_saved_pictures_one_counts():
    run = prompt(SETTINGS)
    run["99"] = {"class_type": SAMPLERS[1], "inputs": {"seed": 1, "steps": 1}}
    assert read(json.dumps(run)).settings == SETTINGS
    del run["14"]
    with pytest.raises(ValueError, match="has 2 samplers that are known here, and one is needed"):
        read(json.dumps(run))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "not in a form that ComfyUI writes"),
        ("{}", "not in a form that ComfyUI writes"),
        ('{"nodes": 3}', "not in a form that ComfyUI writes"),
        ('{"nodes": [{"id": 1}]}', "not in a form that ComfyUI writes"),
        ('{"1": {"inputs": {}}}', "not in a form that ComfyUI writes"),
        ('{"1": {"class_type": "LoadImage", "inputs": {}}}', "has no samplers that are known here"),
        ('{"1": {"class_type": "SamplerCustomAdvanced", "inputs": {}}}', "made by nodes that are not known here"),
        (json.dumps({str(n): {"class_type": "X"} for n in range(6000)}), "not in a form that ComfyUI writes"),
        (" " * (comfyui.MAX_CHARACTERS + 1), "characters, and 8,000,000 are read"),
    ],
)
def test_what_is_no_workflow_of_ours_is_one_phrase(text, said):
    with pytest.raises(ValueError, match=said):
        read(text)


def test_a_workflow_that_runs_in_circles_ends():
    run = prompt(SETTINGS)
    run["4"]["inputs"]["model"] = ["4", 0]
    run["6"]["inputs"]["conditioning"] = ["6", 0]
    found = read(json.dumps(run)).settings
    assert found.prompt is None and found.model is None and found.seed == 123


def test_values_of_a_wrong_type_are_left_out():
    run = prompt(SETTINGS)
    run["8"]["inputs"]["noise_seed"] = "many"
    run["10"]["inputs"]["steps"] = True
    run["6"]["inputs"]["guidance"] = [1, 2, 3]
    run["5"]["inputs"]["text"] = "x" * 30_000
    found = read(json.dumps(run)).settings
    assert (found.seed, found.steps, found.guidance, found.prompt) == (None, None, None, None)
    assert (found.width, found.height) == (1024, 768)


def test_a_png_carries_its_workflow(tmp_path: Path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", json.dumps(edited(RandomNoise=[9, "randomize"])))
    texts.add_text("prompt", json.dumps(prompt(SETTINGS)))
    Image.new("RGB", (8, 8)).save(tmp_path / "comfyui.png", pnginfo=texts)
    with Image.open(tmp_path / "comfyui.png") as image:
        assert read_texts(image.info).settings == SETTINGS  # what was run, not what the editor shows
    assert read_texts({"workflow": json.dumps(workflow(SETTINGS))}).settings == SETTINGS
    assert read_texts({"parameters": "a ball"}) is None and read_texts({"prompt": "a plain text"}) is None


def test_thousands_of_reroutes_in_circles_are_read_at_once():
    """From every node of a long circle a longer one was followed again: minutes for a file of 300 kB."""
    circle = {f"r{n}": {"class_type": "Reroute", "inputs": {"": [f"r{(n + 1) % 2000}", 0]}} for n in range(2000)}
    texts = {
        f"t{n}": {"class_type": "C", "inputs": {"conditioning": [f"t{(n + 1) % 2000}", 0], "text": ["r0", 0]}}
        for n in range(2000)
    }
    sampler = {"class_type": "KSampler", "inputs": {"positive": ["t0", 0], "steps": 3}}
    began_s = time.monotonic()
    assert read(json.dumps(circle | texts | {"k": sampler})).settings.steps == 3
    assert time.monotonic() - began_s < 5
