"""The one gate before everything that only the owners of a public page may do.

A handler's authority is looked at when it is called, on the server: that a tab is hidden protects nothing, as any event
of a page can be asked for over plain HTTP. So whatever is wired while a tab is `reserved` is wrapped here, and a
handler that is added to such a tab tomorrow is wrapped as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, get_type_hints

import gradio as gr

from app.state import Options
from app.tabs.compare import account

REFUSAL = "This belongs to the owners of this page: sign in as one of them."


@contextmanager
def reserved(options: Options, page: gr.Blocks) -> Iterator[None]:
    """All that is laid out and wired within answers to the owners alone; at home, where there are none, to anyone.

    Events of a part within refuse everybody else by one sentence. Those that the page fires for every visitor (it was
    opened, it was left, some tab was chosen) say nothing to others, and do nothing.
    """
    parts, events = {page._id, *page.blocks}, set(page.fns)
    yield
    if options.local_paths:
        return
    for number in page.fns.keys() - events:
        event = page.fns[number]
        if event.fn is None:  # JavaScript alone: nothing happens on the server
            continue
        within = any(part is not None and part not in parts for part, _ in event.targets)
        pressed = within or event.trigger_after is not None
        event.fn = _guarded(event.fn, options, None if pressed else len(event.outputs))


def owners_see(options: Options) -> Callable[[gr.Request], tuple]:
    """A handler that opens both tabs of the workshop to an owner, and leaves them hidden from everybody else."""

    def show_workshop(request: gr.Request) -> tuple:
        return (gr.Tab(visible=True) if options.is_owner(account(request)) else gr.skip(),) * 2

    return show_workshop


def _guarded(handler: Callable, options: Options, skips: int | None) -> Callable:
    """The handler, for owners. To others: the refusal, or where `skips` is a number, so many outputs left as they are.

    Gradio hands a handler what its signature asks for, so this one asks for the request before all else.
    """

    def refused(request: gr.Request) -> bool:
        if options.is_owner(account(request)):
            return False
        if skips is None:
            raise gr.Error(REFUSAL, title="For its owners", print_exception=False)
        return True

    nothing: Any = None if not skips else gr.skip() if skips == 1 else (gr.skip(),) * skips
    if inspect.isgeneratorfunction(handler):

        def guarded(asking: gr.Request, *values: Any) -> Any:
            if refused(asking):
                yield nothing
            else:
                yield from handler(*values)

    else:

        def guarded(asking: gr.Request, *values: Any) -> Any:
            return nothing if refused(asking) else handler(*values)

    wrapped = wraps(handler)(guarded)
    own = inspect.signature(handler)
    first = inspect.Parameter("asking", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    wrapped.__signature__ = own.replace(parameters=[first, *own.parameters.values()])
    wrapped.__annotations__ = {"asking": gr.Request, **get_type_hints(handler)}
    return wrapped
