"""Modes, owners and times: as on tmpfs, for root and for others."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.calls import NOBODY, in_child, refused

if TYPE_CHECKING:
    from support.server import Mount

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL


def make(path: Path, mode: int = 0o666) -> None:
    os.close(os.open(path, CREATE, mode))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_owner_and_mode_of_what_a_user_makes(place: Path) -> None:
    def work() -> list[tuple[int, int, int]]:
        make(place / "r")
        (place / "d").mkdir()
        os.mknod(place / "n", stat.S_IFREG | 0o666)
        return [
            (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
            for status in map(os.stat, (place / "r", place / "d", place / "n"))
        ]

    assert in_child(work, uid=NOBODY, gid=1234, umask=0o027) == [
        (NOBODY, 1234, 0o640),
        (NOBODY, 1234, 0o750),
        (NOBODY, 1234, 0o640),
    ]


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o777, 0o4755, 0o1777, 0o7777])
def test_chmod(place: Path, mode: int) -> None:
    make(place / "r")
    (place / "d").mkdir()
    for path in (place / "r", place / "d"):
        path.chmod(mode)
        assert mode_of(path) == mode


def test_a_file_made_with_set_id_bits(place: Path) -> None:
    os.close(os.open(place / "r", CREATE, 0o4711))
    assert mode_of(place / "r") == 0o4711


def test_only_the_owner_changes_mode_and_times(place: Path) -> None:
    make(place / "r")
    for refuse in (
        lambda: os.chmod(place / "r", 0o777),
        lambda: os.chown(place / "r", NOBODY, -1),
        lambda: os.utime(place / "r", ns=(1, 1)),
    ):
        with refused(errno.EPERM):
            in_child(refuse, uid=NOBODY, gid=NOBODY)
    with refused(errno.EACCES):  # the present time needs only write permission, and there is none
        in_child(lambda: os.utime(place / "r"), uid=NOBODY, gid=NOBODY)


def test_chown(place: Path) -> None:
    make(place / "r")
    os.chown(place / "r", NOBODY, -1)
    os.chown(place / "r", -1, 77)
    status = (place / "r").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY, 77)
    in_child(lambda: os.chmod(place / "r", 0o604), uid=NOBODY, gid=NOBODY)
    assert mode_of(place / "r") == 0o604
    with refused(errno.EPERM):  # only root may give a file away
        in_child(lambda: os.chown(place / "r", 0, -1), uid=NOBODY, gid=77)


def test_chown_drops_set_id_bits(place: Path) -> None:
    make(place / "r")
    (place / "r").chmod(0o6755)
    os.chown(place / "r", 5, 5)
    assert mode_of(place / "r") == 0o755


def test_set_group_id_directory(place: Path) -> None:
    (place / "d").mkdir()
    os.chown(place / "d", NOBODY, 77)
    (place / "d").chmod(0o2777)

    def work() -> None:
        make(place / "d" / "r")
        (place / "d" / "e").mkdir()

    in_child(work, uid=NOBODY, gid=NOBODY)
    assert (place / "d" / "r").stat().st_gid == 77
    assert (place / "d" / "e").stat().st_gid == 77
    assert mode_of(place / "d" / "e") & stat.S_ISGID
    assert (place / "d" / "r").stat().st_uid == NOBODY


def test_times(place: Path) -> None:
    make(place / "r")
    path = place / "r"
    os.utime(path, ns=(1_000_000_007, 2_000_000_000_000_000_009))
    status = path.stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_000_000_007, 2_000_000_000_000_000_009)
    before = time.time_ns()
    os.utime(path)
    assert abs(path.stat().st_mtime_ns - before) < 10**9
    # ctime follows every change of mode
    ctime = path.stat().st_ctime_ns
    while time.time_ns() < ctime + 20_000_000:  # a tick of the kernel's coarse clock
        pass
    path.chmod(0o600)
    assert path.stat().st_ctime_ns > ctime


def test_one_time_alone(place: Path) -> None:
    """utimensat(2) with UTIME_OMIT, as in touch -a and -m."""
    from subprocess import check_call

    make(place / "r")
    os.utime(place / "r", ns=(10**9, 2 * 10**9))
    check_call(["touch", "-m", "-d", "@33", place / "r"])
    assert (place / "r").stat().st_atime_ns == 10**9
    check_call(["touch", "-a", "-d", "@44", place / "r"])
    status = (place / "r").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (44 * 10**9, 33 * 10**9)


def test_permission_bits_count(place: Path) -> None:
    make(place / "r", 0o600)
    make(place / "w")
    (place / "w").chmod(0o222)
    (place / "d").mkdir(0o700)
    make(place / "d" / "r")

    def opens(path: Path, flags: int) -> None:
        os.close(os.open(path, flags))

    for path, flags in (
        (place / "r", os.O_RDONLY),
        (place / "w", os.O_RDWR),
        (place / "d" / "r", 0),
    ):
        with refused(errno.EACCES):
            in_child(lambda path=path, flags=flags: opens(path, flags), uid=NOBODY, gid=NOBODY)
    in_child(lambda: opens(place / "w", os.O_WRONLY), uid=NOBODY, gid=NOBODY)
    with refused(errno.EACCES):
        in_child(lambda: os.listdir(place / "d"), uid=NOBODY, gid=NOBODY)
    with refused(errno.EACCES):
        in_child(lambda: os.rmdir(place / "d" / "x"), uid=NOBODY, gid=NOBODY)


def test_group_members(place: Path) -> None:
    make(place / "r")
    (place / "r").chmod(0o660)
    os.chown(place / "r", 0, 77)
    in_child(lambda: os.close(os.open(place / "r", os.O_RDWR)), uid=NOBODY, gid=77)
    with refused(errno.EACCES):
        in_child(lambda: os.close(os.open(place / "r", os.O_RDWR)), uid=NOBODY, gid=78)


def test_sticky_directory(place: Path) -> None:
    (place / "d").mkdir()
    make(place / "d" / "r")
    (place / "d").chmod(0o1777)
    for refuse in (
        lambda: os.unlink(place / "d" / "r"),
        lambda: os.rename(place / "d" / "r", place / "d" / "s"),
    ):
        with refused(errno.EPERM):
            in_child(refuse, uid=NOBODY, gid=NOBODY)


def test_without_sticky_anybody_may_unlink(place: Path) -> None:
    make(place / "r", 0o600)
    in_child(lambda: os.unlink(place / "r"), uid=NOBODY, gid=NOBODY)
    with refused(errno.ENOENT):
        (place / "r").stat()


def test_changes_by_others_are_seen_at_once(place: Path) -> None:
    fd = os.open(place / "r", CREATE, 0o600)
    try:
        (place / "r").stat()
        in_child(lambda: os.chmod(place / "r", 0o444))
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o444
        assert mode_of(place / "r") == 0o444
        in_child(lambda: os.rename(place / "r", place / "s"))
        with refused(errno.ENOENT):
            (place / "r").stat()
        assert (place / "s").stat().st_ino == os.fstat(fd).st_ino
    finally:
        os.close(fd)


def test_root_directory(mount: Mount) -> None:
    status = mount.path.stat()
    assert (stat.filemode(status.st_mode), status.st_ino, status.st_nlink) == ("drwxrwxrwt", 1, 2)
    assert (status.st_uid, status.st_gid, status.st_size) == (0, 0, 0)
    mount.path.chmod(0o755)
    os.chown(mount.path, NOBODY, NOBODY)
    status = mount.path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o755, NOBODY)


def test_new_region(shared_mount: Mount) -> None:
    make(shared_mount.path / "r", 0o600)
    status = (shared_mount.path / "r").stat()
    assert (status.st_size, status.st_blocks, status.st_blksize) == (
        0,
        0,
        os.sysconf("SC_PAGESIZE"),
    )
    assert (status.st_nlink, stat.filemode(status.st_mode)) == (1, "-rw-------")


def test_statfs(shared_mount: Mount) -> None:
    found = os.statvfs(shared_mount.path)
    assert (found.f_bsize, found.f_namemax) == (os.sysconf("SC_PAGESIZE"), 255)
    assert (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree) == (0,) * 5


def test_type_in_proc_mounts(shared_mount: Mount) -> None:
    lines = Path("/proc/mounts").read_text().splitlines()
    line = next(line for line in lines if line.split()[1] == str(shared_mount.path))
    source, _, fstype, options, *_ = line.split()
    assert (source, fstype) == ("msharefs", "fuse.msharefs")
    assert {"rw", "nosuid", "nodev", "default_permissions", "allow_other"} <= set(
        options.split(",")
    )
