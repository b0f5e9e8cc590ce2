"""The health of one process: checks by name, each with the reason of its failure; run on request, their results cached briefly."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bus.masking import mask_text
from bus.observability import metrics
from bus.observability.settings import HealthSettings

HealthCheck = Callable[[], Awaitable[str | None]]
"""Why a dependency cannot be used now; None when it can."""


@dataclass
class Health:
    """The checks of one process by name, such as `broker`, `queue:image`, `engine:image`, `store`, `database`."""

    settings: HealthSettings = field(default_factory=HealthSettings)
    started: bool = False
    checks: dict[str, HealthCheck] = field(default_factory=dict)
    _results: dict[str, str | None] = field(default_factory=dict)
    _checked_at: float = -1e9
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def check_all(self) -> dict[str, str | None]:
        """The reason of each failing check, None for the others."""
        async with self._lock:
            if time.monotonic() - self._checked_at >= self.settings.keep_seconds or self._results.keys() != self.checks.keys():
                reasons = await asyncio.gather(*map(self._run_check, self.checks.values()))
                self._results = dict(zip(self.checks, reasons, strict=True))
                self._checked_at = time.monotonic()
                metrics.record_health(self._results, started=self.started)
            return self._results

    async def _run_check(self, check: HealthCheck) -> str | None:
        try:
            async with asyncio.timeout(self.settings.check_seconds):
                reason = await check()
                return mask_text(reason) if reason else None
        except TimeoutError:
            return f"no response within {self.settings.check_seconds:g} s"
        except Exception as error:
            return mask_text(f"{type(error).__name__}: {error}")[:500]
