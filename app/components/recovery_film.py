"""A sampling run as a film: all its pictures come as one, and playing it asks nothing of the server."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from app.components.component import component
from app.components.stage import address_of
from app.services.recoveries import Film


def film_value(view: Film) -> dict[str, Any]:
    """The snapshot as the browser reads it: the file as an address."""
    return asdict(view) | {"sprite": address_of(view.sprite) if view.sprite else None}


def recovery_film(**kwargs: Any) -> gr.HTML:
    """The component; its value is `film_value(...)` or `stage.error_value(...)`."""
    return component("recovery_film", **kwargs)
