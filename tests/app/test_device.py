"""The device serves one at a time in the order of asking, and a stop reaches only its own page's work."""

import threading
import time

import pytest

from app.services.device import AlreadyRunning, Device, Jobs, Stopped
from tests.app.serving import PATIENCE_S


def test_turns_come_in_the_order_of_asking():
    device, order = Device(), []

    def work(name, asked):
        with device.turn() as turn:
            asked.set()
            while turn.wait(timeout_s=5):
                pass
            order.append(name)

    threads = []
    with device.turn() as first:
        assert first.ahead() == 0
        for name in "abc":
            asked = threading.Event()
            threads.append(threading.Thread(target=work, args=(name, asked)))
            threads[-1].start()
            assert asked.wait(PATIENCE_S)
        time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(PATIENCE_S)
    assert order == ["a", "b", "c"]


def test_fifty_at_once_never_overlap():
    device, inside, most, done = Device(), 0, 0, 0

    def work():
        nonlocal inside, most, done
        with device.turn() as turn:
            while turn.wait(timeout_s=5):
                pass
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            inside -= 1
            done += 1

    threads = [threading.Thread(target=work) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert (most, done) == (1, 50)


def test_a_turn_is_given_back_when_its_work_fails():
    device = Device()
    with pytest.raises(RuntimeError), device.turn():
        raise RuntimeError
    with device.turn() as turn:
        assert turn.ahead() == 0


def test_a_stop_reaches_only_its_own_work():
    jobs = Jobs()
    with jobs.flag("one") as one, jobs.flag("two") as two:
        assert jobs.stop("one")
        assert one and not two
        with pytest.raises(Stopped):
            one.check()
        two.check()
    assert not jobs.stop("one")


def test_a_page_has_one_work_of_a_kind_at_a_time():
    jobs = Jobs()
    with jobs.flag("one") as flag:
        with pytest.raises(AlreadyRunning, match="stop it first"), jobs.flag("one"):
            pass
        assert jobs.stop("one") and flag
    with jobs.flag("one") as flag:
        assert not flag
