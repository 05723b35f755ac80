"""A client that keeps to no rule: messages with anything in them, and anything in shared memory."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import random
import socket
import time
from typing import TYPE_CHECKING

import msharefs
from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from pathlib import Path

PAGE, MIB2 = 4096, 1 << 21
SIZE = 4 * MIB2
MESSAGE_BYTES = ffi.sizeof("struct msg")
OPERATIONS = tuple(getattr(lib, name) for name in dir(lib) if name.startswith("MSG_"))
LOOKS = (b"clients", b"maps", b"pagetable", b"audit", b"stat", b"\xff\xfe", b"", b"a" * 192)
ANSWER_SECONDS = 30.0
QUIET_SECONDS = 0.02
"""How long a case waits for an answer that may not come at all."""
USERFAULTFD_IOC_NEW = 0xAA00
FDS_MAX = 6


class ServerError(Exception):
    """The server did something that it should not do."""


class Case:
    """One hostile client."""

    def __init__(self, directory: Path, number: int) -> None:
        self.chance = random.Random(number)
        self.path = directory / f"case{number}"
        self._stack = contextlib.ExitStack()
        self._fds: list[int] = []
        self._mm = ffi.new("struct mm *")
        self._slot, self._claim = 0, 0

    def run(self) -> None:
        """Runs the whole case; afterwards nothing is left."""
        with self._stack:
            region = self._stack.enter_context(msharefs.open(self.path, os.O_RDWR | os.O_CREAT))
            self._stack.callback(self.path.unlink)
            if self.chance.random() < 0.95:
                region.truncate(SIZE)
                region.map(0, SIZE)
            self._descriptors(region.fd)
            for _ in range(self.chance.randint(1, 2)):
                mode = self.chance.choice([os.O_RDWR, os.O_RDWR, os.O_RDONLY])
                fd = os.open(self.path, mode)
                sock = socket.socket(fileno=lib.control_connect(fd))
                os.close(fd)
                with sock:
                    self._talk(sock)

    def _descriptors(self, region: int) -> None:
        """Descriptors of every kind that a client may send."""
        with contextlib.suppress(OSError):  # not everybody may
            self._keep(os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC))
            flags = os.O_CLOEXEC | os.O_NONBLOCK
            self._keep(fcntl.ioctl(self._fds[-1], USERFAULTFD_IOC_NEW, flags))
        self._keep(os.memfd_create("object"))
        os.truncate(self._fds[-1], SIZE)
        self._keep(os.open("/dev/null", os.O_RDWR))
        with contextlib.suppress(PermissionError):  # of a process that has changed its user
            self._keep(os.open("/proc/self/mem", os.O_RDWR))
        self._keep(os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY))
        self._keep(os.dup(region))
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for end in socket.socketpair(socket.AF_UNIX, kind):
                self._keep(end.detach())
        self._keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach())
        for fd in os.pipe():
            self._keep(fd)

    def _keep(self, fd: int) -> None:
        self._fds.append(fd)
        self._stack.callback(os.close, fd)

    def _talk(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_SECONDS)
        if self.chance.random() < 0.8:
            self._attach(sock)
        for _ in range(self.chance.randint(1, 8)):
            if self._mm.header != ffi.NULL and self.chance.random() < 0.3:
                self._scribble()
            try:
                self._say(sock)
            except OSError:  # it has hung up on us, or will not read
                break
            self._listen(sock, QUIET_SECONDS)
        if self.chance.random() < 0.5:  # otherwise it notices by itself
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            if not self._listen(sock, ANSWER_SECONDS):
                raise ServerError("the server does not hang up on a client that has")

    def _attach(self, sock: socket.socket) -> None:
        """Attaches like a client: with a slot, and maybe until it is ready."""
        sock.send(_message(lib.MSG_ATTACH, arguments=(3,)))
        _, fds, *_ = socket.recv_fds(sock, MESSAGE_BYTES, lib.MSG_FDS)
        for fd in fds[1:]:
            os.close(fd)
        if not fds:
            return
        if self._mm.header != ffi.NULL or lib.mm_open(self._mm, fds[0]):
            os.close(fds[0])
            return
        self._stack.callback(lib.mm_close, self._mm)
        self._slot = max(0, lib.slot_claim(self._mm, os.getpid(), 1))
        self._claim = lib.mm_claim(self._mm, self._slot)
        self._keep(os.dup(fds[0]))

    def _say(self, sock: socket.socket) -> None:
        chance = self.chance
        data = _message(
            chance.choice(OPERATIONS) if chance.random() < 0.9 else chance.getrandbits(32),
            chance.choice([0, -1, -(1 << 31), 5]),
            chance.choice([0, 1, 2, 3, 1 << 32, (1 << 64) - 1]),
            tuple(self._number() for _ in range(5)),
            chance.choice([*LOOKS, chance.randbytes(chance.randrange(lib.MSG_TEXT))]),
        )  # fmt: skip
        if chance.random() < 0.05:
            data = data[: chance.randrange(1, MESSAGE_BYTES)]
        fds = [chance.choice(self._fds) for _ in range(self._count())]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([data], rights, socket.MSG_DONTWAIT)

    def _count(self) -> int:
        return self.chance.choice([0, 1, 1, 2, 2, 3, self.chance.randrange(FDS_MAX + 1)])

    def _number(self) -> int:
        chance = self.chance
        return chance.choice([
            0, 1, 2, 3, PAGE, PAGE - 1, MIB2, 2 * MIB2, SIZE, SIZE - PAGE, SIZE + PAGE, 0x31, 0x11,
            self._slot, self._claim, lib.MM_SLOTS, lib.MM_SLOTS - 1,
            chance.getrandbits(16), chance.getrandbits(64), (1 << 64) - PAGE, (1 << 63) - 1,
        ])  # fmt: skip

    def _scribble(self) -> None:
        """Writes anything into the page of the header, a slot, a VMA, or any other."""
        size = os.fstat(self._mm.fd).st_size
        places = (0, 0, PAGE, self._slot * 128 + PAGE, PAGE + lib.MM_SLOTS * 128, size - PAGE)
        at = self.chance.choice([*places, self.chance.randrange(size) & -PAGE])
        at += 8 * self.chance.randrange(80)
        value = self.chance.choice([0, 1, 7, (1 << 64) - 1, self._number()])
        with contextlib.suppress(OSError):
            os.pwrite(self._mm.fd, value.to_bytes(8, "little"), min(at, size - 8))

    def _listen(self, sock: socket.socket, seconds: float) -> bool:
        """Reads, and answers questions, until the server hangs up (True), or the time is over."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                data, fds, *_ = socket.recv_fds(sock, MESSAGE_BYTES, lib.MSG_FDS)
            except TimeoutError:
                return False
            except OSError:
                return True
            for fd in fds:
                os.close(fd)
            if not data:
                return True
            if self.chance.random() < 0.9:
                seq = int.from_bytes(data[8:16], "little")
                with contextlib.suppress(OSError):
                    sock.send(_message(lib.MSG_REPLY, 0, seq), socket.MSG_DONTWAIT)
        return False


def _message(
    op: int,
    result: int = 0,
    seq: int = 0,
    arguments: tuple[int, ...] = (),
    text: bytes = b"",
) -> bytes:
    msg = ffi.new("struct msg *", {"op": op, "result": result, "seq": seq})
    for index, number in enumerate(arguments):
        msg.arg[index] = number
    ffi.buffer(msg.text)[: len(text)] = text[: lib.MSG_TEXT]
    return bytes(ffi.buffer(msg))
