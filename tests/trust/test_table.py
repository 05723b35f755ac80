"""SECURITY.md's table, "who may do what to whom": a test for each row, and its cells as that user.

What takes more than a call is shown elsewhere: shares of users in test_limits.py and
test_connections.py; read-only after a restart, in a child and by /proc in test_readers.py.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import msharefs
from msharefs import client, mountpoint, processes
from msharefs.native import lib

from support import byhand, wire
from support.calls import NOBODY, in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)

SIZE = 4 << 20
PAGE = mmap.PAGESIZE
OWNER = 1234
READ, RW = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
MAP_FLAGS = mmap.MAP_SHARED | 0x10 | mmap.MAP_ANONYMOUS
TEXT = b"private"


class Place(NamedTuple):
    """What there is for somebody to try."""

    mount: Mount
    name: str
    """Of a region of user OWNER, mode 0600, with text in its first page."""
    fd: int
    """It, open; -1: not."""
    holder: int
    """A process of user OWNER that has it open as descriptor 0."""

    @property
    def path(self) -> str:
        return str(self.mount.path / self.name)


def make_own(it: Place) -> None:
    path = it.mount.path / f"own{os.geteuid()}"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as region:
        region.truncate(SIZE)
        region.map(0, PAGE)
    path.unlink()


def see_name_and_size(it: Place) -> None:
    assert it.name in os.listdir(it.mount.path)
    assert os.stat(it.path).st_size == SIZE


def open_to_read(it: Place) -> None:
    os.close(os.open(it.path, os.O_RDONLY))


def open_to_write(it: Place) -> None:
    os.close(os.open(it.path, os.O_RDWR))


def change_mode(it: Place) -> None:
    os.chmod(it.path, 0o600)


def rename(it: Place) -> None:
    os.rename(it.path, f"{it.path}2")
    os.rename(f"{it.path}2", it.path)


def learn_clients_by_number(it: Place) -> None:
    client.describe_by_number(it.mount.state / "control", os.stat(it.path).st_ino, "clients")


def take_descriptor(it: Place) -> None:
    os.close(processes.fetch_descriptor(it.holder, 0))


def signal_holder(it: Place) -> None:
    os.kill(it.holder, 0)


def signal_server(it: Place) -> None:
    os.kill(it.mount.pid, 0)


def read_server_memory(it: Place) -> None:
    os.close(os.open(f"/proc/{it.mount.pid}/mem", os.O_RDONLY))


def read_state(it: Place) -> None:
    os.listdir(it.mount.state / "regions")


def change_options(it: Place) -> None:
    mountpoint.remount(it.mount.path, "")


def look_at_all_regions(it: Place) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(it.mount.state / "control"))
        _done(byhand.call(sock, lib.MSG_LOOK)[0])


ANYBODY = (
    make_own, see_name_and_size, open_to_read, open_to_write, change_mode, rename,
    learn_clients_by_number, take_descriptor, signal_holder, signal_server, read_server_memory,
    read_state, change_options, look_at_all_regions,
)  # fmt: skip


def _done(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _opened(it: Place) -> msharefs.Region:
    return msharefs.Region(it.path, os.dup(it.fd))


def attach_to_read(it: Place) -> None:
    with _opened(it) as region:
        view = region.attach(prot=READ)
        assert bytes(view[: len(TEXT)]) == TEXT


def attach_to_write(it: Place) -> None:
    with _opened(it) as region:
        view = region.attach(prot=RW)
        view[: len(TEXT)] = TEXT


def ask_to_attach_to_write(it: Place) -> None:
    """Not by the library, which looks at the descriptor first."""
    with _opened(it) as region, wire.connected(region) as sock:
        wire.send(sock, lib.MSG_ATTACH, RW)
        result, fds = wire.answer(sock)
        for fd in fds:
            os.close(fd)
        _done(result)


def look(it: Place) -> None:
    with _opened(it) as region:
        region.stat()
        region.maps()
        region.clients()


def unmap_and_map(it: Place) -> None:
    with _opened(it) as region:
        region.unmap(2 * PAGE, PAGE)
        region.map(2 * PAGE, PAGE)


def protect(it: Place) -> None:
    with _opened(it) as region:
        region.protect(3 * PAGE, PAGE, READ)


def _files(it: Place, work: Callable[[int, int], None]) -> None:
    """With the descriptors of `.mm` and `.mem` that one who attaches for reading gets."""
    with _opened(it) as region, wire.connected(region) as sock:
        wire.send(sock, lib.MSG_ATTACH, READ)
        result, fds = wire.answer(sock)
        _done(result)
        work(fds[0], fds[1])
        for fd in fds:
            os.close(fd)


def write_tables(it: Place) -> None:
    _files(it, lambda mm, _: mmap.mmap(mm, PAGE, mmap.MAP_SHARED, RW).close())


def write_memory_file(it: Place) -> None:
    _files(it, lambda _, mem: mmap.mmap(mem, PAGE, mmap.MAP_SHARED, RW).close())


def shorten_files(it: Place) -> None:
    def work(mm: int, mem: int) -> None:
        errors = []
        for fd in (mm, mem):
            try:
                os.ftruncate(fd, PAGE)
            except OSError as error:
                errors.append(error)
        assert len(errors) == 2, "it has made a file shorter"
        raise errors[0]

    _files(it, work)


def reach_another_region(it: Place) -> None:
    """By a connection of this one, and a number."""
    number = os.stat(it.mount.path / "root's").st_ino - 2
    with _opened(it) as region, wire.connected(region) as sock:
        _done(byhand.call(sock, lib.MSG_WINDOW, number, 0, 1)[0])


def map_another_file(it: Place) -> None:
    """A file that is open for reading only, to be written."""
    with _opened(it) as region, open("/etc/passwd", "rb") as file:
        region.map(PAGE, PAGE, RW, mmap.MAP_SHARED | 0x10, file.fileno())


WITH_DESCRIPTOR = (
    attach_to_read, attach_to_write, ask_to_attach_to_write, look, unmap_and_map, protect,
    write_tables, write_memory_file, shorten_files, reach_another_region, map_another_file,
)  # fmt: skip

# A row of the table: the user, how the region is open, and the errno of what he may not do.
NOT_HIS = {
    "open_to_read": errno.EACCES,
    "open_to_write": errno.EACCES,
    "change_mode": errno.EPERM,
    "rename": errno.EPERM,
    "learn_clients_by_number": errno.ENOENT,
    "take_descriptor": errno.EPERM,
    "signal_holder": errno.EPERM,
}
NOT_ROOTS = {
    "signal_server": errno.EPERM,
    "read_server_memory": errno.EACCES,
    "read_state": errno.EACCES,
    "change_options": errno.EPERM,
    "look_at_all_regions": errno.EPERM,
}
NOBODYS = {
    "shorten_files": errno.EACCES,
    "reach_another_region": errno.EPERM,
    "map_another_file": errno.EACCES,
}
OPENERS = NOT_HIS | NOT_ROOTS | NOBODYS
READERS = dict.fromkeys(
    ("attach_to_write", "ask_to_attach_to_write", "unmap_and_map", "protect", "write_tables",
     "write_memory_file", "map_another_file"),
    errno.EACCES,
) | {"shorten_files": errno.EINVAL}  # fmt: skip
NOT_MAPPED = dict.fromkeys(
    ("attach_to_read", "attach_to_write", "ask_to_attach_to_write", "write_tables",
     "write_memory_file", "shorten_files"),
    errno.EACCES,
)  # fmt: skip
# Linux's rules of ptrace(2): it may be for parents alone.
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
SAME = {"take_descriptor": errno.EPERM} if YAMA.exists() and int(YAMA.read_text()) else {}
ROWS = {
    "another user, without a descriptor": (NOBODY, None, NOT_HIS | NOT_ROOTS),
    "the same user, without a descriptor": (OWNER, None, NOT_ROOTS | SAME),
    "who has opened it read-only": (NOBODY, os.O_RDONLY, OPENERS | READERS),
    "who has opened it write-only": (NOBODY, os.O_WRONLY, OPENERS | NOT_MAPPED),
    "who has opened it read-write": (NOBODY, os.O_RDWR, OPENERS),
    "root": (0, os.O_RDWR, NOBODYS),
}  # fmt: skip


@pytest.fixture(scope="module")
def holder(shared_mount: Mount) -> Iterator[int]:
    """The regions, and a process of their owner's."""
    others = shared_mount.path / "root's"
    shared_mount.path.chmod(0o1777)
    with msharefs.open(others, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
    path = shared_mount.path / "r"

    def make() -> None:
        with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
            region.truncate(SIZE)
            region.map(0, SIZE)
            region.attach()[: len(TEXT)] = TEXT

    in_child(make, uid=OWNER, gid=OWNER)
    with (
        open(path, "r+b") as region,
        subprocess.Popen(["sleep", "1000"], stdin=region, user=OWNER, group=OWNER) as process,
    ):
        yield process.pid
        process.kill()
    path.unlink()
    others.unlink()


def tried(it: Place) -> dict[str, int]:
    """What fails of all that can be tried, and the errno."""
    found = {}
    for verb in (*ANYBODY, *(WITH_DESCRIPTOR if it.fd >= 0 else ())):
        try:
            verb(it)
        except OSError as error:
            found[verb.__name__] = error.errno or 0
    return found


@pytest.mark.parametrize("row", ROWS)
def test_row(shared_mount: Mount, holder: int, row: str) -> None:
    user, flags, may_not = ROWS[row]
    fd = -1 if flags is None else os.open(shared_mount.path / "r", flags)
    it = Place(shared_mount, "r", fd, holder)
    try:
        found = in_child(lambda: tried(it), uid=user, gid=user)
        assert named(found) == named(may_not)
        with msharefs.open(it.path) as region:  # and nobody has done any harm
            assert bytes(region.attach()[: len(TEXT)]) == TEXT
            region.detach()
    finally:
        if fd >= 0:
            os.close(fd)


def test_who_is_attached(shared_mount: Mount, holder: int) -> None:
    """Without a descriptor he has the window, and is another user otherwise."""
    path = shared_mount.path / "r"

    def work(fd: int) -> dict[str, int]:
        region = msharefs.Region(path, fd)
        view = region.attach()
        os.close(fd)
        view[PAGE] = 7
        return tried(Place(shared_mount, "r", -1, holder))

    fd = os.open(path, os.O_RDWR)
    found = in_child(lambda: work(fd), uid=NOBODY, gid=NOBODY)
    os.close(fd)
    assert named(found) == named(NOT_HIS | NOT_ROOTS)
    with msharefs.open(path) as region:
        assert region.attach()[PAGE] == 7
        region.detach()


def named(errors: dict[str, int]) -> dict[str, str]:
    return {name: errno.errorcode.get(number, str(number)) for name, number in errors.items()}
