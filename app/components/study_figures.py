"""The figures of a study's results: those of its report, in the colours of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from app.components.component import component
from app.components.stage import address_of
from srpo.studies.analysis import Analysis
from srpo.studies.report import (
    ACCENT,
    INK,
    SOFT,
    criterion_title,
    ranking_figure,
    rating_figure,
    win_rate_axis,
    win_rates,
)
from srpo.studies.schema import Plan

COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", ACCENT: "var(--right)"}  # of the report, and of the page


def figures_value(plan: Plan, found: Analysis, plotly: Path) -> dict[str, Any]:
    """The figures as the browser reads them: win rates, strengths, shares of levels, as far as the study has them.

    plotly: the served file plotly.min.js. It goes with the value, as a component that is hidden and shown again has
    lost every other property.
    """
    figures = []
    everything = [pair for pair in found.pairs if pair.category is None and pair.without_ties is not None]
    for criteria in _together(plan):
        if pairs := [pair for pair in everything if pair.criterion in criteria]:
            of = f": {criterion_title(plan, criteria[0])}" if len(criteria) < len(plan.criteria) else ""
            known = any(pair.without_ties.is_enough for pair in pairs)
            of += " (95 % intervals; a prompt is one observation)" if known else ": too few prompts for intervals"
            says = " ".join(pair.sentence for pair in pairs)
            axis = win_rate_axis(plan, pairs)
            figures.append(_figure(f"wins-{criteria[0]}", f"Win rates{of}", says, axis, win_rates(plan, pairs)))
    for ranking in found.rankings:
        title = f"Bradley-Terry strengths: {criterion_title(plan, ranking.criterion)}"
        order = ", ".join(plan.models[strength.model].label for strength in ranking.strengths)
        says, axis = f"The strongest first: {order}", "strength in logits, their mean is 0"
        figures.append(_figure(f"rank-{ranking.criterion}", title, says, axis, ranking_figure(plan, ranking)))
    for criterion in dict.fromkeys(result.criterion for result in found.ratings):
        ratings = [result for result in found.ratings if result.criterion == criterion]
        title = f"Shares of the levels: {criterion_title(plan, criterion)}"
        says = "Shares of Excellent, Good, Pass and Fail for each model; the table below has the numbers."
        axis = "share of ratings"
        figures.append(_figure(f"ratings-{criterion}", title, says, axis, rating_figure(plan, ratings)))
    return {"figures": figures, "plotly": address_of(plotly)}


def _together(plan: Plan) -> list[list[str]]:
    """The criteria whose win rates share a figure: all where there is one pair of models, else each has its own."""
    keys = [criterion.key for criterion in plan.criteria]
    return [keys] if len(plan.models) == 2 else [[key] for key in keys]


def _figure(key: str, title: str, says: str, axis: str, figure: Any) -> dict[str, Any]:
    text = figure.to_json()
    for of_report, of_page in COLOURS.items():
        text = text.replace(of_report, of_page)
    drawn = json.loads(text)
    drawn["layout"].pop("template", None)
    drawn["layout"]["xaxis"].pop("title", None)  # as text below the figure, where a narrow screen breaks its lines
    return {"key": key, "title": title, "says": says, "axis": axis, "data": drawn["data"], "layout": drawn["layout"]}


def study_figures(**kwargs: Any) -> gr.HTML:
    """The component; its value is `figures_value(...)`, or {} for none."""
    return component("study_figures", "plotly", **kwargs)
