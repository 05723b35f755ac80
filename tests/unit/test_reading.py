"""Requests are read several in one turn of the server's loop, and others still have their turns."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from msharefs.server import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 40
TASKS = 3


class Loop(trio.abc.Instrument):
    """Tasks that read one byte for each request, in the way of pyfuse3's tasks."""

    def __init__(self, given: Any, fd: int) -> None:
        self._trio = given
        self._fd = fd
        self._lock = given.Lock()
        self.read = 0
        self.turns: list[int] = [0]
        """How many were read when each of the loop's turns was over; all who are ready have one."""

    async def _answer(self) -> None:
        while self.read < REQUESTS:
            async with self._lock:
                if self.read == REQUESTS:
                    return
                await self._trio.lowlevel.wait_readable(self._fd)
                os.read(self._fd, 1)
                self.read += 1

    def before_io_wait(self, timeout: float) -> None:
        """Where trio has finished a turn."""
        del timeout
        self.turns.append(self.read)

    def run(self) -> None:
        """Until all are read."""
        trio.run(self._run, instruments=[self])

    async def _run(self) -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(self._answer)


@pytest.fixture
def requests() -> Iterator[int]:
    """A pipe with requests to be read."""
    receiver, sender = os.pipe()
    os.write(sender, bytes(REQUESTS))
    yield receiver
    os.close(receiver)
    os.close(sender)


def test_some_are_read_in_one_turn(requests: int) -> None:
    loop = Loop(reading.Trio(), requests)
    loop.run()
    read = [after - before for before, after in itertools.pairwise(loop.turns)]
    assert max(read) == reading.AT_ONCE
    assert loop.turns[-1] == REQUESTS


def test_trio_alone_needs_turns_for_each(requests: int) -> None:
    """What it is good for."""
    loop = Loop(trio, requests)
    loop.run()
    assert len(loop.turns) >= REQUESTS


def test_everything_else_is_trios() -> None:
    given = reading.Trio()
    assert given.ClosedResourceError is trio.ClosedResourceError
    assert given.lowlevel.notify_closing is trio.lowlevel.notify_closing


def test_a_task_that_waits_can_be_cancelled() -> None:
    lock = reading.ReadLock()

    async def hold() -> None:
        async with lock:
            await trio.sleep_forever()

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0) as scope:
                async with lock:
                    pass
            assert scope.cancelled_caught
            nursery.cancel_scope.cancel()
        async with lock:  # it is free again
            pass

    trio.run(work)
