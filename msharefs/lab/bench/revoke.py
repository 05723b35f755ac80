"""Taking memory away from many processes at once: unmap and protect."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from msharefs import client, processes
from msharefs.lab.workers import Workers

from .scenario import Scenario, Setting, ask_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .backends import Memory
    from .figures import Sample

MESSAGES = ("flush_all", "list", "cpumask", "broadcast")
FIRST = 0  # the worker that fills, and that makes the call where one call is enough

# linux/userfaultfd.h: struct uffdio_writeprotect {start, len, mode}.
_WRITEPROTECT = struct.Struct("=QQQ")
_UFFDIO_WRITEPROTECT = 3 << 30 | _WRITEPROTECT.size << 16 | 0xAA << 8 | 0x06
_MODE_WP = 1


def sum_ns(workers: Workers, command: str) -> float:
    """The sum of the times in a call that every process makes for itself.

    They make it one after the other: at the same time they would wait for processors, and that
    would count.
    """
    return float(
        sum(workers.ask(command, [number])[0].nanoseconds for number in range(len(workers)))
    )


def one_ns(workers: Workers, command: str) -> float:
    """The time in a call that one process makes for all."""
    return float(workers.ask(command, [FIRST])[0].nanoseconds)


def told(path: str, verb: str, change: Callable[[], float]) -> Callable[[], Sample]:
    """`change`, once, and whom kernels would have to tell of it, by the server's model of TLBs."""

    def once() -> Sample:
        with client.open(path, os.O_RDONLY) as region:
            before = region.stat()["shootdowns"][verb]
            ns = change()
            after = region.stat()["shootdowns"][verb]
        return {
            "ns": ns,
            **{f"{name}_messages": float(after[name] - before[name]) for name in MESSAGES},
        }

    return once


def timed(call: Callable[[], float]) -> Callable[[], Sample]:
    """`call`, once: each process is told by its own call, which no model counts."""
    return lambda: {"ns": call()}


class Revocation(Scenario):
    """Processes that have read all of a piece of memory, and a call that changes it for all.

    Where every process makes a call for itself, the sum of their times counts, without the messages
    by which they would have to be told.
    """

    processes = (1, 8, 64, 512)
    size = 64 << 20
    headline = "ns"

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """The processes; the first has written all, the others have read it."""
        kind = setting.backends[self.backend(setting.row)]
        with ExitStack() as stack:
            memory = stack.enter_context(kind.memory(setting.size))
            workers = stack.enter_context(Workers(setting.processes, memory.pass_fds))
            (found,) = [workers.ask(command) for command in memory.take]
            workers.ask(f"order 0 0 {setting.pages} {setting.pages} sequential")
            workers.ask(f"open {memory.path}", [FIRST])
            self.fill(workers)
            bases = [answer.value or 0 for answer in found]
            yield self.trial(setting, memory, workers, bases, stack)

    def fill(self, workers: Workers) -> None:
        """Bring the memory back."""
        workers.ask("touch 1 write", [FIRST])
        workers.ask("touch 1 read")

    def trial(
        self, setting: Setting, memory: Memory, workers: Workers, bases: list[int], stack: ExitStack
    ) -> Callable[[], Sample]:
        """The function that plays a round of this row; `bases` are the addresses of the memory."""
        raise NotImplementedError


class Unmap(Revocation):
    """64 MiB are unmapped.

    With a memfd each process calls munmap(2). Punching a hole frees the pages in one call, but
    leaves the mapping: an access then finds zeroes and gets no signal.
    """

    name = "unmap"
    title = "unmap from all attached processes"
    rows = ("memfd, munmap in each", "memfd, punch a hole", "msharefs")

    def backend(self, row: str) -> str:
        """Both of the others are memfds."""
        return row.split(",", maxsplit=1)[0]

    def trial(
        self, setting: Setting, memory: Memory, workers: Workers, bases: list[int], stack: ExitStack
    ) -> Callable[[], Sample]:
        """Unmap, then bring all of it back."""
        del bases, stack

        def munmap() -> float:
            ns = sum_ns(workers, "detach")
            ask_all(workers, memory.take)
            return ns

        def punch() -> float:
            return one_ns(workers, f"punch 0 {setting.size}")

        unmap = told(memory.path, "unmap", lambda: one_ns(workers, f"unmap 0 {setting.size}"))

        def replaced() -> Sample:
            found = unmap()
            workers.ask(f"create 0 {setting.size}", [FIRST])
            return found

        plain = punch if "punch" in setting.row else munmap
        call = replaced if setting.row == "msharefs" else timed(plain)

        def trial() -> Sample:
            found = call()
            self.fill(workers)
            return {**found, "ns_per_page": found["ns"] / setting.pages / setting.processes}

        return trial


class Protect(Revocation):
    """64 MiB become read-only.

    The bare calls are the least that a region's server has to do on today's kernel: one
    UFFDIO_WRITEPROTECT for each process.
    """

    name = "protect"
    title = "make read-only in all attached processes"
    rows = ("memfd, bare UFFDIO_WRITEPROTECT", "memfd, mprotect in each", "msharefs")

    def backend(self, row: str) -> str:
        """Both of the others are memfds."""
        return row.split(",", maxsplit=1)[0]

    def trial(
        self, setting: Setting, memory: Memory, workers: Workers, bases: list[int], stack: ExitStack
    ) -> Callable[[], Sample]:
        """Protect, then allow all again."""
        reading = told(
            memory.path, "protect", lambda: one_ns(workers, f"protect 0 {setting.size} read")
        )

        def protect() -> Sample:
            found = reading()
            workers.ask(f"protect 0 {setting.size} write", [FIRST])
            return found

        def mprotect() -> float:
            ns = sum_ns(workers, "mprotect read")
            workers.ask("mprotect write")
            return ns

        plain: Callable[[], float] = mprotect
        if "bare" in setting.row:
            plain = _bare(workers, setting.size, bases, stack)
        call = protect if setting.row == "msharefs" else timed(plain)

        def trial() -> Sample:
            found = call()
            self.fill(workers)
            return {**found, "ns_per_page": found["ns"] / setting.pages / setting.processes}

        call()  # if it is not supported here, we hear so before the rounds begin
        return trial


def uffds(workers: Workers, stack: ExitStack, who: Sequence[int] | None = None) -> list[int]:
    """Write-protect userfaultfds over the memory of workers, all or these, as ours; until then."""
    numbers = range(len(workers)) if who is None else who
    watched = workers.ask("watch", numbers)
    found = []
    for number, answer in zip(numbers, watched, strict=True):
        assert answer.value is not None
        found.append(processes.fetch_descriptor(workers.pids[number], answer.value))
        stack.callback(os.close, found[-1])
    return found


def write_protect(descriptors: list[int], bases: list[int], size: int, *, on: bool) -> float:
    """UFFDIO_WRITEPROTECT of `size` bytes from each base on; the nanoseconds it took."""
    started = time.perf_counter_ns()
    for uffd, base in zip(descriptors, bases, strict=True):
        fcntl.ioctl(
            uffd, _UFFDIO_WRITEPROTECT, _WRITEPROTECT.pack(base, size, _MODE_WP if on else 0)
        )
    return float(time.perf_counter_ns() - started)


def _bare(workers: Workers, size: int, bases: list[int], stack: ExitStack) -> Callable[[], float]:
    descriptors = uffds(workers, stack)

    def protect() -> float:
        ns = write_protect(descriptors, bases, size, on=True)
        write_protect(descriptors, bases, size, on=False)
        return ns

    return protect
