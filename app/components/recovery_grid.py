"""The grid of recoveries: it fills cell by cell; each cell enlarges, and shows its difference to the original.

Differences are made in the browser, by blending a cell with the original and colouring the result with the scale of
the Compare tab's difference map. So all of them have one scale, and none is sent.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from app import plots
from app.components.component import component
from app.components.stage import address_of
from app.services.recoveries import CellView, Recoveries


def recovery_value(view: Recoveries) -> dict[str, Any]:
    """The snapshot as the browser reads it: files as addresses. Charts and sheet have components of their own."""
    value = asdict(view)
    del value["charts"], value["sheet"]
    value["original"] = address_of(view.original) if view.original else None
    for row, shown in zip(value["rows"], view.rows, strict=True):
        row["cells"] = [
            {**asdict(cell), "picture": address_of(cell.picture)} if isinstance(cell, CellView) else cell
            for cell in shown.cells
        ]
    return value


def recovery_grid(**kwargs: Any) -> gr.HTML:
    """The component; its value is `recovery_value(...)` or `stage.error_value(...)`.

    Asked where the reward would push a cell, it raises the event `apply` with the places of `level` and `model`.
    """
    end = f"{plots.DIFFERENCE_END:.0%}".replace("%", " %")
    return component("recovery_grid", fill={"scale": plots.scale_filter(), "end": end}, **kwargs)
