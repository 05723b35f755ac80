"""Descriptors that clients send with messages: the server does not keep those it does not take."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.native import check, ffi, lib

from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
PAGE = mmap.PAGESIZE
SIZE = 4 << 20
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED
MESSAGE = struct.Struct(f"=IiQ5Q{lib.MSG_TEXT}s")
MARK = "msharefs-test-mark"
UFFD = "anon_inode:[userfaultfd]"
USERFAULTFD_IOC_NEW = 0xAA00


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    """An empty region."""
    with shared_mount.region(SIZE) as opened:
        yield opened


@pytest.fixture
def mark() -> Iterator[int]:
    """A file that the server has open only if we sent it."""
    fd = os.memfd_create(MARK, os.MFD_CLOEXEC)
    yield fd
    os.close(fd)


def held(mount: Mount, name: str) -> int:
    """The number of descriptors that the server has of such a file."""
    found = 0
    for fd in Path(f"/proc/{mount.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += name in os.readlink(fd)
    return found


@contextlib.contextmanager
def connected(region: msharefs.Region) -> Iterator[socket.socket]:
    """A connection to the server."""
    with socket.socket(fileno=check(lib.control_connect(region.fd), "connecting")) as sock:
        sock.settimeout(20)
        yield sock


def send(sock: socket.socket, data: bytes, *counts: int, fd: int) -> None:
    """A packet with descriptors, in so many SCM_RIGHTS."""
    rights = [
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd] * count)) for count in counts
    ]
    sock.sendmsg([data], rights)


def message(op: int, *arguments: int, seq: int = 1) -> bytes:
    return MESSAGE.pack(op, 0, seq, *arguments, *(0,) * (5 - len(arguments)), b"")


def result(sock: socket.socket) -> int:
    """The result in the next answer."""
    number: int = MESSAGE.unpack(sock.recv(MESSAGE.size))[1]
    return number


def closed(sock: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    ready, _, _ = select.select([sock], [], [], 20)
    return bool(ready) and not sock.recv(1)


@pytest.mark.parametrize("counts", [(1,), (3,), (4,), (5,), (253,), (2, 2), (3, 3)])
@pytest.mark.parametrize("op", [lib.MSG_STAT, lib.MSG_REPLY, 12345])
def test_none_was_asked_for(
    shared_mount: Mount, region: msharefs.Region, mark: int, op: int, counts: tuple[int, ...]
) -> None:
    with connected(region) as sock:
        for _ in range(5):
            send(sock, message(op), *counts, fd=mark)
            if op != lib.MSG_REPLY:
                assert result(sock) == (0 if op == lib.MSG_STAT else -errno.EPROTO)
        until(lambda: not held(shared_mount, MARK), "the server has closed them")


@pytest.mark.parametrize("data", [b"x", message(lib.MSG_STAT)[:-1], b""])
def test_with_what_is_no_message(
    shared_mount: Mount, region: msharefs.Region, mark: int, data: bytes
) -> None:
    with connected(region) as sock:
        send(sock, data, 3, fd=mark)
        assert closed(sock)
        until(lambda: not held(shared_mount, MARK), "the server has closed them")


def test_a_region_with_what_is_no_message(mount: Mount) -> None:
    """Closing it sends a request to the server, which must not be the one that waits."""
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        with connected(region) as sock:
            send(sock, b"x", 1, fd=region.fd)
            assert closed(sock)
        region.map(0, PAGE)


def userfaultfd() -> int:
    """A new userfaultfd that watches nothing."""
    with open("/dev/userfaultfd", "rb", buffering=0) as device:
        return fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC)


@contextlib.contextmanager
def slot(region: msharefs.Region, sock: socket.socket) -> Iterator[tuple[int, int]]:
    """A slot of the region that we have claimed, and the claim."""
    sock.send(message(lib.MSG_ATTACH))
    _, fds, _, _ = socket.recv_fds(sock, MESSAGE.size, lib.MSG_FDS)
    mm = ffi.new("struct mm *")
    check(lib.mm_open(mm, fds[0]), region.path)
    for fd in fds[1:]:
        os.close(fd)
    number = check(lib.slot_claim(mm, os.getpid(), 0), "a slot")
    claim = lib.mm_claim(mm, number)
    yield number, claim
    lib.slot_release(mm, number, claim)
    lib.mm_close(mm)


@pytest.mark.parametrize("op", [lib.MSG_READY, lib.MSG_REJOIN])
def test_who_is_attached_already(shared_mount: Mount, region: msharefs.Region, op: int) -> None:
    """One connection holds one userfaultfd, however often its client is ready."""
    uffd = userfaultfd()
    with connected(region) as sock, slot(region, sock) as own:
        send(sock, message(lib.MSG_READY, *own), 1, fd=uffd)
        assert result(sock) == 0
        for _ in range(5):
            send(sock, message(op, *own), 2, fd=uffd)
            assert result(sock) == -errno.EISCONN
        until(lambda: held(shared_mount, UFFD) == 1, "the server has closed the others")
        sock.send(message(lib.MSG_DETACH))
        assert result(sock) == 0
        assert not held(shared_mount, UFFD)
    os.close(uffd)


def test_ready_for_a_region_without_a_size(shared_mount: Mount) -> None:
    uffd = userfaultfd()
    path = shared_mount.path / "unsized"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region, connected(region) as sock:
        for _ in range(5):
            send(sock, message(lib.MSG_READY, 0, 1), 1, fd=uffd)
            assert result(sock) == -errno.EINVAL
        until(lambda: not held(shared_mount, UFFD), "the server has closed them")
    path.unlink()
    os.close(uffd)


def test_a_child_that_is_none(shared_mount: Mount, region: msharefs.Region) -> None:
    uffd = userfaultfd()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with connected(region) as sock, ours, theirs:
        rights = array.array("i", [theirs.fileno(), uffd])
        for _ in range(5):
            data = message(lib.MSG_FORKED, 0, 12345)
            sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        sock.send(message(lib.MSG_STAT))
        assert result(sock) == 0
        theirs.close()
        assert closed(ours)
        until(lambda: not held(shared_mount, UFFD), "the server has closed them")
    os.close(uffd)


def object_number(region: msharefs.Region) -> int:
    """The server's number of the first object."""
    with connected(region) as sock:
        sock.send(message(lib.MSG_ATTACH))
        _, fds, _, _ = socket.recv_fds(sock, MESSAGE.size, lib.MSG_FDS)
    mm, vma = ffi.new("struct mm *"), ffi.new("struct mm_vma *")
    check(lib.mm_open(mm, fds[0]), region.path)
    check(lib.mm_vmas(mm, vma, 1), region.path)
    lib.mm_close(mm)
    for fd in fds[1:]:
        os.close(fd)
    number: int = vma.object
    return number


def test_an_answer_that_waits_keeps_its_descriptor(
    shared_mount: Mount, region: msharefs.Region, mark: int
) -> None:
    """A client does not read. Meanwhile the object goes, and its number becomes another file's."""
    os.ftruncate(mark, PAGE)
    region.map(0, PAGE, mmap.PROT_READ | mmap.PROT_WRITE, FILE, mark)
    number = object_number(region)
    assert number
    names, results = set(), set()
    with connected(region) as sock:
        # Until the server waits for answers to be read, and reads nothing itself.
        while select.select([], [sock], [], 1)[1]:
            sock.send(message(lib.MSG_OBJECT, number))
        region.unmap(0, PAGE)
        others = [shared_mount.path / f"other{at}" for at in range(8)]
        for path in others:
            with msharefs.open(path, os.O_RDWR | os.O_CREAT) as made:
                made.truncate(SIZE)
        sock.settimeout(20)
        while -errno.ESTALE not in results:  # so what follows was asked for too late
            data, fds, _, _ = socket.recv_fds(sock, MESSAGE.size, lib.MSG_FDS)
            results.add(MESSAGE.unpack(data)[1])
            for fd in fds:
                names.add(os.readlink(f"/proc/self/fd/{fd}"))
                os.close(fd)
        for path in others:
            path.unlink()
    assert results == {0, -errno.ESTALE}
    assert names == {f"/memfd:{MARK} (deleted)"}
