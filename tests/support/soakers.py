"""The processes of tests/programs/soaker.c, and the board that they share with us."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import cc, proc
from .actor import SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = mmap.PAGESIZE
# As in soaker.c.
CELLS, HUGE_CELLS, STRIDE, WORDS = 48, 2, 8 << 20, 4
SIZE = CELLS * STRIDE
HUGE_PAGES = 512
PROCESSES, ENTRIES, THREADS, WRONGS = 16, 8, 3, 32
RUN, CALM, STOP = range(3)
HOLE, ANON, FILED, HUGED = range(4)
COUNTS = ("loads", "stores", "refused", "changes", "busy", "failed", "attaches", "forks", "wrong")
WRONG = ("", "value", "lost", "signal", "passed", "errno", "child", "detach")
_WRONGS_AT = 16
_ENTRIES_AT = _WRONGS_AT + 8 * WRONGS
_CELLS_AT = _ENTRIES_AT + 2 * PROCESSES * ENTRIES
_WORDS = _CELLS_AT + CELLS + SIZE // PAGE
_STAMP_STEP = PAGE // WORDS


def cell(number: int) -> tuple[int, int]:
    """Where a cell starts, and its size."""
    if number < HUGE_CELLS:
        return number * STRIDE, HUGE_PAGES * PAGE
    if number % 2:
        return number * STRIDE + (1 << 20), 600 * PAGE
    return number * STRIDE + (2 << 20) - 32 * PAGE, 64 * PAGE


def write_stamps(fd: int, kind: int, numbers: range, start: int = 0) -> None:
    """Write what a file of that kind has at the place of each cell, counted from `start`."""
    for number in numbers:
        at, size = cell(number)
        into = number * size if kind == HUGED else at - start
        with mmap.mmap(fd, size, offset=into) as memory:
            for page in range(size // PAGE):
                for word in range(WORDS):
                    value = kind << 56 | (at // PAGE + page) << 32 | word
                    struct.pack_into("=Q", memory, page * PAGE + word * _STAMP_STEP, value)


class Wrong(NamedTuple):
    """What a process has seen that cannot be right."""

    what: str
    pid: int
    page: int
    found: int
    state: int
    more: int
    window: int
    child: int

    def __str__(self) -> str:
        known, kind, prot = self.state >> 6 & 1, self.state >> 3 & 7, self.state & 7
        state = (
            f"version {self.state >> 32}, generation {self.state >> 8 & 0xFFFFFF}, "
            f"known {known}, kind {kind}, prot {prot}"
        )
        child = ", a child" if self.child else ""
        return (
            f"{self.what}: process {self.pid}{child}, page {self.page:#x} of cell "
            f"{self.page * PAGE // STRIDE}: found {self.found:#x}, {self.more:#x}; it had {state}; "
            f"the mapping there: {self._mapping()}"
        )

    def _mapping(self) -> str:
        """Of the process, which has stopped itself."""
        at = self.window + self.page * PAGE
        with contextlib.suppress(OSError):
            for each in proc.smaps(self.pid):
                if each.start <= at < each.end:
                    return f"{each.start:#x}-{each.end:#x} {each.prot} {each.path} {each.flags}"
        return "none"


class Board:
    """What the processes count and see, and what is mapped."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("soak-board")
        os.ftruncate(self.fd, 8 * _WORDS)
        self._memory = mmap.mmap(self.fd, 8 * _WORDS)
        self._word = memoryview(self._memory).cast("Q")
        self._rounds = 0

    def close(self) -> None:
        """Unmaps it."""
        self._word.release()
        self._memory.close()
        os.close(self.fd)

    def phase(self, phase: int) -> None:
        """What they are to do from now on."""
        self._rounds += 1
        self._word[0] = self._rounds << 2 | phase

    def counts(self) -> dict[str, int]:
        """How often each thing was done."""
        return {name: self._word[1 + index] for index, name in enumerate(COUNTS)}

    def wrongs(self) -> list[Wrong]:
        """The first things that were wrong."""
        found = []
        for at in range(_WRONGS_AT, _ENTRIES_AT, 8):
            what, *rest = self._word[at : at + 8]
            if what:
                found.append(Wrong(WRONG[what], *rest))
        return found

    def not_calm(self, index: int, pid: int) -> list[int]:
        """Which processes of a soaker, itself or its children, are not calm yet."""
        found = []
        for entry in range(ENTRIES):
            at = _ENTRIES_AT + 2 * (index * ENTRIES + entry)
            who, seen = self._word[at], self._word[at + 1]
            if entry < THREADS:
                if who != pid or seen != self._word[0]:
                    found.append(pid)
            elif who and seen != self._word[0] and Path(f"/proc/{who}").exists():
                found.append(who)
        return found

    def all_unmapped(self) -> None:
        """Nothing is mapped any more, says the test, which has unmapped it."""
        for number in range(CELLS):
            old = self._word[_CELLS_AT + number]
            generation = (old >> 8) + 1 & 0xFFFFFF
            self._word[_CELLS_AT + number] = (old >> 32) + 1 << 32 | generation << 8 | 1 << 6


class Soakers:
    """The processes. They are killed and stopped at any time; each has a place on the board."""

    def __init__(self, program: Path, board: Board, arguments: list[str]) -> None:
        self._program, self._arguments = program, arguments
        self._board = board
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._killed: set[int] = set()
        self._stopped: dict[int, int] = {}
        """Their pidfds: a child whose parent has been killed is in `pids` no more."""

    def fill(self, count: int, seeds: Iterator[int]) -> None:
        """Start as many as are lacking."""
        path, *files = self._arguments
        for index in range(count):
            if index not in self._running:
                seed = next(seeds)
                self._running[index] = subprocess.Popen(
                    [self._program, path, str(self._board.fd), *files, str(index), str(seed)],
                    pass_fds=[self._board.fd],
                    env={
                        **os.environ,
                        "MSHAREFS_DEBUG": "1",
                        "MSHAREFS_VERBOSE": "1",
                        "MSHAREFS_CLIENT": "thread" if seed % 4 == 0 else "shadow",
                    },
                )

    def pids(self) -> list[int]:
        """All processes, children among them."""
        found = []
        for process in self._running.values():
            found.append(process.pid)
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                found += map(int, text.split())
        return found

    def signal(self, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one of `pids`, if it is still there."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if pid not in self.pids():  # the number may be another's by now
                return False
            signal.pidfd_send_signal(fd, number)
            if number == signal.SIGSTOP and pid not in self._stopped:
                self._stopped[pid] = os.dup(fd)
        except OSError:
            return False
        finally:
            os.close(fd)
        if number == signal.SIGKILL:
            self._killed.add(pid)
        return True

    def go_on(self, pid: int) -> None:
        """Let one that was stopped go on, whoever its parent is by now."""
        self._tell_stopped(pid, signal.SIGCONT)

    def _tell_stopped(self, pid: int, number: int) -> None:
        fd = self._stopped.pop(pid, None)
        if fd is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        os.close(fd)

    def reap(self) -> list[str]:
        """Let go of those that have ended, and say which of them we have not killed."""
        found = []
        for index, process in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[index]
            if process.pid not in self._killed:
                found.append(f"process {process.pid} has ended by itself, with status {status}")
            self._killed.discard(process.pid)
        return found

    def not_calm(self) -> list[int]:
        """Those that are still doing something."""
        return [
            pid
            for index, process in self._running.items()
            if process.poll() is None
            for pid in self._board.not_calm(index, process.pid)
        ]

    def kill_all(self) -> None:
        """All of them, and their children, which may not have come so far as to end with them."""
        for process in self._running.values():
            process.send_signal(signal.SIGSTOP)  # it forks no more
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in list(self._stopped):
            self._tell_stopped(pid, signal.SIGKILL)
        for process in self._running.values():
            process.wait()
        self._running.clear()
        self._killed.clear()


def build(directory: Path) -> Path:
    """Compile the program into `directory`."""
    return cc.build(SOURCES / "soaker.c", directory / "soaker", str(SOURCES / "trap.c"))
