"""How long a change waits for a client that has not come back, on a clock of the test's own."""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
import trio.testing

from msharefs.server import revocation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

HERD = 1000
EVERY = 0.01  # seconds from one to the next: ten seconds for all of them would be too long


class BusyError(Exception):
    """The errno, and the seconds until then."""


class Herd:
    """The clients of a region after a restart: all have pages, none is connected yet."""

    name = "region 1"

    def __init__(self) -> None:
        self.connected: dict[int, Any] = {}
        self.rejoined = -math.inf

    def touched(self, *_: int, handed: bool) -> AsyncIterator[int]:
        del handed
        return _Slots()

    async def reap_gone(self, slots: Collection[int]) -> None:
        """None of them is gone."""

    def claim(self, _: int) -> int:
        return 1

    def process_of(self, _: int) -> int:
        return 0

    async def come_back(self, slots: list[int], every: float) -> None:
        """One after the other."""
        for slot in slots:
            await trio.sleep(every)
            self.rejoined = trio.current_time()
            self.connected[slot] = _Silent()

    async def keep_coming(self) -> None:
        """For ever, and never the one that is waited for."""
        while True:
            await self.come_back([HERD], EVERY)


class _Slots:
    """All slots. No generator, which trio would miss the end of after an error."""

    def __init__(self) -> None:
        self._left = iter(range(HERD))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        for slot in self._left:
            return slot
        raise StopAsyncIteration


class _Silent:
    def has_news(self) -> bool:
        return False


def seconds(herd: Herd, come: Any, *arguments: Any) -> float:
    """How long a change waited, or BusyError."""

    async def work() -> float:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come, *arguments)
            try:
                await revocation.wait_connected(herd, 0, 1, handed=True)  # type: ignore[arg-type]
            except OSError as error:
                raise BusyError(error.errno, trio.current_time() - start) from error
            finally:
                nursery.cancel_scope.cancel()
        return trio.current_time() - start

    try:
        return trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None


def test_for_a_herd_as_long_as_they_keep_coming() -> None:
    herd = Herd()
    last_comes_first = list(reversed(range(HERD)))
    assert seconds(herd, herd.come_back, last_comes_first, EVERY) == pytest.approx(10, abs=0.5)


def test_two_seconds_for_one_that_is_stopped() -> None:
    herd = Herd()
    with pytest.raises(BusyError) as caught:
        seconds(herd, herd.come_back, list(range(1, 50)), EVERY)
    assert caught.value.args == (errno.EBUSY, pytest.approx(revocation.CONNECT_SECONDS, abs=0.1))


def test_not_for_ever_while_others_come() -> None:
    herd = Herd()
    with pytest.raises(BusyError) as caught:
        seconds(herd, herd.keep_coming)
    most = revocation.CONNECT_SECONDS + revocation.BACKLOG_SECONDS
    assert caught.value.args == (errno.EBUSY, pytest.approx(most, abs=0.1))
