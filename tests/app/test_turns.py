"""Pictures and training take turns on a device by the rule that the page shows."""

import threading

from app.services.compare import compare
from app.services.device import OURS, RULE, StopFlag
from app.services.requests import CompareRequest, parse
from srpo.runs import DeviceLock, device_holder

REQUEST = {"seed": 1, "steps": 2, "width": 32, "height": 32, "prompt": "a red ball", "left": "base", "right": "srpo"}


def test_a_comparison_waits_for_the_run_on_the_device_says_whose_it_is_and_then_goes_on(studio):
    lock = DeviceLock("cpu")
    assert lock.acquire("run studio-3 (process 4711)")
    views = compare(studio, parse(CompareRequest, REQUEST), StopFlag())
    for _ in range(3):
        view = next(views)
        assert view.phase == "waiting" and "run studio-3 (process 4711)" in view.message
    lock.release()
    assert [view.phase for view in views][-1] == "done"
    assert device_holder("cpu") is None


def test_a_waiting_comparison_can_be_stopped(studio):
    lock, stop = DeviceLock("cpu"), StopFlag()
    assert lock.acquire("run other")
    views = compare(studio, parse(CompareRequest, REQUEST), stop)
    next(views)
    stop.set()
    assert [view.phase for view in views][-1] == "stopped"
    lock.release()


def test_while_pictures_are_painted_the_device_is_theirs(studio):
    views = compare(studio, parse(CompareRequest, REQUEST), StopFlag())
    while next(views).phase != "running":
        pass
    assert device_holder("cpu") == OURS
    views.close()
    assert device_holder("cpu") is None


def test_the_next_visitor_gets_the_device_without_a_gap_for_anybody_else(studio):
    """Two comparisons at once: each has the lock while it paints, and it is free at the end."""
    ended = []

    def run():
        ended.append(list(compare(studio, parse(CompareRequest, REQUEST), StopFlag()))[-1].phase)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert ended == ["done", "done"] and device_holder("cpu") is None


def test_the_rule_is_on_every_tab_that_works_for_long(unloaded):
    from app import ui

    blocks = ui.build(unloaded()).blocks.values()
    assert [getattr(block, "value", None) for block in blocks].count(RULE) == 5
