"""Verdicts on words: told from pictures without them, content, reason, and which words go together."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from app.components.component import component
from app.components.stage import address_of
from app.services.words import Perceived


def verdicts_value(view: Perceived) -> dict[str, Any]:
    """The snapshot as the browser reads it: files as addresses."""
    value = asdict(view)
    for row in (value, *value["rows"]):
        key = "without" if row is value else "pictures"
        row[key] = [address_of(path) for path in row[key]]
    return value


def words_verdicts(**kwargs: Any) -> gr.HTML:
    """The component; its value is `verdicts_value(...)` or `stage.error_value(...)`."""
    return component("words_verdicts", **kwargs)
