"""The list of studies: each a button with its state and its votes so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gradio as gr

from app.components.component import component
from app.services.study_view import Row


def list_value(rows: Sequence[Row], selected: str | None) -> dict[str, Any]:
    """The list as the browser reads it."""
    return {"rows": [asdict(row) for row in rows], "selected": selected}


def study_list(**kwargs: Any) -> gr.HTML:
    """The component; its value is `list_value(...)`. A press fires `select` with the study's name."""
    return component("study_list", **kwargs)
