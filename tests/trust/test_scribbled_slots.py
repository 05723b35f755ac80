"""What a client has written into the slots of a region does not outlive it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import proc, processes
from msharefs.server.changing import GRACE_SECONDS

from support import libc, wire
from support.calls import refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
SIZE = 4 << 20
PAGE = 4096
SLOT = 99


@pytest.fixture
def region(mount: Mount) -> Iterator[msharefs.Region]:
    """A region with memory, which goes when the test has not unlinked it."""
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        yield region


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that has nothing to do with any region."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def check_free(region: msharefs.Region) -> None:
    """Nobody is waited for."""
    start = time.monotonic()
    region.unmap(0, PAGE)
    region.map(0, PAGE)
    region.protect(PAGE, PAGE, 1)
    assert time.monotonic() - start < GRACE_SECONDS


@contextlib.contextmanager
def hidden(pid: int) -> Iterator[None]:
    """Nobody may see what a process has mapped: not even root may open a device where none work."""
    maps = f"/proc/{pid}/maps"
    libc.bind("/dev/null", maps)
    try:
        libc.bind("none", maps, libc.MS_REMOUNT | libc.MS_NODEV)
        with refused(errno.EACCES):
            os.open(maps, os.O_RDONLY)
        yield
    finally:
        libc.umount(maps, libc.MNT_DETACH)


def check_goes(mount: Mount, region: msharefs.Region) -> None:
    """Its memory goes with its name."""
    region.close()
    (mount.path / "r").unlink()
    until(lambda: not os.listdir(mount.state / "regions"), "its files are gone")


def test_a_free_slot(mount: Mount, region: msharefs.Region) -> None:
    with wire.slots(region) as slots:
        slots.write(SLOT, 0, 0, 4711)
        slots.enter(SLOT)
        slots.poison(SLOT)
        slots.touch(SLOT)
    check_free(region)
    check_goes(mount, region)


def server(mount: Mount, _sleeper: int) -> tuple[int, int]:
    return mount.pid, processes.start_time(mount.pid)


def first(_mount: Mount, _sleeper: int) -> tuple[int, int]:
    return 1, 0


def other(_mount: Mount, sleeper: int) -> tuple[int, int]:
    return sleeper, processes.start_time(sleeper)


def of_our_namespace(_mount: Mount, sleeper: int) -> tuple[int, int]:
    return proc.pid_namespace("self") << 32 | sleeper, processes.start_time(sleeper)


def attached(_mount: Mount, _sleeper: int) -> tuple[int, int]:
    return os.getpid(), processes.start_time(os.getpid())


@pytest.mark.parametrize("who", [server, first, other, of_our_namespace, attached])
def test_a_slot_that_names_somebody_else(
    mount: Mount,
    region: msharefs.Region,
    sleeper: int,
    who: Callable[[Mount, int], tuple[int, int]],
) -> None:
    check_is_nobody(mount, region, *who(mount, sleeper))


def check_is_nobody(mount: Mount, region: msharefs.Region, process: int, start_time: int) -> None:
    """The server finds out, of a slot with these two, that nobody has it."""
    memory = region.attach()
    memory[-4:] = b"here"
    with wire.slots(region) as slots:
        slots.write(SLOT, process, start_time, 4711)
        slots.enter(SLOT)
        slots.poison(SLOT)
        slots.touch(SLOT)
    check_free(region)
    assert [client["pid"] for client in region.describe("clients")] == [os.getpid()]
    assert bytes(memory[-4:]) == b"here"
    memory.release()
    check_goes(mount, region)


def test_a_process_that_cannot_be_looked_at_and_is_older_than_the_region(
    mount: Mount, region: msharefs.Region
) -> None:
    with hidden(1):
        check_is_nobody(mount, region, *first(mount, 0))


def forked(_mount: Mount, sleeper: int) -> tuple[int, int]:
    """A child of fork(2) that has not said hello: it does not know yet when it has started."""
    return sleeper, 0


@pytest.mark.parametrize("who", [other, forked])
def test_a_process_that_cannot_be_looked_at_and_may_be_a_client(
    mount: Mount,
    region: msharefs.Region,
    sleeper: int,
    who: Callable[[Mount, int], tuple[int, int]],
) -> None:
    with hidden(sleeper):
        with wire.slots(region) as slots:
            slots.write(SLOT, *who(mount, sleeper), 4711)
        for _ in range(3):
            assert [client["pid"] for client in region.describe("clients")] == [sleeper]
    assert region.describe("clients") == []


def test_the_slot_of_another_client(mount: Mount, region: msharefs.Region) -> None:
    region.attach()[:4] = b"here"
    with wire.slots(region) as slots:
        slots.enter(0)
    check_free(region)
    check_goes(mount, region)


def test_a_client_that_comes_after_the_scribbler(region: msharefs.Region) -> None:
    with wire.slots(region) as slots:
        slots.write(0, 0, 0, 4711)
        slots.enter(0)
        slots.poison(0)
    region.attach()
    check_free(region)
    region.detach()


def test_a_kernel_thread_is_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    me = proc.stat(os.getpid())
    assert not me.kernel
    monkeypatch.setattr(proc, "stat", lambda _: me._replace(kernel=True))
    assert processes.times_mapped(os.getpid(), os.stat("/")) == 0
