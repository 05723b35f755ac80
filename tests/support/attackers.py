"""A hostile user: processes that do all at once what other users may suffer from.

Each kind of attack is a function that goes on until its process is killed. What it is refused is
its own trouble.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import resource
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import msharefs
from msharefs import processes, verbs
from msharefs.native import lib

from . import byhand, hostile, wire
from .calls import NOBODY
from .wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from .fakefuse import FakeFuse

SIZE = 4 << 20
PAGE = mmap.PAGESIZE
COSTLY_MAPPINGS = 20_000
PREPARE_LIMIT = 60.0
CHILDREN = 20
CONNECTIONS = 50
ODD = "\x01\n" * 90
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED


@dataclass(frozen=True)
class Target:
    """A mount, where its sockets are, and a file of a file system that does not answer."""

    directory: Path
    state: Path
    hung: Path
    board: memoryview
    """Whether all are to begin; of each kind how often its attack was made, and if it is ready."""
    index: int

    def begin(self) -> None:
        """Everything is prepared: waits until it is for all kinds."""
        self.board[2 + 2 * self.index] = 1
        while not self.board[0]:
            time.sleep(0.01)

    def tick(self) -> None:
        """The attack is made once more."""
        self.board[1 + 2 * self.index] += 1


@contextlib.contextmanager
def _region(target: Target, kind: str, size: int = SIZE) -> Iterator[msharefs.Region]:
    """A region of the attacker's own."""
    path = target.directory / f"{kind}{os.getpid()}"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        try:
            region.truncate(size)
            region.map(0, size)
            yield region
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def connections(target: Target) -> None:
    """Many that say nothing; but not all that there may be, or the other kinds would get none."""
    target.begin()
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for _ in range(CONNECTIONS):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                sock.settimeout(1)
                sock.connect(os.fspath(target.state / "control"))
                target.tick()


def regions(target: Target) -> None:
    """Made, opened, and unlinked."""
    target.begin()
    for number in itertools.count():
        path = target.directory / f"made{os.getpid()}-{number % 500}"
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            os.truncate(path, SIZE)
            target.tick()
        with contextlib.suppress(OSError):
            os.unlink(target.directory / f"made{os.getpid()}-{(number + 250) % 500}")


def messages(target: Target) -> None:
    """Of every kind, with any descriptors."""
    target.begin()
    for number in itertools.count(time.monotonic_ns()):
        with contextlib.suppress(OSError, EOFError, hostile.ServerError):
            target.tick()
            hostile.Case(target.directory, number).run()


def claims(target: Target) -> None:
    """A slot's claim changes all the time, while a change asks for its holder."""
    with _region(target, "claims") as region, wire.slots(region) as slots:
        slots.write(7, os.getpid(), processes.start_time(os.getpid()), 1)
        slots.touch(7)
        target.begin()
        if os.fork() == 0:
            for claim in itertools.count(1):
                slots.claim(7, claim)
        while True:
            target.tick()
            with contextlib.suppress(OSError):
                region.protect(0, SIZE, 0)


def costly_slots(target: Target) -> None:
    """All slots name a process that takes long to look at, and the server is asked to look."""
    crowd = [mmap.mmap(-1, PAGE) for _ in range(COSTLY_MAPPINGS)]
    with _region(target, "slots") as region, wire.slots(region) as slots:
        while True:
            for slot in range(lib.MM_SLOTS):
                slots.write(slot, os.getpid(), 0, slot + 1)
            target.begin()
            target.tick()
            with contextlib.suppress(OSError):
                region.stat()
                region.describe("clients")
                region.unmap(0, PAGE)
    del crowd


def many_mappings(target: Target) -> None:
    """Listed again and again, in every way."""
    with _region(target, "vmas") as region:
        for page in range(0, SIZE // PAGE, 2):
            region.unmap(page * PAGE, PAGE)
        target.begin()
        while True:
            for what in ("maps", "pagetable", "audit", "clients", "stat", "check"):
                target.tick()
                with contextlib.suppress(OSError):
                    region.describe(what)


def blocking_sockets(target: Target) -> None:
    """Both ends kept, made blocking, filled, and drained by the wrong side."""
    with _region(target, "block") as region:
        target.begin()
        while True:
            with (
                contextlib.suppress(OSError, EOFError),
                byhand.both_ends(region.fd) as (ours, theirs),
            ):
                theirs.setblocking(True)
                ours.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(300):
                        byhand.send(ours, lib.MSG_STAT)
                target.tick()
                theirs.setblocking(False)
                theirs.recv(byhand.MESSAGE.size)


def shortened(target: Target) -> None:
    """The `.mm` of its own region, while the server works on it; as far as Linux lets it."""
    target.begin()
    while True:
        with (
            contextlib.suppress(OSError, EOFError),
            _region(target, "short") as region,
            wire.connected(region) as sock,
        ):
            wire.send(sock, lib.MSG_ATTACH)
            _, fds = wire.answer(sock)
            region.map(0, SIZE)
            with contextlib.suppress(PermissionError):  # by Landlock
                os.ftruncate(fds[0], 0)
            target.tick()
            for what in ("stat", "maps", "check"):
                with contextlib.suppress(OSError):
                    region.describe(what)
            for fd in fds:
                os.close(fd)


def log_flood(target: Target) -> None:
    """Requests that the server logs."""
    with _region(target, "log") as region:
        target.begin()
        while True:
            with contextlib.suppress(OSError):
                region.describe(ODD)
            target.tick()


def hung_files(target: Target) -> None:
    """Descriptors of a file system that does not answer."""
    fd = os.open(target.hung, os.O_RDWR)
    with _region(target, "hung") as region:
        target.begin()
        while True:
            with contextlib.ExitStack() as stack, contextlib.suppress(OSError, EOFError):
                for _ in range(100):
                    ours, theirs = stack.enter_context(byhand.both_ends(region.fd))
                    theirs.close()
                    byhand.send(ours, lib.MSG_MAP, 0, PAGE, 3, FILE, 0, fds=[fd])
                    target.tick()
                ours.recv(byhand.MESSAGE.size)


def attachments(target: Target) -> None:
    """A fork bomb: each child is attached, and forks while it may."""
    with _region(target, "bomb") as region:
        memory = region.attach()
        target.begin()
        while True:
            born = 0
            for _ in range(CHILDREN):
                with contextlib.suppress(OSError):
                    if os.fork() == 0:
                        for page in range(0, SIZE, PAGE):
                            memory[page] = 1
                        os._exit(0)
                    born += 1
            for _ in range(born):
                os.wait()
                target.tick()


KINDS = (connections, regions, messages, claims, costly_slots, many_mappings, blocking_sockets,
         shortened, log_flood, hung_files, attachments)  # fmt: skip


class Attack:
    """All kinds at once, of user nobody. A context manager."""

    def __init__(self, directory: Path, state: Path, fuse: FakeFuse) -> None:
        self._paths = directory, state, fuse.file
        self._pids: list[int] = []
        self._board = memoryview(mmap.mmap(-1, PAGE)).cast("Q")

    def __enter__(self) -> Self:
        for index, kind in enumerate(KINDS):
            self._pids.append(self._start(kind, Target(*self._paths, self._board, index)))
        ready = self._board[2 : 2 + 2 * len(KINDS) : 2]
        try:
            until(lambda: all(ready), "all have prepared their attacks", limit=PREPARE_LIMIT)
        except BaseException:
            self._end()
            raise
        self._board[0] = 1
        return self

    def _start(self, kind: Callable[[Target], None], target: Target) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            os.setpgid(0, 0)  # with its children
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.setresuid(NOBODY, NOBODY, NOBODY)
            while True:
                with contextlib.suppress(OSError, EOFError, AssertionError):
                    kind(target)
        finally:
            os._exit(1)

    def rounds(self) -> dict[str, int]:
        """How often each kind of attack was made."""
        return {kind.__name__: self._board[1 + 2 * index] for index, kind in enumerate(KINDS)}

    def ended(self) -> list[str]:
        """The kinds whose process has ended: they must all go on."""
        return [
            kind.__name__
            for kind, pid in zip(KINDS, self._pids, strict=True)
            if os.waitpid(pid, os.WNOHANG)[0]
        ]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in self._pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
