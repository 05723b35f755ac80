"""Many processes that do something at the same time: the workers of the demo and the benchmarks.

A worker is the program ``mshare-worker`` (native/worker/main.c has its commands). Each has one
socket for both directions, so a thousand of them cost a thousand descriptors.
"""

from __future__ import annotations

import errno
import json
import resource
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from msharefs import installed, verbs

if TYPE_CHECKING:
    from pathlib import Path

# Silence of all workers for this long is a hang: each reports its progress every 64 MiB.
STALL_SECONDS = 120.0
# Our own, beside the workers' sockets: standard streams, the selector, files, and some to spare.
_OWN_DESCRIPTORS = 64

PAGE_BYTES = verbs.PAGE

Notify = Callable[[int], None]


def _ignore(count: int) -> None:
    """Nobody wants to be told."""


@dataclass(frozen=True)
class Figure:
    """A figure of a worker's own, before and after a command."""

    before: int
    after: int

    @property
    def growth(self) -> int:
        """What the command added."""
        return self.after - self.before


@dataclass(frozen=True)
class Answer:
    """One worker's answer to a command. Times are those of its process."""

    nanoseconds: int
    minor_faults: Figure
    major_faults: Figure
    user_microseconds: Figure
    system_microseconds: Figure
    vmpte_bytes: Figure
    """Its own page tables: VmPTE of /proc/PID/status."""
    pages: int
    """Visited by fill and verify."""
    wrong: int
    """Pages that verify found to differ."""
    first_wrong: int
    each_nanoseconds: dict[str, int]
    """Nanoseconds of one round of a `repeat`: p50, p90, p99, max."""
    value: int | None
    """The value that the command found, if it looks for one."""

    @classmethod
    def read(cls, said: dict[str, Any]) -> Answer:
        """The answer that a line of JSON holds."""
        return cls(
            nanoseconds=said["ns"],
            minor_faults=Figure(*said["minflt"]),
            major_faults=Figure(*said["majflt"]),
            user_microseconds=Figure(*said["user_us"]),
            system_microseconds=Figure(*said["system_us"]),
            vmpte_bytes=Figure(*(kilobytes * 1024 for kilobytes in said["vmpte_kb"])),
            pages=said["pages"],
            wrong=said["wrong"],
            first_wrong=said["first_wrong"],
            each_nanoseconds=said.get("each_ns", {}),
            value=said.get("value"),
        )


class Workers:
    """`count` running workers, a context manager; at its end there are none.

    They inherit the descriptors in `pass_fds` and open them as /proc/self/fd/N. `started` is called
    with 1 for each. OSError: EMFILE if our limit of descriptors is too low for so many.
    """

    def __init__(self, count: int, pass_fds: Sequence[int] = (), started: Notify = _ignore) -> None:
        self._count = count
        self._pass_fds = pass_fds
        self._started = started
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._unread: list[bytearray] = []

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> Self:
        _allow_descriptors(self._count + _OWN_DESCRIPTORS)
        program = installed.worker()
        try:
            for _ in range(self._count):
                self._start(program)
                self._started(1)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def pids(self) -> list[int]:
        """Process ids, in the order of `ask`'s numbers."""
        return [process.pid for process in self._processes]

    def ask(
        self,
        command: str | Callable[[int], str],
        who: Iterable[int] | None = None,
        *,
        visited: Notify = _ignore,
        answered: Notify = _ignore,
    ) -> list[Answer]:
        """Give a command to workers, all of them or the numbers in `who`, at once; their answers.

        A function gives each worker a command of its own, by number. `visited` is called with
        numbers of bytes as fill and verify get on, `answered` with 1 for each worker. OSError: a
        worker could not do it (its errno) or died; the first error counts.
        """
        asked = list(range(len(self))) if who is None else list(who)
        said_to = {number: command if isinstance(command, str) else command(number)
                   for number in asked}  # fmt: skip
        answers: dict[int, Answer] = {}
        told = dict.fromkeys(asked, 0)
        with selectors.DefaultSelector() as selector:
            for number in asked:
                selector.register(self._sockets[number], selectors.EVENT_READ, number)
            for number in asked:
                self._send(number, said_to[number])
            while len(answers) < len(asked):
                ready = selector.select(STALL_SECONDS)
                if not ready:
                    missing = next(number for number in asked if number not in answers)
                    raise TimeoutError(
                        errno.ETIMEDOUT,
                        f"{self._name(missing)} and others have said nothing "
                        f"for {STALL_SECONDS:g} seconds, asked to {said_to[missing]}",
                    )
                for key, _ in ready:
                    for said in self._hear(key.data, said_to[key.data]):
                        if "progress" in said:
                            news = said["progress"]
                        else:
                            answer = self._check(key.data, said_to[key.data], said)
                            answers[key.data] = answer
                            news = answer.pages * PAGE_BYTES - told[key.data]
                            answered(1)
                        told[key.data] += news
                        visited(news)
        return [answers[number] for number in asked]

    def _start(self, program: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._sockets.append(ours)
            self._unread.append(bytearray())
            self._processes.append(
                subprocess.Popen(
                    [program],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    pass_fds=self._pass_fds,
                    process_group=0,  # a Ctrl-C is meant for us: we end them
                )
            )

    def _name(self, number: int) -> str:
        return f"worker {number} (process {self._processes[number].pid})"

    def _send(self, number: int, command: str) -> None:
        try:
            self._sockets[number].sendall(command.encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(number, command) from None

    def _hear(self, number: int, command: str) -> list[dict[str, Any]]:
        """The whole lines that have arrived from one worker, as documents."""
        try:
            new = self._sockets[number].recv(65536)
        except ConnectionResetError:
            new = b""
        if not new:
            raise self._died(number, command)
        unread = self._unread[number]
        unread += new
        *lines, rest = unread.split(b"\n")
        self._unread[number] = rest
        return [json.loads(line) for line in lines]

    def _check(self, number: int, command: str, said: dict[str, Any]) -> Answer:
        if not said["ok"]:
            raise OSError(
                said["errno"], f"{self._name(number)}, asked to {command}: {said['error']}"
            )
        return Answer.read(said)

    def _died(self, number: int, command: str) -> OSError:
        status = self._processes[number].wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return OSError(errno.EIO, f"{self._name(number)} ended {how}, asked to {command}")

    def _end(self) -> None:
        for ours in self._sockets:
            ours.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def _allow_descriptors(count: int) -> None:
    """Raise our soft limit of open files to `count` if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count <= soft:
        return
    if count > hard:
        raise OSError(
            errno.EMFILE,
            f"{count} open files are needed and the limit is {hard}: "
            "raise it (ulimit -Hn) or ask for fewer processes",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
