"""Names and directories: as on tmpfs, errno by errno."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from support.calls import refused
from support.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Mount

CREATE = os.O_RDWR | os.O_CREAT


def make(path: Path, flags: int = CREATE | os.O_EXCL, mode: int = 0o600) -> int:
    """st_ino of a new file."""
    fd = os.open(path, flags, mode)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_create_twice(place: Path) -> None:
    ino = make(place / "r")
    with refused(errno.EEXIST):
        make(place / "r")
    assert make(place / "r", CREATE) == ino


def test_create_of_a_directory_s_name(place: Path) -> None:
    (place / "d").mkdir()
    with refused(errno.EISDIR):
        make(place / "d", CREATE)
    with refused(errno.EEXIST):
        make(place / "d")


def test_missing_and_wrong_parents(place: Path) -> None:
    with refused(errno.ENOENT):
        make(place / "no" / "r")
    make(place / "r")
    with refused(errno.ENOTDIR):
        make(place / "r" / "x")
    with refused(errno.ENOENT):
        os.open(place / "no", os.O_RDWR)


def test_length_of_names(place: Path) -> None:
    make(place / ("n" * 255))
    (place / ("n" * 255)).unlink()
    for refuse in (make, os.mkdir, os.unlink, os.rmdir, os.stat):
        with refused(errno.ENAMETOOLONG):
            refuse(place / ("n" * 256))


def test_names_are_bytes(place: Path) -> None:
    name = bytes(range(1, 255)).replace(b"/", b"")
    os.close(os.open(os.fsencode(place) + b"/" + name, CREATE))
    assert name in os.listdir(os.fsencode(place))


def test_mkdir_and_rmdir(place: Path) -> None:
    (place / "d").mkdir()
    assert stat.S_ISDIR((place / "d").stat().st_mode)
    with refused(errno.EEXIST):
        (place / "d").mkdir()
    make(place / "d" / "r")
    with refused(errno.ENOTEMPTY):
        (place / "d").rmdir()
    with refused(errno.ENOTDIR):
        (place / "d" / "r").rmdir()
    with refused(errno.EISDIR):
        (place / "d").unlink()
    (place / "d" / "r").unlink()
    (place / "d").rmdir()
    with refused(errno.ENOENT):
        (place / "d").rmdir()


def test_links_of_directories(place: Path) -> None:
    before = place.stat().st_nlink
    (place / "d" / "e").mkdir(parents=True)
    assert place.stat().st_nlink == before + 1
    assert (place / "d").stat().st_nlink == 3
    (place / "d" / "e").rmdir()
    assert (place / "d").stat().st_nlink == 2


def test_a_removed_directory_takes_nothing(place: Path) -> None:
    (place / "d").mkdir()
    fd = os.open(place / "d", os.O_RDONLY)
    (place / "d").rmdir()
    try:
        with refused(errno.ENOENT):
            os.open("r", CREATE, dir_fd=fd)
        with refused(errno.ENOENT):
            os.mkdir("e", dir_fd=fd)
        assert os.fstat(fd).st_nlink == 0
        assert [name for name in os.listdir(fd) if name not in (".", "..")] == []
    finally:
        os.close(fd)


def test_link(place: Path) -> None:
    ino = make(place / "r")
    os.link(place / "r", place / "s")
    assert (place / "s").stat().st_ino == ino
    assert (place / "r").stat().st_nlink == 2
    with refused(errno.EEXIST):
        os.link(place / "r", place / "s")
    with refused(errno.ENOENT):
        os.link(place / "no", place / "t")
    (place / "r").unlink()
    assert (place / "s").stat().st_nlink == 1
    (place / "d").mkdir()
    with refused(errno.EPERM):
        os.link(place / "d", place / "e")


def test_across_mounts(place: Path, tmp_path: Path) -> None:
    make(place / "r")
    with refused(errno.EXDEV):
        os.link(place / "r", tmp_path / "r")
    with refused(errno.EXDEV):
        (place / "r").rename(tmp_path / "r")


def test_unlinked_while_open(place: Path) -> None:
    fd = os.open(place / "r", CREATE)
    try:
        (place / "r").unlink()
        assert os.fstat(fd).st_nlink == 0
        with refused(errno.ENOENT):  # with a dst_dir_fd Python follows the link in /proc
            os.link(f"/proc/self/fd/{fd}", place / "again", dst_dir_fd=fd)
        os.fchmod(fd, 0o640)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
        assert make(place / "r") != os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_rename(place: Path) -> None:
    ino, other = make(place / "r"), make(place / "s")
    assert ino != other
    (place / "r").rename(place / "s")
    assert (place / "s").stat().st_ino == ino
    with refused(errno.ENOENT):
        (place / "r").rename(place / "s")
    (place / "d" / "e").mkdir(parents=True)
    (place / "s").rename(place / "d" / "e" / "s")
    assert (place / "d" / "e" / "s").stat().st_ino == ino


def test_rename_of_directories(place: Path) -> None:
    (place / "full" / "x").mkdir(parents=True)
    (place / "empty").mkdir()
    make(place / "r")
    with refused(errno.EISDIR):
        (place / "r").rename(place / "empty")
    with refused(errno.ENOTDIR):
        (place / "empty").rename(place / "r")
    with refused(errno.ENOTEMPTY):
        (place / "empty").rename(place / "full")
    with refused(errno.EINVAL):
        (place / "full").rename(place / "full" / "x" / "y")
    (place / "full").rename(place / "empty")
    assert (place / "empty" / "x").is_dir()


def test_rename_onto_an_open_file(place: Path) -> None:
    old = os.open(place / "old", CREATE)
    try:
        ino = make(place / "new")
        (place / "new").rename(place / "old")
        assert os.fstat(old).st_nlink == 0
        assert (place / "old").stat().st_ino == ino
    finally:
        os.close(old)


def test_rename_noreplace(place: Path) -> None:
    ino, other = make(place / "r"), make(place / "s")
    with refused(errno.EEXIST):
        renameat2(place / "r", place / "s", RENAME_NOREPLACE)
    assert [(place / "r").stat().st_ino, (place / "s").stat().st_ino] == [ino, other]
    renameat2(place / "r", place / "t", RENAME_NOREPLACE)
    assert (place / "t").stat().st_ino == ino


def test_rename_exchange(place: Path) -> None:
    ino = make(place / "r")
    (place / "d").mkdir()
    make(place / "d" / "inside")
    renameat2(place / "r", place / "d", RENAME_EXCHANGE)
    assert (place / "d").stat().st_ino == ino
    assert os.listdir(place / "r") == ["inside"]
    with refused(errno.ENOENT):
        renameat2(place / "r", place / "no", RENAME_EXCHANGE)
    with refused(errno.EINVAL):
        renameat2(place / "r", place / "d", RENAME_EXCHANGE | RENAME_NOREPLACE)
    with refused(errno.EINVAL):
        renameat2(place / "r", place / "d", 1 << 10)


def test_no_whiteouts(shared_mount: Mount) -> None:
    make(shared_mount.path / "r")
    with refused(errno.EINVAL):
        renameat2(shared_mount.path / "r", shared_mount.path / "s", RENAME_WHITEOUT)


@pytest.mark.parametrize("count", [0, 1, 1500])
def test_listing(place: Path, count: int) -> None:
    """1,500 entries do not fit into one answer of the server."""
    (place / "d").mkdir()
    wanted = {
        f"region-{number:05}": make(place / "d" / f"region-{number:05}") for number in range(count)
    }
    with os.scandir(place / "d") as entries:
        found = [(entry.name, entry.inode()) for entry in entries]
    assert len(found) == count  # none twice
    assert dict(found) == wanted


def test_listing_while_it_is_emptied(place: Path) -> None:
    for number in range(300):
        make(place / f"r{number}")
    with os.scandir(place) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(place) == []


def test_listing_again_by_the_same_descriptor(place: Path) -> None:
    (place / "d").mkdir()
    fd = os.open(place / "d", os.O_RDONLY)
    try:
        assert os.listdir(fd) == []
        make(place / "d" / "r")
        assert os.listdir(fd) == ["r"]  # rewinds
    finally:
        os.close(fd)


def test_dots(place: Path) -> None:
    """`ls -a` shows them; Python hides them."""
    from subprocess import check_output

    (place / "d").mkdir()
    assert check_output(["ls", "-a", place / "d"], text=True).split() == [".", ".."]
    assert (place / "d" / "..").stat().st_ino == place.stat().st_ino


def test_times_of_a_directory(place: Path) -> None:
    (place / "d").mkdir()
    os.utime(place / "d", ns=(0, 0))
    make(place / "d" / "r")
    status = (place / "d").stat()
    assert status.st_mtime_ns == status.st_ctime_ns > 0
