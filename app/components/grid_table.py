"""The grid's table: it fills row by row, and each picture is a link to its file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from app.components.component import component
from app.components.stage import address_of
from app.services.grid import Grid
from app.services.run_view import Samples


def grid_value(view: Grid) -> dict[str, Any]:
    """The snapshot as the browser reads it: files as addresses. The sheet has a button of its own."""
    value = asdict(view)
    del value["sheet"]
    for row in value["rows"]:
        row["pictures"] = [address_of(path) if path else None for path in row["pictures"]]
    return value


def strip_value(view: Grid) -> dict[str, Any]:
    """The newest pictures of a study: copies to look at, which carry no settings and are not offered to be saved."""
    return grid_value(view) | {"saves": False}


def samples_value(samples: Samples) -> dict[str, Any]:
    """The same prompts and seeds in several runs, as a finished table."""
    rows = [
        {"prompt": row.prompt, "seed": row.seed, "pictures": [address_of(path) for path in row.pictures]}
        for row in samples.rows
    ]
    shape = {"width": samples.ratio, "height": 1}
    return {"phase": "done", "message": "", "models": list(samples.heads), "rows": rows, **shape}


def grid_table(**kwargs: Any) -> gr.HTML:
    """The component; its value is `grid_value(...)`, `samples_value(...)`, `strip_value(...)` or `error_value(...)`."""
    return component("grid_table", **kwargs)
