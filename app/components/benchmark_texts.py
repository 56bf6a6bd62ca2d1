"""What the Benchmark tab says of one, in HTML: how far it is, and its table.

All numbers come from the result that the command wrote, and are said in its words. Names are what anybody may have
typed: they are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from app.services.benchmarks import BenchmarkView
from app.services.finetune import said_s
from srpo.evaluation.benchmark import TABLE_1, TABLE_1_NOTE, digits_of, groups_of, is_clear, said, titles_of
from srpo.rewards.catalogue import CARDS
from srpo.studies.estimates import MIN_PROMPTS

WHAT_IT_IS = {
    "starting": "starting",
    "running": "running",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
    "incomplete": "pictures missing",
}
UP, DOWN = "▲", "▼"


def head_html(view: BenchmarkView) -> str:
    """The benchmark in a line: what it does, how far it is; what is missing, and why it failed."""
    state, status = view.state, status_of(view)
    facts = [f"{', '.join(view.models)}"] if view.models else []
    facts += [f"{style} {count:,}" for style, count in view.styles]
    if state.is_live and state.total:
        facts = [f"{state.done:,} of {state.total:,} pictures", state.message]
        facts += [f"{said_s(state.left_s)} left"] if state.left_s is not None else []
    elif state.is_live:
        facts = [state.message or "loading the libraries"]
    done = state.done if state.is_live else view.num_pictures - sum(count for _, count in view.missing)
    total = state.total if state.is_live else view.num_pictures
    share = 100 * done / total if total else 0
    alert = state.message if status == "failed" else missing_said(view)
    parts = [
        f'<div class="run-head" data-status="{status}" data-done="{done}">',
        f'<p><span class="pill {status}" role="status">{WHAT_IT_IS[status]}</span> <b>{html.escape(view.name)}</b> ',
        f"<span>{html.escape(' · '.join(filter(None, facts)))}</span></p>",
        '<div class="progress" role="progressbar" aria-label="Progress of the benchmark" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div>',
        f'<p class="banner" role="alert">{html.escape(_sentence(alert))}</p>' if alert else "",
        "</div>",
    ]
    return "".join(parts)


def status_of(view: BenchmarkView) -> str:
    """Its state; a finished one of which pictures have gone is "incomplete"."""
    return "incomplete" if view.state.status == "finished" and view.missing else view.state.status


def missing_said(view: BenchmarkView) -> str:
    """How many pictures are missing of which models, and what to do; nothing while they are being made."""
    if view.state.is_live or not view.missing:
        return ""
    each = sum(count for _, count in view.styles)
    parts = [f"{count:,} of {each:,} pictures of {model}" for model, count in view.missing]
    said = f"{' and '.join(parts)} {'is' if view.missing[0][1] == 1 and len(parts) == 1 else 'are'} missing: "
    brought = [model for model, _ in view.missing if model in view.given]
    advice = [f"put those of {', '.join(brought)}, made elsewhere, into the folder"] if brought else []
    advice += ["the button above makes them"] if view.num_makeable else []
    return said + ", and ".join(advice)


def table_html(view: BenchmarkView) -> str:
    """The last result: every reward's means with intervals, differences to the first model, then all by list."""
    if view.result is None:
        return ""
    result = view.result
    titles, group = titles_of(result), groups_of(result)[-1]
    first = result["models"][0]
    note = "" if view.is_whole else '<p class="hint">As it was when it was last finished:</p>'
    heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles.values())
    means = {(entry["reward"], entry["model"], entry["style"]): entry for entry in result["means"]}
    apart = {(entry["reward"], entry["model"], entry["than"], entry["style"]): entry for entry in result["differences"]}
    rows = []
    for model in result["models"]:
        cells = [
            _cell(means[name, model, group], apart.get((name, model, first, group)), digits_of(result, name))
            for name in titles
        ]
        rows.append(f'<tr><th scope="row">{html.escape(model)}</th>{"".join(cells)}</tr>')
    main = (
        f'<div class="wide"><table class="scores"><thead><tr><th scope="col">Model</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    legend = (
        '<p class="hint">Means with 95 % intervals over prompts; below each the paired difference to '
        f"{html.escape(first)} with its own. {UP} and {DOWN} mark a difference whose interval leaves out 0; of models "
        "that do not differ, one in twenty is marked by chance.</p>"
    )
    if all(entry["low"] is None for (_, _, style), entry in means.items() if style == group):
        legend = (
            f'<p class="hint">Means; below each the paired difference to {html.escape(first)}. Fewer than '
            f"{MIN_PROMPTS} prompts give no intervals, so whether models differ cannot be told: take more.</p>"
        )
    details = "".join(_details(result, name, title, means, apart) for name, title in titles.items())
    return f'<div class="benchmark-result">{note}{main}{legend}{_lacking(result)}{details}</div>'


def _cell(mean: Mapping[str, Any], difference: Mapping[str, Any] | None, digits: int) -> str:
    value, bracket, interval = said(mean, digits).partition(" (")
    text = f"<b>{value}</b>"
    if bracket:
        text += f"<small>{interval.rstrip(')')}</small>"
    if difference is None:
        return f"<td>{text}</td>"
    clear = is_clear(difference)
    mark = (UP if difference["mean"] > 0 else DOWN) if clear else ""
    words = f'<span class="sr-only">{"clearly different" if clear else "not clearly different"}: </span>'
    kind = ("up" if difference["mean"] > 0 else "down") if clear else "even"
    return f'<td>{text}<small class="apart {kind}">{words}{mark} {said(difference, digits, "+")}</small></td>'


def _lacking(result: Mapping[str, Any]) -> str:
    """Which columns of the paper's Table 1 are not here, and how to have them."""
    there = {reward["kind"] for reward in result["rewards"]}
    cards = [CARDS[kind] for kind in TABLE_1 if kind not in there]
    if not cards:
        return f'<p class="hint">{html.escape(TABLE_1_NOTE)}</p>'
    items = "".join(f"<li><b>{html.escape(card.title)}</b>: {html.escape(card.get)}</li>" for card in cards)
    return (
        f"<details><summary>Columns of the paper’s Table 1 that are not here</summary><ul>{items}</ul>"
        f'<p class="hint">{html.escape(TABLE_1_NOTE)}</p></details>'
    )


def _details(
    result: Mapping[str, Any],
    reward: str,
    title: str,
    means: Mapping[tuple[str, ...], Mapping[str, Any]],
    apart: Mapping[tuple[str, ...], Mapping[str, Any]],
) -> str:
    """One reward by list, and every pair of models."""
    groups, digits = groups_of(result), digits_of(result, reward)
    rows = [(model, [said(means[reward, model, group], digits) for group in groups]) for model in result["models"]]
    pairs = dict.fromkeys((model, than) for name, model, than, _ in apart if name == reward)
    rows += [
        (f"{model} − {than}", [_marked(apart[reward, model, than, group], digits) for group in groups])
        for model, than in pairs
    ]
    return (
        f"<details><summary>{html.escape(title)}: by list, and every pair</summary>{_plain_table(groups, rows)}"
        "</details>"
    )


def _marked(difference: Mapping[str, Any], digits: int) -> str:
    mark = (f"{UP} " if difference["mean"] > 0 else f"{DOWN} ") if is_clear(difference) else ""
    return mark + said(difference, digits, "+")


def _plain_table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in ("", *heads))
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
