"""The address of a study's voting page, with a button that copies it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import gradio as gr

from app.components.component import component


def link_value(study: str) -> dict[str, str]:
    """The link to the study of that name, relative to the page, so that it works behind any proxy."""
    return {"path": f"vote/{quote(study, safe='')}"}


def study_link(**kwargs: Any) -> gr.HTML:
    """The component; its value is `link_value(...)`, or {} for none."""
    return component("study_link", **kwargs)
