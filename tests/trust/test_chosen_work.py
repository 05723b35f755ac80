"""Work that a client chooses for the server: nobody else waits for it."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import processes
from msharefs.native import lib

from support import libc, wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=200)
SIZE = 2 << 20
PAGE = mmap.PAGESIZE
MAPPINGS = 20_000
LISTED = 8192  # to make them takes the square of it
# A mount answers in 0.2 s; this is for a machine that has more to do.
PATIENCE = 1.0
# The server looks for dead processes every 5 s, and what it finds must not cost us the next look.
WATCHED = 8.0


SLICE_NS = 100_000
NICE = -10
CAP_SYS_NICE = 23


@contextlib.contextmanager
def made(mount: Mount, name: str, size: int = SIZE) -> Iterator[msharefs.Region]:
    """A region without mappings."""
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(size)
        yield region
    (mount.path / name).unlink()


def slowest(mount: Mount, seconds: float) -> float:
    """The longest time in which the mount answered a stat(2)."""
    worst = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        os.stat(mount.path)
        os.stat(mount.path / "mshare_info")
        worst = max(worst, time.monotonic() - start)
        time.sleep(0.01)
    return worst


@contextlib.contextmanager
def busy(work: Callable[[], object]) -> Iterator[None]:
    """Somebody does this again and again meanwhile."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            work()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def costly(mount: Mount) -> int:
    """As a slot's process: one with many mappings."""
    del mount
    return os.getpid()


def foreign(mount: Mount) -> int:
    """As a slot's process: one of a pid namespace that the server does not know."""
    del mount
    return 4_026_000_000 << 32 | 1


@pytest.mark.parametrize("who", [costly, foreign])
def test_slots_full_of_processes_that_are_hard_to_look_at(
    mount: Mount, who: Callable[[Mount], int]
) -> None:
    crowd = [mmap.mmap(-1, PAGE) for _ in range(MAPPINGS)]  # each a mapping of its own
    with made(mount, "r") as region, wire.slots(region) as slots:
        for slot in range(lib.MM_SLOTS):
            slots.write(slot, who(mount), 0, slot + 1)
        with wire.connected(region) as sock, busy(lambda: _ask(sock, lib.MSG_STAT)):
            assert slowest(mount, WATCHED) < PATIENCE
        for slot in range(lib.MM_SLOTS):
            slots.write(slot, 0, 0, 0)
    del crowd


def test_a_claim_that_changes_all_the_time(mount: Mount) -> None:
    """Whoever takes memory away asks the holder of the slot, or waits for it; but not for ever."""
    with made(mount, "r") as region, wire.slots(region) as slots:
        region.map(0, SIZE)
        slots.write(7, os.getpid(), processes.start_time(os.getpid()), 1)
        slots.touch(7)
        claims = iter(range(1, 1 << 40))
        with busy(lambda: slots.claim(7, next(claims))):
            start = time.monotonic()
            with contextlib.suppress(OSError):  # EBUSY
                region.protect(0, SIZE, 0)
            assert time.monotonic() - start < 40
            assert slowest(mount, 1.0) < PATIENCE
        slots.write(7, 0, 0, 0)


def test_a_region_of_many_mappings_that_is_listed(mount: Mount) -> None:
    with made(mount, "r", 2 * LISTED * PAGE) as region:
        for page in range(0, 2 * LISTED, 2):
            region.map(page * PAGE, PAGE)
        with contextlib.ExitStack() as stack:
            for what in (b"maps", b"pagetable", b"audit", b"clients", b"stat", b"maps"):
                sock = stack.enter_context(wire.connected(region))
                stack.enter_context(
                    busy(lambda sock=sock, what=what: _ask(sock, lib.MSG_DESCRIBE, what))  # type: ignore[misc]
                )
            assert slowest(mount, 5.0) < PATIENCE
        assert len(region.describe("maps")) == LISTED


def _ask(sock: socket.socket, op: int, text: bytes = b"") -> None:
    wire.send(sock, op, text=text)
    result, fds = wire.answer(sock)
    assert result == 0
    for fd in fds:
        os.close(fd)


def scheduling(pid: int) -> tuple[int, int]:
    """A process's nice value, and its slice in nanoseconds."""
    return os.getpriority(os.PRIO_PROCESS, pid), libc.slice_ns(pid)


def session(pid: int) -> int:
    """The nice value of its session; without autogroups that of any is 0."""
    path = Path(f"/proc/{pid}/autogroup")
    return int(path.read_text().split()[-1]) if path.exists() else 0


def test_the_server_goes_before_those_who_have_taken_the_processors(mount: Mount) -> None:
    status = Path("/proc/self/status").read_text()
    capabilities = re.search(r"^CapEff:\t(\w+)$", status, re.MULTILINE)
    assert capabilities
    nice = NICE if int(capabilities[1], 16) >> CAP_SYS_NICE & 1 else 0
    if os.nice(0):  # somebody has chosen: it stays so
        assert scheduling(mount.pid)[0] == os.nice(0)
    else:
        assert scheduling(mount.pid) == (nice, SLICE_NS)
        assert session(mount.pid) == (nice if Path("/proc/self/autogroup").exists() else 0)


def test_an_administrator_may_leave_that_to_linux(mounts: Callable[..., Mount]) -> None:
    pid = mounts("nice=0").pid
    assert scheduling(pid) == scheduling(os.getpid())
    assert session(pid) == 0
