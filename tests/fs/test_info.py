"""mshare_info: the quantum as text, untouchable."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from typing import TYPE_CHECKING

import pytest

from support.calls import NOBODY, in_child, mmap_refused, refused
from support.libc import RENAME_EXCHANGE, fallocate, renameat2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.server import Mount

QUANTA = {"512G": 2**39, "1G": 2**30, "2M": 2**21}


@pytest.fixture
def info(mount: Mount) -> Path:
    return mount.path / "mshare_info"


def test_default_quantum(info: Path) -> None:
    assert info.read_bytes() == b"549755813888\n"


@pytest.mark.parametrize("name", QUANTA)
def test_quantum(mounts: Callable[..., Mount], name: str) -> None:
    assert int((mounts(f"quantum={name}").path / "mshare_info").read_text()) == QUANTA[name]


def test_status(info: Path) -> None:
    status = info.stat()
    assert (status.st_ino, stat.filemode(status.st_mode)) == (2, "-r--r--r--")
    assert (status.st_size, status.st_nlink, status.st_uid, status.st_gid) == (0, 1, 0, 0)
    assert info.name in os.listdir(info.parent)


def test_read_at_offsets(info: Path) -> None:
    fd = os.open(info, os.O_RDONLY)
    try:
        assert os.pread(fd, 3, 0) == b"549"
        assert os.pread(fd, 100, 10) == b"88\n"
        assert os.pread(fd, 100, 13) == b""
        assert os.read(fd, 5) + os.read(fd, 100) == b"549755813888\n"
    finally:
        os.close(fd)


def test_neither_removed_nor_replaced(info: Path) -> None:
    (info.parent / "r").touch()
    for refuse in (
        info.unlink,
        lambda: info.rename(info.parent / "other"),
        lambda: (info.parent / "r").rename(info),
        lambda: renameat2(info.parent / "r", info, RENAME_EXCHANGE),
        lambda: renameat2(info, info.parent / "r", RENAME_EXCHANGE),
    ):
        with refused(errno.EPERM):
            refuse()
    with refused(errno.ENOTDIR):
        info.rmdir()
    with refused(errno.EEXIST):
        info.mkdir()
    assert info.read_bytes() == b"549755813888\n"


def test_hard_link(info: Path) -> None:
    link = info.parent / "link"
    os.link(info, link)
    assert (link.stat().st_ino, info.stat().st_nlink) == (2, 2)
    assert link.read_bytes() == info.read_bytes()
    link.rename(info.parent / "moved")
    (info.parent / "moved").unlink()
    assert info.stat().st_nlink == 1


def test_a_file_of_that_name_elsewhere_is_a_region(mount: Mount) -> None:
    directory = mount.path / "d"
    directory.mkdir()
    (directory / "mshare_info").touch()
    with refused(errno.EINVAL):
        (directory / "mshare_info").read_bytes()
    (directory / "mshare_info").unlink()


def test_write(info: Path) -> None:
    fd = os.open(info, os.O_RDWR)  # root may
    try:
        with refused(errno.EINVAL):
            os.write(fd, b"1")
        with refused(errno.EOPNOTSUPP):
            fallocate(fd, 0, 0, 2**39)
        with refused(errno.EOPNOTSUPP):
            fallocate(fd, 1, 0, 1)
    finally:
        os.close(fd)
    with refused(errno.EACCES):
        in_child(lambda: os.open(info, os.O_WRONLY), uid=NOBODY, gid=NOBODY)


def test_truncate_by_root_changes_the_size_but_not_the_text(info: Path) -> None:
    os.truncate(info, 5)
    assert info.stat().st_size == 5
    assert info.read_bytes() == b"549755813888\n"
    os.close(os.open(info, os.O_WRONLY | os.O_TRUNC))
    assert info.stat().st_size == 0
    info.chmod(0o400)
    os.chown(info, NOBODY, -1)
    assert (stat.S_IMODE(info.stat().st_mode), info.stat().st_uid) == (0o400, NOBODY)


def test_no_mmap_no_ioctl(info: Path) -> None:
    fd = os.open(info, os.O_RDONLY)
    try:
        mmap_refused(fd, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, errno.ENODEV)
        for command in (0x40107801, 0x40287800, 0x1234):
            with refused(errno.ENOTTY):
                fcntl.ioctl(fd, command, bytes(64))
    finally:
        os.close(fd)


def test_owner_is_the_mounter_and_stays_after_a_crash(mount: Mount) -> None:
    mount.path.joinpath("mshare_info").chmod(0o440)
    mount.kill()
    mount.start()
    assert stat.S_IMODE((mount.path / "mshare_info").stat().st_mode) == 0o440
