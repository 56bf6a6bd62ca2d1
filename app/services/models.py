"""Which weights a visitor can choose: names, places, hashes and licences. Builds no model; no torch."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.services.requests import BadInput
from app.state import Options
from srpo.evaluation import records
from srpo.miniature import paths
from srpo.policies import families, hub, places, sizes
from srpo.policies.sizes import FULL_SIDE as FULL_SIDE
from srpo.policies.sizes import MAX_SIDE
from srpo.policies.sizes import MINIATURE_SIDE as MINIATURE_SIDE
from srpo.policies.sizes import is_full_size as is_full_size
from srpo.rewards.catalogue import card_of
from srpo.runs import RunFolder, list_runs

MINIATURE_GUIDANCE = (1.0, 7.0)  # what its distillation drew from
MAX_ENLARGEMENT = 4  # sides beyond what the model was trained for; the time of a step grows with their fourth power
BASE, SRPO, RUN = "base", "srpo", "run:"
TIMES = " × "  # between a LoRA's name and its weight
# Where SRPO's weights are published: its authors', and the conversions that their model card names.
SRPO_REPOSITORIES = (
    *("tencent/SRPO", "rockerBOO/flux.1-dev-SRPO", "befox/SRPO-GGUF"),
    "wikeeyang/SRPO-Refine-Quantized-v1.0",
)


@dataclass(frozen=True)
class Model:
    """A transformer that runs inside the base pipeline."""

    id: str  # what a request and a PNG call it
    label: str  # what the page calls it
    weights: Path | None  # None: the base pipeline's own
    weight: float = 1.0  # of a LoRA


class Catalogue:
    """The models of this process: the base pipeline, its SRPO weights, finished runs, and local paths if allowed."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._hashes: dict[tuple[str, float], str | None] = {}

    @property
    def base_name(self) -> str:
        if self.options.is_miniature:
            return "FLUX miniature"
        if (repository := hub.repository_of(self.options.model)) is not None:
            return repository.partition("/")[2]
        if (known := _flux_dev(self.options.model) or families.klein_of(self.options.model)) is not None:
            return known
        title = "FLUX" if families.is_flux1(self.options.model) else families.FLUX2_KLEIN.title
        return f"{title} ({self.options.model.name})"

    @property
    def native_side(self) -> int:
        """The side of the square pictures that the base was trained for, as far as its configuration tells."""
        return sizes.native_side(self.options.model)

    @property
    def max_side(self) -> int:
        """The longest side, in pixels, that the base is asked for."""
        return min(MAX_SIDE, MAX_ENLARGEMENT * self.native_side)

    @property
    def look_for(self) -> str:
        """What a first-time visitor should see in the pair the page begins with; known of the shipped one alone.

        How many of its pictures an independent judge takes for photos is measured in the miniature's card.
        """
        is_shipped = self.options.is_miniature and self.options.srpo == paths.SRPO and paths.SRPO.exists()
        sentence = "Look for this: the left side mostly paints or draws, the right side mostly looks like a photo."
        return sentence if is_shipped else ""

    def models(self) -> list[Model]:
        """What the pickers offer, in order. Runs are read anew at each call."""
        found = [Model(BASE, self.base_name, None)]
        if self.options.srpo is not None:
            place, weight = places.split_weight(self.options.srpo)
            label = "SRPO miniature" if self.options.srpo == paths.SRPO else _weighted("SRPO", weight)
            if place.exists():
                found.append(Model(SRPO, label, place, weight))
        for run in list_runs(self.options.runs):
            found += _weights_of(run)
        return found

    def find(self, name: str) -> Model:
        """The model of that id or label, or the weights at that path. BadInput for neither."""
        known = {name: model for model in self.models() for name in (model.label, model.id)}
        if name in known:
            return known[name]
        # Behind the name of a model, a weight is told from a checkpoint's number by its decimals.
        plain, _, written = name.rpartition("@")
        if re.fullmatch(r"-?\d\.\d{1,6}", written) and (plain in known or plain.startswith(RUN)):
            return self.weighted(self.find(plain), float(written))
        if name == SRPO:
            where = "no SRPO weights are named" if self.options.srpo is None else f"none are at {self.options.srpo}"
            if self.options.srpo is not None and hub.is_id(self.options.srpo):
                raise BadInput(hub.absent(self.options.srpo))
            raise BadInput(f"There is no SRPO model here, as {where}: choose another model for that side.")
        if name.startswith(RUN):
            return self._checkpoint(name.removeprefix(RUN))
        if not self.options.local_paths:
            raise BadInput("This page does not open folders of its machine: choose a model from the list.")
        choose = "choose one from the list, or the path of a folder or file"
        try:
            path, weight = places.split_weight(Path(name).expanduser())
            path = hub.downloaded(path) or path
            exists = path.exists()
        except ValueError as error:  # of the weight
            raise BadInput(str(error)) from None
        except (OSError, RuntimeError) as error:  # a name too long, a folder that is closed to us, a user unknown
            reason = getattr(error, "strerror", None) or str(error)
            raise BadInput(f"The model at {_shortened(name)!r} cannot be opened ({reason}): {choose}.") from None
        if not exists:
            raise BadInput(f"There is no model at {_shortened(name)!r}: {choose}.")
        return Model(name, _weighted(path.stem if path.is_file() else path.name, weight), path, weight)

    def weighted(self, model: Model, weight: float) -> Model:
        """The model with another weight of its LoRA. BadInput for whole weights, and beyond the limit."""
        if not self.is_lora(model):
            raise BadInput(f"{model.label} is no LoRA, so it has no weight: choose it without “@”.")
        if not abs(weight) <= places.MAX_WEIGHT:
            raise BadInput(f"The weight of a LoRA may be at most {places.MAX_WEIGHT:g}, not {weight:g}.")
        label = _weighted(model.label.partition(TIMES)[0], weight)
        plain = model.id.rpartition("@")[0] if model.weight != 1 and "@" in model.id else model.id
        is_plain = self.find(plain).weight == weight
        return Model(plain if is_plain else f"{plain}@{weight:.2f}", label, model.weights, weight)

    def is_lora(self, model: Model) -> bool:
        """Whether these are weights beside the base's, told by their header."""
        try:
            return model.weights is not None and places.find(model.weights).kind == "lora"
        except (ValueError, OSError):  # loading says what is wrong with them
            return False

    def notice(self, model: Model) -> str:
        """What a visitor should know of a model's weights: their rounding, and what of them is left out; or nothing."""
        try:
            return "" if model.weights is None else places.find(model.weights).notice
        except (ValueError, OSError):  # loading says what is wrong with them
            return ""

    def rounding(self, model: Model) -> str:
        """The form of a model's weights where it hides what SRPO changed, in words; else nothing."""
        try:
            return places.find(self.options.model if model.weights is None else model.weights).rounding
        except (ValueError, OSError):  # loading says what is wrong with them
            return ""

    def file_of(self, model: Model) -> dict[str, Any]:
        """Under which name another tool would look for a model's weights: a "model", or a "lora" with its "weight"."""
        try:
            found = None if model.weights is None else places.find(model.weights)
        except (ValueError, OSError):
            found = None
        if found is None:
            return {"model": None}
        name = found.files[0].name if len(found.files) == 1 else f"{model.weights.name}.safetensors"
        return {"lora": name, "weight": model.weight} if found.kind == "lora" else {"model": name}

    def _checkpoint(self, name: str) -> Model:
        """Any checkpoint of a run, "NAME@UPDATE"; `models` offers but one."""
        run_name, _, update = name.rpartition("@")
        runs = {run.name: run for run in list_runs(self.options.runs)}
        try:
            return _checkpoint(runs[run_name], int(update))
        except (KeyError, ValueError):
            raise BadInput(f"There is no finished run {name!r}, nor such a checkpoint: choose another model.") from None

    def sha256(self, model: Model) -> str | None:
        """The hash of a model's weights; None where they are several files, a very large one, or gone."""
        try:
            path = records.weights_file(self.options.model if model.weights is None else model.weights)
            if path is None:
                return None
            key = str(path.resolve()), path.stat().st_mtime
        except OSError:
            return None
        if key not in self._hashes:
            self._hashes[key] = records.sha256_of(path)
        return self._hashes[key]

    def base_facts(self) -> dict[str, str | None]:
        """Which base model this is, for a picture's record."""
        return {"name": self.base_name, "sha256": self.sha256(Model(BASE, self.base_name, None))}

    def licences(self) -> str:
        """The terms of the weights on the page, in HTML. Only what is known by its name is given a licence."""
        options, said, unknown = self.options, [], []
        if options.is_miniature:
            said.append(
                "The miniature’s weights were trained from scratch for this project and are licensed under Apache-2.0, "
                "as is its code."
            )
        elif _flux_dev(options.model):
            said.append(
                f"<b>{html.escape(self.base_name)}</b> weights: FLUX.1 [dev] Non-Commercial License of Black Forest "
                "Labs (non-commercial use; outputs need review or a filter, and disclosure as AI-made)."
            )
        elif klein := families.klein_of(options.model):
            said.append(f"<b>{klein}</b> weights: {families.KLEIN_LICENCES[klein]}.")
        else:
            unknown.append(options.model)
        if card := card_of(options.reward):
            said.append(f"Reward <b>{html.escape(card.title)}</b>: {html.escape(card.licence)}.")
        for path in (options.srpo, None if card else options.reward, options.judge):
            if path is None or paths.ROOT in path.resolve().parents:
                continue
            if any(_is_repository(path, name) for name in SRPO_REPOSITORIES):
                said.append(
                    "<b>SRPO</b> weights by Tencent: academic use only (Tencent-Hunyuan/SRPO licence), and under "
                    "FLUX.1-dev’s terms as well."
                )
            else:
                unknown.append(path)
        if unknown:
            names = ", ".join(f"<b>{html.escape(hub.repository_of_cached(path) or path.name)}</b>" for path in unknown)
            said.append(f"Check the licence of {names} before you use or share what they make.")
        return " ".join(said)


def _weights_of(run: RunFolder) -> list[Model]:
    """A run's finished weights, and those of its best checkpoint where that is another; of a run that has not
    finished its best checkpoint, or its last."""
    found = [Model(f"{RUN}{run.name}", f"Run {run.name}", run.weights)] if run.weights.is_file() else []
    try:
        kept, best, state = run.checkpoint_updates(), run.best(), run.state()
        if best is not None and best.update in kept and not (found and state and state.update == best.update):
            found.append(_checkpoint(run, best.update, "best, "))
        elif kept and not found:
            found.append(_checkpoint(run, kept[-1]))
    except (ValueError, OSError):  # a folder that cannot be read offers no more, nor a checkpoint that has just gone
        pass
    return found


def _checkpoint(run: RunFolder, update: int, word: str = "") -> Model:
    label = f"Run {run.name}, {word}update {update}"
    return Model(f"{RUN}{run.name}@{update}", label, run.checkpoint_weights(update))


def _flux_dev(path: Path) -> str | None:
    """The name of weights under the licence of FLUX.1 [dev], its own or Krea's; None for others."""
    known = ("FLUX.1-dev", "FLUX.1-Krea-dev")
    found = (name for name in known for owner in ("", "black-forest-labs/") if _is_repository(path, owner + name))
    return next(found, None)


def _weighted(label: str, weight: float) -> str:
    return label if weight == 1 else f"{label}{TIMES}{weight:g}"


def _is_repository(path: Path, name: str) -> bool:
    """Whether the path names that repository of the Hugging Face hub, in its cache or in a folder called so."""
    whole = f"{path.absolute().as_posix()}/".casefold()
    return any(f"/{form}/".casefold() in whole for form in (name, f"models--{name.replace('/', '--')}"))


def _shortened(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:79]}…"
