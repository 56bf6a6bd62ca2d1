"""What a reward sees: pictures, bars of one of them, every form of its reward, and the heat map pictures x words."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from app.components.stage import address_of
from app.services.words import Seen

HERE = Path(__file__).parent


def table_value(view: Seen) -> dict[str, Any]:
    """The snapshot as the browser reads it: files as addresses."""
    value = asdict(view)
    for picture in value["pictures"]:
        picture["path"] = address_of(picture["path"])
    return value


def words_table(**kwargs: Any) -> gr.HTML:
    """The component; its value is `table_value(...)` or `stage.error_value(...)`."""
    return gr.HTML(
        {},
        html_template=(HERE / "words_table.html").read_text(encoding="utf-8"),
        js_on_load=(HERE / "words_table.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        **kwargs,
    )
