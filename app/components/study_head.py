"""The head of a study: its title, its state in a line, and the four steps it goes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from app.components.component import component
from app.services.study_view import STEPS
from srpo.studies.store import Study

STATES = {"preparing": "being prepared", "open": "open to raters, its plan is frozen", "closed": "ended"}


def head_value(study: Study, steps: Mapping[str, bool], is_in: str, shown: str) -> dict[str, Any]:
    """The head as the browser reads it.

    steps: whether each can be opened; is_in: the step that the study is in; shown: the one that the page shows.
    """
    return {
        "title": study.plan.title,
        "about": f"Version {study.version}, {STATES[study.state]} · plan {study.sha256[:12]}",
        "steps": [{"name": name, "is_open": is_open} for name, is_open in steps.items()],
        "is_in": is_in,
        "shown": shown,
    }


def new_value() -> dict[str, Any]:
    """The head of a study that is not saved yet."""
    return {"title": "New study", "about": "Nothing is stored before its plan is saved.", "steps": []}


def invitation_value() -> dict[str, Any]:
    """The head where there is no study yet: what to do, and the steps to come."""
    return {
        "title": "Which model do people prefer?",
        "about": "Press “New study” to choose the models, the prompts and the questions; the app then makes the "
        "pictures. Give raters the link it shows, and end the study when enough have voted: the results appear here.",
        "steps": [{"name": name, "is_open": False} for name in STEPS],
        "is_in": None,
        "shown": None,
    }


def study_head(**kwargs: Any) -> gr.HTML:
    """The component; its value is `head_value(...)`, or {} for none. A press on a step fires `select` with its name."""
    return component("study_head", **kwargs)
