"""Readers, whose faults the server answers, while it is away and after it has come back."""

from __future__ import annotations

import errno
import mmap
import os
import signal
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.native import lib

from support.actor import PAGE, Board, accerr, maperr
from support.audit import assert_whole
from support.calls import refused
from support.hostview import host_mm, number_of
from support.memory import QUANTUM
from support.stopping import go_on, stop
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

    Actors = Callable[[], Actor]

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", limit=100)

SIZE = 4 * QUANTUM
READ, NONE = mmap.PROT_READ, 0


@pytest.fixture
def path(mount: Mount) -> Path:
    """A region, mapped except its first page, with a page of data."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(PAGE, SIZE - PAGE)
        view = region.attach()
        view[PAGE] = 42
        region.detach(view)
    return path


def attach(actor: Actor, path: Path, flags: int = os.O_RDONLY) -> int:
    with msharefs.open(path, flags) as region:
        fd = actor.give(region.fd)
    base = actor.attach(fd, prot=READ)
    actor.call("close", fd)
    return base


def clients(region: msharefs.Region) -> dict[int, int]:
    """What the clients have mapped, in pages, by their process ids."""
    return {each["pid"]: each["materialised_pages"] for each in region.describe("clients")}


def waits(actor: Actor) -> bool:
    """Whether its thread sleeps in a page fault."""
    with open(f"/proc/{actor.pid}/wchan") as name:
        return name.read() == "handle_userfault"


def test_a_fault_waits_until_the_server_is_back(mount: Mount, path: Path, actors: Actors) -> None:
    reader = actors()
    base = attach(reader, path)
    assert reader.call("load", base + PAGE) == [42]
    mount.kill()
    assert reader.call("load", base + PAGE) == [42], "it has that page"
    reader.start("load", base + QUANTUM)
    until(lambda: waits(reader), "it waits for its page")
    mount.start()
    assert reader.finish() == [0]
    assert reader.call("load", base) == maperr(base)
    with msharefs.open(path) as region:
        assert clients(region) == {reader.pid: 2}, "the same attachment, and its figures"
        region.protect(PAGE, PAGE, NONE)
        assert reader.call("load", base + PAGE) == accerr(base + PAGE)
        region.map(0, QUANTUM)
        assert [reader.call("load", base + at) for at in (0, PAGE)] == [[0], [0]]
        region.unmap(0, SIZE)
        assert reader.call("load", base + QUANTUM) == maperr(base + QUANTUM)
        assert_whole(region)


def test_many_threads_that_wait(mount: Mount, path: Path, actors: Actors) -> None:
    """More than may have asked at a time; they all go on, and each page is filled once."""
    reader = actors()
    base = attach(reader, path)
    with Board() as board:
        board.phase(Board.THERE)
        reader.call("gaze", reader.give(board.fd), 0, base + QUANTUM, 512, 64)
        board.wait(0, 0, 10)
        for _ in range(2):
            mount.kill()
            mount.start()
            board.wait(0, 0, 1000)
        board.phase(Board.STOP)
        reader.call("join")
        assert board.seen(0)[1:] == (0, 0)
    with msharefs.open(path) as region:
        stat = assert_whole(region)
        # A server that is killed between an entry and its count has not counted that page.
        uncounted = stat["rss_bytes"] // PAGE - stat["counters"]["faults"]
        assert 0 <= uncounted <= 2


def test_children_that_were_made_meanwhile(mount: Mount, path: Path, actors: Actors) -> None:
    reader = actors()
    base = attach(reader, path)
    assert reader.call("load", base + PAGE) == [42]
    mount.kill()
    with reader.fork() as child:
        assert child.finish() == []
        child.start("load", base + PAGE)
        until(lambda: waits(child), "its window is empty")
        mount.start()
        assert child.finish() == [42]
        assert child.call("store", base + PAGE) == accerr(base + PAGE)
        with msharefs.open(path) as region:
            until(lambda: len(clients(region)) == 2, "both have come back")
            region.protect(PAGE, PAGE, NONE)
            for actor in (reader, child):
                assert actor.call("load", base + PAGE) == accerr(base + PAGE)
    with msharefs.open(path) as region:
        until(lambda: list(clients(region)) == [reader.pid], "the child has gone")
        assert_whole(region)


def test_what_it_has_is_taken_after_a_crash_too(mount: Mount, path: Path, actors: Actors) -> None:
    """The server that comes next knows which pages a reader has, before that has come back."""
    reader = actors()
    base = attach(reader, path)
    assert reader.call("load", base + PAGE) == [42]
    stop(reader)
    mount.kill()
    mount.start()
    with msharefs.open(path) as region:
        with refused(errno.EBUSY):
            region.protect(PAGE, PAGE, NONE)
        region.unmap(PAGE, PAGE)
        go_on(reader)
        assert reader.call("load", base + PAGE) == maperr(base + PAGE)
        region.protect(2 * PAGE, PAGE, NONE)
        assert reader.call("load", base + 2 * PAGE) == accerr(base + 2 * PAGE)


def test_a_server_that_died_inside_a_fault(mount: Mount, path: Path, actors: Actors) -> None:
    """It was in the reader's epoch; the reader's next server ends that."""
    reader = actors()
    base = attach(reader, path)
    assert reader.call("load", base + PAGE) == [42]
    number = number_of(str(path))
    mount.kill()
    with host_mm(mount, number) as mm:
        [slot] = [slot for slot in range(lib.slots_high(mm)) if lib.mm_client_pid(mm, slot)]
        lib.slot_enter(mm, slot)
    mount.start()
    assert reader.call("load", base + QUANTUM) == [0]
    with msharefs.open(path) as region:
        region.unmap(QUANTUM, QUANTUM)
        assert reader.call("load", base + QUANTUM) == maperr(base + QUANTUM)
        region.map(QUANTUM, QUANTUM)
        region.unmap(QUANTUM, QUANTUM)
        assert_whole(region)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_ends_leaves_nothing(
    mount: Mount, path: Path, actors: Actors, number: int
) -> None:
    """Killed while it waits for the server; or stopped, and killed when the server is back."""
    reader = actors()
    base = attach(reader, path)
    mount.kill()
    reader.start("load", base + PAGE)
    until(lambda: waits(reader), "it waits for its page")
    os.kill(reader.pid, number)
    mount.start()
    with msharefs.open(path) as region:
        if number == signal.SIGSTOP:
            assert list(clients(region)) == [reader.pid]
        reader.kill()
        until(lambda: not clients(region), "it has gone")
        assert_whole(region)
