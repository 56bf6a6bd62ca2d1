"""The options by which every command of the training names its settings."""

from __future__ import annotations

import argparse

from srpo.training.config import TrainConfig, with_settings
from srpo.training.presets import preset


def add_options(parser: argparse.ArgumentParser) -> None:
    """--preset and --set."""
    parser.add_argument("--preset", default="studio", metavar="NAME", help="which configuration (default: studio)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting, e.g. lr=2e-5; repeatable"
    )


def config_of(options: argparse.Namespace) -> TrainConfig:
    """What the options ask for. ValueError as in `with_settings`."""
    return with_settings(preset(options.preset), options.set)
