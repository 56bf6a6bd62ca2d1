"""The editor of a set of control words: chips, template, form, and the net-weight curve with its ends to drag.

The set is edited in the browser and follows at once; its value goes to Python with every event, which judges it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.components.component import component
from app.services.word_sets import FORM_LABELS, Recipe

if TYPE_CHECKING:
    from srpo.rewards.word_sets import WordSet


def editor_value(words: WordSet, recipes: Sequence[Recipe] = ()) -> dict[str, Any]:
    """The set as the browser edits it, and what its curve is drawn over; the browser keeps that from the first time."""
    value: dict[str, Any] = {"set": asdict(words)}
    if recipes:
        value |= {"recipes": [asdict(recipe) for recipe in recipes], "forms": FORM_LABELS}
    return value


def edited_set(value: object) -> object:
    """The plain set in the editor's value, unchecked; None where there is none."""
    return value.get("set") if isinstance(value, Mapping) else None


def words_editor(**kwargs: Any) -> gr.HTML:
    """The component; its value is `editor_value(...)`, its event `change`."""
    return component("words_editor", **kwargs)
