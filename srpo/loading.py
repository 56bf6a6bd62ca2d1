"""Models are built, and the libraries that build them imported, one at a time.

diffusers, transformers and accelerate change torch itself while they build one, for all threads: parameters go to the
meta device, initialisation does nothing, the default precision is the model's. A second model built meanwhile by
another thread may come out without its weights, and what two loads restore at their ends may stay changed for good.
And transformers fills its modules when they are first asked for something, which two threads at once find half done.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Built = TypeVar("Built")

_lock = threading.RLock()  # one that builds a model may have parts of it built


def one_at_a_time(build: Callable[P, Built]) -> Callable[P, Built]:
    """The function, which waits while another thread of this process is in any that is so marked."""

    @wraps(build)
    def alone(*args: P.args, **kwargs: P.kwargs) -> Built:
        with _lock:
            return build(*args, **kwargs)

    return alone


@one_at_a_time
def import_module(name: str) -> ModuleType:
    """The module of that full name, for modules that import transformers or diffusers within a thread."""
    return importlib.import_module(name)
