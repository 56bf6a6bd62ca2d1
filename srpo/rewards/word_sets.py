"""Sets of control words as small YAML files that people share: read with suspicion, written for the eye.

A set is what an editor edits: words with weights that can be switched off, the template, the form of the reward and
the end points of its discounts. `WordSet.control_words` and `.discounts` are what a training takes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from srpo.rewards.control_words import ControlWords, Discounts, Form, require_template, require_weight

FORMAT = 1
SUFFIX = ".yaml"
MAX_BYTES = 64 * 1024
MAX_WORDS = 40  # of one side
MAX_WORD_CHARACTERS = 60
MAX_NAME_CHARACTERS = 60
MAX_DESCRIPTION_CHARACTERS = 500
MAX_TEMPLATE_CHARACTERS = 200
MAX_K = 10.0
FORMS: tuple[str, ...] = get_args(Form)
# Whose noise levels a set is made for, by the recipe that has them.
LEVELS = ("studio", "paper", "pickscore", "later")
SIDES = ("positive", "negative")
KEYS = ("format", "name", "description", "template", "form", *SIDES, "k_positive", "k_negative", "levels")
WORD_KEYS = ("word", "weight", "enabled")


@dataclass(frozen=True)
class Word:
    """A control word of a set."""

    word: str
    weight: float = 1.0  # how often its turn comes, beside the others of its side
    enabled: bool = True


@dataclass(frozen=True)
class WordSet:
    """Control words, and how they become a reward. What is checked is checked by `word_set_of`."""

    name: str
    positive: tuple[Word, ...]
    negative: tuple[Word, ...]
    description: str = ""
    template: str = "{word}. {prompt}"
    form: str = "cfg_like"
    k_positive: tuple[float, float] = (0.1, 0.25)  # at the cleanest and at the noisiest level
    k_negative: tuple[float, float] = (0.3, 0.01)
    levels: str = "paper"

    def enabled(self, side: str) -> tuple[Word, ...]:
        """The words of the side "positive" or "negative" that are not switched off, in their order."""
        return tuple(word for word in getattr(self, side) if word.enabled)

    @property
    def control_words(self) -> ControlWords:
        """What a training takes of the words. Weights that are all the same are left out: they change nothing."""
        words = {side: self.enabled(side) for side in SIDES}
        weights = {side: tuple(word.weight for word in words[side]) for side in SIDES}
        return ControlWords(
            tuple(word.word for word in words["positive"]),
            tuple(word.word for word in words["negative"]),
            self.template,
            *(weights[side] if len(set(weights[side])) > 1 else () for side in SIDES),
        )

    @property
    def discounts(self) -> Discounts:
        return Discounts(self.k_positive, self.k_negative)


def read_word_set(text: str | bytes) -> WordSet:
    """The set that a YAML text describes. ValueError, one sentence, for anything else.

    Aliases are not read: a few hundred bytes of them stand for billions of words.
    """
    size = len(text if isinstance(text, bytes) else text.encode())
    if size > MAX_BYTES:
        raise ValueError(f"a word set has {size:,} bytes and may have {MAX_BYTES:,}: it holds a few words")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        raw = yaml.load(text, _PlainLoader)  # a SafeLoader: it makes plain values only
    except UnicodeDecodeError as error:
        raise ValueError(f"a word set is UTF-8 text, and byte {error.start + 1:,} of this is not") from None
    except RecursionError:
        raise ValueError("a word set's YAML is nested too deep: it has words in two lists, no more") from None
    except yaml.YAMLError as error:
        raise ValueError(f"a word set is YAML, and this is not: {_first_line(error)}") from None
    except (ValueError, OverflowError) as error:  # a date or a number that no Python value holds
        raise ValueError(f"a word set holds a value that cannot be read: {_first_line(error)}") from None
    if not isinstance(raw, dict):
        raise ValueError("a word set is a YAML file of keys and values, such as `positive: [Real, Detail]`")
    if isinstance(raw.get("format", FORMAT), bool) or not isinstance(raw.get("format", FORMAT), int):
        raise ValueError(f"format is {_shown(raw['format'])}: expected {FORMAT}")
    if raw.get("format", FORMAT) > FORMAT:
        raise ValueError("this word set was written by a newer version: update to read it")
    return word_set_of({key: value for key, value in raw.items() if key != "format"})


def load_word_set(path: str | Path) -> WordSet:
    """The set in a file. ValueError, one sentence, also where there is none."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.name} is larger than {MAX_BYTES:,} bytes: a word set holds a few words")
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"the word set {path.name} cannot be read ({error.strerror})") from None
    return read_word_set(text)


def word_set_text(words: WordSet) -> str:
    """The YAML of a set, as `read_word_set` reads it. A word of weight 1 that is switched on is written as itself."""
    raw: dict[str, Any] = {"format": FORMAT, "name": words.name, "description": words.description}
    raw |= {"template": words.template, "form": words.form}
    raw |= {side: [_word_raw(word) for word in getattr(words, side)] for side in SIDES}
    raw |= {"k_positive": list(words.k_positive), "k_negative": list(words.k_negative), "levels": words.levels}
    return yaml.dump(raw, Dumper=_FlatDumper, sort_keys=False, allow_unicode=True, width=100)


def word_set_of(raw: Mapping[str, Any]) -> WordSet:
    """The set of plain values, wherever they come from. ValueError, one sentence, for the first that does not fit."""
    if unknown := [key for key in raw if key not in KEYS]:
        raise ValueError(f"a word set has no {_shown(unknown[0])}: its keys are {', '.join(KEYS)}")
    if missing := [side for side in SIDES if side not in raw]:
        raise ValueError(f"a word set needs {missing[0]} words: list them under `{missing[0]}:`")
    sides = {side: _side(raw[side], side) for side in SIDES}
    _require_distinct(sides)
    template = _text(raw.get("template", WordSet.template), "the template", MAX_TEMPLATE_CHARACTERS)
    require_template(template)
    return WordSet(
        _text(raw.get("name", "Unnamed"), "the name", MAX_NAME_CHARACTERS).strip() or "Unnamed",
        **sides,
        description=" ".join(_text(raw.get("description", ""), "the description", MAX_DESCRIPTION_CHARACTERS).split()),
        template=template,
        form=_choice(raw.get("form", WordSet.form), "form", FORMS),
        k_positive=_ends(raw.get("k_positive", WordSet.k_positive), "k_positive"),
        k_negative=_ends(raw.get("k_negative", WordSet.k_negative), "k_negative"),
        levels=_choice(raw.get("levels", WordSet.levels), "levels", LEVELS),
    )


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, tags, and a key that comes twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read in word sets: write the words out")
        if getattr(self.peek_event(), "tag", None) is not None:
            raise yaml.YAMLError("tags (!name) are not read in word sets: write plain values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"the key {_shown(twice[0])} comes twice")
        return super().construct_mapping(node, deep)


class _FlatDumper(yaml.SafeDumper):
    """Writes the two end points of a line in one line."""


def _flat_sequence(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    numbers = all(isinstance(value, int | float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=numbers)


_FlatDumper.add_representer(list, _flat_sequence)


def _word_raw(word: Word) -> str | dict[str, Any]:
    more: dict[str, Any] = {} if word.weight == 1 else {"weight": word.weight}
    if not word.enabled:
        more["enabled"] = False
    return {"word": word.word, **more} if more else word.word


def _side(raw: Any, side: str) -> tuple[Word, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"the {side} words are {_shown(raw)}: expected a list of words")
    if len(raw) > MAX_WORDS:
        raise ValueError(f"there are {len(raw)} {side} words: expected at most {MAX_WORDS}")
    words = tuple(_word(entry, side) for entry in raw)
    if not any(word.enabled for word in words):
        what = f"all {side} words are switched off" if words else f"there are no {side} words"
        raise ValueError(f"{what}: a set needs one of each side at least")
    return words


def _word(raw: Any, side: str) -> Word:
    if isinstance(raw, Mapping):
        if unknown := [key for key in raw if key not in WORD_KEYS]:
            raise ValueError(f"a {side} word has no {_shown(unknown[0])}: its keys are {', '.join(WORD_KEYS)}")
        if not isinstance(raw.get("enabled", True), bool):
            raise ValueError(f"enabled is {_shown(raw['enabled'])} for a {side} word: expected true or false")
        weight = _number(raw.get("weight", 1.0), f"the weight of a {side} word")
        require_weight(weight)
        return Word(_word_text(raw.get("word"), side), weight, raw.get("enabled", True))
    return Word(_word_text(raw, side))


def _word_text(raw: Any, side: str) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"a {side} word is {_shown(raw)}, which YAML reads as no text: put it in quotes")
    word = " ".join(raw.split())
    if not word:
        raise ValueError(f"a {side} word is empty: write one, or take it out")
    if len(word) > MAX_WORD_CHARACTERS:
        raise ValueError(
            f"the {side} word {word[:30]!r}… has {len(word)} characters and may have {MAX_WORD_CHARACTERS}: a word or "
            "a phrase is meant"
        )
    if not word.isprintable():
        raise ValueError(f"the {side} word {word[:30]!r} holds a character that cannot be shown: type it again")
    return word


def _require_distinct(sides: Mapping[str, Sequence[Word]]) -> None:
    seen: dict[str, str] = {}
    for side, words in sides.items():
        for word in words:
            key = word.word.casefold()
            if key in seen:
                where = f"twice among the {side} words" if seen[key] == side else "on both sides"
                raise ValueError(f"the word {word.word!r} is {where}: take one of them out")
            seen[key] = side


def _text(raw: Any, what: str, most: int) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{what} is {_shown(raw)}: expected text")
    if len(raw) > most:
        raise ValueError(f"{what} has {len(raw):,} characters and may have {most}: shorten it")
    return raw


def _choice(raw: Any, what: str, choices: Sequence[str]) -> str:
    if raw not in choices:
        raise ValueError(f"{what} is {_shown(raw)}: expected {', '.join(choices)}")
    return raw


def _ends(raw: Any, what: str) -> tuple[float, float]:
    if not isinstance(raw, list | tuple) or len(raw) != 2:
        raise ValueError(f"{what} is {_shown(raw)}: expected its values at the cleanest and at the noisiest level")
    first, last = (_number(value, what) for value in raw)
    for value in (first, last):
        if abs(value) > MAX_K:
            raise ValueError(f"{what} ends at {value:g}: expected a value between {-MAX_K:g} and {MAX_K:g}")
    return first, last


def _number(raw: Any, what: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"{what} is {_shown(raw)}: expected a number")
    try:
        number = float(raw)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{what} is {number}: expected a finite number")
    return number


def _shown(value: Any) -> str:
    """A value from elsewhere, short enough for a sentence."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 40 else f"{text[:39]}…"


def _first_line(error: Exception) -> str:
    problem = getattr(error, "problem", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    mark = getattr(error, "problem_mark", None)
    return f"{problem} (line {mark.line + 1})" if mark is not None else problem
