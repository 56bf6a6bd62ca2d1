"""Starts the studio in the browser: python app.py [--model FOLDER] [--srpo FILE] ... (see --help)."""

from __future__ import annotations

import os
import shlex
import sys

# A Space has no command line: what its settings say in SRPO_OPTIONS stands in for one.
if "SRPO_OPTIONS" in os.environ:
    sys.argv[1:1] = shlex.split(os.environ.pop("SRPO_OPTIONS"))

# Before Gradio is imported: no look-ups on the network, unless votes are to go to the Hub; and in reload mode
# (`gradio app.py`) the script must not be registered under the name of the package beside it.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("SRPO_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "0"))  # what the user said of downloads
if not any(word.startswith("--v") for word in sys.argv):  # --votes-dataset, also shortened
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
if os.environ.get("GRADIO_WATCH_MODULE_NAME") == "app":
    os.environ["GRADIO_WATCH_MODULE_NAME"] = "studio"
if os.environ.get("SPACES_ZERO_GPU"):  # where a device is lent by the call, this stands in for it from the beginning
    import spaces  # noqa: F401

import argparse
import signal
import warnings
from pathlib import Path
from types import FrameType

from PIL import Image

from app import ui
from app.arguments import add_weights, weights
from app.services import lending
from app.services.studio import Studio
from app.services.uploads import MAX_IMAGE_PIXELS
from app.state import Options

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parse_options(arguments: list[str] | None = None) -> tuple[Options, argparse.Namespace]:
    """(what the page works with, where it is served)."""
    parser = argparse.ArgumentParser(description="SRPO Studio: FLUX and SRPO side by side in the browser.")
    add_weights(parser)
    parser.add_argument("--runs", type=Path, default=Options().runs, help="folder of training runs")
    parser.add_argument("--studies", type=Path, default=Options().studies, help="folder of preference studies")
    parser.add_argument("--database", help="postgresql:// URL of the studies (default: SQLite in their folder)")
    parser.add_argument(
        "--votes-dataset",
        metavar="OWNER/NAME",
        help="private dataset of the Hub that keeps studies too (needs HF_TOKEN)",
    )
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # as a Space says it
    parser.add_argument("--host", default=host, help="beyond loopback, the page is public")
    parser.add_argument(
        "--public", action="store_true", help="anyone may open it: no paths, no training, limits and budgets"
    )
    parser.add_argument(
        "--owners",
        metavar="NAME[,NAME...]",
        default=os.environ.get("SRPO_OWNERS"),
        help="accounts on Hugging Face that may train and keep studies on a Space with a login (default: its author)",
    )
    parser.add_argument(
        "--train",
        choices=("process", "in-process"),
        default="process",
        help="runs in processes of their own, which outlive the app, or in the app's where none can be started",
    )
    parser.add_argument("--port", type=int, default=None, help="first free one from 7860 by default")
    if lending.is_lent():  # and no process but a call's own has it
        parser.set_defaults(device="cuda", train="in-process")
    served = parser.parse_args(arguments)
    is_space = "SPACE_ID" in os.environ
    public = served.public or served.host not in LOOPBACK or is_space
    # Beyond a Space, Gradio's login is a pretence: everyone would be the owner of this machine's token.
    can_sign_in = is_space and "OAUTH_CLIENT_ID" in os.environ
    if served.owners and not can_sign_in:
        parser.error(
            "--owners needs a login that can be trusted, and only a Space with `hf_oauth: true` has one: leave it out, "
            "and train on a page of your own machine, which listens to 127.0.0.1 alone"
        )
    author = os.environ.get("SPACE_AUTHOR_NAME", "") if can_sign_in else ""
    owners = tuple(filter(None, (name.strip() for name in (served.owners or author).split(","))))
    places = {name: getattr(served, name) for name in ("runs", "studies", "database", "votes_dataset")}
    places["downloads"] = os.environ["SRPO_OFFLINE"] in ("", "0")
    options = Options(
        **weights(served),
        **places,
        local_paths=not public,
        can_sign_in=can_sign_in,
        owners=owners,
        trains_here=served.train == "in-process",
    )
    return options, served


def main(arguments: list[str] | None = None) -> None:
    options, served = parse_options(arguments)
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    signal.signal(signal.SIGTERM, _exit)  # its default would skip the removal of our pictures
    studio = Studio(options)
    page = ui.build(studio)
    if lending.is_lent():
        lending.begin(studio)
        studio.load()
    try:
        page.launch(
            server_name=served.host, server_port=served.port, prevent_thread_lock=True, **ui.launch_options(studio)
        )
    except OSError as error:
        sys.exit(f"Nothing can be served at {served.host}:{served.port or '7860 and on'}: choose --port ({error}).")
    print(f"SRPO Studio is at {page.local_url}", flush=True)
    try:
        studio.studies.start()
    except ValueError as error:
        sys.exit(str(error))
    if not lending.is_lent():
        studio.start()  # only now: the page is up before torch is imported
    try:
        page.block_thread()
    finally:
        studio.finetune.close()
        studio.studies.close()
        studio.pictures.close()
        sys.stdout.flush()
        os._exit(0)  # the interpreter's own end would abort, exit status and all, where a thread is within torch


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
