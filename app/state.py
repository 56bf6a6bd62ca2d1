"""What the app is started with, and what it remembers of a visitor."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srpo.evaluation.records import MAX_SEED
from srpo.miniature import paths
from srpo.policies import hub, places, sizes
from srpo.policies.placement import AUTO


@dataclass(frozen=True)
class Options:
    """Where the weights lie and what the page may do; fixed for the life of the process.

    What is not named is the miniature's own where the model is the miniature, and absent for every other model: the
    miniature's SRPO weights do not fit it, and the miniature's reward and judge know nothing of its pictures.
    """

    model: Path = paths.FLUX  # a pipeline's folder (srpo.policies.families), or its id on the hub until it is here
    srpo: Path | None = None  # weights over that pipeline, shown as the right side: a path or an id, a LoRA's @WEIGHT
    reward: Path | None = None  # a reward's name: a CLIPModel folder, or KIND:PLACE (srpo.rewards.catalogue)
    judge: Path | None = None
    runs: Path = Path("runs")
    studies: Path = Path("studies")  # their pictures, and their database where `database` names none
    database: str | None = None  # a postgresql:// URL
    votes_dataset: str | None = None  # OWNER/NAME: a private dataset of the Hub in which the studies are kept as well
    device: str = "cpu"
    memory: str = AUTO  # srpo.policies.placement.MODES
    attention: str = AUTO  # srpo.policies.placement.ATTENTION
    compile: bool = False  # the transformers' repeated blocks
    text_tokens: int | None = None  # None: 64 for the miniature, whose captions are short, else FLUX's 512
    trains_here: bool = False  # runs are trained by this process, as none of their own can be started
    local_paths: bool = True  # visitors may name folders and files of this machine
    downloads: bool = True  # what is named by an id of the hub may be fetched, at its first use
    can_sign_in: bool = False  # visitors may sign in with their account on Hugging Face
    owners: tuple[str, ...] = ()  # accounts that may train and keep studies on a public page, once signed in

    def __post_init__(self) -> None:
        if self.is_miniature:
            for name, own in (("srpo", paths.SRPO), ("reward", paths.REWARD), ("judge", paths.JUDGE)):
                if getattr(self, name) is None:
                    object.__setattr__(self, name, own)  # the class is frozen
        self.look_again()

    def look_again(self) -> None:
        """Puts its folder in the place of every id of the hub that has been downloaded by now."""
        for name in ("model", "srpo"):
            place, weight = places.split_weight(getattr(self, name) or "")
            if (there := hub.downloaded(place)) is not None:
                object.__setattr__(self, name, there if weight == 1 else Path(f"{there}@{weight:g}"))

    @property
    def absent(self) -> list[str]:
        """The ids of the hub that are named here and were not downloaded yet."""
        named = (places.split_weight(place)[0] for place in (self.model, self.srpo) if place is not None)
        return [str(place) for place in named if hub.is_id(place)]

    @property
    def is_public(self) -> bool:
        """Whether anyone may open the page: whoever may not name paths is not at this machine."""
        return not self.local_paths

    @property
    def has_workshop(self) -> bool:
        """Whether runs and studies can be worked on from the page: at this machine, or by its owners elsewhere."""
        return self.local_paths or bool(self.owners)

    def is_owner(self, account: str | None) -> bool:
        """Whether that account, which has signed in, is an owner of a public page; None is nobody's."""
        return account is not None and account in self.owners

    @property
    def max_sequence_length(self) -> int:
        return sizes.text_tokens(self.is_miniature) if self.text_tokens is None else self.text_tokens

    @property
    def is_miniature(self) -> bool:
        return self.model.resolve() == paths.FLUX.resolve()


@dataclass(frozen=True)
class Resumption:
    """How a run is to go on."""

    run: str
    updates: int | None = None  # a new total
    from_update: int | None = None  # the checkpoint to go back to


@dataclass(frozen=True)
class Refusal:
    """A run that does not go on by itself, as not all is as it was when it began."""

    asked: Resumption
    changes: tuple[str, ...]  # a phrase for each


@dataclass
class Shown:
    """What a page of one visitor shows by now, so that only what has changed is sent."""

    shown: dict[str, object] = field(default_factory=dict, kw_only=True)  # by part of the page

    def is_new(self, part: str, value: object) -> bool:
        """True where that part does not show this yet; from now on it does."""
        new = part not in self.shown or self.shown[part] != value
        self.shown[part] = value
        return new


@dataclass
class Watching(Shown):
    """What a page of one visitor shows of training."""

    run: str | None = None
    refusal: Refusal | None = None  # until it is overruled
    is_live: bool = False  # the run is under way
    awaits_first_point: bool = False  # and has no update yet
    to_delete: str | None = None  # the run that the question names


@dataclass
class Following(Shown):
    """What a page of one visitor shows of benchmarks."""

    name: str | None = None


@dataclass
class Looking(Shown):
    """What a page of one visitor shows of preference studies."""

    study: str | None = None
    step: str | None = None  # of the study; None: the one that it is in
    is_editing: bool = False  # the form is open: for a new study, or for this one's plan
    filtered: bool = False  # results with the declared filters
    turn: int = 0  # of the latest press: the answer to an older one, coming late, shows nothing


@dataclass
class Session:
    """One visitor's memory between clicks."""

    last_seed: int | None = None
    offers: dict[str, Any] = field(default_factory=dict)  # pairs on the stage that can be voted on, by name

    def choose_seed(self, mode: str, typed: object) -> object:
        """The seed to run: the typed one ("fixed"), a new one ("random") or the one before ("last").

        A typed seed is passed on unchecked: the request model judges it. ValueError for "last" where there is none.
        """
        if mode == "random":
            return random.SystemRandom().randint(0, MAX_SEED)
        if mode == "last":
            if self.last_seed is None:
                raise ValueError("No seed has been used yet: choose a fixed or a random seed for the first comparison.")
            return self.last_seed
        if mode != "fixed":
            raise ValueError(f"Seed mode is 'fixed', 'random' or 'last', not {mode!r}.")
        return typed
