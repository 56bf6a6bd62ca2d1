"""A studio on a machine that lends its device by the call, as far as there is one without it: run as a script.

The package `spaces` is the real one, and so are its forked workers, their queues and its decorator. Stood in for are
the service that schedules, and the device: the CPU. Prints one line of JSON: what the calls gave and asked for.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

os.environ |= {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9"}
emulation = ModuleType("spaces.zero.torch")  # of a CUDA device, by parts of torch that a CPU's build lacks
for name in ("patch", "unpatch", "pack", "size", "enter_mode", "is_in_bad_fork"):
    setattr(emulation, name, lambda: 0)
emulation.init = emulation.move = lambda *_, **__: None
sys.modules[emulation.__name__] = emulation
from spaces.zero import client  # noqa: E402

ASKED = []


def schedule(task_id, request=None, duration=None, gpu_size=None):
    ASKED.append(duration.total_seconds())
    return SimpleNamespace(allowToken="token", nvidiaIndex=0, nvidiaUUID="none", idle=True)


client.schedule = schedule
client.allow = client.release = lambda *_, **__: None

from dataclasses import replace  # noqa: E402

from app.services import lending  # noqa: E402
from app.services.compare import compare  # noqa: E402
from app.services.device import StopFlag  # noqa: E402
from app.services.grid import paint_grid  # noqa: E402
from app.services.guide import Guide, Subject  # noqa: E402
from app.services.recoveries import Kept, recoveries  # noqa: E402
from app.services.recovery_requests import RecoverRequest  # noqa: E402
from app.services.requests import BadInput, CompareRequest, GridRequest, parse  # noqa: E402
from app.services.studio import Studio  # noqa: E402
from app.services.training_requests import TrainRequest  # noqa: E402
from tests.app.serving import make_options  # noqa: E402


def main(folder):
    options = replace(make_options(folder), local_paths=False, trains_here=True)
    studio = Studio(options)
    lending.begin(studio)
    studio.load()
    assert studio.status().phase == "ready", studio.status()
    asked = CompareRequest(prompt="a red ball", seed=3, steps=3, width=32, height=32, left="base", right="srpo")
    said = {"parent": os.getpid()}

    views = list(compare(studio, asked, StopFlag("eve")))
    said["steps"] = sum(view.message.startswith("Step") for view in views)
    said["pictures"] = [str(views[-1].pairs[0].left), views[-1].phase]
    said["there"] = views[-1].pairs[0].left.is_file()
    said["charged"] = list(studio.device.budget._spent)

    stop, seen = StopFlag(), 0
    for view in compare(studio, asked.model_copy(update={"steps": 40, "num_seeds": 12}), stop):
        seen += view.phase == "running"
        if seen == 3:
            stop.set()
    said["stopped"] = [view.phase, view.message, seen]

    said["sentences"] = []
    for request in (asked.model_copy(update={"left": "nothing"}), asked.model_copy(update={"width": 1024})):
        try:
            list(compare(studio, request, StopFlag()))
        except BadInput as error:
            said["sentences"].append(str(error))

    kept = Kept()
    raw = {"prompt": "a red ball", "seed": 1, "steps": 2, "width": 32, "height": 32, "painter": "base"}
    raw |= {"source": "generate", "models": ("base",), "num_noises": 1, "sigmas": "0.5", "d_sigmas": "0.075"}
    *_, last = recoveries(studio, parse(RecoverRequest, raw), None, None, kept, StopFlag())
    said["kept"] = [last.phase, kept.last is not None and list(kept.last.x0.shape)]

    guide = Guide(studio)
    request = guide.request("a red ball", 0, 1)
    said["noised"] = guide.noising(Subject(request, 0), 0.5, "fresh").phase

    lines = ("objective.height=32", "objective.width=32", "objective.rollout_steps=2", "checkpoint_every=2")
    form = {"preset": "studio", "name": "lent", "prompts": "a ball", "updates": 2, "prompts_per_update": 1}
    tune = studio.finetune
    (run,) = tune.start(parse(TrainRequest, form | {"validate_every": 0, "more": "\n".join(lines)}), StopFlag())
    while run.path.resolve() in tune.here._under_way:
        pass
    said["trained"] = [run.state().status, len(run.progress()), run.job().pid != os.getpid(), run.job().in_process]
    try:
        (run,) = tune.start(parse(TrainRequest, form | {"name": "long", "updates": 100_000}), StopFlag())
    except BadInput as error:
        said["sentences"].append(str(error))

    def no_more(*_, **__):
        raise client.error("ZeroGPU quota exceeded", "You have exceeded your free ZeroGPU quota (60s requested).")

    client.schedule = no_more
    try:
        list(
            paint_grid(
                studio, GridRequest(prompts=("a",), models=("base",), seed=0, steps=1, width=32, height=32), StopFlag()
            )
        )
    except BadInput as error:
        said["sentences"].append(str(error))
    said["asked"] = ASKED
    print(json.dumps(said), flush=True)
    studio.pictures.close()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
