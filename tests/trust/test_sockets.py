"""The sockets and descriptors that clients give the server: nothing they do with them stops it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.native import lib

from support import byhand
from support.calls import NOBODY, in_child, refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 2 << 20
SO_PASSPIDFD = 76  # asm-generic/socket.h, Linux 6.5


@pytest.fixture
def region(mount: Mount) -> Iterator[msharefs.Region]:
    """A region of the test's own."""
    opened = msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT)
    try:
        opened.truncate(SIZE)
        yield opened
    finally:
        with contextlib.suppress(OSError):  # its server may have been stopped
            opened.close()


def serves(mount: Mount) -> bool:
    """Whether the server takes new connections, of this user and of another."""

    def work() -> int:
        with (
            msharefs.open(mount.path / f"{os.getuid()}", os.O_RDWR | os.O_CREAT) as region,
            byhand.both_ends(region.fd) as (ours, _),
        ):
            return byhand.call(ours, lib.MSG_STAT)[0]

    return in_child(work) == in_child(work, uid=NOBODY, gid=NOBODY) == 0


def state(pid: int) -> str:
    """The letter that /proc has for what a process does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_a_socket_that_was_made_blocking(mount: Mount, region: msharefs.Region) -> None:
    with byhand.both_ends(region.fd) as (ours, theirs):
        assert byhand.call(ours, lib.MSG_STAT)[0] == 0
        theirs.setblocking(True)
        assert byhand.call(ours, lib.MSG_STAT)[0] == 0
        assert serves(mount)
        assert byhand.call(ours, lib.MSG_STAT)[0] == 0


def test_a_socket_that_brings_descriptors_that_nobody_sent(
    mount: Mount, region: msharefs.Region
) -> None:
    with byhand.both_ends(region.fd) as (ours, theirs):
        theirs.setsockopt(socket.SOL_SOCKET, SO_PASSPIDFD, 1)
        assert byhand.call(ours, lib.MSG_STAT)[0] == 0
        before = len(os.listdir(f"/proc/{mount.pid}/fd"))
        for _ in range(50):
            assert byhand.call(ours, lib.MSG_STAT)[0] == 0
        assert len(os.listdir(f"/proc/{mount.pid}/fd")) < before + 25


def test_messages_that_the_client_takes_back(mount: Mount, region: msharefs.Region) -> None:
    with byhand.both_ends(region.fd) as (ours, theirs):
        theirs.setblocking(False)
        for _ in range(200):
            byhand.send(ours, lib.MSG_REPLY)
            with contextlib.suppress(BlockingIOError):  # the server was faster
                theirs.recv(byhand.MESSAGE.size)
        assert byhand.call(ours, lib.MSG_STAT)[0] == 0
        assert serves(mount)


def test_a_receiver_that_keeps_the_server_out(mount: Mount, region: msharefs.Region) -> None:
    """The client receives from the server's end into a page that never comes."""
    mount.expect(rf"(?m)^.* WARNING .*process {os.getpid()} keeps its socket from being read.*\n")
    with byhand.both_ends(region.fd) as (ours, theirs):
        with byhand.page_that_never_comes() as page:
            theirs.setblocking(True)
            thread = threading.Thread(target=theirs.recv_into, args=[page])

            def holds() -> bool:
                """The thread has a message, and waits for the page."""
                byhand.send(ours, lib.MSG_REPLY)
                tasks = Path("/proc/self/task").iterdir()
                return any("userfault" in (task / "wchan").read_text() for task in tasks)

            thread.start()
            until(holds, "the client is at its page")
            byhand.send(ours, lib.MSG_STAT)
            assert serves(mount)
            assert state(mount.pid) != "D"
            with msharefs.open(mount.path / "r") as again:
                again.map(0, SIZE)
            until(lambda: ended(ours), "the connection is given up")
            assert serves(mount)
        thread.join()
        assert serves(mount)


def ended(sock: socket.socket) -> bool:
    """Whether the server has closed its end."""
    sock.setblocking(False)
    try:
        sock.send(byhand.message(lib.MSG_REPLY))
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


@pytest.mark.slow
def test_a_client_that_reads_no_answer_is_cut_off(mount: Mount, region: msharefs.Region) -> None:
    with byhand.both_ends(region.fd) as (ours, theirs):
        theirs.close()
        ours.setblocking(False)

        def asks() -> bool:
            """The server waits for its answers to be read, and reads nothing itself."""
            try:
                ours.send(byhand.message(lib.MSG_STAT))
            except BlockingIOError:
                return False
            return True

        until(lambda: not asks(), "it has answered more than there is room for")
        assert serves(mount)
        until(lambda: ended(ours), "it is cut off")


def pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, kind)


def listening() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind("")  # Linux finds a name
    sock.listen()
    return sock


WRONG: dict[str, tuple[Callable[[], list[socket.socket]], int]] = {
    "of bytes": (lambda: list(pair(socket.SOCK_STREAM)), errno.EPROTOTYPE),
    "of datagrams": (lambda: list(pair(socket.SOCK_DGRAM)), errno.EPROTOTYPE),
    "that listens": (lambda: [listening()], errno.EPROTOTYPE),
    "of a network": (lambda: [socket.socket(socket.AF_INET)], errno.EPROTOTYPE),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_socket_of_another_kind(mount: Mount, region: msharefs.Region, kind: str) -> None:
    make, number = WRONG[kind]
    socks = make()
    with refused(number):
        byhand.show(region.fd, socks[0].fileno())
    assert serves(mount)
    for sock in socks:
        sock.close()


def test_what_is_no_socket(mount: Mount, region: msharefs.Region) -> None:
    ends = os.pipe()
    for fd in (ends[0], region.fd):
        with refused(errno.ENOTSOCK):
            byhand.show(region.fd, fd)
    with byhand.both_ends(region.fd) as (ours, _):
        byhand.send(ours, lib.MSG_FORKED, 0, 1, fds=[ends[0], ends[1]])
        assert byhand.answer(ours)[0] == -errno.ENOTSOCK
        for op in (lib.MSG_READY, lib.MSG_REJOIN):
            result, _ = byhand.call(ours, op, 0, 1, fds=ends)
            assert result in (-errno.EBADF, -errno.ESTALE)
    assert serves(mount)
    for fd in ends:
        os.close(fd)


def test_a_socket_that_another_process_made(mount: Mount, region: msharefs.Region) -> None:
    """Its maker would be taken for the client."""
    ours, theirs = pair(socket.SOCK_SEQPACKET)
    with ours, theirs:

        def show() -> None:
            byhand.show(region.fd, theirs.fileno())

        with refused(errno.EPERM):
            in_child(show)
        show()
        ours.settimeout(byhand.LIMIT)
        assert byhand.call(ours, lib.MSG_STAT)[0] == 0
    assert serves(mount)


def test_it_can_be_stopped_meanwhile(mount: Mount, region: msharefs.Region) -> None:
    with byhand.both_ends(region.fd) as (ours, theirs):
        theirs.setblocking(True)
        byhand.send(ours, lib.MSG_STAT)
        mount.stop()
