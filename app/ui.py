"""The page: a masthead, and one call per tab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from app import theme
from app.blocks import Page
from app.doors import Doors, unreadable
from app.owners import owners_see, reserved
from app.services.public import OWN_S
from app.services.studio import Studio
from app.services.voting import Voting
from app.tabs import benchmark, compare, finetune, guide, recoveries, studies, words
from app.voting.routes import routes

TITLE = "SRPO Studio"
# From look to look into the empty queue. Gradio looks a thousand times a second, which takes a twentieth of a core from
# whatever runs beside the page.
QUEUE_LOOKS_S = 0.02
MASTHEAD = f"""
<header id="masthead">
  <h1>{TITLE}</h1>
  <p>SRPO fine-tunes FLUX on human preference, to take the “AI look” out of its pictures. Here both paint the same
    prompt from the same noise. <button id="to-guide" type="button">New here? The method in six steps</button></p>
  <button id="theme-switch" type="button">Light / dark</button>
</header>
"""
# Only the link asks for something; the button beside it is the browser's own business (page.js).
TO_GUIDE = 'element.querySelector("#to-guide").addEventListener("click", () => trigger("submit"))'


def build(studio: Studio) -> gr.Blocks:
    """The page over these services. Loads no model."""
    with Page(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        masthead = gr.HTML(MASTHEAD, js_on_load=TO_GUIDE, apply_default_css=False)
        if studio.limits is not None:
            own = f", and {OWN_S / 60:.0f} for each who signs in" if studio.options.can_sign_in else ""
            gr.HTML(f"{studio.limits}{own}.", elem_id="limits", elem_classes="hint", apply_default_css=False)
        if studio.options.can_sign_in:
            # Without its picture: that lies in Gradio's package, which may be below our own folder, closed to the page.
            gr.LoginButton(size="sm", elem_id="login", icon=None)
        with gr.Tabs() as tabs:
            with gr.Tab("Compare", id="compare"):
                sides = compare.build(studio)
            with gr.Tab("Recoveries", id="recoveries"):
                recoveries.build(studio)
            with gr.Tab("Control words", id="words"):
                word_parts = words.build(studio)
            # Beyond loopback nobody but owners may start processes here, or delete: what is not registered cannot be
            # called, and what is registered for owners asks who calls.
            if studio.options.has_workshop:
                at_home = studio.options.local_paths
                with reserved(studio.options, page):
                    with gr.Tab(finetune.LABEL, id="finetune", visible=at_home) as tuning:
                        form = finetune.build(studio, tuning, tabs, sides)
                    if at_home:  # it reads folders that are named by their paths
                        with gr.Tab(benchmark.TITLE, id="benchmark") as measuring:
                            benchmark.build(studio, measuring, tabs)
                    with gr.Tab(studies.TITLE, id="studies", visible=at_home) as studying:
                        studies.build(studio, studying, tabs)
                if at_home:
                    words.send_to(word_parts, form, tabs)
                else:
                    page.load(
                        owners_see(studio.options), outputs=[tuning, studying], queue=False, api_visibility="private"
                    )
            with gr.Tab("Guide", id="guide"):
                guide.build(studio, tabs)
        masthead.submit(
            guide.opens("guide"), outputs=tabs, queue=False, show_progress="hidden", api_visibility="private"
        )
    # api_open would let a plain POST pass by the queue.
    page.queue(api_open=False, max_size=32, default_concurrency_limit=4)
    page._queue.sleep_when_free = QUEUE_LOOKS_S
    return page


def no_such_event(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request for an event that this page has not: without it Gradio's error fills the log.

    By its number it is a KeyError of the queue's; any other is raised again.
    """
    if isinstance(error, KeyError) and not request.url.path.endswith("/queue/join"):
        raise error
    return JSONResponse({"detail": "This page has no such event."}, status_code=404)


def launch_options(studio: Studio) -> dict[str, Any]:
    """What `launch()` is given: the look, and every limit stated, so that no environment variable reopens one."""
    return {
        "theme": theme.theme(),
        "css": theme.css(),
        "js": (Path(__file__).parent / "page.js").read_text(encoding="utf-8"),
        "quiet": True,
        "app_kwargs": {
            "routes": routes(Voting(studio.studies)),  # before Gradio's own, which answer any address
            "exception_handlers": {
                FnIndexInferError: no_such_event,
                KeyError: no_such_event,
                RequestValidationError: unreadable,
            },
            "middleware": [Middleware(Doors)],
        },
        "_frontend": False,  # or Gradio gives up where its own page takes three seconds to answer, on a busy machine
        "footer_links": [],
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "strict_cors": True,
        "allowed_paths": [str(studio.pictures.root)],
        "blocked_paths": [str(Path(__file__).resolve().parents[1])],
        "max_file_size": "64mb",
        "state_session_capacity": 500,
        "show_error": False,
    }
