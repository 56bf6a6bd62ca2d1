"""A study's results as one HTML file: text, tables and figures that could go into a paper's supplement.

It asks no network, and everything that people have written is escaped: in the page, and in the figures, whose labels
understand some HTML of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING

from srpo.studies.analysis import Analysis, PairResult, Ranking, RatingResult, Results
from srpo.studies.criteria import LEVELS, OVERALL
from srpo.studies.estimates import Estimate
from srpo.studies.schema import Plan
from srpo.studies.stopping import votes_needed
from srpo.studies.store import Study

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK, SOFT, ACCENT = "#20242e", "#6a7183", "#b4582a"
LEVEL_COLOURS = ("#2c6e49", "#8fbf88", "#f0c987", "#b4432f")  # told apart in grey as well; the words stand beside them
ROW_HEIGHT = 40  # pixels

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #20242e; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #d9dce3; padding-top: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e6e8ee; vertical-align: top; }
td { max-width: 18rem; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.note { color: #5a6172; } .flag { background: #fdf1e7; border-left: 4px solid #b4582a; padding: .5rem .8rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""
# No script, style, picture or request from elsewhere, whatever a text may contain.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def report_html(study: Study, found: Results) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    plan = study.plan
    filtered = found.dropped_votes > 0
    parts = [
        f"<h1>{escape(plan.title)}</h1>",
        f"<p class=note>Preference study, version {study.version}, plan <code>{study.sha256}</code></p>",
        *(f"<p>{escape(line)}</p>" for line in summary_lines(plan, found.everything)),
        *_results(plan, found.everything, "all"),
    ]
    if filtered:
        names = ", ".join(f"rater {number}" for number in found.dropped_raters) or "no rater as a whole"
        parts += [
            "<h2>With the declared filters</h2>",
            _list(found.filters),
            f"<p>{found.dropped_votes:,} votes were left out ({names}).</p>",
            *_results(plan, found.filtered, "filtered"),
        ]
    else:
        parts += ["<h2>Filters</h2>", _list([*found.filters, "They left nothing out."])]
    parts += [health_html(plan, found.everything), design_html(plan), _methods(plan)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(plan.title)}</title>\n<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def share(value: float | None) -> str:
    """A share as people read it."""
    return "–" if value is None else f"{value:.1%}"


def interval(estimate: Estimate | None) -> str:
    """ "62.0% (55.1% to 68.9%)", without the brackets where there is no interval."""
    if estimate is None:
        return "–"
    return share(estimate.value) + (f" ({share(estimate.low)} to {share(estimate.high)})" if estimate.is_enough else "")


# Figures


def win_rates(plan: Plan, pairs: Sequence[PairResult]) -> go.Figure:
    """One row for each pair: win rate without ties, and with ties as half, with their intervals."""
    import plotly.graph_objects as go

    rows = [pair for pair in pairs if pair.without_ties is not None]
    several = len({pair.criterion for pair in rows}) > 1
    names = [_pair_label(plan, pair, several=several) for pair in rows]
    figure = go.Figure()
    for title, colour, symbol, apart, estimates in (
        ("without ties", ACCENT, "circle", -0.14, [pair.without_ties for pair in rows]),
        ("ties as half", SOFT, "diamond", 0.14, [pair.with_ties for pair in rows]),
    ):
        figure.add_scatter(
            x=[estimate.value for estimate in estimates],
            y=[place + apart for place in range(len(rows))],
            name=title,
            mode="markers",
            marker={"color": colour, "size": 10, "symbol": symbol},
            error_x=_bars([(e.value, e.low, e.high) for e in estimates], colour),
        )
    figure.add_vline(x=0.5, line={"color": INK, "dash": "dot", "width": 1})
    figure.update_xaxes(range=[0, 1], tickformat=".0%", title=escape(win_rate_axis(plan, rows)))
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=names)
    return _laid_out(figure, len(rows))


def win_rate_axis(plan: Plan, pairs: Sequence[PairResult]) -> str:
    """What the share in `win_rates` is of, not yet escaped."""
    models = {(pair.first, pair.second) for pair in pairs}
    if len(models) != 1:
        return "share for the one that is named first"
    first, second = (plan.label(key) for key in next(iter(models)))
    return f"share for {first}; left of the dotted line {second} wins"


def ranking_figure(plan: Plan, ranking: Ranking) -> go.Figure:
    """Bradley-Terry strengths, the strongest on top."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[strength.value for strength in ranking.strengths],
        y=[_label(plan.models[strength.model].label) for strength in ranking.strengths],
        mode="markers",
        marker={"color": ACCENT, "size": 10},
        error_x=_bars([(s.value, s.low, s.high) for s in ranking.strengths], ACCENT),
        showlegend=False,
    )
    figure.update_xaxes(title="strength in logits (mean 0)", zeroline=True, zerolinecolor=SOFT)
    return _laid_out(figure, len(ranking.strengths))


def rating_figure(plan: Plan, ratings: Sequence[RatingResult]) -> go.Figure:
    """Stacked shares of the levels, one row for each model on each criterion, as the paper shows them."""
    import plotly.graph_objects as go

    several = len({result.criterion for result in ratings}) > 1
    names = [
        (f"{_label(criterion_title(plan, result.criterion))} · " if several else "") + _label(plan.label(result.model))
        for result in ratings
    ]
    figure = go.Figure()
    for level, colour in zip(LEVELS, LEVEL_COLOURS, strict=True):
        values = [result.shares[level].value for result in ratings]
        figure.add_bar(
            x=values,
            y=names,
            name=level,
            orientation="h",
            marker={"color": colour},
            text=[f"{value:.0%}" if value >= 0.05 else "" for value in values],
            textposition="inside",
            textangle=0,
            insidetextanchor="middle",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(range=[0, 1], tickformat=".0%", title="share of ratings")
    return _laid_out(figure, len(ratings))


def _bars(values: Iterable[tuple[float, float | None, float | None]], colour: str) -> dict:
    """Intervals as a figure wants them; none where there is none."""
    rows = list(values)
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if high is None else high - value for value, _, high in rows],
        "arrayminus": [0 if low is None else value - low for value, low, _ in rows],
        "color": colour,
        "thickness": 2,
    }


def _laid_out(figure: go.Figure, rows: int) -> go.Figure:
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(
        template="plotly_white",
        height=130 + ROW_HEIGHT * max(rows, 1),
        margin={"l": 10, "r": 20, "t": 30, "b": 50},
        font={"color": INK, "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
    )
    return figure


def _drawn(figure: go.Figure, key: str, says: str) -> str:
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{key}",
        config={"displaylogo": False, "responsive": True},
    )
    return f'<figure role="img" aria-label="{escape(says)}" style="margin:0">{html}</figure>'


def _label(text: str) -> str:
    """A text as a figure may show it, in two lines at most; figures read some HTML."""
    lines = wrap(text, 28) or [""]
    if len(lines) > 2:
        lines = [lines[0], lines[1][:27] + "…"]
    return "<br>".join(map(escape, lines))


def _pair_label(plan: Plan, pair: PairResult, *, several: bool) -> str:
    """What a row of the figure is called: by its models, its criterion, or both where both differ between rows."""
    models = f"{_label(plan.label(pair.first))}<br>against {_label(plan.label(pair.second))}"
    if not several:
        return models
    criterion = _label(criterion_title(plan, pair.criterion))
    return f"{criterion}<br>{models}" if len(plan.models) > 2 else criterion


def criterion_title(plan: Plan, key: str) -> str:
    """What a criterion, or the derived Overall, is called."""
    known = {criterion.key: criterion.title for criterion in plan.criteria}
    return known.get(key, "Overall" if key == OVERALL else key)


# Text and tables


def summary_lines(plan: Plan, found: Analysis) -> list[str]:
    """What the votes say, a sentence each, not yet escaped: how many there are, then the outcome of each pair."""
    several = len(plan.criteria) > 1
    told = [
        (f"{criterion_title(plan, pair.criterion)}: " if several else "") + pair.sentence
        for pair in found.pairs
        if pair.category is None
    ]
    return [
        f"{counted(found.votes, 'vote')} by {counted(found.raters, 'rater')} on {counted(len(plan.prompts), 'prompt')}"
        f"; {found.items_complete:,} of {found.items:,} items have all their votes.",
        *told,
    ]


def _results(plan: Plan, found: Analysis, key: str) -> list[str]:
    parts = []
    overall = [pair for pair in found.pairs if pair.category is None]
    if any(pair.without_ties is not None for pair in overall):
        parts += [
            "<h2>Win rates</h2>",
            _drawn(win_rates(plan, overall), f"{key}-wins", " ".join(pair.sentence for pair in overall)),
            pair_table(plan, overall),
        ]
    if by_category := [pair for pair in found.pairs if pair.category is not None]:
        parts += ["<h3>By category of prompt</h3>", pair_table(plan, by_category)]
    if found.evidence is not None:
        shown = found.evidence
        parts.append(
            f"<p>Evidence after {shown.prompts} prompts: {shown.e_value:.3g}, where {shown.needed:.3g} decides; the "
            f"first model's share, ties as half, lies between {share(shown.low)} and {share(shown.high)}.</p>"
        )
    for ranking in found.rankings:
        title = escape(criterion_title(plan, ranking.criterion))
        order = ", ".join(plan.models[strength.model].label for strength in ranking.strengths)
        parts += [
            f"<h3>Strengths: {title}</h3>",
            _drawn(ranking_figure(plan, ranking), f"{key}-rank-{ranking.criterion}", f"The strongest first: {order}"),
            ranking_table(plan, ranking),
        ]
    if found.ratings:
        says = "Shares of Excellent, Good, Pass and Fail for each model; the table below has the numbers."
        parts += [
            "<h2>Ratings</h2>",
            _drawn(rating_figure(plan, found.ratings), f"{key}-ratings", says),
            rating_table(plan, found.ratings),
        ]
    return parts


def pair_table(plan: Plan, pairs: Sequence[PairResult]) -> str:
    """Every pair with its counts, both win rates, and how many votes hold the result."""
    head = ("Criterion", "Category", "First", "Second", "First won", "Second won", "Ties", "Both bad")
    head += ("Without ties (95 %)", "Ties as half (95 %)", "Prompts", "Votes to doubt / to flip")
    rows = []
    for pair in pairs:
        shaky = pair.fragility
        doubt = "–" if shaky is None else f"{'–' if shaky.to_doubt is None else shaky.to_doubt} / {shaky.to_flip}"
        rows.append(
            (
                *(escape(criterion_title(plan, pair.criterion)), escape(pair.category or "all")),
                *(escape(plan.label(pair.first)), escape(plan.label(pair.second))),
                *(pair.first_won, pair.second_won, pair.ties, pair.both_bad),
                *(interval(pair.without_ties), interval(pair.with_ties)),
                *(0 if pair.with_ties is None else pair.with_ties.prompts, doubt),
            )
        )
    return _table(head, rows)


def ranking_table(plan: Plan, ranking: Ranking) -> str:
    """The models with their strengths, the strongest first."""
    rows = []
    for strength in ranking.strengths:
        known = strength.low is not None
        rows.append(
            (
                escape(plan.models[strength.model].label),
                f"{strength.value:+.2f}",
                f"{strength.low:+.2f} to {strength.high:+.2f}" if known else "–",
                f"{strength.low_independent:+.2f} to {strength.high_independent:+.2f}",
                f"{strength.best_rank} to {strength.worst_rank}" if known else "–",
            )
        )
    table = _table(("Model", "Logits", "95 %, by prompt", "95 %, votes taken as independent", "Rank, 95 %"), rows)
    if ranking.wins_to_dethrone is None:
        return table
    return f"{table}<p>Without {ranking.wins_to_dethrone:,} of its wins over the second, the first would not lead.</p>"


def rating_table(plan: Plan, ratings: Sequence[RatingResult]) -> str:
    """The shares of the levels, by criterion and model."""
    head = (
        "Criterion",
        "Model",
        *(f"{level} (95 %)" for level in LEVELS),
        "Excellent, gain by prompt (95 %)",
        "Ratings",
    )
    rows = [
        (
            *(escape(criterion_title(plan, result.criterion)), escape(plan.label(result.model))),
            *(interval(result.shares[level]) for level in LEVELS),
            *(interval(result.excellent_gain), result.shares[LEVELS[0]].votes),
        )
        for result in ratings
    ]
    return _table(head, rows)


def health_html(plan: Plan, found: Analysis) -> str:
    """Whether the votes can be trusted: flags, agreement, and every rater in numbers."""
    health = found.health
    rows = [
        (
            f"Krippendorff's alpha, {escape(criterion_title(plan, key))}",
            "not defined" if value is None else f"{value:.3f}",
        )
        for key, value in health.alpha.items()
    ]
    if health.left is not None:
        rows.append(("Left side among decided votes", f"{interval(health.left)}, sign test p = {health.left_p:.3g}"))
    rows += [
        ("Repeats with the same answer", f"{health.repeats_same} of {health.repeats}"),
        ("Gold pairs answered rightly", f"{health.gold_right} of {health.gold}"),
        ("Median look", "–" if health.median_dwell_s is None else f"{health.median_dwell_s:.1f} s"),
    ]
    flags = "".join(f'<p class="flag">{escape(flag.sentence)}</p>' for flag in health.flags)
    raters = [
        (
            *(rater.rater, rater.votes, share(rater.share), share(rater.left_share)),
            *(f"{rater.gold_right} of {rater.gold}", f"{rater.repeats_same} of {rater.repeats}"),
            f"{rater.median_dwell_s:.1f} s",
        )
        for rater in health.raters
    ]
    head = ("Rater", "Votes", "Share", "Left", "Gold", "Repeats", "Median look")
    return (
        f"<h2>Health of the votes</h2>{flags or '<p>No check found anything unusual.</p>'}"
        f"{_table(('What', 'Value'), rows)}{_table(head, raters)}"
    )


def design_html(plan: Plan) -> str:
    """The plan in words: models, settings, criteria with their rubrics, prompts."""
    stop = (
        f"{plan.stop.votes_per_item} votes on each item"
        if plan.stop.kind == "fixed"
        else f"by evidence over prompts at alpha {plan.stop.alpha:g}, {plan.stop.votes_per_item} votes on each item"
    )
    rows = [
        ("Kind", "pairs" if plan.mode == "pairwise" else "single pictures, rated"),
        ("Models", escape(", ".join(model.label for model in plan.models))),
        (
            "Weights (SHA-256)",
            escape(", ".join(f"{m.label}: {m.weights_sha256}" for m in plan.models if m.weights_sha256)),
        ),
        ("Seeds", escape(", ".join(map(str, plan.seeds)))),
        ("Settings of the pictures, on all sides", escape(", ".join(f"{k}: {v}" for k, v in plan.settings.items()))),
        ("Trials of a rater", f"{plan.num_main} + {counted(plan.num_repeats, 'repeat')} + {plan.num_gold} gold"),
        ("Ends with", stop),
        (
            "Smallest win rate of interest",
            f"{plan.smallest_win_rate:.0%}: {votes_needed(plan.smallest_win_rate):,} "
            "independent decided votes for 80 % power",
        ),
        ("Instructions", escape(plan.instructions)),
    ]
    criteria = "".join(
        f"<h3>{escape(criterion.title)}</h3><p>{escape(criterion.question)}</p>{_list(criterion.rubric)}"
        for criterion in plan.criteria
    )
    prompts = _list(f"{prompt.text}{f' [{prompt.category}]' if prompt.category else ''}" for prompt in plan.prompts)
    return (
        f"<h2>The plan</h2>{_table(('What', 'Value'), [row for row in rows if row[1]])}{criteria}"
        f"<details><summary>All {len(plan.prompts):,} prompts</summary>{prompts}</details>"
    )


def _methods(plan: Plan) -> str:
    lines = [
        "Repeats and gold pairs do not count as votes.",
        "Intervals take a prompt as one observation: Student's t over prompts for the ratio of wins to votes. Fewer "
        "than ten prompts have no interval.",
        "Votes to doubt: the fewest of the leader's votes, found one after another, without which the interval holds "
        "50 %. Votes to flip: without which the other model leads.",
    ]
    if plan.mode == "pairwise" and len(plan.models) > 2:
        lines.append(
            "Strengths: Bradley and Terry's model with a normal prior of 3 logits, ties as half a win; intervals from "
            "1,000 draws of prompts with replacement."
        )
    if plan.stop.kind == "sequential":
        lines.append(
            "Evidence: the capital of a fair game on prompts; without a true difference it reaches the number that "
            "decides in at most a share alpha of all studies, however often one looks."
        )
    if plan.mode == "rating":
        lines.append(
            "Overall: Excellent where all are; Good where at least half are Excellent; Pass where none is Fail; else "
            "Fail."
        )
    return f"<h2>How it was computed</h2>{_list(lines)}"


def counted(number: int, noun: str) -> str:
    """ "1 vote", "1,200 votes"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of cells that are numbers or escaped texts."""
    body = "".join(
        "<tr>"
        + "".join(f'<td class="n">{cell:,}</td>' if isinstance(cell, int) else f"<td>{cell}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines: Iterable[str]) -> str:
    """Texts, not yet escaped, as a list."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""
