"""Messages that no library of ours sends: the server refuses them and goes on."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from msharefs.native import check, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    import msharefs

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 4 << 20
MESSAGE = struct.Struct(f"=IiQ5Q{lib.MSG_TEXT}s")


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    """A region with nothing in it."""
    with shared_mount.region(SIZE) as opened:
        yield opened


@pytest.fixture
def sock(region: msharefs.Region) -> Iterator[socket.socket]:
    """A connection to the server."""
    with socket.socket(fileno=check(lib.control_connect(region.fd), "connecting")) as made:
        made.settimeout(20)
        yield made


def answer(sock: socket.socket, op: int, *arguments: int, text: bytes = b"") -> int:
    """The result of a request; the server has not hung up."""
    sock.send(MESSAGE.pack(op, 0, 1, *arguments, *(0,) * (5 - len(arguments)), text))
    data = sock.recv(MESSAGE.size)
    assert len(data) == MESSAGE.size, "the server has hung up"
    number: int = MESSAGE.unpack(data)[1]
    return number


@pytest.mark.parametrize("text", [b"\xff\xfe", b"stat\x80", b"\xed\xa0\x80", b"\xff" * 192])
def test_a_look_whose_name_is_no_text(sock: socket.socket, text: bytes) -> None:
    assert answer(sock, lib.MSG_DESCRIBE, text=text) == -errno.EINVAL
    assert answer(sock, lib.MSG_STAT) == 0
