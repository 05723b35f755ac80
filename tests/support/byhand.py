"""The control protocol (native/core/protocol.h) by hand, for clients that keep to no rule."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING

from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MESSAGE = struct.Struct(f"=IiQ5Q{lib.MSG_TEXT}s")
_NEW, _API, _REGISTER, _MISSING = 0xAA00, 0xC018AA3F, 0xC020AA00, 1  # linux/userfaultfd.h
LIMIT = 20.0  # seconds; only a failure waits that long


def message(op: int, *arguments: int) -> bytes:
    """The bytes of a message."""
    return MESSAGE.pack(op, 0, 1, *arguments, *(0,) * (5 - len(arguments)), b"")


def send(sock: socket.socket, op: int, *arguments: int, fds: Sequence[int] = ()) -> None:
    """Sends a message with descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([message(op, *arguments)], rights)


def answer(sock: socket.socket) -> tuple[int, list[int]]:
    """The result in the next reply, and its descriptors; requests of the server are passed over."""
    while True:
        data, fds, _, _ = socket.recv_fds(sock, MESSAGE.size, lib.MSG_FDS)
        if not data:
            raise EOFError
        op, result, *_ = MESSAGE.unpack(data)
        if op == lib.MSG_REPLY:
            return result, fds


def call(
    sock: socket.socket, op: int, *arguments: int, fds: Sequence[int] = ()
) -> tuple[int, list[int]]:
    """The answer to a message."""
    send(sock, op, *arguments, fds=fds)
    return answer(sock)


def show(region_fd: int, fd: int) -> None:
    """Makes the server take descriptor `fd` of ours for a connection; OSError if it does not."""
    ticket = ffi.new("struct mshare_connect *", {"fd": fd})
    fcntl.ioctl(region_fd, lib.MSHAREFS_CONNECT, bytearray(ffi.buffer(ticket)))


@contextlib.contextmanager
def both_ends(region_fd: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection; also the server's end of it, which a client need not close."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        show(region_fd, theirs.fileno())
        ours.settimeout(LIMIT)
        yield ours, theirs


@contextlib.contextmanager
def page_that_never_comes() -> Iterator[mmap.mmap]:
    """A page whose first access waits until the block is left."""
    with open("/dev/userfaultfd", "rb", buffering=0) as device:
        uffd = fcntl.ioctl(device, _NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(page)))
    try:
        fcntl.ioctl(uffd, _API, struct.pack("=3Q", 0xAA, 0, 0))
        fcntl.ioctl(uffd, _REGISTER, struct.pack("=4Q", address, mmap.PAGESIZE, _MISSING, 0))
        yield page
    finally:
        os.close(uffd)
