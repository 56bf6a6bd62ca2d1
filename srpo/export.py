"""python -m srpo.export RUN: a run's weights for others, with a model card beside them.

full    transformer/ in diffusers' layout: config.json and one safetensors file; a LoRA is merged into its base
lora    pytorch_lora_weights.safetensors with the keys of diffusers and PEFT
kohya   the same LoRA under kohya's names, as sd-scripts, ComfyUI and Forge read it
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from srpo.loading import one_at_a_time
from srpo.policies import hub
from srpo.policies.families import FLUX, FLUX2_KLEIN, KLEIN_LICENCES, OPEN, Family, is_flux1, klein_of
from srpo.policies.lora_layouts import lora_alpha, to_kohya
from srpo.runs import LORA_NAME, WEIGHTS_NAME, RunFolder
from srpo.runs.atomic import write_folder

FORMS = {
    "full": "whole transformer, for diffusers",
    "lora": "LoRA, for diffusers and PEFT",
    "kohya": "LoRA, for ComfyUI, Forge and kohya's scripts",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def forms_of(run: RunFolder) -> tuple[str, ...]:
    """The forms a run can take: a LoRA all of them, but kohya's is for FLUX.1; full weights only their own."""
    if not is_lora(run):
        return ("full",)
    return ("lora", "kohya", "full") if _family(_base(run)).kohya else ("lora", "full")


def _base(run: RunFolder) -> str:
    """The base model that the run names. ValueError where it names none."""
    model = run.config().get("model", "")
    if not isinstance(model, str):
        raise ValueError(f"{run.name} has {str(model)[:40]!r} for its base model: its config.json is not one of ours")
    return model


def is_lora(run: RunFolder) -> bool:
    return run.config().get("weights") == "lora"


def weights_of(run: RunFolder, update: int | None = None) -> Path:
    """The file of a run's weights: of a checkpoint, or with None the finished ones.

    ValueError where they are not there.
    """
    if update is None:
        if not run.weights.is_file():
            raise ValueError(f"run {run.name} has not finished: let it finish, or choose one of its checkpoints")
        return run.weights
    known = run.checkpoint_updates()
    if update not in known:
        kept = f"it keeps those of {', '.join(map(str, known))}" if known else "it keeps none"
        raise ValueError(f"run {run.name} has no checkpoint of update {update}: {kept}")
    return run.checkpoint_weights(update)


def export(run: RunFolder, form: str, *, update: int | None = None, dtype: str = "float32") -> Path:
    """The folder RUN/exports/FORM-WHEN, complete with its card; one of an earlier export is replaced.

    ValueError for a form that this run does not have, weights that are not there, or a base that cannot be read.
    """
    if form not in forms_of(run):
        raise ValueError(f"run {run.name} exports as {', '.join(forms_of(run))}, not as {form!r}")
    if dtype not in DTYPES:
        raise ValueError(f"weights are exported as {' or '.join(DTYPES)}, not as {dtype!r}")
    source = weights_of(run, update)
    stem = "final" if update is None else f"update-{update:06d}"
    folder = run.path / "exports" / f"{form}-{stem}"
    folder.parent.mkdir(exist_ok=True)

    def write(temporary: Path) -> None:
        writers = {"full": _write_full, "lora": _write_lora, "kohya": _write_kohya}
        try:
            writers[form](run, source, temporary, DTYPES[dtype])
        except SafetensorError as error:
            raise ValueError(f"{source} is damaged: {error}") from error
        (temporary / "README.md").write_text(_card(run, form, update, dtype), encoding="utf-8")

    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder, write)
    return folder


def _write_full(run: RunFolder, source: Path, folder: Path, dtype: torch.dtype) -> None:
    model = _base(run)
    base = (hub.downloaded(model) or Path(model)) / "transformer"
    if not (base / "config.json").is_file():
        raise ValueError(f"the base model's configuration is not at {base}: a full export needs it")
    (folder / "transformer").mkdir()
    if is_lora(run):
        from diffusers import AutoModel  # whose class its config.json names

        from srpo.policies.checkpoints import load_transformer

        read = one_at_a_time(AutoModel.from_pretrained)
        whole = load_transformer(source, read(str(base), local_files_only=True))
        weights = whole.state_dict()
    else:
        weights, _ = _read(source)
    weights = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    save_file(weights, folder / "transformer" / WEIGHTS_NAME, metadata={"format": "pt"})
    shutil.copyfile(base / "config.json", folder / "transformer" / "config.json")


def _write_lora(run: RunFolder, source: Path, folder: Path, dtype: torch.dtype) -> None:
    weights, metadata = _read(source)
    weights = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    save_file(weights, folder / LORA_NAME, metadata={"format": "pt", **metadata})


def _write_kohya(run: RunFolder, source: Path, folder: Path, dtype: torch.dtype) -> None:
    weights, metadata = _read(source)
    rank = next(value.shape[0] for name, value in weights.items() if ".lora_A." in name)
    alpha = lora_alpha(metadata, rank)
    converted = {name: value.to(dtype).contiguous() for name, value in to_kohya(weights, alpha).items()}
    facts = {"ss_network_module": "networks.lora_flux", "ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}"}
    save_file(converted, folder / f"{run.name}.safetensors", metadata={"format": "pt", **facts})


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, without the mark of the format."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        metadata.pop("format", None)
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 no mapping


def _card(run: RunFolder, form: str, update: int | None, dtype: str) -> str:
    """The model card. ValueError where the run's settings are not whole."""
    try:
        return model_card(run, form, update, dtype)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the settings of {run.name} are not whole ({error}): its config.json is not one of ours"
        ) from error


def model_card(run: RunFolder, form: str, update: int | None, dtype: str) -> str:
    """README.md of an export: base model, recipe, figures, licences, and how to load it."""
    config = run.config()
    base = str(config["model"])
    licence, base_name, terms = _licence(base)
    known = [f"base_model: {base_name}"] if "/" in base_name else []  # the Hub refuses a card with any other
    front = ["---", *licence, *known, "library_name: diffusers", "pipeline_tag: text-to-image"]
    front += ["tags:", "- flux", "- srpo", *(["- lora"] if form != "full" else []), "---"]
    words = config["signal"].get("words", {})
    parts = [
        "\n".join(front),
        f"# {run.name}",
        f"{base_name}, fine-tuned by SRPO ([arXiv 2509.06942](https://arxiv.org/abs/2509.06942)) with SRPO Studio, as "
        f"{_when(update)}: {FORMS[form]}, {dtype}.",
        "## Load it\n\n```python\n" + _usage(run, form, base_name) + "\n```",
        "## Recipe\n\n" + _table(("setting", "value"), _recipe(config, words)),
        "## Figures\n\n" + _figures(run, update),
        f"## Licences\n\n{terms} The method is by the authors of SRPO (Tencent Hunyuan). Its prompts and its reward "
        "have terms of their own: check those before you publish what was made with them.",
        "<details><summary>Every setting, and the versions it ran with</summary>\n\n```json\n"
        + json.dumps(
            {"config": _without_folders(config), "environment": run.environment()}, indent=2, ensure_ascii=False
        )
        + "\n```\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _family(base: str) -> Family:
    """The family of a base model; FLUX.1 for what is not here and is not called after another."""
    return FLUX if is_flux1(hub.downloaded(base) or base) and klein_of(base) is None else FLUX2_KLEIN


def _licence(base: str) -> tuple[list[str], str, str]:
    """Lines for the front matter, the base's public name, and a sentence on its terms, as far as its name tells."""
    if "flux.1-dev" in base.casefold():
        lines = ["license: other", "license_name: flux-1-dev-non-commercial-license"]
        lines.append("license_link: https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md")
        terms = (
            "These weights derive from FLUX.1-dev and stay under the FLUX.1 [dev] Non-Commercial License of Black "
            "Forest Labs: non-commercial use, outputs reviewed or filtered and disclosed as made by AI, and its notice "
            "passed on with the weights."
        )
        return lines, "black-forest-labs/FLUX.1-dev", terms
    if Path(base).parent.name == "miniature":
        return ["license: apache-2.0"], "FLUX miniature (SRPO Studio)", "Base model and weights: Apache-2.0."
    if (klein := klein_of(base)) is not None:
        terms = f"These weights derive from {klein} and stay under its licence: {KLEIN_LICENCES[klein]}."
        front = "license: apache-2.0" if KLEIN_LICENCES[klein] == OPEN else "license: other"
        return [front], f"black-forest-labs/{klein}", terms
    name = base if hub.is_id(base) else Path(base).name
    return ["license: other"], name, f"These weights derive from {name} and stay under its licence: name it here."


def _usage(run: RunFolder, form: str, base: str) -> str:
    family = _family(_base(run))
    place = base if "/" in base else f"folder of {base}"
    if form == "full":
        return (
            f"import torch\nfrom diffusers import {family.pipeline}, {family.transformer}\n\n"
            f'transformer = {family.transformer}.from_pretrained("transformer")\n'
            f'pipe = {family.pipeline}.from_pretrained("{place}", transformer=transformer)'
        )
    name = LORA_NAME if form == "lora" else f"{run.name}.safetensors"
    return (
        f"from diffusers import {family.pipeline}\n\n"
        f'pipe = {family.pipeline}.from_pretrained("{place}")\npipe.load_lora_weights(".", weight_name="{name}")'
    )


def _without_folders(settings: Any) -> Any:
    """The settings without the folders of the machine they come from: of a file's whole path its name, KIND: kept."""
    if isinstance(settings, Mapping):
        return {name: _without_folders(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_without_folders(value) for value in settings]
    return re.sub(r"^([\w.]+:)?[/~].*/", r"\1", settings) if isinstance(settings, str) else settings


def _recipe(config: Mapping[str, Any], words: Mapping[str, Any]) -> list[tuple[str, object]]:
    objective, signal = config["objective"], config["signal"]
    rows = [
        ("updates", config["updates"]),
        ("prompts per update", config["prompts_per_update"]),
        ("learning rate", config["lr"]),
        ("trained weights", config.get("weights", "full")),
        ("pixels", f"{objective['width']} x {objective['height']}"),
        ("rollout", f"{objective['rollout_steps']} steps, guidance {objective['rollout_guidance']}"),
        ("noise levels", ", ".join(f"{name} {value}" for name, value in objective["levels"].items())),
        ("inversion branch", "yes" if objective["inversion"] else "no"),
        ("hinge", objective["hinge"]),
        ("signal", signal["form"]),
        ("positive words", ", ".join(words.get("positive", ()))),
        ("negative words", ", ".join(words.get("negative", ()))),
        ("reward", Path(str(config["reward"])).name),
        ("prompts", Path(str(config["prompts"])).name),
        ("seed", config["seed"]),
    ]
    return [(name, value) for name, value in rows if value not in (None, "")]


def _figures(run: RunFolder, update: int | None) -> str:
    """The validation before training and at the exported weights; a sentence where there was none."""
    records = run.validation()
    if not records:
        return "This run was not validated: nothing was measured but its own objective."
    last = records[-1].update if update is None else update
    chosen = {record.update: record for record in records if record.update in (records[0].update, last)}
    if last not in chosen:
        chosen[records[-1].update] = records[-1]
    names = dict.fromkeys(name for record in chosen.values() for name in record.scores)

    def cell(record: Any, name: str) -> str:
        if name not in record.scores:
            return "-"
        low, high = record.intervals.get(name, (None, None))
        interval = f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
        return f"{record.scores[name]:.4g}{interval}"

    heads = ["score", *("before training" if update == 0 else f"update {update}" for update in chosen)]
    rows = [(name, *(cell(record, name) for record in chosen.values())) for name in names]
    return (
        _table(heads, rows)
        + "\n\nMeans over the run's fixed validation prompts and seeds, 95 % intervals where measured; none of these "
        "scores is trained on. They choose the best checkpoint, so they flatter it a little."
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(heads), line(["---"] * len(heads)), *(line(row) for row in rows)])


def _when(update: int | None) -> str:
    return "its end" if update is None else f"update {update}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be exported."""
    parser = argparse.ArgumentParser(prog="python -m srpo.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--form", choices=FORMS, help="default: the form the run was trained in")
    parser.add_argument("--update", type=int, help="a checkpoint's update instead of the finished weights")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    options = parser.parse_args(arguments)
    try:
        run = RunFolder.open(options.run)
        form = options.form or forms_of(run)[0]
        print(export(run, form, update=options.update, dtype=options.dtype))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
