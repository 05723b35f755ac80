"""How pyfuse3's tasks read requests: several in one turn of the server's loop.

pyfuse3 starts as many tasks as there are requests that wait. A task takes a lock, waits until there
is a request, lets go of the lock, and answers. With trio's lock, and trio's waiting, that is two
turns of the loop for each request, and in each turn everybody else's work goes on: where many ask
at once, a stat(2) would wait for all others as often as there are requests before it.

So pyfuse3 gets a trio whose lock is free again at once for the task that has answered, and which
does not wait for what is there already.
"""

from __future__ import annotations

import select
from typing import Any

import trio

AT_ONCE = 16
"""Requests that are read in one turn: others wait for no more than these."""


class ReadLock:
    """In the place of trio.Lock."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._taken:
            await self._waiting.park()
        self._taken = True

    async def __aexit__(self, *_: object) -> None:
        self._taken = False
        self._waiting.unpark()


class LowLevel:
    """In the place of trio.lowlevel."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._poll = select.poll()
        self._fd = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        """As trio's, but does not let others go on if there is something to read."""
        if fd != self._fd:
            self._poll, self._fd = select.poll(), fd
            self._poll.register(fd, select.POLLIN)
        self._left -= 1
        if self._left > 0 and self._poll.poll(0):
            return
        self._left = AT_ONCE
        await trio.lowlevel.wait_readable(fd)


class Trio:
    """In the place of the module trio, for pyfuse3."""

    Lock = ReadLock

    def __init__(self) -> None:
        self.lowlevel = LowLevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)
