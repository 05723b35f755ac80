"""Messages of the control socket on the wire, with descriptors: native/core/protocol.h."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct

import trio

from msharefs import proc
from msharefs.native import check_errno, ffi, lib

from . import descriptors

MESSAGE = struct.Struct(f"=IiQ5Q{lib.MSG_TEXT}s")
assert MESSAGE.size == ffi.sizeof("struct msg")
_ARGUMENTS = 5
_INT = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")
_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
_SCM_PIDFD = 4  # linux/socket.h, Linux 6.5
_RIGHTS_SIZE = socket.CMSG_SPACE(lib.MSG_FDS * _INT.size)
# Whatever the client makes of O_NONBLOCK on the socket that it shares with us.
_RECEIVE_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
SEND_SECONDS = 10.0
"""A client that has not read for so long is cut off. One that is stopped comes back by itself."""


class Request:
    """One message of a client, with the descriptors that came with it."""

    def __init__(self, data: bytes, fds: list[int], user: int) -> None:
        self.op, self.result, self.seq, *arguments, self.text = MESSAGE.unpack(data)
        self.arguments: list[int] = arguments
        self._fds = fds
        self._user = user

    def take_fd(self, missing: int = errno.EPROTO) -> int:
        """The next descriptor, which is the caller's now. Error `missing` if there is none."""
        if not self._fds:
            raise OSError(missing, "a message came without its descriptor")
        return self._fds.pop(0)

    def has_fd(self) -> bool:
        """Whether a descriptor is left."""
        return bool(self._fds)

    def close(self) -> None:
        """Closes the descriptors that nobody took."""
        descriptors.close_later(*self._fds, user=self._user)
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


NO_REPLY = Reply()
"""None is sent."""


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


def read_only(*fds: int) -> list[int]:
    """The files of these descriptors, opened for reading only. OSError: none is."""
    made: list[int] = []
    try:
        made.extend(os.open(proc.fd_path(fd), os.O_RDONLY | os.O_CLOEXEC) for fd in fds)
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return made


def take(sock: socket.socket, sender: str, user: int) -> Request | None:
    """The message that is there; None: the connection has ended. EPROTO: it is no message.

    BlockingIOError: there is none. For a thread: see inboxes.py.
    """
    data, ancillary, _, _ = sock.recvmsg(MESSAGE.size, _RIGHTS_SIZE, _RECEIVE_FLAGS)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // _INT.size * _INT.size])
        elif (level, kind) == (socket.SOL_SOCKET, _SCM_PIDFD):
            _close_pidfd(content)
    if len(data) == MESSAGE.size:
        return Request(data, fds.tolist(), user)
    descriptors.close_later(*fds, user=user)
    if data:
        raise OSError(errno.EPROTO, f"{sender} sent {len(data)} bytes")
    return None


def _close_pidfd(content: bytes) -> None:
    """Closes the descriptor that Linux adds to each message once the client sets SO_PASSPIDFD.

    It may set that, as O_NONBLOCK, on the socket that it shares with us. Nobody wants them.
    """
    (pidfd,) = _INT.unpack(content)
    if pidfd >= 0:  # an error otherwise, such as of a sender that has ended
        os.close(pidfd)


async def send(sock: socket.socket, op: int, seq: int, content: Reply, user: int) -> None:
    """Sends message `op` with the number `seq` to a process of user `user`.

    ETIMEDOUT: the client does not read what it was sent before. EPIPE: the connection has ended.
    """
    data = _packed(op, seq, content)
    if _send_now(sock, data, content.fds):
        return
    # Until the client reads, the files may be closed and their numbers be others'.
    own = duplicated(*content.fds)
    try:
        with trio.move_on_after(SEND_SECONDS) as patience:
            while not _send_now(sock, data, own):
                await trio.lowlevel.wait_writable(sock)
    except trio.ClosedResourceError:
        raise OSError(errno.EPIPE, "the connection has ended") from None
    finally:
        descriptors.close_later(*own, user=user)
    if patience.cancelled_caught:
        raise OSError(errno.ETIMEDOUT, f"it has not read for {SEND_SECONDS:g} seconds")


def send_now(sock: socket.socket, op: int, seq: int, content: Reply) -> bool:
    """Sends a message unless that would have to wait; whether it is sent."""
    return _send_now(sock, _packed(op, seq, content), content.fds)


def _packed(op: int, seq: int, content: Reply) -> bytes:
    arguments = (*content.arguments, *(0,) * (_ARGUMENTS - len(content.arguments)))
    return MESSAGE.pack(op, content.result, seq, *arguments, content.text[: lib.MSG_TEXT])


def _send_now(sock: socket.socket, data: bytes, fds: list[int]) -> bool:
    """Sends a message with descriptors, unless that would have to wait."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([data], rights, _SEND_FLAGS)
    except BlockingIOError:
        return False
    return True


def client_socket(fd: int, user: int) -> socket.socket:
    """The socket of a descriptor that a client of user `user` gave us, which is ours now.

    ENOTSOCK, EPROTOTYPE: it is something else, which may not behave as one of ours, and was closed.
    """
    try:
        # Of other kinds even getsockname(2), which Python calls, may wait; this does not.
        kind = [_socket_option(fd, option) for option in (lib.SO_DOMAIN, lib.SO_TYPE)]
        if kind != [socket.AF_UNIX, socket.SOCK_SEQPACKET]:
            raise OSError(errno.EPROTOTYPE, "a connection must be a SOCK_SEQPACKET of AF_UNIX")
        if _socket_option(fd, lib.SO_ACCEPTCONN):
            raise OSError(errno.EPROTOTYPE, "a connection must be connected, not listen")
        return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    except BaseException:
        descriptors.close_later(fd, user=user)
        raise


def peer(sock: socket.socket) -> tuple[int, int]:
    """The process and the user that made the other end of a socket."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(found)
    return pid, user


def peer_mark(sock: socket.socket) -> int:
    """processes.mark of the very process that made the other end; 0: it has ended.

    The number of one that has ended may be another's by now.
    """
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return 0
    try:
        return os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)


def _socket_option(fd: int, option: int) -> int:
    value = ffi.new("int *")
    size = ffi.new("unsigned *", _INT.size)
    failed = lib.getsockopt(fd, socket.SOL_SOCKET, option, value, size) < 0
    check_errno(failed, "a client's socket")
    return int(value[0])
