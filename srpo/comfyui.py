"""ComfyUI's workflows: settings out of one, and one out of settings, with the node types of SRPO's published one.

A workflow comes in two forms. What ComfyUI runs ("prompt"): by node id, a type and its inputs, each a value or the
[id, slot] of another node's output. What its editor keeps ("workflow"): nodes with the values of their widgets in an
order of their own, and a list of links. PNGs of ComfyUI carry both as text.

Settings are read backwards from the picture that is saved: its sampler, and from there noise, levels, text, guidance,
size and model. What has no place here is named in a note. ComfyUI draws its noise in another way than diffusers, so
the same seed gives another picture there.

Sources: Tencent-Hunyuan/SRPO `comfyui/SRPO-workflow.json` as its README describes it; the nodes' inputs in ComfyUI's
`nodes.py` and `comfy_extras`. Standard library only, but for reading a PNG.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from srpo.runs.atomic import write_text

MAX_CHARACTERS = 8_000_000
MAX_NODES = 5_000
MAX_TEXT = 20_000
BASE_NAME = "flux1-dev.safetensors"  # what ComfyUI's users call the base's file
SHIFTS = 1.15, 0.5  # FLUX's own, at 4096 and at 256 tokens

# The widgets of a node in the editor's order; None is a control beside a widget that no input has.
WIDGETS: dict[str, tuple[str | None, ...]] = {
    "UNETLoader": ("unet_name", "weight_dtype"),
    "UnetLoaderGGUF": ("unet_name",),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "DualCLIPLoader": ("clip_name1", "clip_name2", "type"),
    "VAELoader": ("vae_name",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "FluxGuidance": ("guidance",),
    "ModelSamplingFlux": ("max_shift", "base_shift", "width", "height"),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KSamplerSelect": ("sampler_name",),
    "RandomNoise": ("noise_seed", None),
    "CFGGuider": ("cfg",),
    "KSampler": ("seed", None, "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "SaveImage": ("filename_prefix",),
}
OUTPUTS = {  # of the nodes that are written: name and type of each
    "UNETLoader": (("MODEL", "MODEL"),),
    "UnetLoaderGGUF": (("MODEL", "MODEL"),),
    "LoraLoaderModelOnly": (("MODEL", "MODEL"),),
    "ModelSamplingFlux": (("MODEL", "MODEL"),),
    "DualCLIPLoader": (("CLIP", "CLIP"),),
    "VAELoader": (("VAE", "VAE"),),
    "CLIPTextEncode": (("CONDITIONING", "CONDITIONING"),),
    "FluxGuidance": (("CONDITIONING", "CONDITIONING"),),
    "BasicGuider": (("GUIDER", "GUIDER"),),
    "BasicScheduler": (("SIGMAS", "SIGMAS"),),
    "KSamplerSelect": (("SAMPLER", "SAMPLER"),),
    "RandomNoise": (("NOISE", "NOISE"),),
    "EmptySD3LatentImage": (("LATENT", "LATENT"),),
    "SamplerCustomAdvanced": (("output", "LATENT"), ("denoised_output", "LATENT")),
    "VAEDecode": (("IMAGE", "IMAGE"),),
    "SaveImage": (),
}
SAVERS = ("SaveImage", "PreviewImage", "SaveImageWebsocket")
SAMPLERS = ("SamplerCustomAdvanced", "KSampler")
LORAS = ("LoraLoaderModelOnly", "LoraLoader")
LOADERS = {"UNETLoader": "unet_name", "UnetLoaderGGUF": "unet_name", "CheckpointLoaderSimple": "ckpt_name"}
HIDDEN_MODES = (2, 4)  # muted, bypassed


@dataclass(frozen=True)
class Settings:
    """What a workflow draws. None: it does not say."""

    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    model: str | None = None  # the file's name
    loras: tuple[tuple[str, float], ...] = ()  # name, strength


@dataclass(frozen=True)
class Reading:
    """Settings, and a sentence for each thing of the workflow that they cannot say."""

    settings: Settings
    notes: tuple[str, ...]


@dataclass
class _Node:
    type: str
    inputs: dict[str, Any]  # a value, or a _Link
    values: list[Any] = field(default_factory=list)  # of an editor's node, as they stand there


@dataclass(frozen=True)
class _Link:
    node: str
    slot: int


Graph = dict[str, _Node]


def read(text: str) -> Reading:
    """The settings of a workflow in either form, as JSON. ValueError, a phrase, where it holds none that are known."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the workflow has {len(text):,} characters, and {MAX_CHARACTERS:,} are read")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("the workflow is no JSON") from error
    try:
        graph = _from_editor(content) if isinstance(content, dict) and "nodes" in content else _from_prompt(content)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError("the workflow is not in a form that ComfyUI writes") from error
    return _reading(_without_reroutes(graph))


def read_texts(texts: Mapping[str, str]) -> Reading | None:
    """The settings in a PNG's texts; None where it carries no workflow. ValueError as `read`.

    What was run ("prompt") tells more than what the editor showed.
    """
    for name in ("prompt", "workflow"):
        if texts.get(name, "").lstrip().startswith("{"):
            return read(texts[name])
    return None


def _from_prompt(content: Any) -> Graph:
    """The graph of the form that is run."""
    content = content.get("prompt", content)  # as it is sent to the server
    if not content or len(content) > MAX_NODES:
        raise ValueError(f"{len(content)} nodes")
    graph = {}
    for name, node in content.items():
        inputs = {key: _linked(value) for key, value in node.get("inputs", {}).items()}
        graph[str(name)] = _Node(str(node["class_type"]), inputs)
    return graph


def _linked(value: Any) -> Any:
    """[id, slot] as a link; any other value as it is."""
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int
    return _Link(str(value[0]), value[1]) if is_link else value


def _from_editor(content: dict[str, Any]) -> Graph:
    """The graph of the form that the editor keeps. A subgraph's nodes are read as if they lay beside the others."""
    graph: Graph = {}
    parts = [content, *content.get("definitions", {}).get("subgraphs", ())]
    if sum(len(part["nodes"]) for part in parts) > MAX_NODES:
        raise ValueError("too many nodes")
    for number, part in enumerate(parts):
        prefix = f"{number}:" if number else ""
        links = dict(_editor_link(link, prefix) for link in part.get("links", ()))
        for node in part["nodes"]:
            if node.get("mode", 0) not in HIDDEN_MODES:
                graph[f"{prefix}{node['id']}"] = _editor_node(node, links)
            elif passed := _passed_on(node, links):
                graph[f"{prefix}{node['id']}"] = _Node("Reroute", {"": passed})
    return graph


def _editor_link(link: Any, prefix: str) -> tuple[int, _Link]:
    if isinstance(link, dict):  # within a subgraph
        return link["id"], _Link(f"{prefix}{link['origin_id']}", link["origin_slot"])
    number, origin, slot, *_ = link
    return number, _Link(f"{prefix}{origin}", slot)


def _editor_node(node: dict[str, Any], links: Mapping[int, _Link]) -> _Node:
    values = node.get("widgets_values", [])
    inputs: dict[str, Any] = {}
    if isinstance(values, dict):
        inputs, values = dict(values), list(values.values())
    inputs |= {name: value for name, value in zip(WIDGETS.get(node["type"], ()), values, strict=False) if name}
    for entry in node.get("inputs") or ():
        if entry.get("link") in links:
            inputs[str(entry["name"])] = links[entry["link"]]
    return _Node(str(node["type"]), inputs, list(values))


def _passed_on(node: dict[str, Any], links: Mapping[int, _Link]) -> _Link | None:
    """What a bypassed node passes on: its first input of the type of its first output."""
    outputs = node.get("outputs") or ({},)
    for entry in node.get("inputs") or ():
        if entry.get("link") in links and entry.get("type") == outputs[0].get("type"):
            return links[entry["link"]]
    return None


def _reading(graph: Graph) -> Reading:
    sampler = _sampler(graph)
    notes: list[str] = []
    found: dict[str, Any] = {}
    if sampler.type == "KSampler":
        text, model, latent = (sampler.inputs.get(name) for name in ("positive", "model", "latent_image"))
        found |= {"seed": _value(graph, sampler, "seed"), "steps": _value(graph, sampler, "steps")}
        levels, chosen, cfg = sampler, sampler, _value(graph, sampler, "cfg")
    else:
        guider = _source(graph, sampler.inputs.get("guider"))
        text = guider.inputs.get("conditioning", guider.inputs.get("positive")) if guider else None
        model, latent = guider.inputs.get("model") if guider else None, sampler.inputs.get("latent_image")
        noise, levels, chosen = (_source(graph, sampler.inputs.get(name)) for name in ("noise", "sigmas", "sampler"))
        found |= {"seed": _value(graph, noise, "noise_seed"), "steps": _value(graph, levels, "steps")}
        cfg = _value(graph, guider, "cfg")
    found |= _text(graph, text)
    size = _source(graph, latent)
    found |= {"width": _value(graph, size, "width"), "height": _value(graph, size, "height")}
    found |= _model(graph, model, notes)
    for name, value, ours in (
        ("sampler", _value(graph, chosen, "sampler_name"), "euler"),
        ("denoise", _value(graph, levels, "denoise"), 1),
        ("CFG", cfg, 1),
    ):
        if value not in (None, ours):
            notes.append(f"Its {name} is {str(value)[:40]}, and here it is {ours}.")
    if (scheduler := _value(graph, levels, "scheduler")) not in (None, "simple"):
        notes.append(f"Its noise levels are “{str(scheduler)[:40]}”; here they are FLUX’s own, ComfyUI’s “simple”.")
    if not any(value is not None for name, value in found.items() if name != "loras"):
        raise ValueError("the workflow's settings are made by nodes that are not known here")
    return Reading(Settings(**_typed(found)), tuple(notes))


def _sampler(graph: Graph) -> _Node:
    """The sampler nearest to a picture that is saved; else the only one there is."""
    for saver in (name for name, node in graph.items() if node.type in SAVERS):
        for node in _upstream(graph, saver):
            if node.type in SAMPLERS:
                return node
    samplers = [node for node in graph.values() if node.type in SAMPLERS]
    if len(samplers) != 1:
        raise ValueError(f"the workflow has {len(samplers) or 'no'} samplers that are known here, and one is needed")
    return samplers[0]


def _upstream(graph: Graph, name: str) -> Iterator[_Node]:
    """The node and all that it depends on, the nearest first."""
    waiting, seen = [name], {name}
    for current in waiting:
        if (node := graph.get(current)) is None:
            continue
        yield node
        for value in node.inputs.values():
            if isinstance(value, _Link) and value.node not in seen:
                seen.add(value.node)
                waiting.append(value.node)


def _source(graph: Graph, link: Any) -> _Node | None:
    """The node at the other end; None where there is none."""
    return graph.get(link.node) if isinstance(link, _Link) else None


def _without_reroutes(graph: Graph) -> Graph:
    """The same graph, whose links lead past the reroutes; into a circle of them, to nothing.

    Each is followed once: a file may hold thousands, in circles, and ask for them from everywhere.
    """
    ends: dict[str, str | None] = {}
    for name in graph:
        way: dict[str, None] = {}
        at: str | None = name
        while at in graph and graph[at].type == "Reroute" and at not in ends and at not in way:
            way[at] = None
            at = next((value.node for value in graph[at].inputs.values() if isinstance(value, _Link)), None)
        end = ends.get(at, None if at in way else at)
        ends |= dict.fromkeys(way, end)
    for node in graph.values():
        for key, value in node.inputs.items():
            if isinstance(value, _Link) and value.node in ends:
                end = ends[value.node]
                node.inputs[key] = None if end is None else _Link(end, value.slot)
    return graph


def _value(graph: Graph, node: _Node | None, name: str) -> Any:
    """A node's value, or the one that another node gives it, where that is a plain one."""
    value = node.inputs.get(name) if node else None
    if not isinstance(value, _Link):
        return value
    if (source := _source(graph, value)) is None:
        return None
    plain = [it for it in (*source.inputs.values(), *source.values) if isinstance(it, str | int | float)]
    return plain[0] if plain else None


def _text(graph: Graph, link: Any) -> dict[str, Any]:
    """Prompt and guidance of a conditioning, through the nodes that pass it on."""
    found: dict[str, Any] = {}
    for _ in range(MAX_NODES):
        if (node := _source(graph, link)) is None:
            return found
        if (guidance := _value(graph, node, "guidance")) is not None:
            found.setdefault("guidance", guidance)
        for name in ("text", "t5xxl", "clip_l"):
            if isinstance(text := _value(graph, node, name), str) and text.strip():
                return found | {"prompt": text}
        link = node.inputs.get("conditioning")
    return found


def _model(graph: Graph, link: Any, notes: list[str]) -> dict[str, Any]:
    """The model's file and the LoRAs on the way to it."""
    loras: list[tuple[str, float]] = []
    for _ in range(MAX_NODES):
        if (node := _source(graph, link)) is None:
            break
        if node.type in LOADERS:
            dtype = _value(graph, node, "weight_dtype")
            if isinstance(dtype, str) and dtype.startswith("fp8"):
                notes.append("It turns the model’s weights into fp8 as it loads them, which loses much of SRPO.")
            name = _value(graph, node, LOADERS[node.type])
            return {"model": name, "loras": tuple(reversed(loras))}
        if node.type in LORAS:
            strength = _value(graph, node, "strength_model")
            if isinstance(name := _value(graph, node, "lora_name"), str) and isinstance(strength, int | float):
                loras.append((name, float(strength)))
        link = node.inputs.get("model")
    return {"loras": tuple(reversed(loras))}


def _typed(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values that have their setting's type; others are left out."""
    kept: dict[str, Any] = {"loras": found.get("loras", ())}
    for name in ("seed", "steps", "width", "height"):
        if type(found.get(name)) is int and found[name] >= 0:
            kept[name] = found[name]
    if type(found.get("guidance")) in (int, float):
        kept["guidance"] = float(found["guidance"])
    for name in ("prompt", "model"):
        if isinstance(found.get(name), str) and found[name].strip() and len(found[name]) <= MAX_TEXT:
            kept[name] = found[name]
    return kept


def prompt(settings: Settings) -> dict[str, Any]:
    """The workflow in the form that ComfyUI runs. ValueError, a phrase, where a setting is missing."""
    if missing := [name for name, value in vars(settings).items() if value is None and name != "model"]:
        raise ValueError(f"a workflow needs {', '.join(missing)} as well")
    size = {"width": settings.width, "height": settings.height}
    name = PurePath(settings.model or BASE_NAME).name
    if name.endswith(".gguf"):
        graph = {"1": _run("UnetLoaderGGUF", unet_name=name)}
    else:
        graph = {"1": _run("UNETLoader", unet_name=name, weight_dtype="default")}
    graph["2"] = _run(
        "DualCLIPLoader", clip_name1="t5xxl_fp16.safetensors", clip_name2="clip_l.safetensors", type="flux"
    )
    graph["3"] = _run("VAELoader", vae_name="ae.safetensors")
    model = ["1", 0]
    for number, (lora, strength) in enumerate(settings.loras, start=15):
        lora_name = PurePath(lora).name
        graph[str(number)] = _run("LoraLoaderModelOnly", model=model, lora_name=lora_name, strength_model=strength)
        model = [str(number), 0]
    shifts = dict(zip(("max_shift", "base_shift"), SHIFTS, strict=True))
    graph["4"] = _run("ModelSamplingFlux", model=model, **shifts, **size)
    graph["5"] = _run("CLIPTextEncode", clip=["2", 0], text=settings.prompt)
    graph["6"] = _run("FluxGuidance", conditioning=["5", 0], guidance=settings.guidance)
    graph["7"] = _run("BasicGuider", model=["4", 0], conditioning=["6", 0])
    graph["8"] = _run("RandomNoise", noise_seed=settings.seed)
    graph["9"] = _run("KSamplerSelect", sampler_name="euler")
    graph["10"] = _run("BasicScheduler", model=["4", 0], scheduler="simple", steps=settings.steps, denoise=1.0)
    graph["11"] = _run("EmptySD3LatentImage", **size, batch_size=1)
    inputs = {"noise": "8", "guider": "7", "sampler": "9", "sigmas": "10", "latent_image": "11"}
    graph["12"] = _run("SamplerCustomAdvanced", **{name: [node, 0] for name, node in inputs.items()})
    graph["13"] = _run("VAEDecode", samples=["12", 0], vae=["3", 0])
    graph["14"] = _run("SaveImage", images=["13", 0], filename_prefix="SRPO")
    return graph


def _run(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def workflow(settings: Settings) -> dict[str, Any]:
    """The workflow in the form that ComfyUI's editor opens. ValueError, a phrase, where a setting is missing."""
    run = prompt(settings)
    depths = {name: _depth(run, name) for name in run}
    order = sorted(run, key=lambda name: (depths[name], int(name)))
    links: list[list[Any]] = []
    taken: dict[tuple[str, int], list[int]] = {}
    nodes = []
    for place, name in enumerate(order):
        kind, inputs = run[name]["class_type"], run[name]["inputs"]
        slots = []
        for key, value in inputs.items():
            if isinstance(value, list):
                number, (origin, slot) = len(links) + 1, value
                what = OUTPUTS[run[origin]["class_type"]][slot][1]
                links.append([number, int(origin), slot, int(name), len(slots), what])
                taken.setdefault((origin, slot), []).append(number)
                slots.append({"name": key, "type": what, "link": number})
        controls = [inputs[key] if key else "fixed" for key in WIDGETS.get(kind, ())]
        column = depths[name]
        row = sum(depths[other] == column for other in order[:place])
        nodes.append(
            {
                "id": int(name),
                "type": kind,
                "pos": [360 * column, 200 * row],
                "size": [320, 140],
                "flags": {},
                "order": place,
                "mode": 0,
                "inputs": slots,
                "properties": {"Node name for S&R": kind},
                "widgets_values": controls,
            }
        )
    for node in nodes:
        node["outputs"] = [
            {"name": label, "type": what, "links": taken.get((str(node["id"]), slot), []), "slot_index": slot}
            for slot, (label, what) in enumerate(OUTPUTS[node["type"]])
        ]
    return {
        "last_node_id": max(map(int, run)),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _depth(run: Mapping[str, Any], name: str) -> int:
    """How many nodes lie before it on the longest way: its column."""
    before = [value[0] for value in run[name]["inputs"].values() if isinstance(value, list)]
    return 1 + max((_depth(run, other) for other in before), default=-1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what holds no workflow."""
    parser = argparse.ArgumentParser(
        prog="python -m srpo.comfyui", description="Prints the settings of a workflow of ComfyUI, or writes it anew."
    )
    parser.add_argument(
        "file", type=Path, help="a workflow as JSON, or a PNG that carries one, of ComfyUI or of this app"
    )
    parser.add_argument("--out", type=Path, help="write a workflow of these settings, which ComfyUI's editor opens")
    options = parser.parse_args(arguments)
    try:
        found = _read_file(options.file)
        for note in found.notes:
            print(note, file=sys.stderr)
        print(json.dumps(asdict(found.settings), ensure_ascii=False, indent=2))
        if options.out:
            write_text(options.out, json.dumps(workflow(found.settings), indent=2) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {options.file}: {error}", file=sys.stderr)
        return 2
    return 0


def _read_file(file: Path) -> Reading:
    """The settings of a JSON file or a PNG. ValueError, a phrase, where it holds none."""
    with file.open("rb") as opened:
        start = opened.read(MAX_CHARACTERS + 1)
    if not start.startswith(b"\x89PNG"):
        return read(start.decode(errors="replace"))
    from PIL import Image

    with Image.open(file, formats=["PNG"]) as image:
        texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
    if (found := read_texts(texts)) is None:
        raise ValueError("it carries no workflow")
    return found


if __name__ == "__main__":
    sys.exit(main())
