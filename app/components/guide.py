"""The guide's two components: the text of a step with its formulas, and the figure beside it.

The formulas are MathML, which browsers draw themselves: nothing is fetched for them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from app.components.component import component, read
from app.components.stage import address_of
from app.services.guide import Figure


def steps(**filled: str) -> list[str]:
    """The HTML of the six texts, in order; `filled` replaces {{name}} in them."""
    text = read("guide_steps.html")
    for name, value in filled.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return [part.strip() for part in text.split("<!-- next -->")]


def figure_value(figure: Figure) -> dict[str, Any]:
    """The figure as the browser reads it: files as addresses. Its charts have a component of their own."""
    value = asdict(figure)
    del value["charts"]
    for row in value["rows"]:
        for shot in row["shots"]:
            if isinstance(shot["picture"], Path):
                shot["picture"] = address_of(shot["picture"])
    return value


def not_now_value(message: str) -> dict[str, Any]:
    """What the figure would have to wait for; it asks again by itself while it is in view."""
    return {"phase": "later", "message": message}


def stale_value(token: str) -> dict[str, Any]:
    """What is shown is of another picture: the figure asks anew once it is in view. `token` makes it a new value."""
    return {"stale": token}


def guide_figure(label: str, blanks: int, *, columns: int | None = None, asks: bool = True, **kwargs: Any) -> gr.HTML:
    """The component; its value is `figure_value(...)`, `stage.error_value(...)`, `not_now_value(...)` or
    `stale_value(...)`.

    label: what it is, for a screen reader; blanks: places for pictures while there are none; columns: the most in a
    row, None for all; asks: fires `submit` when it comes into view without anything to show. A click on a picture with
    a seed fires `select`.
    """
    return component("guide", name=label, blanks=blanks, columns=columns or 0, asks=asks, **kwargs)
