"""Processes that do not answer: stopped, as in a debugger, in the worst places."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.native import lib

from support.actor import PAGE, Board, maperr
from support.audit import assert_whole
from support.hostview import number_of
from support.memory import QUANTUM
from support.stopping import go_on, kill, stop, stop_inside_a_fault
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

    from support.actor import Actor
    from support.server import Mount

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

# Strict: one fault for each page, so that a process that touches pages is nearly always inside one.
pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched")

SIZE = 256 * QUANTUM


def flood(actor: Actor, region: msharefs.Region, board: Board, number: int, start: int) -> None:
    """Let threads of the process touch all pages from `start` on for the first time."""
    base = actor.attach(actor.give(region.fd))
    pages = (SIZE - start) // PAGE
    actor.call("flood", actor.give(board.fd), number, base + start, pages, PAGE, 4, number)


def test_outside_of_a_fault_it_holds_nobody_up(actors: Actors, make_region: Regions) -> None:
    region = make_region(QUANTUM)
    stopped, other = actors(), actors()
    bases = [actor.attach(actor.give(region.fd)) for actor in (stopped, other)]
    stopped.call("fill", bases[0], QUANTUM, 1, 0)
    stop(stopped)
    region.unmap(0, QUANTUM // 2)
    assert other.call("load", bases[1]) == maperr(bases[1])
    assert region.stat()["rss_bytes"] == QUANTUM // 2
    region.map(0, PAGE)
    assert other.call("store", bases[1], 1) == []
    go_on(stopped)
    assert stopped.call("load", bases[0]) == [1]
    assert stopped.call("load", bases[0] + PAGE) == maperr(bases[0] + PAGE)
    assert stopped.call("check", bases[0] + QUANTUM // 2, PAGE, 1, QUANTUM // 2 // PAGE) == [0]


@pytest.mark.slow
def test_inside_a_fault_changes_are_refused_and_nothing_is_changed(
    actors: Actors, make_region: Regions, shared_mount: Mount
) -> None:
    region = make_region(SIZE)
    stopped, writer, toucher = actors(), actors(), actors()
    base = writer.attach(writer.give(region.fd))
    writer.call("fill", base, QUANTUM, 1, 0)
    before = region.maps()
    with Board() as board:
        board.phase(Board.THERE)
        flood(stopped, region, board, 0, QUANTUM)
        stop_inside_a_fault(stopped, shared_mount, number_of(region.path))
        # Others go on, even with first touches in that range: none may see a signal.
        view = toucher.attach(toucher.give(region.fd))
        toucher.call("hammer", toucher.give(board.fd), 1, view, SIZE // PAGE, 1)
        with pytest.raises(OSError, match="is it stopped, or in a debugger") as caught:
            region.unmap(0, SIZE)
        assert caught.value.errno == errno.EBUSY
        assert region.maps() == before
        assert writer.call("check", base + PAGE, PAGE, 1, 1) != maperr(base + PAGE)
        with pytest.raises(OSError, match="is it stopped, or in a debugger"):
            region.map(0, QUANTUM)
        assert region.maps() == before
        with pytest.raises(OSError, match="is it stopped, or in a debugger"):
            region.protect(0, QUANTUM, mmap.PROT_READ)
        assert region.maps() == before
        assert writer.call("store", base + PAGE, 1) == []
        stored = board.seen(1)[0]
        until(lambda: board.seen(1)[0] > stored, "the other goes on")
        assert board.seen(1)[2] == 0, "an access was refused, though nothing was unmapped"

        board.phase(Board.CHANGING)
        go_on(stopped)
        board.phase(Board.STOP)
        stopped.call("join")
        toucher.call("join")
    region.unmap(0, SIZE)
    for actor, address in ((writer, base), (toucher, view)):
        assert actor.call("load", address) == maperr(address)
    region.map(0, SIZE)
    assert writer.call("fill", base, QUANTUM, 2, 0) == []
    assert toucher.call("check", view, QUANTUM, 2, 0) == [0]
    assert_whole(region)


def test_what_is_killed_inside_a_fault_holds_nobody_up(
    actors: Actors, make_region: Regions, shared_mount: Mount
) -> None:
    region = make_region(SIZE)
    with Board() as board:
        board.phase(Board.THERE)
        victim = actors()
        flood(victim, region, board, 0, 0)
        stop_inside_a_fault(victim, shared_mount, number_of(region.path))
        kill(victim)
        region.unmap(0, SIZE)
        assert region.describe("clients") == []
    assert_whole(region)


def test_many_calls_that_wait_leave_room_for_others(
    actors: Actors, make_region: Regions, shared_mount: Mount
) -> None:
    """Each stays in the server until the stopped process lets go; others are answered."""
    region = make_region(QUANTUM)
    stopped = actors()
    base = stopped.attach(stopped.give(region.fd))
    stopped.call("fill", base, QUANTUM, 1, 0)
    protect = struct.pack("=QQII", 0, PAGE, 0, 0)
    waiting: set[int] = set()

    def call() -> int:
        waiting.add(threading.get_native_id())
        try:
            fcntl.ioctl(region.fd, lib.MSHAREFS_PROTECT, protect)
        except OSError as error:
            return error.errno
        return 0

    def inside(tid: int) -> bool:
        return "request_wait_answer" in Path(f"/proc/self/task/{tid}/wchan").read_text()

    stop(stopped)
    with ThreadPoolExecutor(150) as pool:
        calls = [pool.submit(call) for _ in range(150)]
        until(lambda: sum(map(inside, set(waiting))) >= 140, "the server has them")
        path = shared_mount.path / "while-they-wait"
        path.touch()
        assert os.stat(path).st_size == 0
        path.unlink()
        assert sum(not call.done() for call in calls) > 100
        go_on(stopped)
    assert {call.result() for call in calls} <= {0, errno.EBUSY}
    assert calls[-1].result() == 0


def test_who_is_refused_learns_whom_the_server_waited_for(
    actors: Actors, make_region: Regions
) -> None:
    region = make_region(QUANTUM)
    stopped = actors()
    stopped.call("fill", stopped.attach(stopped.give(region.fd)), QUANTUM, 1, 0)
    name = Path(f"/proc/{stopped.pid}/comm").read_text().strip()
    stop(stopped)
    who = rf"process {stopped.pid} \({name}\) does not answer"
    with pytest.raises(OSError, match=rf"nothing is changed: {who}.*{region.path}"):
        region.protect(0, QUANTUM, 0)
    go_on(stopped)
    region.protect(0, QUANTUM, 0)
