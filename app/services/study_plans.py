"""Plans of studies as the page makes them: the form's fields judged and turned into a plan, and back again.

Limits of single parts belong to the plan itself (srpo.studies.schema), which refuses them in a sentence; here is what
comes from a page: lines of text, percentages, models by name, folders.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from app.services.compare import require_comparable
from app.services.device import StopFlag
from app.services.finetune import FineTune
from app.services.models import RUN
from app.services.public import allowed_place
from app.services.requests import BadInput, ModelName, Settings, between, parse, sentence, whole
from app.services.studio import Studio
from app.services.training_requests import read_prompt_file
from srpo.runs.atomic import write_text
from srpo.studies.criteria import OVERALL, PAPER, STANDARD, Criterion
from srpo.studies.images import Gathered, gather
from srpo.studies.schema import MAX_MODELS, MAX_PROMPTS, MAX_SCHEDULE_SEED, MAX_TRIALS, Model, Plan, Prompt
from srpo.studies.store import Study, Unavailable

OWN_FILE, TYPED = "own file", "typed here"  # beside the built-in sets of prompts
CATEGORY = " | "  # between a prompt and its category, at the end of a line
WEIGHTS, FOLDER = "weights:", "folder:"  # how the keys of models begin that lie at a path, or are pictures
FIRST_CRITERION = OVERALL  # what a new plan asks
MAX_OWN_CRITERIA = 4
MAX_ROWS = 4  # of models with fields of their own; further ones are lines of a text
NAMED = " = "  # in such a line, between a model's name and its folder
OPTIONAL = ("take", "trials_per_rater", "min_gold", "min_repeats", "min_dwell_s")  # numbers of which 0 means none


@dataclass(frozen=True)
class Sources:
    """Where a study's pictures come from, beyond what its plan says: places of this machine, which no export tells."""

    weights: Mapping[str, str] = field(default_factory=dict)  # paths, by the model's key
    folders: Mapping[str, str | Sequence[str]] = field(default_factory=dict)  # a folder, or files
    table: str | None = None  # what the pictures show, where it does not lie beside them


@dataclass(frozen=True)
class Brought:
    """Finished pictures of one model, as the form names them."""

    label: str
    place: Path | tuple[Path, ...]


def _lines(name: str, most: int):
    def check(value: object) -> tuple[str, ...]:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text, one per line.")
        lines = tuple(" ".join(line.split()) for line in value.splitlines() if line.strip())
        if len(lines) > most:
            raise ValueError(f"At most {most:,} {name} are taken, not {len(lines):,}.")
        return lines

    return check


def _share(name: str, most: int):
    """A percentage as a share."""
    return BeforeValidator(lambda value: between(name, 0, most)(value) / 100)


class StudyRequest(BaseModel):
    """What the form asks for. Texts are judged by the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    instructions: str = ""
    source: Literal["make", "bring"] = "make"
    models: tuple[ModelName, ...] = ()
    prompts: Annotated[tuple[str, ...], BeforeValidator(_lines("prompts", MAX_PROMPTS))] = ()
    take: Annotated[int, BeforeValidator(whole("The number of prompts to take", 1, MAX_PROMPTS))] | None = None
    settings: Settings | None = None  # None for pictures that are brought
    mode: Literal["pairwise", "rating"] = "pairwise"
    criteria: tuple[str, ...] = ()
    own_criteria: Annotated[tuple[str, ...], BeforeValidator(_lines("own criteria", MAX_OWN_CRITERIA))] = ()
    stop: Literal["fixed", "sequential"] = "fixed"
    votes_per_item: Annotated[int, BeforeValidator(whole("The number of votes on each pair", 1, 1000))] = 5
    trials_per_rater: Annotated[int, BeforeValidator(whole("The pairs that one rater sees", 1, MAX_TRIALS))] | None = (
        None
    )
    repeats: Annotated[float, _share("The share of repeats, in per cent,", 30)] = 0.10
    gold: Annotated[float, _share("The share of gold pairs, in per cent,", 20)] = 0.05
    smallest_win_rate: Annotated[float, _share("The smallest win rate that matters, in per cent,", 99)] = 0.6
    min_gold: Annotated[float, _share("The least share of gold pairs, in per cent,", 100)] | None = 0.5
    min_repeats: Annotated[float, _share("The least share of repeats, in per cent,", 100)] | None = None
    min_dwell_s: Annotated[float, BeforeValidator(between("The shortest look, in seconds,", 0, 600))] | None = 0.5


def read_form(raw: Mapping[str, Any]) -> StudyRequest:
    """The request that the fields make. BadInput, one sentence, for the first one that does not fit."""
    values = dict(raw)
    settings = values.pop("settings", None)
    for name in OPTIONAL:
        values[name] = values.get(name) or None  # a field that was emptied, hidden and shown again holds 0
    if values.get("source") != "bring":
        values["settings"] = parse(Settings, settings or {})
    if values.get("mode") == "rating":
        values["criteria"] = tuple(key for key in values.get("criteria") or () if key != OVERALL)
    return parse(StudyRequest, values)


def criteria_offered() -> list[tuple[str, str]]:
    """(label, key) of the criteria that come with the app."""
    return [(known.title, known.key) for known in STANDARD]


def criteria_chosen(mode: str, chosen: Sequence[str] | None) -> list[str]:
    """Those of the chosen criteria that the mode asks about: ratings derive the Overall, from the paper's criteria
    where it was chosen alone.
    """
    keys = list(chosen or ())
    if mode != "rating" or OVERALL not in keys:
        return keys
    return [key for key in keys if key != OVERALL] or [known.key for known in PAPER]


def prompt_lines(tune: FineTune, source: str | None, path: str | None, typed: str | None) -> str:
    """The text of the prompts that were chosen: a built-in set, an own file, or what was typed. BadInput for none."""
    if source == TYPED:
        return typed or ""
    if source == OWN_FILE:
        if not path:
            raise BadInput("No prompt file was chosen: choose one, or take other prompts.")
        return read_prompt_file(path)
    sets = {str(file): file for _, file in tune.prompt_sets_to_measure()}
    if not isinstance(source, str) or source not in sets:
        raise BadInput("These prompts are not among the ones offered: choose again.")
    return sets[source].read_text(encoding="utf-8")


def plan_of(
    studio: Studio,
    request: StudyRequest,
    gathered: Gathered | None = None,
    labels: Sequence[str] = (),
    *,
    schedule_seed: int = 0,
) -> Plan:
    """The plan that the request describes. BadInput, one sentence, for whatever does not fit.

    gathered, labels: what the pictures that were brought show, and the names of their models.
    schedule_seed: of the order and the sides.
    """
    if request.source == "make":
        models = [model for model, _ in _models(studio, request)]
        prompts, seeds = _prompts(request), tuple(request.settings.seeds)
        settings = request.settings.model_dump(include={"steps", "guidance", "width", "height"})
        settings["base"] = studio.catalogue.base_name
    else:
        models = [Model(key=f"{FOLDER}{number}", label=label) for number, label in enumerate(labels, 1)]
        prompts, seeds, settings = gathered.prompts, gathered.seeds, {}
    stop: dict[str, Any] = {"kind": request.stop, "votes_per_item": request.votes_per_item}
    return parse(
        Plan,
        {
            "title": request.title,
            "instructions": request.instructions,
            "mode": request.mode,
            "prompts": prompts,
            "models": models,
            "seeds": seeds,
            "settings": settings,
            "criteria": _criteria(request),
            "trials_per_rater": request.trials_per_rater,
            "repeats": request.repeats,
            "gold": request.gold,
            "stop": stop,
            "filters": {name: getattr(request, name) for name in ("min_gold", "min_repeats", "min_dwell_s")},
            "smallest_win_rate": request.smallest_win_rate,
            "seed": schedule_seed,
        },
    )


def save_plan(
    studio: Studio, request: StudyRequest, brought: Sequence[Brought], table: Path | None, identity: str | None,
    stop: StopFlag,
) -> Generator[str, None, Study]:  # fmt: skip
    """Messages while pictures that are brought are read; returns the study, new or changed.

    identity: of the study whose plan this was. BadInput for what cannot be, and then nothing is stored.
    """
    store = studio.studies.store
    gathered = None
    if request.source == "bring":
        for folder in brought:
            if isinstance(folder.place, Path):  # what was uploaded is the visitor's
                allowed_place(studio.options, folder.place)
        sources = _folders(brought, table)
        gathered = yield from gathered_pictures(sources, stop, [folder.label for folder in brought])
    else:
        sources = Sources(weights={model.key: path for model, path in _models(studio, request) if path})
    planned = partial(plan_of, studio, request, gathered, [folder.label for folder in brought])
    # Most of a form is as it came, so a rater can guess it; and the order and the sides follow from the whole plan.
    # Every plan that is stored has a secret part, therefore.
    plan = planned(schedule_seed=secrets.randbelow(MAX_SCHEDULE_SEED + 1))
    if request.settings is not None:
        _require_drawable(studio, plan, request.settings)
    try:
        if identity is None:
            study = store.create(plan)
        else:
            study = store.study(identity)
            if planned(schedule_seed=study.plan.seed).sha256 != study.sha256:
                study = store.revise(identity, plan)
            elif sources == read_sources(studio, identity) or study.state != "preparing":
                raise BadInput("Nothing has changed, so the plan stays as it is.")
    except (ValueError, Unavailable) as error:
        raise BadInput(sentence(error)) from None
    write_sources(studio, study.id, sources)
    return study


def gathered_pictures(sources: Sources, stop: StopFlag, labels: Sequence[str]) -> Generator[str, None, Gathered]:
    """Messages while the pictures are read; returns what they show. BadInput where they do not fit together.

    labels: the models' names, by which the visitor knows the folders.
    """
    places = {
        key: Path(place) if isinstance(place, str) else [Path(file) for file in place]
        for key, place in sources.folders.items()
    }
    reading = gather(places, Path(sources.table) if sources.table else None)
    try:
        while True:
            said = next(reading)
            stop.check()
            yield said.text
    except StopIteration as end:
        return end.value
    except (ValueError, OSError) as error:
        said = sentence(error)
        for key, label in zip(places, labels, strict=True):
            said = said.replace(key, label)
        raise BadInput(said) from None


def form_of(studio: Studio, study: Study) -> dict[str, Any]:
    """The fields of the form as they were when this plan was saved, by name, numbers as the page shows them."""
    plan, sources = study.plan, read_sources(studio, study.id)
    standard = {criterion.key for criterion in STANDARD}
    brings = bool(sources.folders) or any(model.key.startswith(FOLDER) for model in plan.models)
    filters = plan.filters
    return {
        "title": plan.title,
        "instructions": plan.instructions,
        "source": "bring" if brings else "make",
        "models": [] if brings else [sources.weights.get(model.key, model.key) for model in plan.models],
        "prompts": "" if brings else "\n".join(map(_line_of, plan.prompts)),
        "take": 0,
        "seed": plan.seeds[0],
        "num_seeds": len(plan.seeds),
        **{name: plan.settings.get(name) for name in ("steps", "guidance", "width", "height") if not brings},
        "folders": [(model.label, _folder_of(sources.folders.get(model.key))) for model in plan.models] * brings,
        "mode": plan.mode,
        "criteria": [criterion.key for criterion in plan.criteria if criterion.key in standard],
        "own_criteria": "\n".join(
            f"{known.title}: {known.question}" for known in plan.criteria if known.key not in standard
        ),
        "stop": plan.stop.kind,
        "votes_per_item": plan.stop.votes_per_item,
        "trials_per_rater": plan.trials_per_rater or 0,
        "repeats": _per_cent(plan.repeats),
        "gold": _per_cent(plan.gold),
        "smallest_win_rate": _per_cent(plan.smallest_win_rate),
        "min_gold": _per_cent(filters.min_gold or 0),
        "min_repeats": _per_cent(filters.min_repeats or 0),
        "min_dwell_s": filters.min_dwell_s or 0,
    }


def what_saving_does(study: Study, noted: int) -> str:
    """What a changed plan will mean for this study, in a sentence."""
    if study.state == "preparing":
        again = f" Its {noted:,} pictures are made anew." if noted else ""
        return f"Nobody has voted yet, so a changed plan replaces this one.{again}"
    return (
        f"This study {'is open' if study.state == 'open' else 'has ended'}, so its plan is frozen: a changed plan "
        f"becomes a new version, with pictures and votes of its own. Version {study.version} stays as it is."
    )


# Where pictures come from


def read_sources(studio: Studio, identity: str) -> Sources:
    """What was noted when the plan was saved; nothing where no file says so."""
    try:
        return Sources(**json.loads(_sources_file(studio, identity).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Sources()


def write_sources(studio: Studio, identity: str, sources: Sources) -> None:
    file = _sources_file(studio, identity)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({name: getattr(sources, name) for name in ("weights", "folders", "table")}))


def _sources_file(studio: Studio, identity: str) -> Path:
    return studio.studies.root / "sources" / f"{identity}.json"


def brought_from(rows: Sequence[tuple[object, object, object]], further: object = "") -> list[Brought]:
    """The pictures that the form's rows (name, folder, files) name; empty rows are passed over.

    further: lines "name = folder", or a folder alone. BadInput for a row that is half filled in, or filled in twice.
    """
    found = []
    for number, (label, folder, files) in enumerate([*rows, *_further_rows(further)], 1):
        label, folder = str(label or "").strip(), str(folder or "").strip()
        if not label and not folder and not files:
            continue
        if folder and files:
            raise BadInput(f"Model {number} has a folder and uploaded files: take one of them away.")
        if not folder and not files:
            raise BadInput(f"The model {label[:60]!r} has no pictures: name a folder, or upload files.")
        name = label or (Path(folder).name if folder else f"Model {number}")
        try:
            place = Path(folder).expanduser() if folder else tuple(Path(file) for file in files)
        except RuntimeError as error:  # a user unknown
            raise BadInput(sentence(error)) from None
        found.append(Brought(name, place))
    if not found:
        raise BadInput("There are no pictures yet: name a folder, or upload files, for each model.")
    return found


def _further_rows(text: object) -> list[tuple[str, str, None]]:
    """Lines as rows."""
    if text is None:
        return []
    if not isinstance(text, str) or "\0" in text:
        raise BadInput("Further models must be text, one per line: name = folder.")
    lines = (line if NAMED in line else NAMED + line for line in text.splitlines() if line.strip())
    parts = (line.partition(NAMED) for line in lines)
    return [(label.strip(), folder.strip(), None) for label, _, folder in parts]


def rows_and_lines(folders: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], str]:
    """(name, folder) of the models that have rows of their own, and the lines of all further ones."""
    further = [f"{label}{NAMED}{folder}" for label, folder in folders[MAX_ROWS:] if folder]
    return list(folders[:MAX_ROWS]), "\n".join(further)


def _folders(brought: Sequence[Brought], table: Path | None) -> Sources:
    places: dict[str, str | list[str]] = {}
    for number, folder in enumerate(brought, 1):
        place = folder.place
        places[f"{FOLDER}{number}"] = str(place) if isinstance(place, Path) else [str(file) for file in place]
    return Sources(folders=places, table=str(table) if table else None)


def _folder_of(place: str | Sequence[str] | None) -> str:
    """What the form shows of a model's place; uploaded files cannot be given back to the browser."""
    return place if isinstance(place, str) else ""


# Parts of a plan


def _models(studio: Studio, request: StudyRequest) -> list[tuple[Model, str | None]]:
    """Each model of the plan, and its path where it is known by nothing else."""
    catalogue, found = studio.catalogue, []
    if len(dict.fromkeys(request.models)) > MAX_MODELS:
        raise BadInput(f"A study takes at most {MAX_MODELS} models, not {len(request.models)}.")
    known = {model.id for model in catalogue.models()}
    models = [catalogue.find(name) for name in dict.fromkeys(request.models)]
    require_comparable(studio, models)
    for number, model in enumerate(models, 1):
        listed = model.id in known or model.id.startswith(RUN)
        key = model.id if listed else f"{WEIGHTS}{number}"
        sha256 = catalogue.sha256(model) or ""
        found.append((Model(key=key, label=model.label, weights_sha256=sha256), None if listed else model.id))
    return found


def _prompts(request: StudyRequest) -> list[Prompt]:
    """One prompt per line; what follows the last bar is its category."""
    if not request.prompts:
        raise BadInput("There are no prompts: write one per line, or choose a set.")
    found = []
    for line in request.prompts[: request.take]:
        text, bar, category = line.rpartition(CATEGORY)
        found.append(parse(Prompt, {"text": text, "category": category} if bar else {"text": line}))
    return found


def _line_of(prompt: Prompt) -> str:
    return f"{prompt.text}{CATEGORY}{prompt.category}" if prompt.category else prompt.text


def _criteria(request: StudyRequest) -> list[Criterion]:
    """Those of the paper that were chosen, in its order, then own ones. The first one decides a sequential study."""
    known = [criterion for criterion in STANDARD if criterion.key in request.criteria]
    if strange := set(request.criteria) - {criterion.key for criterion in STANDARD}:
        raise BadInput(f"There is no criterion {sorted(strange)[0][:40]!r}: choose from the list.")
    if OVERALL in request.criteria:  # what is asked first decides
        known = [known[-1], *known[:-1]]
    for line in request.own_criteria:
        title, colon, question = (part.strip() for part in line.partition(":"))
        if not colon or not title or not question:
            raise BadInput(f"The criterion {line[:60]!r} has no question: write it as “Name: question”.")
        known.append(
            Criterion(key=_key_of(title, {criterion.key for criterion in known}), title=title, question=question)
        )
    if not known:
        raise BadInput("No criterion is chosen: raters must be asked something.")
    return known


def _key_of(title: str, taken: set[str]) -> str:
    """A short plain name of a criterion's column, like no other."""
    stem = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:24] or "own"
    stem = stem if stem[0].isalpha() else f"own_{stem}"
    key, number = stem, 2
    while key in taken or key in {criterion.key for criterion in STANDARD}:
        key, number = f"{stem}_{number}", number + 1
    return key


def _require_drawable(studio: Studio, plan: Plan, settings: Settings) -> None:
    """BadInput for a size that the model is too small for, and, once it is loaded, for a prompt that is too long."""
    most = studio.catalogue.max_side
    if max(settings.width, settings.height) > most:
        raise BadInput(f"Width and height may be at most {most} pixels with this model.")
    for prompt in plan.prompts:
        counted = studio.count_tokens(prompt.text)
        if counted is not None and counted[0] > counted[1]:
            raise BadInput(
                f"The prompt {prompt.text[:60]!r} has {counted[0]} tokens and this model reads {counted[1]}: "
                "please shorten it."
            )


def _per_cent(share: float) -> float:
    return round(100 * share, 6)
