"""Samples through time: a strip of fixed-seed pictures that grows with the run, and a slider over one of them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.components.component import component
from app.components.stage import address_of
from app.services.run_view import Film


def film_value(film: Film) -> dict[str, Any]:
    """The film as the browser reads it: files as addresses."""
    return {
        "run": film.run,
        "prompts": [{"prompt": prompt, "seed": seed} for prompt, seed in film.prompts],
        "updates": list(film.updates),
        "pictures": [[address_of(path) for path in row] for row in film.pictures],
        "best": film.best,
        "ratio": film.ratio,
    }


def film(**kwargs: Any) -> gr.HTML:
    """The component; its value is `film_value(...)`."""
    return component("film", **kwargs)
