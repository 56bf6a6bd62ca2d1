"""Live curves: charts drawn by Plotly in the browser, zoom kept while new points arrive.

Gradio's own plot component loses the zoom at every update and is white in the dark; this one redraws by
`Plotly.react` with the plotly.min.js of the plotly package, which the app serves itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from app.components.component import component
from app.components.stage import address_of
from app.curves import Chart


def curves_value(run: str, charts: Sequence[Chart]) -> dict[str, Any]:
    """The charts as the browser reads them. `run` names what is shown: the zoom is kept as long as it stays."""
    return {"run": run, "charts": [asdict(chart) for chart in charts]}


def curves(plotly: Path, **kwargs: Any) -> gr.HTML:
    """The component; its value is `curves_value(...)`, `plotly` the served file plotly.min.js."""
    return component("curves", "plotly", plotly=address_of(plotly), **kwargs)
