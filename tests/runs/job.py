"""A job without models, for tests of what surrounds one: `python tests/runs/job.py` with the trainer's options.

It takes over the locks it is given, shows its heartbeat, does an "update" every 20 ms, and ends in order when asked.
JOB_BEHAVIOUR=deaf: it does not hear SIGTERM. =child: it starts a process of its own that does not either. =crash: it
ends at once with a last word. =slow: it shows nothing of itself for a second.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from srpo.runs import RunFolder, UpdateRecord
from srpo.runs.claim import Claim, Handover
from srpo.runs.processes import this_job
from srpo.runs.stopping import stop_on_signals


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--out", "--resume", "--preset", "--like", "--from-update"):
        parser.add_argument(option)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    settings = dict(assignment.split("=", 1) for assignment in options.set)
    behaviour = os.environ.get("JOB_BEHAVIOUR", "")
    if behaviour == "crash":
        sys.exit("the last word")
    if behaviour == "slow":
        time.sleep(1)
    run = RunFolder(options.out or options.resume)
    with stop_on_signals() as stop, Claim(run, Handover.received(), is_new=not options.resume) as claim:
        if behaviour in ("deaf", "child"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if behaviour == "child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (run.path / "child").write_text(str(child.pid))
        if options.out:
            RunFolder.create(run.path, settings)
        run.write_job(this_job(settings["device"]))
        claim.begins()
        update = len(run.progress())
        while not stop.is_set() and update < int(settings.get("updates", 1_000_000)):
            update += 1
            run.append_progress(UpdateRecord(update, 0.0, 0.0, 0.0, 0.02, {}))
            run.write_state("running", update, phase="training")
            claim.heart.move("training", update)
            time.sleep(0.02)
        run.write_state("stopped" if stop.is_set() else "finished", update)
    return 0


if __name__ == "__main__":
    sys.exit(main())
