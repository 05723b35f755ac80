"""Messages of the control socket on the wire, with descriptors: native/core/protocol.h."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from msharefs.native import ffi, lib

from . import descriptors

if TYPE_CHECKING:
    import trio

MESSAGE = struct.Struct(f"=IiQ5Q{lib.MSG_TEXT}s")
assert MESSAGE.size == ffi.sizeof("struct msg")
_ARGUMENTS = 5
_INT = struct.Struct("i")


class Request:
    """One message of a client, with the descriptors that came with it."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        self.op, self.result, self.seq, *arguments, self.text = MESSAGE.unpack(data)
        self.arguments: list[int] = arguments
        self._fds = fds

    def take_fd(self, missing: int = errno.EPROTO) -> int:
        """The next descriptor, which is the caller's now. Error `missing` if there is none."""
        if not self._fds:
            raise OSError(missing, "a message came without its descriptor")
        return self._fds.pop(0)

    def close(self) -> None:
        """Closes the descriptors that nobody took."""
        descriptors.close_later(*self._fds)
        self._fds = []


class Reply:
    """The reply to a message; `own` descriptors are closed once sent."""

    def __init__(
        self,
        *,
        result: int = 0,
        arguments: tuple[int, ...] = (),
        text: bytes = b"",
        fds: list[int] | None = None,
        own: bool = False,
    ) -> None:
        self.result = result
        self.arguments = arguments
        self.text = text
        self.fds = fds or []
        self._own = own

    def close(self) -> None:
        """Closes them, after sending."""
        if self._own:
            for fd in self.fds:
                os.close(fd)


def duplicated(*fds: int) -> list[int]:
    """Duplicates of those that are descriptors. OSError: of none."""
    made: list[int] = []
    try:
        made.extend(os.dup(fd) for fd in fds if fd >= 0)
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return made


async def receive(sock: trio.socket.SocketType, sender: str) -> Request | None:
    """The next message; None: the connection has ended. EPROTO: it is too short."""
    size = socket.CMSG_SPACE(lib.MSG_FDS * _INT.size)
    data, ancillary, _, _ = await sock.recvmsg(MESSAGE.size, size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // _INT.size * _INT.size])
    if len(data) == MESSAGE.size:
        return Request(data, fds.tolist())
    descriptors.close_later(*fds)
    if data:
        raise OSError(errno.EPROTO, f"{sender} sent {len(data)} bytes")
    return None


async def send(sock: trio.socket.SocketType, op: int, seq: int, content: Reply) -> None:
    """Sends message `op` with the number `seq`."""
    arguments = (*content.arguments, *(0,) * (_ARGUMENTS - len(content.arguments)))
    data = MESSAGE.pack(op, content.result, seq, *arguments, content.text[: lib.MSG_TEXT])
    if _send_at_once(sock.fileno(), data, content.fds):
        return
    # The peer does not read. Until it does, the files may be closed and their numbers be others'.
    own = [os.dup(fd) for fd in content.fds]
    try:
        await sock.sendmsg([data], _rights(own))
    finally:
        descriptors.close_later(*own)


def _send_at_once(fd: int, data: bytes, fds: list[int]) -> bool:
    """Sends a message on socket `fd`, unless that would have to wait."""
    if fd < 0:
        raise OSError(errno.EBADF, "the connection is closed")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd)
    try:
        sock.sendmsg([data], _rights(fds), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    finally:
        sock.detach()
    return True


def _rights(fds: list[int]) -> list[tuple[int, int, array.array[int]]]:
    """What passes descriptors beside a message."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
