"""Where a reward would push: recoveries side by side, each with its heat map and what one step makes of it."""

from __future__ import annotations

import html

from app.components.note import note_html
from app.components.stage import address_of
from app.services.recoveries import PushColumn, Pushes

ROWS = (("picture", "Recovered"), ("heat", "Where the reward pushes"), ("pushed", "After one step"))


def push_html(view: Pushes) -> str:
    """The columns that are there; the work's message above them."""
    said = note_html(view.message, "loading") if view.phase in ("waiting", "running") else ""
    if view.phase == "stopped":
        said = note_html(view.message, "idle")
    if not view.columns:
        return said
    heads = "".join(f'<th scope="col">{html.escape(column.name)}</th>' for column in view.columns)
    rows = "".join(
        f'<tr><th scope="row">{label}</th>{"".join(_picture(column, key, label) for column in view.columns)}</tr>'
        for key, label in ROWS
    )
    facts = "".join(f"<td>{_facts(column)}</td>" for column in view.columns)
    return (
        f'{said}<div class="pushes" data-phase="{view.phase}"><p>{html.escape(view.title)}</p><div><table>'
        f'<caption class="sr-only">A reward’s push of each recovery</caption><thead><tr><td></td>{heads}</tr></thead>'
        f'<tbody>{rows}<tr><th scope="row">Reward, and agreement with the original’s push</th>{facts}</tr></tbody>'
        "</table></div></div>"
    )


def _picture(column: PushColumn, key: str, label: str) -> str:
    source = html.escape(address_of(getattr(column, key)))
    return f'<td><img src="{source}" alt="{html.escape(f"{column.name}: {label}")}"></td>'


def _facts(column: PushColumn) -> str:
    """The scores before and after the step, and how far the gradient is the original's."""
    scores = f"<span>{column.before:.3f} → {column.after:.3f}</span>"
    if column.agreement is None:
        return scores
    share = max(0.0, column.agreement)
    meter = f'<i class="meter"><i style="width:{share:.0%}"></i></i>'
    return f"{scores}{meter}<b>{column.agreement:.2f} of 1</b>"
