"""A charger: a process of ours in another memory cgroup, which makes pages when it is asked.

See native/charger/main.c for the process itself, and charging.py for when there is one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import struct
import subprocess
from array import array
from functools import partial
from typing import TYPE_CHECKING

import trio

from msharefs import installed, proc

from .descriptors import elsewhere

if TYPE_CHECKING:
    from pathlib import Path

    from .owners import Owner

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""A charger that has not answered anybody for so long is given up."""
IDLE_SECONDS = 5.0
"""One that nobody has asked for so long is not needed any more."""
_ASK, _TOLD = struct.Struct("=QQQ"), struct.Struct("=Qq")


class _Answer:
    """What comes of a request."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.result = 0


class Charger:
    """One such process."""

    def __init__(self, process: trio.Process, sock: socket.socket, events: int) -> None:
        self._process = process
        self._events = events
        self._kills = 0
        self._sock = trio.socket.from_stdlib_socket(sock)
        self.users: dict[int, Owner] = {}
        """The owners whose regions it has made pages of, by the number of the region."""
        self.ended = False
        self.dismissed = False
        """It has ended because we did not want it any more."""
        self._life = trio.CancelScope()
        self._answers: dict[int, _Answer] = {}
        self._seq = 0
        self._heard = trio.current_time()

    @classmethod
    async def start(cls, directory: Path | None) -> Charger:
        """A new one in the cgroup `directory`; None: it stays in ours. `serve` is to be called."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    [installed.charger()], stdin=theirs, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, start_new_session=True, cwd="/", env={},
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        try:
            events = await elsewhere(
                partial(_place, process.pid, directory),
                f"moving process {process.pid} to {directory or 'no other cgroup'}",
                _drop,
                user=os.geteuid(),
                mount=process.pid,
                seconds=ANSWER_SECONDS,
            )
        except BaseException:
            ours.close()
            process.kill()
            # In a cgroup that is frozen (version 1) it does not end before that is thawed.
            with trio.move_on_after(ANSWER_SECONDS, shield=True):
                await process.wait()
            raise
        ours.setblocking(False)
        return cls(process, ours, events)

    @property
    def idle(self) -> bool:
        """Nobody waits for it."""
        return not self._answers

    @property
    def was_killed(self) -> bool:
        """It has ended by SIGKILL, as by the OOM killer, and not by us."""
        return self._process.returncode == -signal.SIGKILL and not self.dismissed

    def oom_kills(self) -> int:
        """How many processes of the cgroup the OOM killer has taken; 0 where that is not told."""
        if self._events < 0:
            return self._kills
        with contextlib.suppress(OSError):  # the cgroup is removed
            for line in os.pread(self._events, 4096, 0).splitlines():
                name, _, count = line.partition(b" ")
                if name == b"oom_kill":
                    return int(count)
        return 0

    def dismiss(self) -> None:
        """It is not needed any more."""
        self.dismissed = True
        self._life.cancel()

    async def ask(self, fd: int, start: int, size: int) -> int:
        """Has pages of a file made: 0 or -errno. EPIPE: it has ended. ETIMEDOUT: it is given up."""
        if self.ended:
            return -errno.EPIPE
        self._seq += 1
        if self.idle:
            self._heard = trio.current_time()
        answer = self._answers[self._seq] = _Answer()
        message = _ASK.pack(self._seq, start, size)
        own = os.dup(fd)  # until it is sent, the region may close its files
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [own]))]
            # What goes wrong `serve` sees, too.
            with contextlib.suppress(OSError, trio.ClosedResourceError):
                await self._sock.sendmsg([message], rights)
        finally:
            os.close(own)
        await answer.over.wait()
        return answer.result

    async def serve(self) -> None:
        """Passes on what it answers, until it ends or is dismissed."""
        result = -errno.EPIPE
        try:
            with self._life:
                result = await self._pass_on()
        except OSError as error:
            log.debug("charger %d: %s", self._process.pid, error)
        finally:
            self.ended = True
            self._sock.close()
            with trio.CancelScope(shield=True):
                await self._wait_for_end(result)
            if self._events >= 0:
                self._kills, fd, self._events = self.oom_kills(), self._events, -1
                os.close(fd)
            for answer in self._answers.values():
                answer.result = result
                answer.over.set()

    async def _pass_on(self) -> int:
        """Returns what those who still wait are to be told."""
        while True:
            with trio.move_on_after(min(ANSWER_SECONDS, IDLE_SECONDS)) as patience:
                data = await self._sock.recv(_TOLD.size)
                if len(data) != _TOLD.size:
                    return -errno.EPIPE
                self._heard = trio.current_time()
                seq, result = _TOLD.unpack(data)
                answer = self._answers.pop(seq)
                answer.result = result
                answer.over.set()
            if patience.cancelled_caught:
                silent = trio.current_time() - self._heard
                if self.idle and silent >= IDLE_SECONDS:
                    self.dismissed = True
                    return -errno.EPIPE
                if not self.idle and silent >= ANSWER_SECONDS:
                    self.dismissed = True
                    return -errno.ETIMEDOUT

    async def _wait_for_end(self, result: int) -> None:
        """It ends when it finds its socket closed, unless it hangs; a frozen one ends late."""
        if result == -errno.ETIMEDOUT:
            self._process.kill()
            return
        with trio.move_on_after(ANSWER_SECONDS):
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()


def _drop(events: int) -> None:
    if events >= 0:
        os.close(events)


def _place(pid: int, directory: Path | None) -> int:
    """Moves a charger to a cgroup. For a thread: Linux may take its time.

    Returns a descriptor of what tells how often the OOM killer took a process there, or -1.
    """
    with contextlib.suppress(PermissionError):  # CAP_SYS_RESOURCE
        proc.spare(pid)
    if directory is None:
        return -1
    (directory / "cgroup.procs").write_text(str(pid))
    for name in ("memory.events", "memory.oom_control"):  # of version 2, and 1
        with contextlib.suppress(FileNotFoundError):
            return os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
    return -1
