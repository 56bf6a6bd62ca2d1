"""A sampling run as a film: all its pictures come as one, and playing it asks nothing of the server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from app.components.stage import address_of
from app.services.recoveries import Film

HERE = Path(__file__).parent


def film_value(view: Film) -> dict[str, Any]:
    """The snapshot as the browser reads it: the file as an address."""
    return asdict(view) | {"sprite": address_of(view.sprite) if view.sprite else None}


def recovery_film(**kwargs: Any) -> gr.HTML:
    """The component; its value is `film_value(...)` or `stage.error_value(...)`."""
    return gr.HTML(
        {},
        html_template=(HERE / "recovery_film.html").read_text(encoding="utf-8"),
        js_on_load=(HERE / "recovery_film.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        **kwargs,
    )
