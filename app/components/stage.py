"""The stage: one component that shows a comparison in all its views.

Gradio's own image slider cannot be used from a keyboard and shows small pictures small; this one enlarges smoothly,
flips, and follows the chosen seed through pictures and numbers. The view belongs to the browser, so changing it asks
nothing of the server.
"""

from __future__ import annotations

import html
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from app.components.component import component
from app.services.compare import Comparison


def address_of(path: Path) -> str:
    """Where the page finds a file of the picture store, relative to the page, so that it works behind any proxy."""
    return "gradio_api/file=" + quote(str(path))


def stage_value(view: Comparison) -> dict[str, Any]:
    """The snapshot as the browser reads it: files as addresses, everything else as it is."""
    value = asdict(view)
    for pair, known in zip(value["pairs"], view.pairs, strict=True):
        pair["id"] = known.id
        for side in ("left", "right", "difference"):
            pair[side] = address_of(pair[side])
    return value


def error_value(message: str) -> dict[str, Any]:
    """One sentence in the stage's banner; what is shown stays."""
    return {"phase": "error", "message": message}


def voted(pair: str, message: str, *, stored: bool = True) -> dict[str, Any]:
    """What the stage says under a pair after a press of one of its four buttons: an update of the component."""
    return gr.update(voted={"pair": pair, "message": message, "stored": stored})


def stage(look_for: str = "", *, asks: bool = False, **kwargs: Any) -> gr.HTML:
    """The component; its value is `stage_value(...)` or `error_value(...)`, `look_for` a sentence for the empty stage.

    asks: under a finished pair of two models stands "Which is better?"; an answer fires `select`, and `voted` answers.
    """
    hint = f"<p><b>{html.escape(look_for)}</b></p>" if look_for else ""
    return component("stage", fill={"look for": hint}, asks=asks, voted={}, **kwargs)
