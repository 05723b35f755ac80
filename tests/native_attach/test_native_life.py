"""The life of native attachments and their memory: beyond descriptors, names and servers."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import mountpoint

from support import namespace
from support.calls import refused
from support.memory import QUANTUM
from support.nativemap import Native
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.actor import Actor
    from support.server import Mount

PAGE = 4096
SIZE = 16 * QUANTUM
"""The size of a region whose memory is looked for: more than anything else here takes."""


def taken() -> int:
    """Bytes that the files of the run's tmpfs take: those with names, and open ones without."""
    status = os.statvfs(namespace.SHM)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@contextlib.contextmanager
def region(mount: Mount, name: str = "r", size: int = SIZE) -> Iterator[msharefs.Region]:
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as made:
        made.truncate(size)
        made.map(0, size)
        yield made


def fill(native: Native, size: int = SIZE) -> None:
    for offset in range(0, size, PAGE):
        native.store(offset, 1)


def test_an_unlinked_region_lives_while_it_is_mapped(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    before = taken()
    with region(shared_mount) as made:
        native = Native.map(actors(), made.fd, SIZE)
    fill(native)
    (shared_mount.path / "r").unlink()
    assert taken() - before >= SIZE
    assert native.load(SIZE - PAGE) == [1]

    with native.actor.fork() as child:
        child.finish()
        native.unmap(SIZE)
        assert child.call("load", native.base) == [1]
        assert taken() - before >= SIZE
        child.call("plain-unmap", native.base, SIZE)
        until(lambda: taken() - before < QUANTUM, "the region's memory has gone back")


def test_memory_goes_back_with_a_killed_process(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    before = taken()
    with region(shared_mount) as made:
        native = Native.map(actors(), made.fd, SIZE)
    fill(native)
    (shared_mount.path / "r").unlink()
    native.actor.kill()
    until(lambda: taken() - before < QUANTUM, "the region's memory has gone back")


def test_opening_leaves_nothing(shared_mount: Mount) -> None:
    """A backing id that is not closed would keep the region's memory, and a descriptor ours."""
    descriptors = f"/proc/{shared_mount.pid}/fd"
    with region(shared_mount, "first"):  # it makes the server open the files that it keeps open
        before, open_before = taken(), len(os.listdir(descriptors))
        for number in range(20):
            with region(shared_mount, size=2 * QUANTUM) as made, made.attach() as memory:
                memory[:QUANTUM] = bytes([number]) * QUANTUM
                with msharefs.open(made.path):
                    pass
            os.unlink(made.path)
        gc.collect()
        until(lambda: taken() - before < QUANTUM, "the regions' memory has gone back")
        # Fewer, where one was just being used.
        until(lambda: len(os.listdir(descriptors)) <= open_before, "the server has closed all")
        (shared_mount.path / "first").unlink()


@pytest.mark.mount("quantum=2M", "owner=process")
def test_the_owners_end(mount: Mount, actors: Callable[[], Actor]) -> None:
    """SIGSEGV in the series. We are not between Linux and this process: its pages are zero."""
    owner = os.fork()
    if owner == 0:
        status = 1
        try:
            with region(mount):
                status = 0
        finally:
            os._exit(status)
    # A zombie has ended; so that the region is still there to open, the mapping is made first.
    assert os.waitpid(owner, 0)[1] == 0
    fd = os.open(mount.path / "r", os.O_RDWR)
    try:
        with refused(errno.ENODEV):
            Native.map(actors(), fd, SIZE)
    finally:
        os.close(fd)


@pytest.mark.mount("quantum=2M", "owner=process")
def test_pages_are_zero_after_the_owners_end(mount: Mount, actors: Callable[[], Actor]) -> None:
    told, tell = os.pipe()
    owner = os.fork()
    if owner == 0:
        status = 1
        try:
            os.close(tell)
            with region(mount):
                status = os.read(told, 1) != b""
        finally:
            os._exit(status)
    os.close(told)
    path = mount.path / "r"
    until(lambda: path.exists() and path.stat().st_size == SIZE, "the region is there")
    fd = os.open(path, os.O_RDWR)
    native = Native.map(actors(), fd, SIZE)
    os.close(fd)
    fill(native, QUANTUM)
    os.close(tell)
    assert os.waitpid(owner, 0)[1] == 0
    ends = 0, QUANTUM - PAGE
    until(lambda: [native.load(at) for at in ends] == [[0], [0]], "the region has ended")


@pytest.mark.mount("quantum=2M")
def test_the_server_crashes(mount: Mount, actors: Callable[[], Actor]) -> None:
    with region(mount, size=QUANTUM) as made:
        native = Native.map(actors(), made.fd, QUANTUM)
    native.store(0, 1)
    mount.kill()
    native.store(PAGE, 2)
    mount.start()
    with msharefs.open(mount.path / "r", os.O_RDWR) as made:
        with made.attach() as memory:
            assert (memory[0], memory[PAGE]) == (1, 2)
            memory[0] = 3
        made.detach()
        assert native.load(0) == [3]
        # It belongs to the dead mount and is still listed, like one of the new mount.
        second = Native.map(actors(), made.fd, QUANTUM)
        listed = {(client["pid"], client["kind"]) for client in made.describe("clients")}
        assert listed == {(native.actor.pid, "native"), (second.actor.pid, "native")}
        native.unmap(QUANTUM)


@pytest.mark.mount("quantum=2M")
def test_the_server_stops(mount: Mount, actors: Callable[[], Actor]) -> None:
    """As after a lazy umount of a tmpfs: processes keep the memory, which goes when they end."""
    before = taken()
    with region(mount) as made:
        native = Native.map(actors(), made.fd, SIZE)
    fill(native)
    mount.stop()
    assert native.load(SIZE - PAGE) == [1]
    native.unmap(SIZE)
    until(lambda: taken() - before < QUANTUM, "the region's memory has gone back")


@pytest.mark.mount("quantum=2M")
def test_a_mapping_keeps_the_mount_busy(mount: Mount, actors: Callable[[], Actor]) -> None:
    with region(mount, size=QUANTUM) as made:
        native = Native.map(actors(), made.fd, QUANTUM)
    found = mountpoint.covering(mount.path)
    assert found is not None
    with refused(errno.EBUSY):
        mountpoint.take_away(mount.path, found)
    mountpoint.take_away(mount.path, found, lazy=True)
    native.store(0, 1)
    assert mount.process is not None
    assert mount.process.poll() is None, "the server ended before its last user"
    native.unmap(QUANTUM)
    mount.wait()
