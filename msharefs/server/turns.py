"""Turns: however much one user asks for, others have to wait only for a little of it.

All requests are answered by one thread, one after the other. A user who has had that thread for a
while waits until it has seen what others want; then a few of the user's requests are let go on at a
time. Nothing is lost by that: where nobody else wants anything, the next few follow at once.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Of the thread's time: a user's share of a window, and one turn of all that wait.
_WINDOW_SECONDS = 0.01
_SHARE_SECONDS = 0.004
_TURN_SECONDS = 0.004
# A request that waited for something did not keep the thread all the time.
_CHARGE_MAX_SECONDS = 0.002
_CHARGE_MIN_SECONDS = 0.00005
# So many callers at once are no flood, however busy they are.
_FEW = 8
# How many users are remembered who do not wait.
_KNOWN_MAX = 1024


class _Share:
    """What a user has had of the thread."""

    __slots__ = ("begun", "callers", "lot", "mean", "since", "spent")

    def __init__(self) -> None:
        self.since = 0.0
        """When the window began."""
        self.spent = 0.0
        """Of the thread's time in the window."""
        self.callers: set[int] = set()
        """Threads that have asked in the window: each waits for its answer."""
        self.begun = 0
        """Requests that are neither done nor waiting for a turn."""
        self.mean = _CHARGE_MIN_SECONDS
        """Of the last requests."""
        self.lot = trio.lowlevel.ParkingLot()


class Turns:
    """The turns of the users of a mount; `start` starts a task."""

    def __init__(self, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._start = start
        self._shares: dict[int, _Share] = {}
        self._waiting: deque[_Share] = deque()
        """The shares of users with requests that wait; each once."""

    async def take(self, user: int, thread: int = 0) -> float:
        """Called before a request of `user` is looked at; the result is for `charge`.

        `thread`: a number of who waits for the answer, a thread or a connection.
        """
        now = time.perf_counter()
        share = self._shares.get(user)
        if share is None:
            share = self._share(user)
        if now - share.since > _WINDOW_SECONDS:
            share.since, share.spent = now, 0.0
            share.callers.clear()
        share.callers.add(thread)
        few = len(share.callers) <= _FEW and share.begun < _FEW
        if (few or share.spent < _SHARE_SECONDS) and not share.lot:
            share.begun += 1
            return now
        if not self._waiting:
            self._start(self._go_on)
        if not share.lot:
            self._waiting.append(share)
        await share.lot.park()
        share.begun += 1
        return time.perf_counter()

    def charge(self, user: int, since: float) -> None:
        """The request that was let go on at `since` is done."""
        share = self._shares.get(user)
        if share is None:
            return
        spent = time.perf_counter() - since
        spent = min(max(spent, _CHARGE_MIN_SECONDS), _CHARGE_MAX_SECONDS)
        share.begun -= 1
        share.spent += spent
        share.mean += (spent - share.mean) / 8

    def _share(self, user: int) -> _Share:
        if len(self._shares) >= _KNOWN_MAX:
            self._shares = {
                user: each for user, each in self._shares.items() if each.begun or each.lot
            }
        share = self._shares[user] = _Share()
        return share

    async def _go_on(self) -> None:
        """Lets a few requests go on whenever the thread has seen what else there is."""
        try:
            while self._waiting:
                await trio.lowlevel.checkpoint()
                left = _TURN_SECONDS
                for _ in range(len(self._waiting)):
                    if left <= 0:
                        break
                    share = self._waiting.popleft()
                    part = left if not self._waiting else _TURN_SECONDS / (len(self._waiting) + 1)
                    count = max(1, int(part / share.mean))
                    left -= len(share.lot.unpark(count=count)) * share.mean
                    if share.lot:
                        self._waiting.append(share)
        finally:
            for share in self._waiting:  # the server ends
                share.lot.unpark_all()
            self._waiting.clear()
