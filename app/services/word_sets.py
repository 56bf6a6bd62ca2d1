"""Sets of control words on the page: those that come with the app, those that were saved, and what a training takes.

A set is the library's (`srpo/rewards/word_sets.py`), which checks every value of it, wherever it comes from. What loads
torch is imported where it is needed: the page is built without.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from pydantic import BeforeValidator

from app.services.models import is_full_size
from app.services.requests import BadInput, sentence
from app.services.studio import Studio
from srpo.miniature import paths
from srpo.runs.atomic import write_text

if TYPE_CHECKING:
    from srpo.rewards.clip import ClipReward
    from srpo.rewards.word_sets import WordSet

BUILT_IN = paths.REPOSITORY / "assets" / "words"
OWN_FOLDER = "words"  # below the runs
MAX_OWN = 500  # sets in the picker
TURNS = 20  # updates for which the turns are counted out
CURVE_POINTS = 120
# The presets whose noise levels, form and discounts a set may take, by the names that sets know them by.
RECIPES = {"studio": "studio", "paper": "paper", "pickscore": "paper_pickscore", "later": "direct"}
RECIPE_LABELS = {
    "studio": "Ours",
    "paper": "Paper, HPSv2.1",
    "pickscore": "Paper, PickScore",
    "later": "Later trainer",
}
FORM_LABELS = {
    "sgp": "SGP",
    "srp": "SRP",
    "cfg_like": "CFG-like, published code",
    "cfg_like_paper": "CFG-like, paper",
}


def word_set(value: object) -> WordSet:
    """The set that a page has sent. BadInput, one sentence, for the first thing that does not fit."""
    from srpo.rewards.word_sets import word_set_of

    if not isinstance(value, Mapping):
        raise BadInput("There is no word set: choose one from the list.")
    try:
        return word_set_of(value)
    except ValueError as error:
        raise BadInput(sentence(error)) from None


@dataclass(frozen=True)
class Recipe:
    """A preset's form, discounts and noise levels; what its net-weight curve is drawn over, whatever the discounts."""

    key: str
    label: str
    form: str
    k_positive: tuple[float, float]
    k_negative: tuple[float, float]
    sigma: tuple[float, ...]
    denoise_index: tuple[float, ...]
    inversion_index: tuple[float, ...] | None
    ends: tuple[float, float]  # noise levels of the ends of k+ and k-
    factor: tuple[float, ...] | None  # lambda(sigma), by which a loss is multiplied


class WordShelf:
    """The sets that come with the app and, beside the runs, those that were saved; and what a training makes of one."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._full_size = is_full_size(studio.options.model)

    @property
    def own_folder(self) -> Path:
        return self.studio.options.runs / OWN_FOLDER

    def choices(self) -> list[tuple[str, str]]:
        """(label, key) of every set that can be read: the one for this page's model first, then by name."""
        found = [(path, path.stem) for path in sorted(BUILT_IN.glob("*.yaml"))]
        if self.studio.options.local_paths:
            found += [(path, f"own/{path.stem}") for path in sorted(self.own_folder.glob("*.yaml"))[:MAX_OWN]]
        labelled = []
        for path, key in found:
            try:
                name = self._read(path).name
            except BadInput:  # someone has written into the folder; the set's own page would say what is wrong
                continue
            labelled.append((f"{name} (saved)" if key.startswith("own/") else name, key))
        return sorted(labelled, key=lambda choice: choice[1] != self.first)

    @property
    def first(self) -> str:
        """The key of the set that a page begins with."""
        return "miniature" if self.studio.options.is_miniature else "paper"

    def load(self, key: str | None) -> WordSet:
        """The set of that key. BadInput where there is none."""
        if key not in [known for _, known in self.choices()]:
            raise BadInput("There is no such word set: choose one from the list.")
        folder = self.own_folder if key.startswith("own/") else BUILT_IN
        return self._read(folder / f"{key.removeprefix('own/')}.yaml")

    def save(self, words: WordSet) -> str:
        """The key of the set, written beside the runs in the place of one of the same name."""
        from srpo.rewards.word_sets import word_set_text

        if not self.studio.options.local_paths:
            raise BadInput("This page keeps no sets: download yours instead.")
        stem = file_name(words)
        self.own_folder.mkdir(parents=True, exist_ok=True)
        write_text(self.own_folder / f"{stem}.yaml", word_set_text(words))
        return f"own/{stem}"

    def upload(self, path: str | None) -> WordSet:
        """The set in a file that a visitor has brought. BadInput for anything else."""
        if path is None:
            raise BadInput("No file was chosen: choose a word set, a small YAML file.")
        return self._read(Path(path))

    def _read(self, path: Path) -> WordSet:
        from srpo.rewards.word_sets import load_word_set

        try:
            return load_word_set(path)
        except ValueError as error:
            raise BadInput(sentence(error)) from None

    @cached_property
    def recipes(self) -> tuple[Recipe, ...]:
        """The recipes whose levels a set may be made for. Imports the training: seconds."""
        return tuple(self._recipe(key) for key in RECIPES)

    def _recipe(self, key: str) -> Recipe:
        from srpo.flow.schedule import shift_sigmas
        from srpo.objectives.levels import net_weight_axis
        from srpo.rewards.control_words import NUM_INDICES

        config = self._preset(key)
        objective, signal = config.objective, config.signal
        axis = net_weight_axis(objective.levels, CURVE_POINTS, inversion=objective.inversion)
        factor = None
        if objective.discount_shift is not None:
            factor = tuple(shift_sigmas(axis.denoise_index / (NUM_INDICES - 1), objective.discount_shift).tolist())
        inversion = None if axis.inversion_index is None else tuple(axis.inversion_index.tolist())
        return Recipe(
            key,
            RECIPE_LABELS[key],
            signal.form,
            signal.discounts.positive,
            signal.discounts.negative,
            tuple(axis.sigma.tolist()),
            tuple(axis.denoise_index.tolist()),
            inversion,
            axis.ends,
            factor,
        )

    def _preset(self, key: str) -> Any:
        from srpo.training.presets import preset

        name = RECIPES[key]
        return preset(f"{name}_flux" if self._full_size and name in ("studio", "direct") else name)

    def settings(self, words: WordSet) -> dict[str, Any]:
        """What a training is told beside the words: weights of their turns, template, form, discounts, noise levels."""
        chosen, objective = words.control_words, self._preset(words.levels).objective
        return {
            "signal.form": words.form,
            "signal.words.template": chosen.template,
            "signal.words.positive_weights": list(chosen.positive_weights),
            "signal.words.negative_weights": list(chosen.negative_weights),
            "signal.discounts.positive": list(words.k_positive),
            "signal.discounts.negative": list(words.k_negative),
            **{f"objective.levels.{name}": value for name, value in asdict(objective.levels).items()},
            "objective.inversion": objective.inversion,
            "objective.discount_shift": objective.discount_shift,
        }

    def check(self, words: WordSet) -> str:
        """What there is to know of a set, in a sentence or two. BadInput where no training could take it."""
        from srpo.objectives.srpo import TextSignal

        chosen = words.control_words
        try:
            TextSignal(words.form, chosen, words.discounts)
        except ValueError as error:
            raise BadInput(sentence(error)) from None
        said = []
        for side in ("positive", "negative"):
            if getattr(chosen, f"{side}_weights"):
                turn = getattr(chosen, f"{side}_for")
                counts = Counter(turn(update) for update in range(1, TURNS + 1))
                parts = [f"{word} {counts[word]}" for word in getattr(chosen, side)]
                said.append(f"Turns in {TURNS} updates, {side}: {', '.join(parts)}.")
        if not said:
            said.append("Each update takes the next word of each side.")
        reward = self._loaded_reward()
        if reward is not None:
            longest = require_room(reward, words, [""])
            said.append(f"The longest word takes {longest[0]} of the {longest[1]} tokens that the reward reads.")
        return " ".join(said)

    def _loaded_reward(self) -> ClipReward | None:
        engine = self.studio._engine
        return engine.scorer.reward if engine is not None else None


def yaml_address(words: WordSet) -> str:
    """The set's file as a `data:` address, so that a download needs no file here."""
    from srpo.rewards.word_sets import word_set_text

    return "data:text/yaml;charset=utf-8," + quote(word_set_text(words))


def file_name(words: WordSet) -> str:
    """A plain file name, without its suffix, for a set."""
    return re.sub(r"[^a-z0-9]+", "-", words.name.lower()).strip("-")[:60] or "words"


def require_room(reward: ClipReward, words: WordSet, prompts: Sequence[str]) -> tuple[int, int]:
    """(tokens of the longest text, how many the reward reads). BadInput where a text would be cut off."""
    chosen, longest, limit = words.control_words, 0, 0
    for prompt in dict.fromkeys(prompts):
        for word in (*chosen.positive, *chosen.negative):
            count, limit = reward.count_tokens(chosen.apply(word, prompt))
            longest = max(longest, count)
            if count > limit:
                what = "its prompt" if prompt else "no prompt at all"
                raise BadInput(
                    f"The word “{word[:40]}” has, with {what}, {count} tokens and the reward reads {limit}: shorten "
                    f"{'one of them' if prompt else 'it'}."
                )
    return longest, limit


def _word_set(value: object) -> WordSet:
    from srpo.rewards.word_sets import WordSet

    return value if isinstance(value, WordSet) else word_set(value)


Words = Annotated[Any, BeforeValidator(_word_set)]  # a WordSet
