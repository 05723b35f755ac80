"""The size of a region: a multiple of the quantum, once, by ftruncate, truncate or fallocate."""

from __future__ import annotations

import errno
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from support.calls import NOBODY, in_child, refused
from support.libc import fallocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

Q = 512 << 30
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO = 1, 2, 8, 16


pytestmark = pytest.mark.mount("quantum=512G")


@pytest.fixture
def path(shared_mount: Mount, public_tmp: Path) -> Path:
    path = shared_mount.path / public_tmp.name
    path.touch(0o666)
    path.chmod(0o666)
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


WAYS: dict[str, Callable[[int, int], None]] = {
    "ftruncate": os.ftruncate,
    "truncate": lambda fd, size: os.truncate(f"/proc/self/fd/{fd}", size),
    "fallocate": lambda fd, size: fallocate(fd, 0, 0, size),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@every_way
@pytest.mark.parametrize("size", [Q, 3 * Q, 64 * Q])
def test_multiples(fd: int, way: Callable[[int, int], None], size: int) -> None:
    way(fd, size)
    assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (size, 0)
    for again in WAYS.values():
        for value in (size, 2 * size, 4096):
            with refused(errno.EINVAL):
                again(fd, value)
    assert os.fstat(fd).st_size == size


@every_way
@pytest.mark.parametrize(
    "size", [1, 4096, 2 << 20, 1 << 30, Q - 1, Q + 1, Q - 4096, Q + 4096, 2**63 - 1]
)
def test_what_is_no_multiple(fd: int, way: Callable[[int, int], None], size: int) -> None:
    with refused(errno.EINVAL):
        way(fd, size)
    assert os.fstat(fd).st_size == 0
    way(fd, Q)
    assert os.fstat(fd).st_size == Q


@every_way
def test_negative(fd: int, way: Callable[[int, int], None]) -> None:
    with refused(errno.EINVAL):
        way(fd, -Q)


@pytest.mark.parametrize("quantum", ["1G", "2M"])
def test_smaller_quanta(mounts: Callable[..., Mount], quantum: str) -> None:
    size = {"1G": 1 << 30, "2M": 2 << 20}[quantum]
    path = mounts(f"quantum={quantum}").path / "r"
    path.touch()
    with refused(errno.EINVAL):
        os.truncate(path, size // 2)
    os.truncate(path, 5 * size)
    assert path.stat().st_size == 5 * size


def test_zero_leaves_it_unsized(fd: int, path: Path) -> None:
    os.ftruncate(fd, 0)
    os.truncate(path, 0)
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC))
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC | os.O_CREAT))
    with refused(errno.EINVAL):
        fallocate(fd, 0, 0, 0)
    os.ftruncate(fd, Q)
    assert os.fstat(fd).st_size == Q


@pytest.mark.mount("quirks=v3", "owner=file")
def test_zero_is_for_ever_in_v3(mount: Mount) -> None:
    for name, freeze in (
        ("a", lambda path: os.truncate(path, 0)),
        ("b", lambda path: os.close(os.open(path, os.O_RDWR | os.O_TRUNC))),
        ("c", lambda path: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))),
    ):
        path = mount.path / name
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))  # a new file: no trap
        freeze(path)
        with refused(errno.EINVAL):
            os.truncate(path, Q)
        assert path.stat().st_size == 0


@pytest.mark.mount("quirks=v3", "owner=file")
def test_an_open_that_fails_truncates_nothing(mount: Mount) -> None:
    path = mount.path / "a"
    path.touch()
    (memory,) = (mount.state / "regions").glob("*.mem")
    memory.unlink()
    memory.mkdir()  # which no open for writing can open
    with refused(errno.EISDIR):
        os.open(path, os.O_RDWR | os.O_TRUNC)
    memory.rmdir()
    os.truncate(path, Q)
    assert path.stat().st_size == Q


def test_o_trunc_of_a_sized_region(path: Path, fd: int) -> None:
    os.ftruncate(fd, Q)
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with refused(errno.EINVAL):
            os.open(path, flags | os.O_TRUNC)
    with refused(errno.EINVAL):
        path.open("wb")
    assert path.stat().st_size == Q


def test_fallocate_modes_and_offsets(fd: int) -> None:
    for mode in (KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, COLLAPSE, ZERO, ZERO | KEEP_SIZE):
        for offset in (0, 4096):  # the mode is checked first
            with refused(errno.EOPNOTSUPP):
                fallocate(fd, mode, offset, Q)
    for offset in (1, 4096, Q):
        with refused(errno.EINVAL):
            fallocate(fd, 0, offset, Q)
    for offset, length in ((-1, Q), (0, 0), (0, -1)):
        with refused(errno.EINVAL):
            fallocate(fd, 0, offset, length)


def test_descriptors_that_may_not_write(path: Path) -> None:
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_WRONLY)
    try:
        with refused(errno.EINVAL):
            os.ftruncate(reader, Q)
        with refused(errno.EBADF):
            fallocate(reader, 0, 0, Q)
        fallocate(writer, 0, 0, Q)
        assert os.fstat(reader).st_size == Q
    finally:
        os.close(reader)
        os.close(writer)


def test_truncate_needs_write_permission(path: Path) -> None:
    path.chmod(0o644)
    with refused(errno.EACCES):
        in_child(lambda: os.truncate(path, Q), uid=NOBODY, gid=NOBODY)
    with refused(errno.EACCES):
        in_child(lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), uid=NOBODY, gid=NOBODY)
    path.chmod(0o666)
    in_child(lambda: os.truncate(path, Q), uid=NOBODY, gid=NOBODY)
    assert path.stat().st_size == Q


@every_way
def test_file_size_limit(fd: int, way: Callable[[int, int], None]) -> None:
    def ignoring() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (Q, Q))
        way(fd, 2 * Q)

    def dying() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (Q, Q))
        way(fd, 2 * Q)

    with refused(errno.EFBIG):
        in_child(ignoring)
    with pytest.raises(AssertionError, match="SIGXFSZ"):
        in_child(dying)
    assert os.fstat(fd).st_size == 0
    way(fd, Q)


def test_times(fd: int) -> None:
    os.utime(fd, ns=(10**9, 10**9))
    fallocate(fd, 0, 0, Q)
    assert os.fstat(fd).st_mtime_ns == 10**9


def test_ftruncate_changes_the_times(fd: int) -> None:
    os.utime(fd, ns=(10**9, 10**9))
    os.ftruncate(fd, Q)
    status = os.fstat(fd)
    assert status.st_mtime_ns == status.st_ctime_ns > 10**9


def test_two_who_size_at_once(path: Path) -> None:
    """One of them wins, the others are refused; whatever the order, the size is the winner's."""
    children = []
    for number in range(1, 9):
        pid = os.fork()
        if pid == 0:
            try:
                os.truncate(path, number * Q)
            except OSError as error:
                os._exit(0 if error.errno == errno.EINVAL else 100)
            os._exit(number)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    winners = [code for code in codes if code]
    assert len(winners) == 1
    assert path.stat().st_size == winners[0] * Q
