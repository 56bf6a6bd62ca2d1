"""python -m srpo.training.store: samples rollouts once and keeps their latents, for runs with `offline.folder`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from srpo.objectives.base import Rollout
from srpo.training.assemble import assemble
from srpo.training.offline import require_new, store_rollouts
from srpo.training.options import add_options, config_of
from srpo.training.order import prompts_of_update, update_generator
from srpo.training.trainer import Trainer


def sampled(trainer: Trainer, count: int) -> Iterator[Rollout]:
    """The first `count` rollouts that the trainer would sample, with the weights it has now."""
    config = trainer.config
    for update in range(1, count + 1):
        prompts = prompts_of_update(trainer.prompts, config.seed, update, config.prompts_per_update)
        cond = trainer.policy.encode_prompts(prompts)
        yield trainer.objective.rollout(trainer.policy, prompts, cond, update_generator(config.seed, update))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m srpo.training.store", description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--rollouts", type=int, default=8, metavar="N", help="updates' worth of pictures (default: 8)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    options = parser.parse_args(arguments)
    try:
        if options.rollouts < 1:
            raise ValueError(f"--rollouts is {options.rollouts}; expected at least 1")
        require_new(options.out)
        store_rollouts(sampled(assemble(config_of(options)), options.rollouts), options.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"stored: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
