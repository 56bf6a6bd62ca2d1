"""Gradio's Blocks, but what no page of ours sends is refused by a sentence, and leaves no traceback in the log.

Anyone can ask for any event over plain HTTP, with values of any type. Gradio's components answer those by whatever
exception comes of it, and print it with its traceback: a stranger could fill the log, and hide in it.
"""

from __future__ import annotations

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
            return await super().preprocess_data(block_fn, inputs, *arguments, **more)
        except Exception as error:
            # A component's own words about a number out of bounds help; what repeats the value could be markup.
            words = error.message if isinstance(error, gr.Error) else ""
            log.info("A request for %s was refused: %s", block_fn.api_name, type(error).__name__)
            said = words if words and not set(words) & set("<>&") else UNREADABLE
            raise gr.Error(said, print_exception=False) from None


def told(event: gr.EventData, name: str) -> Any:
    """What the page says of an event by that name; None where it says nothing."""
    return event._data.get(name) if isinstance(event._data, dict) else None
