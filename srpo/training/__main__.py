"""python -m srpo.training: trains a preset, with changes, in a run folder; or takes up a stopped run.

Several devices: accelerate launch -m srpo.training, with the same options.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from srpo.runs import RunFolder
from srpo.runs.claim import Claim, Handover
from srpo.runs.control import require_name, require_way_back
from srpo.runs.stopping import Stopped, StopSignals, stop_on_signals

if TYPE_CHECKING:  # torch and the models' libraries take seconds: a run that was announced shows its heartbeat before
    from srpo.runs import UpdateRecord
    from srpo.training.config import TrainConfig
    from srpo.training.job import Order, Work

RUNS = Path("runs")
IS_MAIN = os.environ.get("RANK", "0") == "0"  # the one of several processes that writes and prints


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 when the run has finished or was stopped in order, 2 for a wrong setting, 1 for a failure."""
    options = _parser().parse_args(arguments)
    if options.list_presets:
        return _list_presets()
    try:
        with stop_on_signals() as stop:
            return _work(options, _folder(options), stop)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped:
        print("stopped before it had begun")
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srpo.training", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", metavar="NAME", help="which configuration (default: studio)")
    parser.add_argument("--like", metavar="RUN", help="take the settings of this run instead of a preset's")
    parser.add_argument("--resume", metavar="RUN", help="take up this run (its folder, or its name in runs/)")
    parser.add_argument("--list-presets", action="store_true", help="name the presets and exit")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting, e.g. lr=2e-5; repeatable"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new run's folder")
    parser.add_argument("--name", metavar="NAME", help="the new run's folder in runs/ (default: TIME-PRESET)")
    going_on = parser.add_argument_group("with --resume")
    going_on.add_argument("--extend", type=int, metavar="N", help="so many updates more than were planned")
    going_on.add_argument(
        "--from-update", type=int, metavar="N", help="go back to this checkpoint (0: the start); later ones are removed"
    )
    going_on.add_argument(
        "--despite-changes", action="store_true", help="go on although versions or files are not what they were"
    )
    return parser


def _list_presets() -> int:
    from srpo.training.presets import PRESETS

    for name, make in PRESETS.items():
        print(f"{name:26} {make.__doc__.splitlines()[0]}")
    return 0


def _folder(options: argparse.Namespace) -> RunFolder:
    """The folder of the run to be: one that is there, with --resume. ValueError where it does not fit."""
    for together in (("preset", "like", "resume"), ("out", "name", "resume")):
        if len(given := [f"--{name}" for name in together if getattr(options, name)]) > 1:
            raise ValueError(f"{given[0]} does not go with {given[1]}: choose one")
    if options.resume:
        return _find(options.resume)
    if options.extend is not None or options.from_update is not None or options.despite_changes:
        raise ValueError("--extend, --from-update and --despite-changes are for a run that is there: add --resume RUN")
    source = _find(options.like).name if options.like else options.preset or "studio"
    run = RunFolder(options.out or RUNS / require_name(options.name or f"{datetime.now():%Y%m%d-%H%M%S}-{source}"))
    if IS_MAIN and not run.is_prepared():
        RunFolder.require_room(run.path)
    return run


def _find(name: str) -> RunFolder:
    """The run in the folder of that name, or of that name in runs/. ValueError where there is none."""
    return RunFolder.open(name if Path(name).exists() else RUNS / name if (RUNS / name).exists() else name)


def _work(options: argparse.Namespace, run: RunFolder, stop: StopSignals) -> int:
    handover = Handover.received()
    with ExitStack() as held:
        has_folder = bool(options.resume) or run.is_prepared()
        with stop.at_once():
            claim = None
            if has_folder and IS_MAIN:
                claim = held.enter_context(Claim(run, handover, is_new=not options.resume))
            from srpo.training.job import ready

            order = _order(options, run)
            work = held.enter_context(ready(order, handover, claim))
            if IS_MAIN:
                _announce(order, work)
        return _train(order, work, stop)


def _order(options: argparse.Namespace, run: RunFolder) -> Order:
    from srpo.training.config import config_from_dict, with_settings
    from srpo.training.continuity import MAY_CHANGE
    from srpo.training.job import Order
    from srpo.training.presets import preset

    if not options.resume:
        source = config_from_dict(_find(options.like).config()) if options.like else preset(options.preset or "studio")
        return Order(run, with_settings(source, options.set))
    for assignment in options.set:
        if (name := assignment.partition("=")[0]) not in MAY_CHANGE:
            raise ValueError(f"a resumed run may change {', '.join(MAY_CHANGE)}, not {name}: start a new run for that")
    config = with_settings(config_from_dict(run.config()), options.set)
    if options.extend is not None:
        if options.extend < 1:
            raise ValueError(f"--extend is {options.extend}; expected at least 1 update more")
        config = replace(config, updates=config.updates + options.extend)
    if options.from_update is not None:
        require_way_back(run, options.from_update)
    return Order(run, config, True, options.from_update, options.despite_changes)


def _announce(order: Order, work: Work) -> None:
    from srpo.training.assemble import cut_prompts

    for note in (*work.loaded.passed_over, *cut_prompts(work.trainer)):
        print(f"note: {note}")
    if order.resumes:
        print(f"{order.run.path}: goes on after update {work.loaded.update}", flush=True)
    else:
        config = order.config
        print(f"{order.run.path}: {config.updates} updates of {config.prompts_per_update} prompts", flush=True)


def _train(order: Order, work: Work, stop: StopSignals) -> int:
    from srpo.training.faults import sentence

    try:
        with closing(work.updates(stop)) as updates:  # where a record cannot be printed, the run stops in order
            for record in updates:
                if IS_MAIN:
                    _print(record, order.config)
    except Exception as error:
        if IS_MAIN:
            print(f"failed: {sentence(error, order.config)}", file=sys.stderr)
        return 1
    if IS_MAIN:
        run = order.run
        finished = run.state().status == "finished"
        print(f"finished: {run.weights}" if finished else f"stopped: go on with --resume {run.path}")
    return 0


def _print(record: UpdateRecord, config: TrainConfig) -> None:
    scores = record.scores
    print(
        f"update {record.update}/{config.updates}  loss {record.loss:.4f}  gradient {record.grad_norm:.4f}  "
        f"difference {scores['denoise/difference']:+.4f}  plain {scores['denoise/plain']:.4f}  {record.seconds:.1f} s",
        flush=True,
    )
    if record.warning:
        print(f"warning: {record.warning}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
