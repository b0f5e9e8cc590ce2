"""The bytes that requests may hold at once: in all, of one tenant, and until when."""

import asyncio

import pytest

from gateway import memory_budget
from gateway.memory_budget import MemoryBudget
from gateway.problems import HttpProblem


async def test_reservation_waits_until_another_one_is_released() -> None:
    budget = MemoryBudget(100, "files")
    first = await budget.reserve("shop", 50)
    waiting = asyncio.create_task(budget.reserve("shop", 30))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    first.release()
    second = await asyncio.wait_for(waiting, 1)
    assert budget.held_bytes == 30
    second.release()
    second.release()
    assert budget.held_bytes == 0


async def test_tenant_leaves_half_to_the_others() -> None:
    budget = MemoryBudget(100, "files")
    await budget.reserve("shop", 50)
    waiting = asyncio.create_task(budget.reserve("shop", 1))
    await asyncio.wait_for(budget.reserve("office", 50), 1)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.held_bytes == 100


async def test_reservation_that_is_not_free_in_time_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "WAIT_SECONDS", 0.05)
    budget = MemoryBudget(100, "bodies")
    await budget.reserve(None, 50)
    with pytest.raises(HttpProblem) as raised:
        await budget.reserve(None, 1)
    assert (raised.value.status, raised.value.headers["Retry-After"], budget.held_bytes) == (503, "5", 50)


async def test_reservation_that_never_fits_is_413() -> None:
    with pytest.raises(HttpProblem) as raised:
        await MemoryBudget(100, "bodies").reserve(None, 51)
    assert raised.value.status == 413


async def test_resized_reservation_frees_the_difference() -> None:
    budget = MemoryBudget(100, "bodies")
    reservation = await budget.reserve("shop", 50)
    reservation.resize(10)
    await asyncio.wait_for(budget.reserve("shop", 40), 1)
    assert budget.held_bytes == 50
