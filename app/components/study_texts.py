"""What the Studies tab says in words and tables: HTML of numbers, with every text of anybody escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from app.services.study_power import Power
from app.services.study_quick import Tally
from app.services.study_view import Live, Seat
from srpo.studies.analysis import Analysis, Results
from srpo.studies.criteria import LEVELS, OVERALL, STANDARD
from srpo.studies.estimates import MIN_PROMPTS, Estimate
from srpo.studies.report import (
    criterion_title,
    design_html,
    health_html,
    interval,
    pair_table,
    ranking_table,
    rating_table,
    share,
    summary_lines,
)
from srpo.studies.schema import Plan
from srpo.studies.store import Study

STATES = {"preparing": "Nobody can vote yet.", "open": "Open: raters can vote.", "closed": "Ended: no vote is taken."}


# The plan


def rubrics_html() -> str:
    """What raters are told to look for, criterion by criterion."""
    parts = "".join(
        f"<h4>{html.escape(known.title)}</h4><p>{html.escape(known.question)}</p>{_list(known.rubric)}"
        for known in STANDARD
    )
    return f"<details><summary>What raters are told to look for</summary>{parts}</details>"


def power_html(power: Power, problem: str = "") -> str:
    """The table of what each true win rate takes, and what this plan can find; problem: why it says nothing yet."""
    rows = "".join(
        f'<tr><th scope="row">{row.win_rate:.0%}</th><td>{row.votes:,}</td><td>{row.prompts:,}</td></tr>'
        for row in power.rows
    )
    said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in power.sentences)
    if problem:
        said += f'<p class="hint">{html.escape(problem)}</p>'
    votes = f"{power.votes_per_prompt} vote{'' if power.votes_per_prompt == 1 else 's'}"
    return (
        f'<section class="study-power"><h3>Is it large enough?</h3>{said}<table><caption>To find a true win rate in '
        "four of five studies (two-sided, 5 %) it takes</caption><thead><tr>"
        '<th scope="col">Win rate</th><th scope="col">decided votes, if all were independent</th>'
        f'<th scope="col">prompts of {votes} each</th></tr></thead><tbody>{rows}</tbody></table>'
        '<p class="hint">Votes on one prompt resemble one another, so prompts count for more than votes. Prompts are '
        "taken to differ as much as is usual (1 logit).</p></section>"
    )


def plan_html(study: Study) -> str:
    """The whole plan in words."""
    said = _without_title(design_html(study.plan))
    return f'<div class="study-text">{said}<p class="hash">Plan <code>{study.sha256}</code></p></div>'


# Voting


def voting_html(study: Study, live: Live) -> str:
    """How the voting goes, without a word on who leads."""
    per_cent = live.votes / live.wanted if live.wanted else 0.0
    items = "pairs" if study.plan.mode == "pairwise" else "pictures"
    at_most = "at most " if live.is_sequential else ""
    numbers = [
        (f"{live.voting:,}", f"raters with a vote, of {live.raters:,} who have joined"),
        (f"{live.votes:,}", f"votes of {at_most}{live.wanted:,}"),
        (
            f"{live.items_complete:,}",
            f"of {live.items:,} {items} have all theirs",
        ),
        (_of(live.gold_right, live.gold), "gold answered rightly"),
        (_of(live.repeats_same, live.repeats), "repeats answered the same"),
        ("–" if live.median_dwell_s is None else f"{live.median_dwell_s:.1f} s", "for a look (median)"),
    ]
    tiles = "".join(f"<li><b>{value}</b><span>{html.escape(what)}</span></li>" for value, what in numbers)
    flags = "".join(f'<p class="banner">{html.escape(flag)}</p>' for flag in live.flags)
    enough = ""
    if live.is_complete and study.state == "open":
        enough = '<p class="enough">The plan’s own rule says that no more votes are needed: the study can end.</p>'
    return (
        f'<div class="study-live" data-votes="{live.votes}"><p>{STATES[study.state]}</p>'
        f'<div class="progress" role="progressbar" aria-label="Votes given" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * min(per_cent, 1):.0f}"><i style="width:{100 * min(per_cent, 1):.1f}%"></i></div>'
        f'<ul class="tiles">{tiles}</ul>{enough}{flags}</div>'
    )


def seats_html(seats: Sequence[Seat]) -> str:
    """Every rater's code and how far they are."""
    if not seats:
        return '<p class="hint">Nobody has joined yet.</p>'
    rows = [(f"Rater {seat.number}", seat.code, f"{seat.votes:,} of {seat.trials:,}") for seat in seats]
    return (
        '<p class="hint">A code is a key: whoever has it votes as that rater. Give it back to one who has lost it.</p>'
        + _table(("Rater", "Code", "Answered"), rows)
    )


def opening_html(study: Study) -> str:
    """What opening the study will do."""
    return (
        '<div class="study-live"><p>All pictures are there. Opening freezes the plan and its pictures under the hash '
        f"<code>{study.sha256[:12]}</code>; from then on raters can join by a link, and a changed plan becomes a new "
        "version.</p></div>"
    )


# Results


def story_html(study: Study, found: Results, *, filtered: bool) -> str:
    """The outcome in plain sentences, what hangs on it, and which model was which."""
    plan, shown = study.plan, found.filtered if filtered else found.everything
    counted, *told = summary_lines(plan, shown)
    outcomes = "".join(f'<p class="outcome">{html.escape(line)}</p>' for line in told or _ratings_said(plan, shown))
    lacking = f" {shown.votes_lacking:,} more votes would complete the plan." if shown.votes_lacking else ""
    flags = "".join(f'<p class="banner">{html.escape(flag.sentence)}</p>' for flag in shown.health.flags)
    health = " ".join([_health_said(plan, shown), *["No check found anything unusual."] * (not flags)])
    return (
        f'<div class="study-story">{outcomes}<p>{html.escape(counted + lacking)}</p>'
        f"{_list(_fragile(plan, shown))}<p>{html.escape(health)}</p>{flags}"
        f"<p>{html.escape(_filters_said(found))}</p>{_reveal(plan)}</div>"
    )


def tables_html(study: Study, found: Results, *, filtered: bool) -> str:
    """All numbers, each table folded away."""
    plan, shown = study.plan, found.filtered if filtered else found.everything
    overall = [pair for pair in shown.pairs if pair.category is None]
    by_category = [pair for pair in shown.pairs if pair.category is not None]
    parts = []
    if overall:
        parts.append(("Win rates and counts", pair_table(plan, overall)))
    if by_category:
        parts.append(("By category of prompt", pair_table(plan, by_category)))
    for ranking in shown.rankings:
        title = html.escape(criterion_title(plan, ranking.criterion))
        parts.append((f"Strengths: {title}", ranking_table(plan, ranking)))
    if shown.ratings:
        parts.append(("Ratings", rating_table(plan, shown.ratings)))
    parts.append(("Health of the votes, rater by rater", _without_title(health_html(plan, shown))))
    parts.append(("The plan", _without_title(design_html(plan))))
    return "".join(f"<details><summary>{title}</summary>{body}</details>" for title, body in parts)


def _ratings_said(plan: Plan, shown: Analysis) -> list[str]:
    """One sentence for each model of a rating study, on the derived Overall."""

    def gain(estimate: Estimate | None) -> str:
        return "" if estimate is None else f", {interval(estimate)} more than {plan.models[0].label} by prompt"

    overall = [result for result in shown.ratings if result.criterion == OVERALL]
    if not overall:
        return ["No votes were given, so there is nothing to say."]
    said = [
        f"{plan.label(result.model)}: {interval(result.shares[LEVELS[0]])} {LEVELS[0]} overall"
        f"{gain(result.excellent_gain)}."
        for result in overall
    ]
    rated = min(result.shares[LEVELS[0]].prompts for result in overall)
    if rated < MIN_PROMPTS:
        said.append(
            f"Not enough to compare them: {rated} of the at least {MIN_PROMPTS} prompts that an interval takes."
        )
    return said


def _fragile(plan: Plan, shown: Analysis) -> list[str]:
    """How many votes the outcomes hang on."""
    said = []
    for pair in shown.pairs:
        if pair.fragility is None or pair.category is not None or pair.outcome not in ("first", "second"):
            continue
        winner, loser = pair.first, pair.second
        if pair.outcome == "second":
            winner, loser = loser, winner
        doubt = pair.fragility.to_doubt
        few = f"without {doubt:,} of these votes it would be in doubt, " if doubt is not None else ""
        said.append(
            f"{criterion_title(plan, pair.criterion)}: {plan.label(winner)} leads over {plan.label(loser)}; {few}"
            f"without {pair.fragility.to_flip:,} the other one would lead."
        )
    return said


def _health_said(plan: Plan, shown: Analysis) -> str:
    """The health of the votes in a line or two."""
    health = shown.health
    alphas = [f"{criterion_title(plan, key)} {value:.2f}" for key, value in health.alpha.items() if value is not None]
    said = [f"agreement of the raters (Krippendorff’s alpha) {', '.join(alphas)}"] * bool(alphas)
    if health.left is not None:
        said.append(f"the left side won {interval(health.left)} of the decided votes")
    if health.repeats:
        said.append(f"{_of(health.repeats_same, health.repeats)} repeats were answered the same")
    if health.gold:
        said.append(f"{_of(health.gold_right, health.gold)} gold pairs rightly")
    if health.median_dwell_s is not None:
        said.append(f"a look took {health.median_dwell_s:.1f} s (median)")
    return f"Health of the votes: {'; '.join(said)}." if said else ""


def _filters_said(found: Results) -> str:
    if not found.filters:
        return "The plan declares no filters, so every vote counts."
    said = " ".join(found.filters)
    if not found.dropped_votes:
        return f"Declared filters: {said} They leave nothing out, so both results are the same."
    raters = ", ".join(f"rater {number}" for number in found.dropped_raters)
    whole = f", among them all of {raters}" if raters else ""
    return f"Declared filters: {said} They leave out {found.dropped_votes:,} votes{whole}."


def _reveal(plan: Plan) -> str:
    rows = [(model.label, model.key, model.weights_sha256[:16] or "–") for model in plan.models]
    return (
        "<details><summary>Which model was which</summary>"
        f"{_table(('Model', 'Where its pictures came from', 'Weights (SHA-256)'), rows)}"
        "<p>Every picture with its model is in the exported pictures.csv.</p></details>"
    )


# Quick votes


def quick_html(tallies: Iterable[Tally]) -> str:
    """Counts by pair of models."""
    rows = []
    for tally in tallies:
        shown = interval(tally.share)
        if not tally.share.is_enough:
            shown = f"{share(tally.share.value)}, no interval below 10 prompts"
        counts = (tally.first_won, tally.second_won, tally.ties, tally.both_bad)
        rows.append((tally.first, tally.second, *(f"{count:,}" for count in counts), shown))
    if not rows:
        return '<p class="hint">No quick vote yet: generate a pair in Compare and say which side is better.</p>'
    head = ("First", "Second", "First won", "Second won", "Ties", "Both bad", "First’s share, ties as half (95 %)")
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts."""
    titles = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _of(hits: int, cases: int) -> str:
    return f"{hits:,} of {cases:,}" if cases else "–"


def _without_title(part: str) -> str:
    """A part of the report below a title that the page gives it already."""
    return part[part.index("</h2>") + len("</h2>") :]
