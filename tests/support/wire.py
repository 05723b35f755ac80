"""The control socket without the library: what a client can say that the library never does."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING

from msharefs.native import check, lib

from . import rawmm

if TYPE_CHECKING:
    from collections.abc import Iterator

    import msharefs

MESSAGE = struct.Struct(f"=IiQ5Q{lib.MSG_TEXT}s")


@contextlib.contextmanager
def connected(region: msharefs.Region) -> Iterator[socket.socket]:
    """A connection to the region's server."""
    with socket.socket(fileno=check(lib.control_connect(region.fd), "connecting")) as sock:
        sock.settimeout(30)
        yield sock


def send(
    sock: socket.socket,
    op: int,
    *arguments: int,
    text: bytes = b"",
    fds: tuple[int, ...] = (),
    seq: int = 1,
) -> None:
    """Sends a message with these descriptors."""
    data = MESSAGE.pack(op, 0, seq, *arguments, *(0,) * (5 - len(arguments)), text)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


def answer(sock: socket.socket) -> tuple[int, list[int]]:
    """The result of the next message, and its descriptors. ConnectionResetError: there is none."""
    data, fds, _, _ = socket.recv_fds(sock, MESSAGE.size, lib.MSG_FDS)
    if not data:
        raise ConnectionResetError("the server has hung up")
    return int(MESSAGE.unpack(data)[1]), list(fds)


class Slots:
    """The client slots of a region, to be written at will, as every attached process can."""

    def __init__(self, fd: int) -> None:
        self._mm = mmap.mmap(fd, os.fstat(fd).st_size)
        self._at = self._word(rawmm.HEADER["slots_at"])
        self._touched_at = self._word(rawmm.HEADER["touched_at"])
        self._stride = self._word(rawmm.HEADER["touched_stride"])

    def close(self) -> None:
        """Unmaps it; what was written stays."""
        self._mm.close()

    def write(self, slot: int, process: int, start_time: int, claim: int) -> None:
        """Says that a process holds a slot; 0: none."""
        struct.pack_into("=QQ", self._mm, self._at + rawmm.SLOT_SIZE * slot, process, start_time)
        self.claim(slot, claim)
        high = max(slot + 1, self._word(rawmm.HEADER["slots_high"]))
        struct.pack_into("=Q", self._mm, rawmm.HEADER["slots_high"], high)

    def claim(self, slot: int, claim: int) -> None:
        """Changes the number of its claim."""
        at = self._at + rawmm.SLOT_SIZE * slot + rawmm.SLOT_CLAIM
        struct.pack_into("=Q", self._mm, at, claim)

    def enter(self, slot: int, epoch: int = 1) -> None:
        """Says that the slot's holder is inside a fault since then."""
        at = self._at + rawmm.SLOT_SIZE * slot + rawmm.SLOT_EPOCH
        struct.pack_into("=Q", self._mm, at, epoch)

    def poison(self, slot: int) -> None:
        """Says that the slot's holder has guard pages."""
        at = self._at + rawmm.SLOT_SIZE * slot + SLOT_POISONED
        struct.pack_into("=I", self._mm, at, 1)

    def touch(self, slot: int) -> None:
        """Says that the slot has touched the first 2 MiB of the region."""
        struct.pack_into("=Q", self._mm, self._at + rawmm.SLOT_SIZE * slot + SLOT_TOUCHED, 1)
        struct.pack_into("=Q", self._mm, self._touched_at + self._stride * slot, 1)

    def _word(self, at: int) -> int:
        return int(struct.unpack_from("=Q", self._mm, at)[0])


SLOT_POISONED, SLOT_TOUCHED = 28, 32


@contextlib.contextmanager
def slots(region: msharefs.Region) -> Iterator[Slots]:
    """The slots of a region."""
    with connected(region) as sock:
        send(sock, lib.MSG_ATTACH)
        result, fds = answer(sock)
        assert result == 0
        made = Slots(fds[0])
        for fd in fds:
            os.close(fd)
        try:
            yield made
        finally:
            made.close()
