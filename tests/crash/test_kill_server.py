"""A server killed while processes are attached: they go on, and the next server takes over."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.actor import PAGE, READ_WRITE, Board, maperr
from support.audit import assert_whole
from support.calls import refused
from support.hostview import is_changing, number_of
from support.memory import QUANTUM
from support.stopping import go_on, kill_in_a_change, stop_inside_a_fault
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

    Actors = Callable[[], Actor]

# Strict: one fault for each page, so that a process that touches pages is nearly always inside one.
pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", limit=100)

SIZE = 4 * QUANTUM
CLONE_NEWPID = 0x20000000  # sched.h


@pytest.fixture
def path(mount: Mount) -> Path:
    """A region, mapped except its first page; ours, so that it lives as long as this test."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(PAGE, SIZE - PAGE)
    return path


def clients(region: msharefs.Region) -> set[int]:
    return {client["pid"] for client in region.describe("clients")}


def names(region: msharefs.Region) -> list[str]:
    """Process ids of the server's clients, as the server sees them."""
    return [client["comm"] for client in region.describe("clients")]


def attach(actor: Actor, path: Path) -> int:
    with msharefs.open(path) as region:
        fd = actor.give(region.fd)
    base = actor.attach(fd)
    actor.call("close", fd)
    return base


def test_processes_go_on_without_a_server(mount: Mount, path: Path, actors: Actors) -> None:
    first, second = actors(), actors()
    bases = [attach(actor, path) for actor in (first, second)]
    assert first.call("fill", bases[0] + PAGE, 8 * PAGE, 1, 1) == []
    assert second.call("load", bases[1] + PAGE) == first.call("load", bases[0] + PAGE)
    mount.kill()

    # First touches, in existing tables and in new ones; pages that another filled; holes.
    assert first.call("fill", bases[0] + QUANTUM, QUANTUM, 2, 0) == []
    assert second.call("check", bases[1] + QUANTUM, QUANTUM, 2, 0) == [0]
    assert second.call("store", bases[1] + 2 * QUANTUM, 7) == []
    assert second.call("load", bases[1]) == maperr(bases[1])
    assert second.call("read", bases[1] + 3 * QUANTUM, PAGE) == [PAGE]
    with second.fork(bases[1] + 2 * QUANTUM) as child:
        assert child.finish() == [7]
        assert child.call("store", bases[1] + 2 * QUANTUM + PAGE, 8) == []
        assert child.call("load", bases[1]) == maperr(bases[1])
        assert first.call("load", bases[0] + 2 * QUANTUM + PAGE) == [8]

        mount.start()
        with msharefs.open(path) as region:
            assert [(vma["start"], vma["end"]) for vma in region.maps()] == [(PAGE, SIZE)]
            pids = {first.pid, second.pid, child.pid}
            assert clients(region) == pids, "known before they have come back"
            assert_whole(region)
            # A client that joins now shares all of it.
            third = actors()
            base = attach(third, path)
            assert third.call("check", base + QUANTUM, QUANTUM, 2, 0) == [0]
            # And earlier clients hear of the new server's changes.
            crowd = [(first, bases[0]), (second, bases[1]), (child, bases[1]), (third, base)]
            region.unmap(QUANTUM, QUANTUM)
            for actor, base in crowd:
                assert actor.call("load", base + QUANTUM) == maperr(base + QUANTUM)
                assert actor.call("load", base + 2 * QUANTUM) == [7]
            until(lambda: settled(region, len(crowd)), "all have come back")
            region.map(0, 2 * QUANTUM)
            for number, (actor, base) in enumerate(crowd):
                assert actor.call("load", base) == [0 if number == 0 else number]
                assert actor.call("store", base, number + 1) == []
            assert_whole(region)
    until_alone(path, {first.pid, second.pid, third.pid})


def settled(region: msharefs.Region, count: int) -> bool:
    """A change that asks all clients with guard pages is answered by all of them."""
    return len(clients(region)) == count and region.stat()["clients"] == count


def until_alone(path: Path, pids: set[int]) -> None:
    with msharefs.open(path) as region:
        until(lambda: clients(region) == pids, "who has gone is not listed")


def test_holes_that_were_touched_without_a_server(mount: Mount, path: Path, actors: Actors) -> None:
    """The next server must make the process remove them when it maps memory there."""
    actor = actors()
    base = attach(actor, path)
    mount.kill()
    assert actor.call("load", base) == maperr(base)
    mount.start()
    with msharefs.open(path) as region:
        region.map(0, PAGE)
        assert actor.call("load", base) == [0]


def test_who_died_meanwhile_is_not_listed(mount: Mount, path: Path, actors: Actors) -> None:
    survivor, victim, leaver = actors(), actors(), actors()
    base, *others = (attach(actor, path) for actor in (survivor, victim, leaver))
    for actor, where in zip((victim, leaver), others, strict=True):
        actor.call("store", where + QUANTUM, 1)
    mount.kill()
    child = victim.fork(others[0] + QUANTUM)
    assert child.finish() == [1]
    victim.kill()
    child.kill()
    child.end()
    assert leaver.call("detach", others[1]) == []
    mount.start()
    with msharefs.open(path) as region:
        until(lambda: clients(region) == {survivor.pid}, "the dead are not listed")
        assert survivor.call("load", base + QUANTUM) == [1]
        assert_whole(region)


def test_a_process_whose_first_thread_has_ended_is_alive(
    mount: Mount, path: Path, actors: Actors
) -> None:
    actor = actors()
    base = attach(actor, path)
    assert actor.call("leave-main") == []
    assert actor.call("store", base + PAGE, 6) == []
    with msharefs.open(path) as region:
        assert clients(region) == {actor.pid}
    mount.kill()
    mount.start()
    with msharefs.open(path) as region:
        assert clients(region) == {actor.pid}
        region.unmap(PAGE, PAGE)
        assert actor.call("load", base + PAGE) == maperr(base + PAGE)


def test_a_program_that_was_replaced_meanwhile_is_not_attached(
    mount: Mount, path: Path, actors: Actors
) -> None:
    """The process is the same, by number and start time."""
    actor, other = actors(), actors()
    for who in (actor, other):
        attach(who, path)
    mount.kill()
    assert actor.call("exec") == []
    mount.start()
    with msharefs.open(path) as region:
        until(lambda: clients(region) == {other.pid}, "the program is not listed")
        again = attach(actor, path)
        assert actor.call("store", again + PAGE, 1) == []
        assert clients(region) == {actor.pid, other.pid}


def test_children_in_another_pid_namespace(mount: Mount, path: Path, actors: Actors) -> None:
    """Born without a server, with numbers that other processes have here: they are still alive."""
    count = 20
    parent = actors()
    with msharefs.open(path) as region:
        fd = parent.give(region.fd)
    parent.call("unshare", CLONE_NEWPID)
    with parent.fork() as actor:
        actor.finish()
        base = actor.attach(fd)
        actor.call("store", base + PAGE, 5)
        mount.kill()
        children = [actor.fork(base + PAGE) for _ in range(count)]
        assert [child.finish() for child in children] == [[5]] * count
        victim = children.pop()
        actor.call("kill", victim.pid)
        victim.end()
        mount.start()
        with msharefs.open(path) as region:
            late = actors()
            late_base = attach(late, path)
            until(lambda: names(region) == ["actor"] * (count + 1), "all are known")
            assert region.stat()["clients"] == count + 1
            region.unmap(PAGE, PAGE)
            for child in children:
                assert child.call("load", base + PAGE) == maperr(base + PAGE)
            assert late.call("load", late_base + PAGE) == maperr(late_base + PAGE)
            for child in children:
                child.end()
            until(lambda: len(clients(region)) == 2, "all children are gone")
            assert_whole(region)


@pytest.mark.slow
def test_killed_while_it_changes_the_region(mount: Mount, path: Path, actors: Actors) -> None:
    """The next server completes a change, or it has never begun; nobody is left waiting."""
    actor, watcher = actors(), actors()
    base, view = attach(actor, path), attach(watcher, path)
    start, size = QUANTUM, 2 * QUANTUM
    with Board() as board:
        board.phase(Board.CHANGING)
        actor.call("hammer", actor.give(board.fd), 0, base + start, size // PAGE, 2)
        for _ in range(6):
            begun = threading.Semaphore(0)

            def change_all_the_time(begun: threading.Semaphore = begun) -> None:
                with contextlib.suppress(OSError), msharefs.open(path) as region:
                    while True:
                        region.unmap(start, size)
                        begun.release()
                        region.map(start, size)

            changer = threading.Thread(target=change_all_the_time)
            changer.start()
            for _ in range(3):
                assert begun.acquire(timeout=20)
            mount.kill()
            changer.join(20)
            assert not changer.is_alive()
            mount.start()
            with msharefs.open(path) as region:
                spans = [(vma["start"], vma["end"]) for vma in region.maps()]
                assert spans in (
                    [(PAGE, start), (start + size, SIZE)],
                    [(PAGE, start), (start, start + size), (start + size, SIZE)],
                )
                mapped = len(spans) == 3
                board.phase(Board.THERE if mapped else Board.GONE)
                board.wait(0, 0 if mapped else 1, 20)
                board.phase(Board.CHANGING)
                region.map(start, size)
                assert watcher.call("store", view + start + 16, 1) == []
        board.phase(Board.STOP)
        actor.call("join")
        assert board.seen(0)[2] == 0
    with msharefs.open(path) as region:
        assert_whole(region)


@pytest.mark.slow
@pytest.mark.mount("quantum=2M", "fault_around=1", "faults=watched", limit=100)
@pytest.mark.parametrize("change", ["unmap", "map"])
@pytest.mark.parametrize("late", [False, True])
def test_killed_while_a_change_waits(
    mount: Mount, path: Path, actors: Actors, change: str, late: bool
) -> None:
    """The change waits for a process stopped inside a fault; `late`: even when the next starts."""
    stopped, watcher = actors(), actors()
    view = attach(watcher, path)
    start, size = QUANTUM, 2 * QUANTUM
    watcher.call("fill", view + start, size, 1, 0)
    ident = number_of(path)
    with Board() as board:
        board.phase(Board.THERE)
        where = attach(stopped, path) + PAGE
        stopped.call("flood", stopped.give(board.fd), 0, where, QUANTUM // PAGE - 1, PAGE, 4, 1)
        stop_inside_a_fault(stopped, mount, ident)
        kill_in_a_change(mount, path, change, start, size)
        board.phase(Board.STOP)
        if not late:
            go_on(stopped)
        mount.start()
        with msharefs.open(path) as region:
            if late:
                assert is_changing(mount, ident), "it cannot be finished yet"
                assert watcher.call("load", view + PAGE) is not None, "what is not changed works"
                with refused(errno.EBUSY):
                    region.unmap(PAGE, PAGE)
                go_on(stopped)
            until(lambda: not is_changing(mount, ident), "the change is finished")
            gone = maperr(view + start)
            assert watcher.call("load", view + start) == (gone if change == "unmap" else [0])
            assert stopped.call("join") == []
            until(lambda: clients(region) == {stopped.pid, watcher.pid}, "both are known")
            assert_whole(region)
            region.map(0, SIZE)
            assert watcher.call("fill", view, SIZE, 2, 0) == []


def test_an_unlinked_region_is_kept_for_its_processes(
    mount: Mount, path: Path, actors: Actors
) -> None:
    actor = actors()
    base = attach(actor, path)
    actor.call("store", base + PAGE, 9)
    objects = mount.state / "regions"
    path.unlink()
    mount.kill()
    mount.start()
    assert actor.call("load", base + PAGE) == [9]
    assert actor.call("store", base + QUANTUM, 9) == []
    assert list(objects.glob("*.mem"))
    actor.end()
    until(lambda: not list(objects.glob("*.mem")), "the memory goes with the last process")


def test_stopped_in_order_the_state_stays_for_the_attached(
    mount: Mount, path: Path, actors: Actors
) -> None:
    actor = actors()
    base = attach(actor, path)
    actor.call("store", base + PAGE, 4)
    mount.stop()
    assert (mount.state / "regions").exists()
    assert actor.call("load", base + PAGE) == [4]
    assert actor.call("store", base + QUANTUM, 1) == []
    mount.start()
    with msharefs.open(path) as region:
        until(lambda: clients(region) == {actor.pid}, "it is known again")
        assert actor.call("detach", base) == []
        assert clients(region) == set()
    mount.stop()
    assert not list(mount.state.iterdir())


@pytest.mark.alone  # a thousand threads come back within the server's patience
@pytest.mark.mount("quantum=2M", limit=100)
def test_a_change_right_after_a_restart_beside_a_thousand(mount: Mount, actors: Actors) -> None:
    """Nobody is stopped: the change waits until all have come back, and is done."""
    path = mount.path / "many"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(QUANTUM)
        region.map(0, QUANTUM)
    crowd = [actors() for _ in range(10)]
    windows = []
    with msharefs.open(path) as region:
        for actor in crowd:
            fd = actor.give(region.fd)
            for number in range(100):
                windows.append((actor, actor.attach(fd)))
                assert actor.call("store", windows[-1][1] + number * PAGE, 1) == []
            actor.call("close", fd)
    mount.kill()
    mount.start()
    with msharefs.open(path) as region:
        region.protect(0, QUANTUM, 0)
        region.protect(0, QUANTUM, READ_WRITE)
        region.unmap(PAGE, PAGE)
        assert region.stat()["clients"] == len(windows)
        for actor, base in windows[::50]:
            assert actor.call("load", base) == [1]
            assert actor.call("load", base + PAGE) == maperr(base + PAGE)
