"""Clients that keep a lock of Linux's which a server may want: for as long as they like."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msharefs import proc, processes

from . import byhand, cc, fakefuse
from .wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .fakefuse import FakeFuse

# Attaches a region, touches what it is told to, maps a file of a FUSE and makes a page of it dirty.
# When it takes that mapping away, Linux writes the page back, with the address space locked; and a
# second thread, which wants to change the address space, keeps readers out, too.
_CLIENT = """
import mmap, os, sys, threading
import msharefs
from msharefs.native import ffi, lib
region = msharefs.open(sys.argv[1])
view = region.attach()
touch = [int(page) for page in sys.argv[3].split(",") if page]
seen = [view[page * mmap.PAGESIZE] for page in touch]
fd = os.open(sys.argv[2], os.O_RDWR)
shared, both = mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
dirty = lib.mmap(ffi.NULL, mmap.PAGESIZE, both, shared, fd, 0)
ffi.cast("char *", dirty)[0] = b"1"
print("attached", flush=True)
sys.stdin.readline()
threading.Thread(target=lib.munmap, args=[dirty, mmap.PAGESIZE], daemon=True).start()
print("closing", flush=True)
sys.stdin.readline()
lib.mmap(ffi.NULL, 64 << 20, both, shared | mmap.MAP_ANONYMOUS, -1, 0)
"""


class Locked:
    """A client with a region attached, which then keeps its address space locked."""

    def __init__(self, fuse: FakeFuse, path: Path, pages: list[int]) -> None:
        self._fuse = fuse
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CLIENT, str(path), str(fuse.file),
             ",".join(map(str, pages))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._read("attached")

    @property
    def pid(self) -> int:
        return self.process.pid

    def lock(self) -> None:
        """From now on the address space is locked."""
        self._fuse.silent = {fakefuse.WRITE}
        self._say()
        self._read("closing")
        until(lambda: fakefuse.WRITE in self._fuse.asked, "the page is written back")
        self._say()
        until(self._waits, "a second thread waits for the lock")

    def end(self) -> None:
        self.process.kill()
        self._fuse.abort()
        self.process.communicate()

    def _waits(self) -> bool:
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return any("mmap_pgoff" in (task / "wchan").read_text() for task in tasks)

    def _say(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def _read(self, word: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == f"{word}\n"


def at_a_fault(pid: int) -> bool:
    """Whether a thread of a process waits for a userfaultfd."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return any("userfault" in (task / "wchan").read_text() for task in tasks)


@contextlib.contextmanager
def address_space(directory: Path, path: Path, pages: list[int]) -> Iterator[Locked]:
    """A client of the region at `path` that has read these pages."""
    with fakefuse.mounted(directory / "fuse") as fuse:
        client = Locked(fuse, path, pages)
        try:
            yield client
        finally:
            client.end()


class Executing(NamedTuple):
    """A process in the middle of execve(2)."""

    pid: int
    socket: socket.socket
    """The other end of its connection."""


@contextlib.contextmanager
def executing(directory: Path, path: Path) -> Iterator[Executing]:
    """A process that has made the region at `path` is in execve(2) until the block is left."""
    program = cc.build(Path(__file__).with_name("executing.c"), directory / "executing")
    with fakefuse.mounted(directory / "fuse") as fuse:
        argv = [program, fuse.file, path]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            assert parent.stdin
            assert parent.stdout
            to = parent.stdin.fileno()
            child, number = map(int, parent.stdout.readline().split())
            ours = socket.socket(fileno=processes.fetch_descriptor(parent.pid, number))
            try:
                fuse.silent = {fakefuse.WRITE}
                os.write(to, b"\n")
                until(lambda: fakefuse.WRITE in fuse.asked, "the page is written back")
                os.write(to, b"\n")
                until(lambda: _asleep(parent.pid) == 2, "a second thread waits for the lock")
                os.write(to, b"\n")
                until(lambda: _asleep(child) == 1, "it is in execve(2)")
                with ours:
                    yield Executing(child, ours)
            finally:
                os.kill(child, signal.SIGKILL)
                parent.kill()
                fuse.abort()


def _asleep(pid: int) -> int:
    """How many threads of a process sleep and are not to be woken. It waits for none of them."""
    return [proc.state(tid) for tid in proc.threads(pid)].count("D")


@contextlib.contextmanager
def file(fd: int) -> Iterator[Callable[[], None]]:
    """A write(2) to the file that does not end before the block does: Linux locks the file.

    Or before the function is called that this gives. In the end it writes the last byte of the
    first page, which nobody uses.
    """

    def write() -> None:
        with memoryview(page) as view, view[:1] as byte:
            os.pwrite(fd, byte, mmap.PAGESIZE - 1)

    with contextlib.ExitStack() as stack:
        page = stack.enter_context(byhand.page_that_never_comes())
        thread = threading.Thread(target=write)
        thread.start()
        until(lambda: at_a_fault(os.getpid()), "it is at its page")
        yield stack.close
    thread.join()
