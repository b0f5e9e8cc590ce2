"""The division of the busy time among requests, with a clock of the test's own, and between two threads."""

import random
import threading

import pytest

from actors.engines.process.device_time import DeviceTime


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_block_is_charged_by_its_shares_and_an_inner_block_alone() -> None:
    clock = Clock()
    device_time = DeviceTime("cpu", clock)
    with device_time.work_equally([1, 2]):
        clock.now += 2
        with device_time.work({2: 30, 3: 10}):
            clock.now += 4
        clock.now += 6

    assert device_time.take() == (12.0, {1: 4.0, 2: 4.0 + 3.0, 3: 1.0})
    assert device_time.take() == (0.0, {})


def test_time_without_a_request_is_nobodys() -> None:
    clock = Clock()
    device_time = DeviceTime("cpu", clock)
    with device_time.work({}), device_time.work_equally([]):
        clock.now += 5
    with device_time.work({1: 1}):
        clock.now += 1
        with device_time.work({}):
            clock.now += 2

    assert device_time.take() == (3.0, {1: 3.0})


def test_work_that_fails_is_charged() -> None:
    clock = Clock()
    device_time = DeviceTime("cpu", clock)

    def fail() -> None:
        with device_time.work({7: 1}):
            clock.now += 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert device_time.take() == (3.0, {7: 3.0})


def test_work_in_progress_is_reported_so_far() -> None:
    clock = Clock()
    device_time = DeviceTime("cpu", clock)
    with device_time.work({1: 1}):
        clock.now += 1
        assert device_time.take() == (1.0, {1: 1.0})
        clock.now += 2
    assert device_time.take() == (2.0, {1: 2.0})


def test_two_threads_share_each_moment_in_which_both_work() -> None:
    """One works for 1 + 4 + 2 seconds, the other one for the middle 4 of them."""
    clock = Clock()
    device_time = DeviceTime("cpu", clock)
    began, may_end = threading.Event(), threading.Event()

    def encode() -> None:
        with device_time.work({2: 1}):
            began.set()
            assert may_end.wait(60)

    thread = threading.Thread(target=encode)
    with device_time.work({1: 1}):
        clock.now += 1
        thread.start()
        assert began.wait(60)
        clock.now += 4
        may_end.set()
        thread.join()
        clock.now += 2

    assert device_time.take() == (7.0, {1: 1.0 + 2.0 + 2.0, 2: 2.0})


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_is_the_busy_time_for_random_nested_work(seed: int) -> None:
    rng, clock = random.Random(seed), Clock()
    device_time = DeviceTime("cpu", clock)

    def work(depth: int) -> None:
        clock.now += rng.random()
        for _ in range(rng.randrange(3) if depth < 4 else 0):
            with device_time.work({rng.randrange(6): rng.randrange(1, 50) for _ in range(rng.randrange(1, 4))}):
                work(depth + 1)
            clock.now += rng.random()

    with device_time.work({0: 1}):
        started = clock.now
        work(0)
        elapsed = clock.now - started

    busy_seconds, charged = device_time.take()
    assert busy_seconds == pytest.approx(elapsed)
    assert sum(charged.values()) == pytest.approx(busy_seconds)
