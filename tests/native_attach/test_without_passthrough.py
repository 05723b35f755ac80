"""A server that cannot let a plain mmap(2) map a region, or is told not to."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.calls import in_child, mmap_refused, refused
from support.memory import QUANTUM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "passthrough=no")


@pytest.fixture(params=["unsized", "sized"])
def fd(request: pytest.FixtureRequest, shared_mount: Mount) -> Iterator[int]:
    path = shared_mount.path / "r"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    if request.param == "sized":
        os.ftruncate(fd, QUANTUM)
    yield fd
    os.close(fd)
    path.unlink()


def test_mmap(fd: int) -> None:
    for size in (mmap.PAGESIZE, QUANTUM):
        for prot in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            mmap_refused(fd, size, prot, mmap.MAP_SHARED, errno.ENODEV)


def test_a_private_mapping_shows_nothing(fd: int) -> None:
    """EINVAL in the series. FUSE maps without asking us, but a touch finds no page cache."""
    if not os.fstat(fd).st_size:
        os.ftruncate(fd, QUANTUM)
    with pytest.raises(AssertionError, match="SIGBUS"):
        in_child(lambda: mmap.mmap(fd, QUANTUM, mmap.MAP_PRIVATE)[0])


def test_read_and_write(fd: int) -> None:
    with refused(errno.EINVAL):
        os.read(fd, 1)
    with refused(errno.EINVAL):
        os.write(fd, b"x")


def test_read_and_write_at_an_offset(fd: int) -> None:
    """EINVAL in the series. FUSE can have either that or ESPIPE for lseek, but not both."""
    with refused(errno.ESPIPE):
        os.pread(fd, 10, 0)
    with refused(errno.ESPIPE):
        os.pwrite(fd, b"x", 0)


@pytest.mark.parametrize(
    "whence", [os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE]
)
def test_lseek(fd: int, whence: int) -> None:
    with refused(errno.ESPIPE):
        os.lseek(fd, 0, whence)


def test_attaching_works(shared_mount: Mount) -> None:
    path = shared_mount.path / "attached"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(QUANTUM)
        region.map(0, QUANTUM)
        with region.attach() as memory:
            memory[0] = 1
        assert [client["kind"] for client in region.describe("clients")] == ["attached"]
    path.unlink()
