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

from app.components.stage import address_of
from app.curves import Chart

HERE = Path(__file__).parent


def curves_value(run: str, charts: Sequence[Chart]) -> dict[str, Any]:
    """The charts as the browser reads them. `run` names what is shown: the zoom is kept as long as it stays."""
    return {"run": run, "charts": [asdict(chart) for chart in charts]}


def script(name: str) -> str:
    """The script of a component that draws with Plotly, with the function that fetches it in front."""
    return "".join((HERE / file).read_text(encoding="utf-8") for file in ("plotly.js", name))


def curves(plotly: Path, **kwargs: Any) -> gr.HTML:
    """The component; its value is `curves_value(...)`, `plotly` the served file plotly.min.js."""
    return gr.HTML(
        {},
        html_template=(HERE / "curves.html").read_text(encoding="utf-8"),
        js_on_load=script("curves.js"),
        apply_default_css=False,
        plotly=address_of(plotly),
        **kwargs,
    )
