"""Clients that are not root, or live in other namespaces, of a server that is root's."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from support.actor import PAGE, accerr, maperr
from support.audit import assert_whole
from support.calls import NOBODY, refused
from support.memory import QUANTUM
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    import msharefs

    from support.actor import Actor

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000  # sched.h


@pytest.fixture
def region(make_region: Regions) -> msharefs.Region:
    """Mapped but its first page; a root process has filled some of it."""
    region = make_region(2 * QUANTUM)
    region.unmap(0, PAGE)
    return region


def use(actor: Actor, base: int, region: msharefs.Region) -> None:
    """Everything that an attached process does."""
    assert actor.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]
    assert actor.call("fill", base + QUANTUM, 16 * PAGE, 2, 0) == []
    assert actor.call("load", base) == maperr(base)
    assert actor.call("read", base + QUANTUM + 40 * PAGE, PAGE) == [PAGE]
    with refused(errno.EFAULT):
        actor.call("read", base, PAGE)
    with actor.fork(base + QUANTUM + 50 * PAGE) as child:
        assert child.finish() == [0]
        assert child.call("check", base + QUANTUM, 16 * PAGE, 2, 0) == [0]
        region.unmap(QUANTUM + 30 * PAGE, PAGE)
        for who in (actor, child):
            where = base + QUANTUM + 30 * PAGE
            assert who.call("load", where) == maperr(where)
    assert actor.call("wait", child.pid) == [0]


@pytest.fixture
def filler(actors: Actors, region: msharefs.Region) -> tuple[Actor, int]:
    """A root process that has filled pages 1 to 8, and its address."""
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    actor.call("fill", base + PAGE, 8 * PAGE, 1, 1)
    return actor, base


def test_nobody_with_a_descriptor(
    actors: Actors, filler: tuple[Actor, int], region: msharefs.Region
) -> None:
    """The descriptor is the permission; the file itself is root's alone."""
    os.chmod(region.path, 0o600)
    actor = actors()
    fd = actor.give(region.fd)
    actor.call("setuser", NOBODY, NOBODY)
    base = actor.attach(fd)
    use(actor, base, region)
    root, view = filler
    assert root.call("check", view + QUANTUM, 16 * PAGE, 2, 0) == [0]
    until(lambda: len(region.describe("clients")) == 2, "the child is gone")
    assert {client["pid"] for client in region.describe("clients")} == {root.pid, actor.pid}
    assert actor.call("detach", base) == []
    assert_whole(region)


def test_nobody_who_may_open_the_file(
    actors: Actors, filler: tuple[Actor, int], region: msharefs.Region
) -> None:
    os.chmod(region.path, 0o604)
    actor = actors()
    actor.call("setuser", NOBODY, NOBODY)
    # Opened as that user by us: what the file's mode allows, and no more.
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(PermissionError):
            os.open(region.path, os.O_RDWR)
        opened = os.open(region.path, os.O_RDONLY)
    finally:
        os.seteuid(0)
        os.setegid(0)
    fd = actor.give(opened)
    os.close(opened)
    base = actor.attach(fd)  # for reading: what the descriptor was opened for
    assert actor.call("check", base + PAGE, 8 * PAGE, 1, 1) == [0]
    assert actor.call("store", base + PAGE) == accerr(base + PAGE)
    with refused(errno.EACCES):
        actor.call("unmap", fd, PAGE, PAGE)
    root, view = filler
    assert root.call("check", view + PAGE, 8 * PAGE, 1, 1) == [0]


def test_a_process_that_becomes_nobody_later(
    actors: Actors, filler: tuple[Actor, int], region: msharefs.Region
) -> None:
    """Attached as root, the service thread started as root."""
    actor = actors()
    base = actor.attach(actor.give(region.fd))
    actor.call("setuser", NOBODY, NOBODY)
    use(actor, base, region)
    assert actor.call("detach", base) == []
    assert filler[0].call("load", filler[1]) == maperr(filler[1])


@pytest.mark.parametrize("user", [0, NOBODY])
def test_another_mount_namespace(
    actors: Actors, filler: tuple[Actor, int], region: msharefs.Region, user: int
) -> None:
    """The mount and the server's state need not be there."""
    actor = actors()
    fd = actor.give(region.fd)
    actor.call("unshare", CLONE_NEWNS)
    actor.call("hide-shm")
    assert not os.path.exists(f"/proc/{actor.pid}/root{region.path}")
    if user:
        actor.call("setuser", user, user)
    use(actor, actor.attach(fd), region)
    assert filler[0].call("check", filler[1] + QUANTUM, 16 * PAGE, 2, 0) == [0]


@pytest.mark.parametrize("user", [0, NOBODY])
def test_another_pid_namespace(
    actors: Actors, filler: tuple[Actor, int], region: msharefs.Region, user: int
) -> None:
    """Where the process has a number of its own; and so have its children, many at once."""
    parent = actors()
    fd = parent.give(region.fd)
    parent.call("unshare", CLONE_NEWPID)
    with parent.fork() as actor:
        actor.finish()
        if user:
            actor.call("setuser", user, user)
        base = actor.attach(fd)
        use(actor, base, region)
        children = []
        for _ in range(20):
            actor.start("fork", base + PAGE)
            children.append(actor.forked())
        for child in children:
            assert child.finish() == filler[0].call("load", filler[1] + PAGE)
            # Looking lets go of dead processes; none of these is dead.
            region.describe("clients")
        until(lambda: len(region.describe("clients")) == 22, "all are known")
        for number, child in enumerate(children):
            where = base + QUANTUM + (60 + number) * PAGE
            assert child.call("store", where, number) == []
        # By process ids that are valid here.
        assert {client["comm"] for client in region.describe("clients")} == {"actor"}
        for child in children:
            child.end()
        until(lambda: len(region.describe("clients")) == 2, "all children are gone")
        assert actor.call("detach", base) == []
    until(lambda: len(region.describe("clients")) == 1, "the process is gone")
    assert_whole(region)
