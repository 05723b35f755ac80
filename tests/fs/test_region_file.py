"""The descriptor of a region file: the kernel series' answers to each call on it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import socket
import stat
import termios
from typing import TYPE_CHECKING

import pytest

from support.calls import in_child, mmap_refused, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

CREATE_MAPPING, UNMAP = 0x40287800, 0x40107801
UNKNOWN = 0x40047863  # _IOW('x', 99, int)


@pytest.fixture
def path(shared_mount: Mount, public_tmp: Path) -> Path:
    path = shared_mount.path / public_tmp.name
    path.touch(0o600)
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture(params=["unsized", "sized"])
def either(request: pytest.FixtureRequest, fd: int) -> int:
    """A descriptor of an unsized region, then of a sized one."""
    if request.param == "sized":
        os.ftruncate(fd, 2 << 20)
    return fd


def test_read_and_write(either: int) -> None:
    with refused(errno.EINVAL):
        os.read(either, 10)
    with refused(errno.EINVAL):
        os.write(either, b"x")
    with refused(errno.EINVAL):
        os.readv(either, [bytearray(5), bytearray(5)])
    with refused(errno.EINVAL):
        os.writev(either, [b"a", b"b"])


def test_read_and_write_at_an_offset(either: int) -> None:
    with refused(errno.EINVAL):
        os.pread(either, 10, 0)
    with refused(errno.EINVAL):
        os.pwrite(either, b"x", 0)


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_lseek(either: int, whence: int) -> None:
    with refused(errno.ESPIPE):
        os.lseek(either, 0, whence)


def test_lseek_of_a_position_that_means_nothing(either: int) -> None:
    """ESPIPE in the series. FUSE can have that only with ESPIPE for pread, and ENODEV for mmap.

    tests/native_attach/test_without_passthrough.py tests the other choice.
    """
    assert os.lseek(either, 5, os.SEEK_SET) == 5
    assert os.lseek(either, 5, os.SEEK_CUR) == 10
    assert os.lseek(either, 0, os.SEEK_END) == os.fstat(either).st_size


def test_sendfile_splice_copy(either: int, tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    receiver, sender = os.pipe()
    try:
        os.write(sender, b"data")
        with refused(errno.EINVAL):
            os.splice(receiver, either, 4)
        if os.fstat(either).st_size:
            with refused(errno.EINVAL):
                os.sendfile(out, either, None, 100)
            with refused(errno.EINVAL):
                os.splice(either, sender, 4)
        else:  # FUSE sees the end of the file and does not ask us
            assert os.sendfile(out, either, None, 100) == 0
            assert os.splice(either, sender, 4) == 0
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.copy_file_range(either, out, 100)
        assert caught.value.errno in (errno.EINVAL, errno.EXDEV)
    finally:
        for each in (out, receiver, sender):
            os.close(each)


def test_sync(either: int) -> None:
    with refused(errno.EINVAL):
        os.fsync(either)
    with refused(errno.EINVAL):
        os.fdatasync(either)


def test_append_is_no_way_in(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        with refused(errno.EINVAL):
            os.write(fd, b"x")
    finally:
        os.close(fd)


def test_o_direct(shared_mount: Mount, path: Path) -> None:
    with refused(errno.EINVAL):
        os.open(path, os.O_RDWR | os.O_DIRECT)
    # As in the kernel, the file is made before its flags are checked.
    with refused(errno.EINVAL):
        os.open(shared_mount.path / "new", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    (shared_mount.path / "new").unlink()


def test_o_tmpfile(shared_mount: Mount) -> None:
    with refused(errno.EOPNOTSUPP):
        os.open(shared_mount.path, os.O_RDWR | os.O_TMPFILE)


def test_extended_attributes(path: Path) -> None:
    assert os.listxattr(path) == []
    for name in ("user.x", "trusted.x", "security.x"):
        with refused(errno.EOPNOTSUPP):
            os.setxattr(path, name, b"1")
        with refused(errno.EOPNOTSUPP):
            os.setxattr(path, name, b"1", os.XATTR_CREATE)
        with refused(errno.EOPNOTSUPP):
            os.getxattr(path, name)
        with refused(errno.EOPNOTSUPP):
            os.removexattr(path, name)


def test_other_kinds_of_files(mount: Mount) -> None:
    with refused(errno.EPERM):
        (mount.path / "s").symlink_to("r")
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        with refused(errno.EPERM):
            os.mknod(mount.path / "n", kind | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as sock, refused(errno.EPERM):
        sock.bind(str(mount.path / "sock"))
    assert os.listdir(mount.path) == ["mshare_info"]


def test_mknod_makes_a_region(shared_mount: Mount) -> None:
    path = shared_mount.path / "r"
    os.mknod(path, stat.S_IFREG | 0o640)
    with refused(errno.EEXIST):
        os.mknod(path, stat.S_IFREG | 0o640)
    os.truncate(path, 2 << 20)
    assert path.stat().st_size == 2 << 20


def test_poll_and_locks(either: int) -> None:
    poll = select.poll()
    poll.register(either, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(either, 5)]
    fcntl.flock(either, fcntl.LOCK_EX)
    fcntl.lockf(either, fcntl.LOCK_EX)
    fcntl.lockf(either, fcntl.LOCK_UN)


def test_a_lock_excludes_others(path: Path, fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)

    def work() -> None:
        other = os.open(path, os.O_RDWR)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with refused(errno.EAGAIN):
        in_child(work)


def test_lease(fd: int, path: Path) -> None:
    reader = os.open(path, os.O_RDONLY)
    os.close(reader)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_ioctls_of_the_vfs(fd: int, path: Path) -> None:
    """Some numbers never reach a file system; those that do mean nothing to a region."""
    answer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, answer)
    assert answer == bytes(4)
    getflags = 0x80086601  # FS_IOC_GETFLAGS
    with refused(errno.EINVAL):  # unsized, which comes before anything else
        fcntl.ioctl(fd, getflags, bytearray(8))
    os.truncate(path, 2 << 20)
    with refused(errno.ENOTTY):
        fcntl.ioctl(fd, getflags, bytearray(8))


def test_o_path_descriptor(path: Path) -> None:
    fd = os.open(path, os.O_PATH)
    try:
        for refuse in (
            lambda: os.ftruncate(fd, 2 << 20),
            lambda: fcntl.ioctl(fd, UNKNOWN, bytes(4)),
            lambda: os.fchmod(fd, 0o600),
        ):
            with refused(errno.EBADF):
                refuse()
        mmap_refused(fd, 2 << 20, mmap.PROT_READ, mmap.MAP_SHARED, errno.EBADF)
    finally:
        os.close(fd)


def test_ioctl_of_an_unsized_region(fd: int) -> None:
    for command in (CREATE_MAPPING, UNMAP, UNKNOWN):
        with refused(errno.EINVAL):
            fcntl.ioctl(fd, command, bytes(64))


def test_ioctl_of_a_sized_region(fd: int) -> None:
    os.ftruncate(fd, 2 << 20)
    with refused(errno.ENOTTY):
        fcntl.ioctl(fd, UNKNOWN, bytes(4))
    with refused(errno.EINVAL):
        fcntl.ioctl(fd, UNMAP, bytes(16))  # size 0
    with refused(errno.EFAULT):
        fcntl.ioctl(fd, UNMAP, 8)  # an address nobody has


def test_ioctl_of_a_directory(shared_mount: Mount) -> None:
    fd = os.open(shared_mount.path, os.O_RDONLY)
    try:
        for command in (CREATE_MAPPING, UNMAP, UNKNOWN):
            with refused(errno.ENOTTY):
                fcntl.ioctl(fd, command, bytes(64))
        with refused(errno.EINVAL):
            os.ftruncate(fd, 2 << 20)
    finally:
        os.close(fd)


def test_descriptors_of_an_open_file_are_one(path: Path, fd: int) -> None:
    """dup, fork and a second open see the same region; each close is its own."""
    second = os.dup(fd)
    os.close(second)
    third = os.open(path, os.O_RDONLY)
    os.ftruncate(fd, 2 << 20)
    assert os.fstat(third).st_size == 2 << 20
    os.close(third)
    assert in_child(lambda: os.fstat(fd).st_size) == 2 << 20
