"""What every component of ours is: gr.HTML with the markup and the script that lie in this folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent


def component(
    name: str, /, *shared: str, value: Any = None, fill: Mapping[str, str] | None = None, **kwargs: Any
) -> gr.HTML:
    """The component of NAME.html and NAME.js; its value is {} until it is given one.

    shared: scripts that NAME.js builds upon, without their endings; component.js is always one. fill: what takes the
    places of the comments `<!-- key -->` in the markup. A function rather than a subclass, beside which Gradio would
    write a stub file.
    """
    markup = read(f"{name}.html")
    for key, text in (fill or {}).items():
        markup = markup.replace(f"<!-- {key} -->", text)
    script = "".join(read(f"{part}.js") for part in ("component", *shared, name))
    return gr.HTML(value or {}, html_template=markup, js_on_load=script, apply_default_css=False, **kwargs)


def read(name: str) -> str:
    """The text of a file of this folder."""
    return (HERE / name).read_text(encoding="utf-8")
