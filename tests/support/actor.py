"""Processes that access memory as the test tells them (tests/programs/actor.c)."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from . import cc, proc
from .wait import until

if TYPE_CHECKING:
    from types import TracebackType

SOURCES = Path(__file__).parents[1] / "programs"
SEGV_MAPERR, SEGV_ACCERR, BUS_ADRERR = 1, 2, 2  # sigaction(2)
MAP_FIXED, MAP_FIXED_NOREPLACE = 0x10, 0x100000
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
PAGE = mmap.PAGESIZE
ANSWER_LIMIT = 30.0  # seconds
REPLY_MAX = 512  # bytes, as in actor.c


def build(directory: Path) -> Path:
    """Compile the actor into `directory`."""
    others = [str(SOURCES / name) for name in ("crowd.c", "churn.c", "echo.c", "trap.c")]
    return cc.build(SOURCES / "actor.c", directory / "actor", *others)


@dataclass(frozen=True)
class Fault:
    """A signal that an access ended in."""

    number: signal.Signals
    code: int
    address: int


def maperr(address: int) -> Fault:
    """SIGSEGV: nothing is mapped there."""
    return Fault(signal.SIGSEGV, SEGV_MAPERR, address)


def accerr(address: int) -> Fault:
    """SIGSEGV: the mapping there does not permit that access."""
    return Fault(signal.SIGSEGV, SEGV_ACCERR, address)


def adrerr(address: int) -> Fault:
    """SIGBUS: the mapping there has no memory behind it."""
    return Fault(signal.SIGBUS, BUS_ADRERR, address)


class Actor:
    """A process of its own. A context manager: leaving it ends the process.

    A call returns the numbers of the reply, or a `Fault`, or raises OSError with the errno that the
    process got. `start` and `finish` are its halves, for many processes at the same time.
    """

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self._channel = channel
        self._channel.settimeout(ANSWER_LIMIT)
        self.pid = pid
        self.process: subprocess.Popen[bytes] | None = None
        self.received = -1
        """The descriptor that came with the last answer."""
        self._children: list[Actor] = []

    @classmethod
    def launch(cls, program: Path) -> Self:
        """Start the program."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen([program, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        actor = cls(ours, process.pid)
        actor.process = process
        return actor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def start(self, command: str, *numbers: int, fd: int = -1) -> None:
        """Give a command, with a descriptor if there is one."""
        text = " ".join((command, *map(str, numbers))).encode()
        if fd < 0:
            self._channel.send(text)
        else:
            socket.send_fds(self._channel, [text], [fd])

    def finish(self) -> list[int] | Fault:
        """Wait for the answer."""
        data, fds, _, _ = socket.recv_fds(self._channel, REPLY_MAX, 1)
        self.received = fds[0] if fds else -1
        if not data:
            raise EOFError(f"actor {self.pid} is gone")
        kind, *words = data.decode().split()
        numbers = [int(word) for word in words]
        if kind == "signal":
            return Fault(signal.Signals(numbers[0]), *numbers[1:])
        if kind == "errno":
            raise OSError(numbers[0], os.strerror(numbers[0]))
        assert kind == "ok", data
        return numbers

    def patient(self, seconds: float) -> None:
        """From now on it may take so long to answer: it has much to do, and perhaps little time."""
        self._channel.settimeout(seconds)

    def call(self, command: str, *numbers: int, fd: int = -1) -> list[int] | Fault:
        """Give a command and wait for its answer."""
        self.start(command, *numbers, fd=fd)
        return self.finish()

    def number(self, command: str, *numbers: int, fd: int = -1) -> int:
        """The first number of an answer, which must not be a fault."""
        answer = self.call(command, *numbers, fd=fd)
        assert isinstance(answer, list), answer
        return answer[0]

    def give(self, fd: int) -> int:
        """Give the process a duplicate of a descriptor; returns its number there."""
        return self.number("take", fd=fd)

    def modes(self, name: str) -> list[int]:
        """How it or its shadows have files open whose paths contain `name` (os.O_RDONLY, ...)."""
        found = []
        for task in [Path(f"/proc/{self.pid}"), *proc.shadows(self.pid)]:
            for fd in (task / "fd").iterdir():
                if name in os.readlink(fd):
                    info = (task / "fdinfo" / fd.name).read_text()
                    found.append(int(info.split("flags:")[1].split()[0], 8) & os.O_ACCMODE)
        return found

    def attach(
        self,
        fd: int,
        address: int = 0,
        prot: int = READ_WRITE,
        flags: int = mmap.MAP_SHARED,
        offset: int = 0,
        size: int = 0,
    ) -> int:
        """Attach the region of the process's descriptor `fd`, or a part; returns the address."""
        return self.number("attach", fd, address, prot, flags, offset, size)

    def fork(self, address: int = 0) -> Actor:
        """A child. It loads from `address` first, unless 0; its `finish` returns the value."""
        self.start("fork", address)
        return self.forked()

    def forked(self) -> Actor:
        """The child, if the command was given by `start`."""
        answer = self.finish()
        assert isinstance(answer, list), answer
        child = Actor(socket.socket(fileno=self.received), answer[0])
        self._children.append(child)
        return child

    def kill(self) -> None:
        """SIGKILL; waits for the end if the process is our own child."""
        os.kill(self.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(ANSWER_LIMIT)

    def gone(self) -> None:
        """Wait until the last thread of a process that was killed, or exits, has ended."""
        with contextlib.suppress(OSError):  # it did not read our last command, or was gone before
            while self._channel.recv(4096):
                pass

    def end(self) -> None:
        """Let the process and its children go, whatever state they are in."""
        for child in self._children:
            child.end()
        if self.process is None:  # not our child, and its pid may be of another namespace
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
            self.gone()
        self._channel.close()
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                try:
                    self.process.wait(ANSWER_LIMIT)
                except subprocess.TimeoutExpired:
                    self.process.kill()
            self.process.wait(ANSWER_LIMIT)


class Board:
    """The board that the test shares with the threads of tests/programs/crowd.c."""

    STOP, CHANGING, THERE, GONE = range(4)
    _ENTRY = struct.Struct("QQQ40x")
    _BYTES = 64 * 1024

    def __init__(self) -> None:
        self.fd = os.memfd_create("board")
        os.ftruncate(self.fd, self._BYTES)
        self._memory = mmap.mmap(self.fd, self._BYTES)
        self._phase = memoryview(self._memory).cast("Q")  # one store, unlike struct's
        self._generation = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.phase(self.STOP)
        self._phase.release()
        self._memory.close()
        os.close(self.fd)

    def phase(self, state: int) -> None:
        """A phase begins; equal phases in a row have different numbers."""
        self._generation += 1
        self._phase[0] = self._generation * 4 + state

    def seen(self, number: int) -> tuple[int, int, int]:
        """The counts of actor `number`: stores that went through, were refused, were wrong."""
        return self._ENTRY.unpack_from(self._memory, 64 + number * self._ENTRY.size)

    def wait(self, number: int, count: int, more: int) -> None:
        """Wait until a count of `seen(number)` has grown by `more`."""
        enough = self.seen(number)[count] + more
        until(lambda: self.seen(number)[count] >= enough, f"process {number} goes on")
