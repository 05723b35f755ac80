"""Objects that are files, in the server: their names, and how it holds them and passes them on."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.native import check, ffi, lib

from support import libc, namespace, proc
from support.calls import refused
from support.hostview import number_of
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
PAGE = mmap.PAGESIZE
SIZE = 4 << 20
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
RW = READ | WRITE
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED
F_ADD_SEALS, F_SEAL_WRITE = 1033, 8
MS_NOEXEC = 8


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    """An empty region."""
    with shared_mount.region(SIZE) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file of four pages."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


def held(mount: Mount, path: Path) -> list[str]:
    """Descriptors and mappings that the server has of a file, or of files below a directory."""
    found = [*proc.open_files(mount.pid), *(each.path for each in proc.maps(mount.pid))]
    return [each for each in found if each.startswith(str(path))]


def ask_object(region: msharefs.Region, number: int) -> int:
    """The answer to a client that asks for an object: a descriptor, or -errno."""
    sock = check(lib.control_connect(region.fd), "connecting")
    try:
        message = ffi.new("struct msg *", {"op": lib.MSG_OBJECT, "arg": [number]})
        fds = ffi.new(f"int[{lib.MSG_FDS}]", [-1] * lib.MSG_FDS)
        result = lib.control_call(sock, message, ffi.NULL, 0, fds)
        return result if result < 0 else fds[0]
    finally:
        os.close(sock)


def first_object(region: msharefs.Region) -> int:
    """The number of the object that was mapped first: a new region counts from 1."""
    return next(number for number in range(1, 64) if ask_object(region, number) >= 0)


def test_maps_names_files_and_offsets(region: msharefs.Region, file: int, tmp_path: Path) -> None:
    region.map(0, PAGE)
    region.map(PAGE, 2 * PAGE, READ, FILE, file, PAGE + 100)
    anonymous = os.memfd_create("mine")
    os.ftruncate(anonymous, PAGE)
    region.map(4 * PAGE, PAGE, RW, FILE, anonymous)
    found = [(vma["start"], vma["offset"], vma["prot"], vma["object"]) for vma in region.maps()]
    assert found == [
        (0, 0, "rw-s", "anon"),
        (PAGE, PAGE, "r--s", str(tmp_path / "file")),
        (4 * PAGE, 0, "rw-s", "/memfd:mine (deleted)"),
    ]
    region.unmap(PAGE, PAGE)
    assert region.maps()[1] == {
        "start": 2 * PAGE, "end": 3 * PAGE, "prot": "r--s", "offset": 2 * PAGE,
        "object": str(tmp_path / "file"), "flags": [],
    }  # fmt: skip
    os.close(anonymous)


def test_dev_zero_is_anonymous_memory(region: msharefs.Region) -> None:
    fd = os.open("/dev/zero", os.O_RDWR)
    region.map(0, PAGE, RW, FILE, fd, PAGE)
    os.close(fd)
    assert [(vma["object"], vma["offset"]) for vma in region.maps()] == [("anon", 0)]


def test_an_object_is_held_until_its_last_page_goes(
    shared_mount: Mount, region: msharefs.Region, file: int, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    for number in range(8):
        region.map(number * PAGE, PAGE, RW, FILE, file)
    assert sorted(held(shared_mount, path)) == [str(path)] * 2, "one descriptor, one mapped page"
    again = os.open(path, os.O_RDWR)
    region.map(16 * PAGE, PAGE, RW, FILE, again)
    os.close(again)
    assert len(held(shared_mount, path)) == 4, "an open file of its own"
    region.unmap(PAGE, SIZE - PAGE)
    assert len(held(shared_mount, path)) == 2
    region.map(0, PAGE)
    assert held(shared_mount, path) == []


def test_a_failed_create_holds_nothing(
    shared_mount: Mount, region: msharefs.Region, file: int, tmp_path: Path
) -> None:
    region.map(0, PAGE)
    with refused(errno.EEXIST):
        region.map(0, PAGE, RW, FILE | verbs.MAP_FIXED_NOREPLACE, file)
    with refused(errno.EINVAL):
        region.map(0, PAGE, RW, FILE | verbs.MAP_HUGETLB, file)
    with refused(errno.EOVERFLOW):
        region.map(0, PAGE, RW, FILE, file, 1 << 63)
    until(lambda: held(shared_mount, tmp_path) == [], "what was looked at is closed")


def test_its_file_system_can_be_unmounted_afterwards(
    region: msharefs.Region, tmp_path: Path
) -> None:
    directory = tmp_path / "small"
    directory.mkdir()
    namespace.tmpfs(directory, "size=1m")
    fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGE)
    region.map(0, PAGE, RW, FILE, fd)
    os.close(fd)
    with refused(errno.EBUSY):
        libc.umount(directory)
    region.unmap(0, PAGE)
    libc.umount(directory)


def test_a_memfd_can_be_sealed_afterwards(region: msharefs.Region) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    region.map(0, PAGE, READ, FILE, fd)
    with refused(errno.EBUSY):
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)
    region.unmap(0, PAGE)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)
    os.close(fd)


def test_clients_get_the_rights_that_can_be_used(
    shared_mount: Mount, region: msharefs.Region, file: int, tmp_path: Path
) -> None:
    def mode(asking: msharefs.Region) -> int:
        fd = ask_object(asking, number)
        assert os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "file")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        os.close(fd)
        return flags & os.O_ACCMODE

    region.map(0, PAGE, READ, FILE, file)
    number = first_object(region)
    assert mode(region) == os.O_RDONLY, "nobody may write"
    region.protect(0, PAGE, RW)
    assert mode(region) == os.O_RDWR
    with msharefs.open(shared_mount.path / "r", os.O_RDONLY) as reader:
        assert mode(reader) == os.O_RDONLY
    assert ask_object(region, number + 1) == -errno.ESTALE
    region.unmap(0, PAGE)
    assert ask_object(region, number) == -errno.ESTALE


def test_protect_asks_for_no_more_than_the_file_was_opened_for(
    region: msharefs.Region, file: int, tmp_path: Path
) -> None:
    reader = os.open(tmp_path / "file", os.O_RDONLY)
    region.map(0, PAGE, READ, FILE, reader)
    os.close(reader)
    with refused(errno.EACCES):
        region.protect(0, PAGE, RW)
    region.map(0, PAGE, READ, FILE, file)
    region.protect(0, PAGE, RW | EXEC)
    assert region.maps()[0]["prot"] == "rwxs"


def test_protect_of_a_file_on_a_noexec_mount(region: msharefs.Region, tmp_path: Path) -> None:
    namespace.tmpfs(tmp_path, "size=1m")
    libc.mount(tmp_path, flags=libc.MS_REMOUNT | libc.MS_NOEXEC)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGE)
    with refused(errno.EPERM):
        region.map(0, PAGE, READ | EXEC, FILE, fd)
    region.map(0, PAGE, READ, FILE, fd)
    with refused(errno.EACCES):
        region.protect(0, PAGE, READ | EXEC)
    region.unmap(0, PAGE)
    os.close(fd)
    namespace.detach(tmp_path)


def test_executable_memory_where_the_state_is_noexec(
    mounts: Callable[..., Mount],
) -> None:
    mount = mounts("quantum=2M", start=False)
    mount.state.mkdir(parents=True)
    namespace.tmpfs(mount.state, "size=16m,mode=755")
    libc.mount(mount.state, flags=libc.MS_REMOUNT | libc.MS_NOEXEC)
    try:
        mount.start()
        with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
            region.truncate(SIZE)
            region.map(0, PAGE)
            region.map(PAGE, PAGE, READ | EXEC)
            assert [vma["prot"] for vma in region.maps()] == ["rw-s", "r-xs"]
            with refused(errno.EACCES):
                region.protect(0, PAGE, READ | EXEC)
            region.protect(PAGE, PAGE, RW | EXEC)
        (mount.path / "r").unlink()
        mount.stop()
    finally:
        namespace.detach(mount.state)


def send(region: msharefs.Region, op: int, arguments: list[int], fds: list[int]) -> int:
    """Sends one message with descriptors to the server; returns the answer's result."""
    sock = check(lib.control_connect(region.fd), "connecting")
    try:
        message = ffi.new("struct msg *", {"op": op, "arg": arguments})
        return lib.control_call(sock, message, ffi.new("int[]", fds), len(fds), ffi.NULL)
    finally:
        os.close(sock)


def test_descriptors_of_the_mount_itself_do_not_hang_the_server(
    shared_mount: Mount, region: msharefs.Region
) -> None:
    """Looking at them and closing them sends requests to the server."""
    own = [os.open(shared_mount.path / "r", os.O_RDWR) for _ in range(2)]
    arguments = [0, PAGE, RW, FILE, 0]
    assert send(region, lib.MSG_MAP, arguments, own[:1]) == -errno.EINVAL
    assert send(region, lib.MSG_MAP, arguments, own) == -errno.EINVAL, "and one more"
    assert send(region, lib.MSG_MAP, arguments, []) == -errno.EBADF
    assert send(region, lib.MSG_UNMAP, [0, PAGE], own) == 0, "none was asked for"
    assert send(region, lib.MSG_READY, [0, 1], own[:1]) == -errno.EBADF
    assert send(region, lib.MSG_REJOIN, [0, 1], own) == -errno.ESTALE
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert send(region, lib.MSG_MAP, arguments, [theirs.fileno()]) == -errno.ENODEV
    ours.close()
    theirs.close()
    for fd in own:
        os.close(fd)
    region.map(0, PAGE)


def asks_a_fuse(pid: int) -> bool:
    """Whether one of its threads waits for the answer of a FUSE's server."""
    waits = [(task / "wchan").read_text() for task in proc.tasks(pid)]
    return "request_wait_answer" in waits


@pytest.mark.slow
def test_a_region_that_goes_while_a_file_system_hangs(
    mounts: Callable[..., Mount], shared_mount: Mount
) -> None:
    other = mounts("quantum=2M")
    fd = os.open(other.path / "mshare_info", os.O_RDONLY)
    path = shared_mount.path / "going"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as going:
        going.truncate(SIZE)
        sock = check(lib.control_connect(going.fd), "connecting")
    message = ffi.new("struct msg *", {"op": lib.MSG_MAP, "arg": [0, PAGE, READ, FILE, 0]})
    answers = []

    def create() -> None:
        answers.append(lib.control_call(sock, message, ffi.new("int[]", [fd]), 1, ffi.NULL))

    mm = shared_mount.state / "regions" / f"{number_of(str(path))}.mm"
    os.kill(other.pid, signal.SIGSTOP)
    try:
        thread = threading.Thread(target=create)
        thread.start()
        until(lambda: asks_a_fuse(shared_mount.pid), "the file system is asked")
        path.unlink()
        time.sleep(0.5)  # the kernel tells the server of the last close at any time
        assert mm.exists(), "it is still needed"
    finally:
        os.kill(other.pid, signal.SIGCONT)
        thread.join()
        os.close(sock)
        os.close(fd)
    assert answers == [-errno.ENODEV]
    until(lambda: not mm.exists(), "it goes afterwards")


def test_a_file_system_that_hangs_costs_its_caller_only(
    mounts: Callable[..., Mount], shared_mount: Mount, region: msharefs.Region
) -> None:
    other = mounts("quantum=2M")
    fd = os.open(other.path / "mshare_info", os.O_RDONLY)
    os.kill(other.pid, signal.SIGSTOP)
    answers = []

    def create() -> None:
        try:
            region.map(0, PAGE, READ, FILE, fd)
        except OSError as error:
            answers.append(error.errno)

    try:
        thread = threading.Thread(target=create)
        thread.start()
        began = time.monotonic()
        with msharefs.open(shared_mount.path / "r") as same:
            while thread.is_alive():
                same.map(PAGE, PAGE)
                same.unmap(PAGE, PAGE)
        assert answers == [errno.ETIMEDOUT]
        assert time.monotonic() - began < 20
    finally:
        os.kill(other.pid, signal.SIGCONT)
        thread.join()
        os.close(fd)
