"""Descriptors that a peer of the control connection sends along: none is kept, none is lost."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = struct.Struct(f"=IiQ5Q{lib.MSG_TEXT}s")
GUARD = 77


def reply(result: int = 0) -> bytes:
    return MESSAGE.pack(lib.MSG_REPLY, result, 0, *(0,) * 5, b"")


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class Call:
    """A call whose reply is on its way already."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sent = os.memfd_create("sent", os.MFD_CLOEXEC)
        self.got = ffi.new("int[]", [GUARD] * (lib.MSG_FDS + 8))
        self.before = open_descriptors()

    def answer(self, data: bytes, *counts: int) -> None:
        """A message with descriptors, in so many SCM_RIGHTS."""
        rights = [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.sent] * count))
            for count in counts
        ]
        self.theirs.sendmsg([data], rights)

    def make(self, *, wanted: bool = True) -> int:
        """The result of control_call(); it wrote only where its caller gave it room."""
        msg = ffi.new("struct msg *", {"op": lib.MSG_STAT})
        got = self.got if wanted else ffi.NULL
        result = lib.control_call(self.ours.fileno(), msg, ffi.NULL, 0, got)
        assert list(self.got)[lib.MSG_FDS :] == [GUARD] * 8, "past the end of the caller's array"
        return result

    def fds(self) -> list[int]:
        """The descriptors that came, which it closes."""
        found = [fd for fd in self.got[0 : lib.MSG_FDS] if fd >= 0]
        for fd in found:
            assert not os.get_inheritable(fd)
            os.close(fd)
        return found

    def leaked(self) -> set[str]:
        return open_descriptors() - self.before

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        os.close(self.sent)


@pytest.fixture
def call() -> Iterator[Call]:
    made = Call()
    yield made
    made.close()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_as_there_is_room_for(call: Call, count: int) -> None:
    call.answer(reply(), count)
    assert call.make() == 0
    assert len(call.fds()) == count
    assert not call.leaked()


@pytest.mark.parametrize("counts", [(4,), (5,), (253,), (2, 2), (1, 1, 1, 1), (3, 1)])
@pytest.mark.parametrize("wanted", [True, False])
def test_too_many_are_refused_and_closed(
    call: Call, counts: tuple[int, ...], *, wanted: bool
) -> None:
    call.answer(reply(), *counts)
    assert call.make(wanted=wanted) == -errno.EPROTO
    if wanted:
        assert call.fds() == []
    assert not call.leaked()


def test_several_messages_of_rights_are_put_together(call: Call) -> None:
    call.answer(reply(), 1, 2)
    assert call.make() == 0
    assert len(call.fds()) == 3
    assert not call.leaked()


@pytest.mark.parametrize(
    "data", [reply()[:-1], b"x", MESSAGE.pack(lib.MSG_REARM, 0, 0, *(0,) * 5, b"")]
)
def test_with_what_is_no_reply(call: Call, data: bytes) -> None:
    call.answer(data, 3)
    assert call.make() == -errno.EPROTO
    assert call.fds() == []
    assert not call.leaked()


def test_with_an_empty_message(call: Call) -> None:
    call.answer(b"", 2)
    assert call.make() == -errno.EPIPE
    assert call.fds() == []
    assert not call.leaked()


def test_a_reply_that_refuses_keeps_nothing(call: Call) -> None:
    call.answer(reply(-errno.EPERM), 2)
    assert call.make() == -errno.EPERM
    assert call.fds() == []
    assert not call.leaked()


def test_nobody_wanted_them(call: Call) -> None:
    call.answer(reply(), 3)
    assert call.make(wanted=False) == 0
    assert not call.leaked()


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_room_for_all_of_them(call: Call, room: int) -> None:
    call.answer(reply(), 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[Any] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, call.before)) + 1 + room, hard))
        while True:
            try:
                taken.append(os.dup(call.sent))
            except OSError as error:
                assert error.errno == errno.EMFILE  # noqa: PT017  # only full it says that
                break
        for fd in taken[len(taken) - room :]:
            os.close(fd)
        result = call.make()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken[: len(taken) - room]:
            os.close(fd)
    assert result == -errno.EMFILE
    assert call.fds() == []
    assert not call.leaked()
