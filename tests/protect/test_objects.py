"""Objects that are files while processes use them: unmapped, protected, executed.

Rights and memory are taken from every process before the call returns, or from none.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs

from support.actor import accerr, maperr
from support.audit import assert_whole
from support.calls import refused
from support.stopping import go_on, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

    Actors = Callable[[], Actor]

pytestmark = pytest.mark.mount("quantum=2M")
PAGE = mmap.PAGESIZE
SPAN = 2 << 20  # a client remembers the spans that it has touched
SIZE = 4 * SPAN
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
RW = READ | WRITE
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED
RET = b"\xc3"  # x86-64


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    """Anonymous memory with a hole in the second span."""
    path = shared_mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as opened:
        opened.truncate(SIZE)
        opened.map(0, SPAN)
        opened.map(2 * SPAN, 2 * SPAN)
        yield opened
        assert_whole(opened)
    path.unlink()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """Four pages of code that returns."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, RET * 4 * PAGE)
    yield fd
    os.close(fd)


def attach(actor: Actor, region: msharefs.Region) -> int:
    fd = actor.give(region.fd)
    base = actor.attach(fd)
    actor.call("close", fd)
    return base


def test_rights_change_for_all_and_no_byte_is_lost(
    region: msharefs.Region, file: int, actors: Actors
) -> None:
    region.map(SPAN, 4 * PAGE, RW, FILE, file)
    crowd = [(actor, attach(actor, region) + SPAN) for actor in (actors(), actors(), actors())]
    for number, (actor, base) in enumerate(crowd):
        assert actor.call("store", base + number, number) == []
    region.protect(SPAN, 2 * PAGE, READ)
    for actor, base in crowd:
        assert actor.call("store", base, 7) == accerr(base)
        assert actor.call("load", base + 2) == [2]
        assert actor.call("store", base + 3 * PAGE, 7) == [], "the rest is as it was"
    region.protect(SPAN, 4 * PAGE, 0)
    for actor, base in crowd:
        assert actor.call("load", base) == accerr(base)
        assert actor.call("load", base + 3 * PAGE) == accerr(base + 3 * PAGE)
    region.protect(SPAN, 4 * PAGE, RW)
    for actor, base in crowd:
        assert actor.call("load", base + 1) == [1]
        assert actor.call("store", base, 7) == []
    assert os.pread(file, 4, 0) == b"\7\1\2" + RET


def test_a_stopped_process_keeps_what_it_has_and_so_does_everybody(
    region: msharefs.Region, file: int, actors: Actors
) -> None:
    region.map(SPAN, 4 * PAGE, RW, FILE, file)
    stopped, other = actors(), actors()
    bases = attach(stopped, region) + SPAN, attach(other, region) + SPAN
    before = region.maps()
    assert stopped.call("store", bases[0], 5) == []
    assert other.call("load", bases[1]) == [5]
    stop(stopped)
    try:
        for change in (
            lambda: region.unmap(0, SIZE),
            lambda: region.map(SPAN, PAGE),
            lambda: region.protect(SPAN, PAGE, READ),
        ):
            with refused(errno.EBUSY):
                change()
            assert region.maps() == before
            assert other.call("store", bases[1] + PAGE, 6) == []
        # It has touched nothing else, and so nothing else waits for it.
        region.unmap(2 * SPAN, SPAN)
        region.protect(3 * SPAN, SPAN, READ)
    finally:
        go_on(stopped)
    assert stopped.call("load", bases[0] + PAGE) == [6]
    region.unmap(0, SIZE)
    for actor, base in zip((stopped, other), bases, strict=True):
        assert actor.call("load", base) == maperr(base)


def test_memory_beside_an_object_is_taken_from_a_stopped_process(
    region: msharefs.Region, file: int, actors: Actors
) -> None:
    region.map(SPAN, 4 * PAGE, RW, FILE, file)
    stopped = actors()
    base = attach(stopped, region)
    for offset in (0, 2 * SPAN):
        assert stopped.call("store", base + offset, 5) == []
    stop(stopped)
    try:
        region.unmap(0, SIZE)
        assert region.stat()["rss_bytes"] == 0
    finally:
        go_on(stopped)
    for offset in (0, SPAN, 2 * SPAN):
        assert stopped.call("load", base + offset) == maperr(base + offset)


@pytest.mark.parametrize("memory", ["file", "anonymous"])
def test_execution_comes_and_goes_for_all(
    region: msharefs.Region, file: int, actors: Actors, memory: str
) -> None:
    early = actors()
    bases = {early: attach(early, region) + SPAN}
    flags, fd = (FILE, file) if memory == "file" else (FILE | mmap.MAP_ANONYMOUS, -1)
    region.map(SPAN, 2 * PAGE, RW | EXEC, flags, fd)
    assert early.call("store", bases[early], RET[0]) == []
    late = actors()
    bases[late] = attach(late, region) + SPAN
    with late.fork() as child:
        assert child.finish() == []
        bases[child] = bases[late]
        for actor, base in bases.items():
            assert actor.call("run", base) == []
        region.protect(SPAN, PAGE, READ)
        for actor, base in bases.items():
            assert actor.call("run", base) == accerr(base)
            assert actor.call("load", base) == [RET[0]]
        region.protect(SPAN, PAGE, READ | EXEC)
        for actor, base in bases.items():
            assert actor.call("run", base) == []
        region.map(SPAN, PAGE)
        for actor, base in bases.items():
            assert actor.call("store", base, RET[0]) == []
            assert actor.call("run", base) == accerr(base)
        region.unmap(SPAN, 2 * PAGE)
        for actor, base in bases.items():
            assert actor.call("run", base) == maperr(base)


def test_execution_is_taken_from_all_or_none(region: msharefs.Region, actors: Actors) -> None:
    region.map(SPAN, PAGE, RW | EXEC)
    stopped, other = actors(), actors()
    bases = attach(stopped, region) + SPAN, attach(other, region) + SPAN
    assert stopped.call("store", bases[0], RET[0]) == []
    assert stopped.call("run", bases[0]) == []
    stop(stopped)
    try:
        with refused(errno.EBUSY):
            region.protect(SPAN, PAGE, RW)
        assert other.call("run", bases[1]) == []
    finally:
        go_on(stopped)
    region.protect(SPAN, PAGE, RW)
    for actor, base in zip((stopped, other), bases, strict=True):
        assert actor.call("run", base) == accerr(base)
