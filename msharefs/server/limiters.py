"""A place among the threads that several limits leave: a limiter as trio has it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio


class Limiters:
    """A place under each of these limits, which are asked one after the other."""

    def __init__(self, *limiters: trio.CapacityLimiter) -> None:
        self._limiters = limiters

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        """Waits for a place; who waits at one of them has none of those that follow."""
        with contextlib.ExitStack() as got:
            for limiter in self._limiters:
                await limiter.acquire_on_behalf_of(borrower)
                got.callback(limiter.release_on_behalf_of, borrower)
            got.pop_all()

    def release_on_behalf_of(self, borrower: object) -> None:
        """The thread has ended, whether somebody still waited for it or not."""
        for limiter in self._limiters:
            limiter.release_on_behalf_of(borrower)
