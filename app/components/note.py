"""A line of text with a dot whose colour says how things stand."""

from __future__ import annotations

import html


def note_html(text: str, phase: str) -> str:
    """The line; phase: "loading", "ready", "failed" or "idle"."""
    return f'<div class="note {phase}"><span class="dot"></span>{html.escape(text)}</div>'
