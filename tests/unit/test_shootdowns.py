"""The model of shootdowns looks after a change, when much may have changed again."""

from __future__ import annotations

import os
from typing import Any, cast

import trio

from msharefs.server.limiters import Limiters
from msharefs.server.shootdowns import Shootdowns

PAGE = 4096


class Clients:
    """Of a region; as many as the test says."""

    name = "r"

    def __init__(self, *parts: tuple[int, int]) -> None:
        self.connected = dict.fromkeys(range(len(parts)))
        self._parts = [(start, end, os.getpid()) for start, end in parts]
        self.closed = False

    def looking(self) -> Limiters:
        """A place among the threads."""
        return Limiters()

    def parts(self) -> list[tuple[int, int, int]]:
        assert not self.closed, "its shared memory is not mapped any more"
        return self._parts


def counted(clients: Clients, *changes: tuple[int, int], closed: bool = False) -> dict[str, int]:
    async def look() -> dict[str, dict[str, int]]:
        shootdowns = Shootdowns(cast("Any", clients))
        for change in changes:
            shootdowns.note("remove", *change)
        if closed:
            shootdowns.end()
            clients.closed = True
        return await shootdowns.figures()

    return trio.run(look)["remove"]


def test_a_region_that_has_been_closed_meanwhile() -> None:
    assert not any(counted(Clients((0, PAGE)), (0, PAGE), closed=True).values())


def test_each_change_has_those_who_have_some_of_it() -> None:
    """The same process twice, in one part: it is one."""
    clients = Clients((0, 2 * PAGE), (0, 2 * PAGE), (4 * PAGE, 8 * PAGE))
    found = counted(clients, (2 * PAGE, 4 * PAGE), (0, PAGE), (0, PAGE), (PAGE, 5 * PAGE))
    assert (found["times"], found["processes"], found["broadcast"]) == (3, 3, 3)
    assert found["flush_all"] == 3 * (os.cpu_count() or 1)
