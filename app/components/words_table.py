"""What a reward sees: pictures, bars of one of them, every form of its reward, and the heat map pictures x words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from app.components.component import component
from app.components.stage import address_of
from app.services.words import Seen


def table_value(view: Seen) -> dict[str, Any]:
    """The snapshot as the browser reads it: files as addresses."""
    value = asdict(view)
    for picture in value["pictures"]:
        picture["path"] = address_of(picture["path"])
    return value


def words_table(**kwargs: Any) -> gr.HTML:
    """The component; its value is `table_value(...)` or `stage.error_value(...)`."""
    return component("words_table", **kwargs)
