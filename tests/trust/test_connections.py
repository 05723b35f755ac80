"""Connections in any number, silent ones, and such as lead nowhere: nobody else is kept out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import msharefs
from msharefs import processes
from msharefs.native import lib
from msharefs.server.tokens import TOKEN_SECONDS, Tokens

from support import wire
from support.calls import refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 2 << 20
PAGE = 4096
NOBODY = 65534
CONNECT = lib.MSHAREFS_CONNECT

# As another user: connects to the socket until the server does not answer, and then waits.
STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
kept = []
for _ in range(1200):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(5)
    try:
        sock.connect(sys.argv[1])
    except OSError:
        break
    kept.append(sock)
print(len(kept), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def made(mount: Mount, name: str = "r") -> Iterator[msharefs.Region]:
    """A region with memory."""
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        yield region
    (mount.path / name).unlink()


@contextlib.contextmanager
def stranger(mount: Mount) -> Iterator[None]:
    """Somebody who has opened all the connections that he could."""
    argv = [sys.executable, "-c", STRANGER, str(mount.state / "control")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        yield


def descriptors(mount: Mount) -> int:
    return len(os.listdir(f"/proc/{mount.pid}/fd"))


def show(region: msharefs.Region, sock: socket.socket) -> None:
    """ioctl(MSHAREFS_CONNECT): gives the server a duplicate of that socket."""
    fcntl.ioctl(region.fd, CONNECT, struct.pack("=iI16s108s", sock.fileno(), 0, b"", b""))


@pytest.fixture
def small(mounts: Callable[..., Mount]) -> Mount:
    """A mount whose server may not have many descriptors."""
    mount = mounts("quantum=2M", limit=120, start=False)
    mount.wrapper = ("prlimit", "--nofile=512:512", "--")
    mount.start()
    return mount


def test_a_stranger_has_a_share_and_no_more(small: Mount) -> None:
    with made(small) as region:
        before = descriptors(small)
        with stranger(small):
            assert descriptors(small) < before + 512 // 4
            region.detach(region.attach())
            (small.path / "other").touch()
            (small.path / "other").unlink()
        until(lambda: descriptors(small) < before + 5, "the server has let go of his connections")


@pytest.mark.parametrize("make", ["touch", "mkdir"])
def test_files_without_end(small: Mount, make: str) -> None:
    """Each costs the server a descriptor for as long as the kernel knows it."""
    with made(small) as region:
        with refused(errno.ENOSPC):
            for number in range(512):
                getattr(small.path / f"f{number}", make)()
        region.detach(region.attach())
        region.map(0, PAGE)
        found = [path for path in small.path.iterdir() if path.name.startswith("f")]
        for path in found:
            path.unlink() if make == "touch" else path.rmdir()
        assert len(found) > 64
        until(lambda: not _fails((small.path / "again").touch), "there is room again")


def _fails(work: Callable[[], object]) -> bool:
    try:
        work()
    except OSError:
        return True
    return False


def test_no_descriptor_is_left_to_accept_with(mount: Mount) -> None:
    with made(mount):
        limits = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)
        taken = sorted(map(int, os.listdir(f"/proc/{mount.pid}/fd")))
        full = next(number for number in range(len(taken) + 1) if number not in taken)
        resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (full, limits[1]))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as turned_away:
            turned_away.settimeout(20)
            turned_away.connect(str(mount.state / "control"))
            assert turned_away.recv(1) == b""
        resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, limits)
        assert "is not accepted" in mount.text()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(20)
            sock.connect(str(mount.state / "control"))
            wire.send(sock, lib.MSG_TOKEN)
            assert wire.answer(sock)[0] == -errno.EACCES


@pytest.mark.mount("quantum=2M", seconds={"connection.SILENT_SECONDS": 3.0})
@pytest.mark.parametrize("said", [(), (lib.MSG_STAT,), (lib.MSG_FORKED, lib.MSG_DETACH)])
def test_who_has_no_attachment_and_says_nothing(mount: Mount, said: tuple[int, ...]) -> None:
    """Also after a first message."""
    with made(mount) as region, wire.connected(region) as sock:
        for op in said:
            wire.send(sock, op)
        for _ in said:
            wire.answer(sock)
        assert sock.recv(1) == b"", "after a while it is closed"
        view = region.attach()
        assert region.stat()["clients"] == 1
        region.detach(view)


def test_both_ends_of_a_pair(mount: Mount) -> None:
    """Nobody else has them, so they never end by themselves."""
    with made(mount) as region:
        before = descriptors(mount)
        for _ in range(100):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs, contextlib.suppress(OSError):
                show(region, ours)
                show(region, theirs)
        until(lambda: descriptors(mount) <= before, "the server has let go of them")


@pytest.mark.usefixtures("by_thread")  # a shadow's descriptors cannot be given to anybody
@pytest.mark.parametrize("asked", [False, True])
def test_a_connection_that_others_keep_open(mount: Mount, *, asked: bool) -> None:
    """Its process is gone, but not the socket: it goes, and so does the attachment.

    `asked`: whoever frees the slot is not the one who looks after connections.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = (
        "import array, os, socket, stat, sys, msharefs\n"
        "region = msharefs.open(sys.argv[1])\n"
        "view = region.attach()\n"
        "ends = []\n"
        "for fd in range(3, 1024):\n"
        "    try:\n"
        "        if fd != int(sys.argv[2]) and stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "            ends.append(fd)\n"
        "    except OSError:\n"
        "        pass\n"
        "sock = socket.socket(fileno=int(sys.argv[2]))\n"
        "sock.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', ends))])\n"
        "os._exit(0)\n"
    )
    with made(mount) as region, ours, theirs:
        before = descriptors(mount)
        subprocess.run(
            [sys.executable, "-c", code, region.path, str(theirs.fileno())],
            pass_fds=[theirs.fileno()], check=True,
        )  # fmt: skip
        _, fds, _, _ = socket.recv_fds(ours, 1, 8)
        assert fds
        if asked:
            assert region.describe("reap") == 1
        until(lambda: region.stat()["clients"] == 0, "the dead process is let go", limit=30)
        until(lambda: descriptors(mount) <= before, "the server has closed what was its")
        for fd in fds:
            os.close(fd)


def test_who_fails_to_rejoin_has_shown_no_right(mount: Mount) -> None:
    with made(mount) as region, wire.connected(region) as sock:
        wire.send(sock, lib.MSG_ATTACH)
        _, fds = wire.answer(sock)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.settimeout(20)
            other.connect(str(mount.state / "control"))
            uffd = fcntl.ioctl(fds[2], 0xAA00, os.O_CLOEXEC)
            wire.send(other, lib.MSG_REJOIN, 5, 4711, fds=(fds[0], uffd))
            assert wire.answer(other)[0] == -errno.ESTALE
            wire.send(other, lib.MSG_UNMAP, 0, SIZE)
            assert wire.answer(other)[0] == -errno.EPERM
            os.close(uffd)
        for fd in fds:
            os.close(fd)
        assert region.stat()["vmas"] == 1


def test_a_token_for_another_region(mounts: Callable[..., Mount]) -> None:
    """Whoever is attached to one region does not turn to another, and leave the first behind."""
    mount = mounts("quantum=2M", start=False)
    # So it cannot fetch a socket, and gives tokens.
    mount.wrapper = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--")
    mount.start()
    with made(mount) as region, made(mount, "other") as other, wire.connected(region) as sock:
        wire.send(sock, lib.MSG_ATTACH)
        _, fds = wire.answer(sock)
        with wire.slots(region) as slots:
            slots.write(0, os.getpid(), processes.start_time(os.getpid()), 4711)
        uffd = fcntl.ioctl(fds[2], 0xAA00, os.O_CLOEXEC)
        wire.send(sock, lib.MSG_READY, 0, 4711, fds=(uffd,))
        assert wire.answer(sock)[0] == 0
        given = struct.pack("=iI16s108s", sock.fileno(), 0, b"", b"")
        token = struct.unpack("=iI16s108s", fcntl.ioctl(other.fd, CONNECT, given))[2]
        wire.send(sock, lib.MSG_TOKEN, text=token)
        assert wire.answer(sock)[0] == -errno.EISCONN
        wire.send(sock, lib.MSG_DETACH)
        assert wire.answer(sock)[0] == 0
        assert region.stat()["clients"] == 0
        wire.send(sock, lib.MSG_TOKEN, text=token)
        assert wire.answer(sock)[0] == 0
        for fd in (*fds, uffd):
            os.close(fd)


def test_tokens_that_nobody_shows() -> None:
    async def main() -> None:
        tokens = Tokens(3)
        first = [tokens.issue(None, os.O_RDWR, 1000) for _ in range(3)]  # type: ignore[arg-type]
        with refused(errno.EMFILE):
            tokens.issue(None, os.O_RDWR, 1000)  # type: ignore[arg-type]
        tokens.issue(None, os.O_RDWR, 1001)  # type: ignore[arg-type]  # another user has his own
        assert tokens.redeem(first[0]) == (None, os.O_RDWR)
        with refused(errno.EACCES):
            tokens.redeem(first[0])
        await trio.sleep(TOKEN_SECONDS)
        assert len(tokens) == 3
        with refused(errno.EACCES):
            tokens.redeem(first[1])
        assert len(tokens) == 0
        for _ in range(3):
            tokens.issue(None, os.O_RDWR, 1000)  # type: ignore[arg-type]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
