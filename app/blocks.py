"""Gradio's Blocks, but what no page of ours sends is refused by a sentence, and leaves no traceback in the log.

Anyone can ask for any event over plain HTTP, with values of any type. Gradio's components answer those by whatever
exception comes of it, and print it with its traceback: a stranger could fill the log, and hide in it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import gradio as gr

log = logging.getLogger(__name__)

UNREADABLE = "The page has sent something that cannot be read here: reload it, and try again."


class Page(gr.Blocks):
    """The page as it is served."""

    async def preprocess_data(self, block_fn: Any, inputs: Any, *arguments: Any, **more: Any) -> Any:
        """What the handler is given. gr.Error, one sentence, for values that the components cannot read."""
        try:
            if block_fn.fn is None:
                raise ValueError("an event of the browser alone")
            json.dumps(inputs, ensure_ascii=False, default=str).encode()  # no half characters, which JSON carries
            for part, value in zip(block_fn.inputs, inputs, strict=False):
                if isinstance(part, gr.Dropdown) and not _is_choice(value, part.multiselect):
                    raise ValueError(f"no choice of {part.elem_id}")  # with values of one's own it takes any type
            return await super().preprocess_data(block_fn, inputs, *arguments, **more)
        except Exception as error:
            # A component's own words about a number out of bounds help; what repeats the value could be markup.
            words = error.message if isinstance(error, gr.Error) else ""
            log.info("A request for %s was refused: %s", block_fn.api_name, type(error).__name__)
            said = words if words and not set(words) & set("<>&") else UNREADABLE
            raise gr.Error(said, print_exception=False) from None


def _is_choice(value: Any, several: bool | None) -> bool:
    """Whether it has the form of what one can choose: a word or a number, or where several can be chosen, a list."""
    values = value if several and isinstance(value, list) else [value]
    return all(one is None or isinstance(one, str | int | float) for one in values)


def told(event: gr.EventData, name: str) -> Any:
    """What the page says of an event by that name; None where it says nothing."""
    return event._data.get(name) if isinstance(event._data, dict) else None
