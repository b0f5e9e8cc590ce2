"""Whether this process can work, and if not, why, in words: every part is looked at when somebody asks, at most once a second."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bus import metrics
from bus.health_settings import HealthSettings

Look = Callable[[], Awaitable[str | None]]
"""Why a part cannot be used now; None when it can."""


@dataclass
class Health:
    """The parts of one process by name, such as `broker`, `queue:image`, `engine:image`, `store`, `database`."""

    settings: HealthSettings = field(default_factory=HealthSettings)
    started: bool = False
    parts: dict[str, Look] = field(default_factory=dict)
    _found: dict[str, str | None] = field(default_factory=dict)
    _looked: float = -1e9
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def findings(self) -> dict[str, str | None]:
        """Each part, and what is wrong with it."""
        async with self._one_at_a_time:
            if time.monotonic() - self._looked >= self.settings.keep_seconds or self._found.keys() != self.parts.keys():
                reasons = await asyncio.gather(*(self._look(look) for look in self.parts.values()))
                self._found = dict(zip(self.parts, reasons, strict=True))
                self._looked = time.monotonic()
                metrics.told(self._found, started=self.started)
            return self._found

    async def _look(self, look: Look) -> str | None:
        try:
            async with asyncio.timeout(self.settings.check_seconds):
                return await look()
        except TimeoutError:
            return f"no answer within {self.settings.check_seconds:g} s"
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:500]
