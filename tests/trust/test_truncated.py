"""Clients cannot shorten a region's files; if the server's user does, that region alone is lost."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.native import check, ffi, lib
from msharefs.server import files

from support import hugepages, wire
from support.audit import assert_whole
from support.calls import refused
from support.isolated import isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 4 << 20
PAGE = 4096
MAP_HUGETLB = 0x40000
# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, INSERT_RANGE = 1, 2, 8, 0x20
PR_SET_NO_NEW_PRIVS = 38
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF = 444, 446  # on every architecture
LANDLOCK_ACCESS_FS_MAKE_CHAR = 1 << 6
LANDLOCK_MAX_LAYERS = 16


@pytest.fixture
def regions(mount: Mount) -> Iterator[tuple[msharefs.Region, msharefs.Region]]:
    """Two regions with memory; something will happen to the first."""
    opened = []
    for name in ("victim", "other"):
        region = msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT)
        region.truncate(SIZE)
        region.map(0, SIZE)
        opened.append(region)
    yield opened[0], opened[1]
    for region in opened:
        with contextlib.suppress(OSError):  # a descriptor of a server that was killed
            region.close()


@contextlib.contextmanager
def objects(region: msharefs.Region) -> Iterator[list[int]]:
    """`.mm` and `.mem`, as a process that attaches gets them."""
    sock = check(lib.control_connect(region.fd), "connecting")
    message = ffi.new("struct msg *", {"op": lib.MSG_ATTACH, "arg": [3]})
    fds = ffi.new("int[]", [-1] * lib.MSG_FDS)
    try:
        check(lib.control_call(sock, message, ffi.NULL, 0, fds), "asking for its objects")
        yield list(fds[0:2])
    finally:
        for fd in (sock, *(fd for fd in fds if fd >= 0)):
            os.close(fd)


def shorten(region: msharefs.Region, to: int) -> None:
    """Does to `.mm` what the server's user can do."""
    with objects(region) as (mm, _):
        os.truncate(f"/proc/self/fd/{mm}", to)


def check_size_stays(fd: int, error: int, block: int = PAGE) -> None:
    """Nobody makes the file of `fd`, in blocks of that size, another size by it."""
    size = os.fstat(fd).st_size
    for to in (0, size - block, size + block):
        with refused(error):
            os.ftruncate(fd, to)
    for mode in (COLLAPSE_RANGE, INSERT_RANGE):
        assert lib.fallocate(fd, mode, 0, block) == -1
    assert os.fstat(fd).st_size == size


def test_the_size_stays(
    mount: Mount, regions: tuple[msharefs.Region, msharefs.Region], actors: Callable[[], Actor]
) -> None:
    """By no descriptor of a client, and neither after the server has opened the files anew."""
    victim, _ = regions
    reader = actors()
    base = reader.attach(reader.give(victim.fd))
    reader.call("store", base, 42)
    with objects(victim) as first:
        mount.kill()
        mount.start()
        with msharefs.open(victim.path) as again, objects(again) as second:
            for fd in (*first, *second):
                check_size_stays(fd, errno.EACCES)
                with mmap.mmap(fd, PAGE) as view:
                    view[0] = view[0]
                os.pwrite(fd, os.pread(fd, 8, 0), 0)
            assert lib.fallocate(second[1], PUNCH_HOLE | KEEP_SIZE, SIZE - PAGE, PAGE) == 0
            assert reader.call("load", base) == [42]
            again.unmap(PAGE, PAGE)
            assert_whole(again)


def test_the_size_of_huge_memory_stays(regions: tuple[msharefs.Region, msharefs.Region]) -> None:
    victim, _ = regions
    with hugepages.at_least(2):
        victim.unmap(0, SIZE)
        victim.map(0, SIZE // 2, 3, 0x31 | MAP_HUGETLB)
        number = 2  # of the mappings: the whole was the first
        with wire.connected(victim) as sock:
            wire.send(sock, lib.MSG_OBJECT, number)
            result, fds = wire.answer(sock)
        assert result == 0
        check_size_stays(fds[0], errno.EPERM, SIZE // 2)
        os.close(fds[0])
        victim.unmap(0, SIZE)


def test_where_landlock_does_nothing(tmp_path: Path) -> None:
    """The file is opened, and the log says once what is not prevented.

    A thread can be put under 16 rulesets: whoever is has no room for one more (E2BIG).
    """
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))

    def work(say: Callable[[str], None]) -> None:
        lib.prctl(PR_SET_NO_NEW_PRIVS, *(ffi.cast("long", value) for value in (1, 0, 0, 0)))
        for _ in range(LANDLOCK_MAX_LAYERS):
            rules = lib.syscall(
                SYS_LANDLOCK_CREATE_RULESET,
                ffi.new("uint64_t *", LANDLOCK_ACCESS_FS_MAKE_CHAR),
                ffi.cast("size_t", 8),
                ffi.cast("int", 0),
            )
            assert rules >= 0
            assert not lib.syscall(
                SYS_LANDLOCK_RESTRICT_SELF, ffi.cast("int", rules), ffi.cast("int", 0)
            )
            os.close(rules)
        told: list[str] = []
        files.log.addFilter(lambda record: told.append(record.getMessage()) or False)
        for _ in range(2):
            (fd,) = files.open_shared(path)
            os.ftruncate(fd, 0)
            os.close(fd)
        say(f"{told}")
        assert len(told) == 1
        assert "Landlock" in told[0]
        assert os.strerror(errno.E2BIG) in told[0]

    isolated(work)


LOOKS: dict[str, Callable[[msharefs.Region], object]] = {
    "stat": lambda region: region.stat(),
    "map": lambda region: region.map(0, PAGE),
    "unmap": lambda region: region.unmap(0, PAGE),
    "protect": lambda region: region.protect(0, PAGE, 1),
    "attach": lambda region: region.attach(),
}


@pytest.mark.parametrize("to", [0, PAGE, 64 * PAGE])
@pytest.mark.parametrize("first", LOOKS)
def test_only_that_region_is_lost(
    mount: Mount, regions: tuple[msharefs.Region, msharefs.Region], to: int, first: str
) -> None:
    victim, other = regions
    shorten(victim, to)
    mount.damaged = True
    # The first question finds it out; from then on every answer is the same.
    for look in (LOOKS[first], *LOOKS.values()):
        with pytest.raises(OSError, match=r"\[Errno 117\]"):
            look(victim)
    memory = other.attach()
    memory[:4] = b"fine"
    other.unmap(SIZE - PAGE, PAGE)
    assert other.stat()["rss_bytes"] == PAGE
    other.detach()
    assert sorted(os.listdir(mount.path)) == ["mshare_info", "other", "victim"]
    Path(mount.path, "victim").unlink()


def test_the_others_live_through_a_restart_too(
    mount: Mount, regions: tuple[msharefs.Region, msharefs.Region]
) -> None:
    victim, other = regions
    shorten(victim, 0)
    mount.damaged = True
    with pytest.raises(OSError, match="needs cleaning"):
        victim.unmap(0, PAGE)
    memory = other.attach()
    memory[:4] = b"fine"
    mount.expect(r"(?s)\S+ \S+ ERROR .* cannot be taken over.*needs cleaning\n")
    mount.kill()
    mount.start()
    assert bytes(memory[:4]) == b"fine"
    with msharefs.open(mount.path / "other") as again:
        again.unmap(SIZE - PAGE, PAGE)
    memory.release()
    other.detach()
