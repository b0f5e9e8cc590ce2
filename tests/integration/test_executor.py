"""The executor with real processes that crash, hang, exit, allocate all memory and are killed."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.engines.process.executor import Executor, open_executor
from actors.engines.process.protocol import EngineSpec, Progressed
from actors.engines.settings import ExecutorSettings
from bus.errors import EngineCrashed, PermanentError, TemporaryError
from bus.observability import metrics
from bus.observability.device_usage import DeviceUsage, measure_usage
from tests.support.broker_client import wait_until
from tests.support.faulty_engine import FaultyRequest

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def open_faulty_executor(
    options: dict[str, Any] | None = None, *, max_in_flight: int = 100, capacity: int = 8, set_unready: Any = lambda _: None, **limits: Any
) -> AsyncIterator[Executor]:
    settings = ExecutorSettings(**{"step_seconds": 5.0, "first_wait_seconds": 0.05, "longest_wait_seconds": 0.3, **limits})
    spec = EngineSpec("tests.support.faulty_engine:open_faulty_engine", options)
    async with open_executor(spec, settings, max_in_flight=max_in_flight, capacity=capacity, set_unready=set_unready) as executor:
        yield executor


async def test_request_reports_each_step_and_its_output_is_deleted_after_reading() -> None:
    steps: list[Progressed] = []
    async with open_faulty_executor() as executor:
        outcome = await executor.run(FaultyRequest(steps=4, output_bytes=1_000_000), on_progress=steps.append)
        assert steps[0].step == 0, "the start is reported, too"
        assert [(step.step, step.total) for step in steps[1:]] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert outcome.result["process"] == executor.process_id != os.getpid()
        assert [len(output) for output in outcome.outputs] == [1_000_000]
        assert list(executor.shm_dir.iterdir()) == []


async def test_request_rejected_by_engine_fails_alone() -> None:
    async with open_faulty_executor() as executor:
        result, error = await asyncio.gather(executor.run(FaultyRequest()), executor.run(FaultyRequest(steps=0)), return_exceptions=True)
        assert isinstance(error, PermanentError)
        assert error.code == "no-steps"
        assert result.result["steps"] == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", ["segfault", "exit", "raise", "hang"])
async def test_only_crashing_request_is_dead_lettered(fault: str) -> None:
    """Four requests share the process that one of them ends; the next process finishes the other three."""
    async with open_faulty_executor(step_seconds=1.0) as executor:
        await executor.ready()
        faulty = executor.run(FaultyRequest(steps=5, fault=fault, fault_step=2))
        *others, error = await asyncio.gather(*(executor.run(FaultyRequest(steps=20)) for _ in range(3)), faulty, return_exceptions=True)
        assert isinstance(error, PermanentError)
        assert error.code == "engine-crash"
        assert [other.result["steps"] for other in others] == [20, 20, 20]  # type: ignore[union-attr]
        assert (await executor.run(FaultyRequest())).result["steps"] == 3


async def test_external_kill_retries_all_requests() -> None:
    async with open_faulty_executor() as executor:
        await executor.ready()
        requests = [asyncio.create_task(executor.run(FaultyRequest(steps=30, seconds=0.02))) for _ in range(3)]
        await asyncio.sleep(0.2)
        first = executor.process_id
        assert first
        os.kill(first, signal.SIGKILL)
        outcomes = await asyncio.gather(*requests)
        assert all(outcome.result["process"] != first for outcome in outcomes)
        assert executor.stats.exits == {"killed": 1}


async def test_out_of_memory_is_temporary_error_for_one_request() -> None:
    async with open_faulty_executor(memory_limit_bytes=1 << 30, step_seconds=30.0) as executor:  # a busy machine allocates slowly
        error, other = await asyncio.gather(
            executor.run(FaultyRequest(fault="allocate")), executor.run(FaultyRequest(steps=10)), return_exceptions=True
        )
        assert isinstance(error, TemporaryError)
        assert error.code == "out-of-memory"
        assert other.result["steps"] == 10  # type: ignore[union-attr]


async def test_cancel_stops_one_request_at_next_step() -> None:
    async with open_faulty_executor(capacity=2) as executor:
        await executor.ready()
        long = asyncio.create_task(executor.run(FaultyRequest(steps=10_000, seconds=0.02)))
        neighbour = asyncio.create_task(executor.run(FaultyRequest(steps=30, seconds=0.02)))
        queued = asyncio.create_task(executor.run(FaultyRequest(steps=2)))
        await asyncio.sleep(0.2)
        process = executor.process_id
        started = time.monotonic()
        long.cancel()
        assert (await queued).result["steps"] == 2
        assert time.monotonic() - started < 0.3, "the next request starts as soon as the place is free"
        assert (await neighbour).result["process"] == process
        assert executor.stats.cancelled == 1
        assert executor.in_flight == 0


async def test_request_cancelled_while_queued_never_reaches_engine() -> None:
    async with open_faulty_executor(capacity=1) as executor:
        await executor.ready()
        first = asyncio.create_task(executor.run(FaultyRequest(steps=20, seconds=0.01)))
        steps: list[Progressed] = []
        second = asyncio.create_task(executor.run(FaultyRequest(), on_progress=steps.append))
        await asyncio.sleep(0.05)
        second.cancel()
        await first
        assert steps == []
        assert executor.in_flight == 0


async def test_request_past_its_deadline_never_reaches_engine() -> None:
    steps: list[Progressed] = []
    async with open_faulty_executor() as executor:
        with pytest.raises(PermanentError) as raised:
            await executor.run(FaultyRequest(), deadline=datetime.now(UTC) - timedelta(seconds=1), on_progress=steps.append)
        assert raised.value.code == "deadline-exceeded"
        assert steps == []


async def test_request_beyond_max_in_flight_raises_temporary_error() -> None:
    async with open_faulty_executor(max_in_flight=2) as executor:
        requests = [asyncio.create_task(executor.run(FaultyRequest(steps=5, seconds=0.01))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TemporaryError):
            await executor.run(FaultyRequest())
        await asyncio.gather(*requests)


async def test_tenant_backlog_does_not_starve_other_tenant() -> None:
    async with open_faulty_executor(max_in_flight=200, capacity=2) as executor:
        await executor.ready()
        finished: list[str] = []

        async def run_for(tenant: str) -> None:
            await executor.run(FaultyRequest(steps=2), tenant=tenant)
            finished.append(tenant)

        backlog = [asyncio.create_task(run_for("a")) for _ in range(100)]
        await asyncio.sleep(0)
        await run_for("b")
        assert len(finished) <= 6, "b waits for the running requests and one further of a"
        await asyncio.gather(*backlog)


async def test_failing_engine_start_opens_circuit_breaker_until_success(tmp_path: Path) -> None:
    reasons: list[str | None] = []
    weights, start_log = tmp_path / "weights", tmp_path / "starts"
    options = {"required_file": str(weights), "start_log": str(start_log)}
    async with open_faulty_executor(options, set_unready=reasons.append, failures_before_open=3) as executor:
        with pytest.raises(EngineCrashed):
            await executor.run(FaultyRequest())
        assert not executor.healthy
        assert "does not exist" in (executor.unready_reason or "")
        assert len(start_log.read_text().splitlines()) == 3
        weights.touch()
        assert (await executor.run(FaultyRequest())).result["steps"] == 3
        assert executor.healthy
        assert reasons[-1] is None


async def test_event_loop_stays_responsive_under_engine_load() -> None:
    async with open_faulty_executor() as executor:
        requests = [asyncio.create_task(executor.run(FaultyRequest(steps=200, seconds=0.001))) for _ in range(8)]
        lags = []
        while not all(task.done() for task in requests):
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - before - 0.005)
        assert sorted(lags)[len(lags) // 2] < 0.01


async def test_close_fails_requests_with_engine_crashed_and_ends_process() -> None:
    async with open_faulty_executor() as executor:
        await executor.ready()
        request = asyncio.create_task(executor.run(FaultyRequest(steps=1000, seconds=0.01)))
        await asyncio.sleep(0.1)
        process = executor.process_id
        assert process
    with pytest.raises(EngineCrashed):
        await request
    assert not psutil.pid_exists(process)
    assert not executor.shm_dir.exists()


async def test_engine_process_ignores_sigint_and_sigterm() -> None:
    async with open_faulty_executor() as executor:
        await executor.ready()
        assert executor.process_id
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(executor.process_id, number)
        assert (await executor.run(FaultyRequest())).result["process"] == executor.process_id
        assert not executor.stats.exits


async def test_engine_process_exits_with_parent(tmp_path: Path) -> None:
    """The parent is killed with SIGKILL while its model process is in the middle of a step."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.executor_parent", str(tmp_path / "child"), cwd=Path(__file__).parents[2]
    )
    child = await read_number(tmp_path / "child")
    assert psutil.pid_exists(child)
    parent.kill()
    await parent.wait()
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the process outlived its parent")


async def read_number(file: Path) -> int:
    while not (file.exists() and file.read_text().endswith("\n")):
        await asyncio.sleep(0.02)
    return int(file.read_text())


async def test_lazy_executor_starts_its_process_for_the_first_request(tmp_path: Path) -> None:
    """Until then it counts as available, and closes without having started one."""
    starts = tmp_path / "starts"
    spec = EngineSpec("tests.support.faulty_engine:open_faulty_engine", {"start_log": str(starts)})
    async with open_executor(spec, ExecutorSettings(), max_in_flight=4, capacity=2, lazy=True) as executor:
        await asyncio.sleep(0.1)
        assert (executor.is_wanted, await executor.unavailable_reason(), starts.exists()) == (False, None, False)
        results = await asyncio.gather(*(executor.run(FaultyRequest()) for _ in range(3)))
        assert {result.result["steps"] for result in results} == {3}
        assert (executor.is_wanted, len(starts.read_text().splitlines())) == (True, 1)
    async with open_executor(spec, ExecutorSettings(), max_in_flight=4, capacity=2, lazy=True):
        pass
    assert len(starts.read_text().splitlines()) == 1


async def run_measured(executor: Executor, request: FaultyRequest, usages: list[DeviceUsage], *, cancel_after: float | None = None) -> Any:
    """As the worker does: each request in a delivery of its own."""
    with measure_usage("text") as usage:
        usages.append(usage)
        return await asyncio.wait_for(executor.run(request), cancel_after)


async def test_device_seconds_of_all_requests_are_the_busy_time() -> None:
    """Finished, refused, cancelled ones, and those that run again because another one ended their process."""
    usages: list[DeviceUsage] = []
    async with open_faulty_executor(step_seconds=1.0) as executor:
        await executor.ready()
        outcomes = await asyncio.gather(
            *(run_measured(executor, FaultyRequest(steps=6, seconds=0.05), usages) for _ in range(3)),
            run_measured(executor, FaultyRequest(steps=0), usages),
            run_measured(executor, FaultyRequest(steps=50, seconds=0.05), usages, cancel_after=0.2),
            run_measured(executor, FaultyRequest(steps=5, seconds=0.02, fault="hang", fault_step=4), usages),
            return_exceptions=True,
        )
        *finished, refused, cancelled, crashed = outcomes
        await executor.run(FaultyRequest(steps=1))  # its report comes after that of the cancelled request

    assert executor.stats.exits["hang"] == 2
    assert [type(error) for error in (refused, cancelled, crashed)] == [PermanentError, TimeoutError, PermanentError]
    assert sum(usage.seconds or 0.0 for usage in usages) == pytest.approx(executor.stats.busy_seconds, rel=0.02)
    hanging = usages[5].seconds
    assert hanging
    assert hanging > 1.0, "the time until the process is killed counts, too"
    for execution, usage in zip(finished, usages[:3], strict=True):
        assert execution.device_seconds == usage.seconds  # type: ignore[union-attr]
        assert execution.device_seconds > 6 * 0.05, "two attempts add up"  # type: ignore[union-attr]


async def test_work_that_is_reported_after_a_cancel_is_in_the_metric(tmp_path: Path) -> None:
    """The step ends after its caller has gone; its time is charged all the same."""
    usages: list[DeviceUsage] = []
    before = device_seconds_of("text")
    async with open_faulty_executor(step_seconds=30.0) as executor:
        await executor.ready()
        caller = asyncio.create_task(run_measured(executor, FaultyRequest(steps=1, gate=tmp_path), usages))
        await wait_until(lambda: asyncio.to_thread((tmp_path / "began").exists), 30)
        began = time.monotonic()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        (usage,) = usages
        assert [one.seconds for one in usages] == [None]
        elapsed = time.monotonic() - began
        (tmp_path / "end").touch()
        await wait_until(lambda: asyncio.sleep(0, usage.seconds is not None), 30)
    assert (usage.seconds or 0.0) > elapsed
    assert device_seconds_of("text") - before == pytest.approx(usage.seconds)


def device_seconds_of(step: str) -> float:
    """What the metric has counted."""
    [family] = metrics.DEVICE_SECONDS.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total") and sample.labels["step"] == step)
