"""Looking for what other servers have changed, before an answer: one look for all who wait for one."""

import asyncio
from collections.abc import Awaitable, Callable


class Follower:
    """Shares looks among those who ask for one at the same time.

    A look that is under way may have read before a change was acknowledged, so that it is of use to those only who
    came before it began; who comes later waits for the next one, of which there is never more than one in line.

    Args:
        look: reads what there is to see, and takes it up.
    """

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def caught_up(self) -> None:
        """Return when a look that began after this call has ended; what it raises, each who waited for it gets."""
        if self._next is None:
            self._next = asyncio.create_task(self._look_after(self._running))
        await asyncio.shield(self._next)

    async def _look_after(self, running: "asyncio.Task[None] | None") -> None:
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        await self._look()
