"""Locks that a client keeps: whoever wants what they protect is refused, and nobody else waits."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.native import lib

from support import holding, wire
from support.calls import refused
from support.hostview import number_of
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

HELD = 0.3  # seconds, in place of two, or sixty
SECONDS = {"hands.HELD_SECONDS": HELD, "clients.LOCKED_SECONDS": HELD}
pytestmark = pytest.mark.mount("quantum=2M", limit=100, seconds=SECONDS)
PAGE = mmap.PAGESIZE
SIZE = 2 << 20

# Reads a page, with a region attached for reading only.
READER = """
import sys, msharefs
view = msharefs.open(sys.argv[1], 0).attach(prot=1)
print("attached", flush=True)
print(view[int(sys.argv[2])], flush=True)
"""


@contextlib.contextmanager
def made(mount: Mount, name: str = "r") -> Iterator[msharefs.Region]:
    """A region with memory all over it."""
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        yield region
    (mount.path / name).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def healthy(shared_mount: Mount) -> Iterator[msharefs.Region]:
    with made(shared_mount, "healthy") as region:
        yield region


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    with made(shared_mount) as region:
        yield region


def assert_serves(mount: Mount, healthy: msharefs.Region) -> None:
    """All others are answered, whoever keeps what locked: this would wait as long as that."""
    (mount.path / "mshare_info").read_text()
    assert os.listdir(mount.path)
    healthy.unmap(0, SIZE)
    healthy.map(0, SIZE)
    view = healthy.attach()
    view[0] = 1
    healthy.protect(0, SIZE, mmap.PROT_READ)
    healthy.protect(0, SIZE, mmap.PROT_READ | mmap.PROT_WRITE)
    healthy.detach(view)


def files(region: msharefs.Region) -> tuple[int, int]:
    """The host mm and the pages of a region, as any client gets them."""
    with wire.connected(region) as sock:
        wire.send(sock, lib.MSG_ATTACH)
        result, fds = wire.answer(sock)
    assert result == 0
    for fd in fds[2:]:
        os.close(fd)
    return fds[0], fds[1]


@pytest.fixture
def its_files(region: msharefs.Region) -> Iterator[tuple[int, int]]:
    found = files(region)
    yield found
    for fd in found:
        os.close(fd)


def populate(region: msharefs.Region, pages: int) -> None:
    view = region.attach()
    for page in range(pages):
        view[page * PAGE] = 1
    region.detach(view)


def unmap(region: msharefs.Region) -> None:
    region.unmap(0, SIZE)


def replace(region: msharefs.Region) -> None:
    region.map(0, SIZE)


def protect(region: msharefs.Region) -> None:
    region.protect(0, SIZE, mmap.PROT_READ)


def fill(region: msharefs.Region) -> None:
    region.advise(0, SIZE, verbs.MADV_POPULATE_WRITE)


def done(change: Callable[[msharefs.Region], None], region: msharefs.Region) -> bool:
    """Whether it can be done now."""
    try:
        change(region)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@pytest.mark.alone  # other tests read the maps of all processes, too, and would wait
@pytest.mark.parametrize(
    ("change", "left"), [(unmap, []), (replace, ["rw-s"]), (protect, ["r--s"])]
)
def test_an_address_space(
    shared_mount: Mount,
    healthy: msharefs.Region,
    region: msharefs.Region,
    public_tmp: Path,
    change: Callable[[msharefs.Region], None],
    left: list[str],
) -> None:
    """Its pages cannot be taken away: EBUSY, and the change can be made when it has ended."""
    populate(region, SIZE // PAGE)
    with holding.address_space(public_tmp, shared_mount.path / "r", [0]) as client:
        client.lock()
        for _ in range(2):
            with pytest.raises(OSError, match=f"process {client.pid} ") as caught:
                change(region)
            assert caught.value.errno == errno.EBUSY
            assert_serves(shared_mount, healthy)
        assert [vma["prot"] for vma in region.maps()] == ["rw-s"]
        view = region.attach()
        assert (view[0], view[SIZE - PAGE]) == (1, 1)
        region.detach(view)
    until(lambda: done(change, region), "the change can be made when it has ended")
    assert [vma["prot"] for vma in region.maps()] == left


@pytest.mark.parametrize("change", [unmap, replace])
def test_the_pages(
    shared_mount: Mount,
    healthy: msharefs.Region,
    region: msharefs.Region,
    its_files: tuple[int, int],
    change: Callable[[msharefs.Region], None],
) -> None:
    """fallocate(2) waits for them."""
    populate(region, 2)
    with holding.file(its_files[1]):
        for _ in range(2):
            with refused(errno.EBUSY):
                change(region)
            assert_serves(shared_mount, healthy)
        assert [vma["prot"] for vma in region.maps()] == ["rw-s"]
    until(lambda: done(change, region), "the change can be made")


def test_pages_that_are_to_be_filled(
    shared_mount: Mount,
    healthy: msharefs.Region,
    region: msharefs.Region,
    its_files: tuple[int, int],
) -> None:
    """A verb that makes them is refused, and the dead of all regions are looked for as before."""
    with holding.file(its_files[1]):
        with refused(errno.EBUSY):
            fill(region)
        assert region.describe("reap") == 0
        assert_serves(shared_mount, healthy)
    until(lambda: done(fill, region), "they can be filled")


def test_the_host_mm(
    shared_mount: Mount,
    healthy: msharefs.Region,
    region: msharefs.Region,
    its_files: tuple[int, int],
) -> None:
    """Page tables are given back to it, and slots. Figures of it wait for nobody."""
    populate(region, 2)
    attached = region.attach()
    attached[0] = 1
    with holding.file(its_files[0]):
        with refused(errno.EBUSY):
            unmap(region)
        assert region.stat()["clients"] == 1
        region.detach(attached)
        assert_serves(shared_mount, healthy)
    until(lambda: done(unmap, region), "the change can be made")
    until(lambda: region.stat()["clients"] == 0, "the slot is free")


def test_a_page_for_a_reader(
    shared_mount: Mount,
    healthy: msharefs.Region,
    region: msharefs.Region,
    its_files: tuple[int, int],
) -> None:
    """The server makes it. The reader sleeps in its fault, and so does nobody else."""
    populate(region, 1)
    argv = [sys.executable, "-P", "-c", READER, region.path, str(100 * PAGE)]
    with (
        holding.file(its_files[1]) as let_go,
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as reader,
    ):
        assert reader.stdout is not None
        assert reader.stdout.readline() == "attached\n"
        until(lambda: holding.at_a_fault(reader.pid), "its fault has begun")
        with refused(errno.EBUSY):
            unmap(region)
        assert_serves(shared_mount, healthy)
        let_go()
        assert reader.stdout.readline() == "0\n"


def test_files_that_are_removed(
    shared_mount: Mount,
    healthy: msharefs.Region,
    region: msharefs.Region,
    its_files: tuple[int, int],
) -> None:
    """unlink(2) would wait for a file, and with the directory locked, where all others' are."""
    populate(region, 2)
    regions = shared_mount.state / "regions"
    number = number_of(str(shared_mount.path / "r"))
    its = {f"{number}.mm", f"{number}.mem"}
    before = set(os.listdir(regions))
    with holding.file(its_files[1]), holding.file(its_files[0]):
        (shared_mount.path / "r").unlink()
        region.close()
        for number in range(3):
            with made(shared_mount, f"more{number}") as more:
                populate(more, 1)
        assert_serves(shared_mount, healthy)
        until(lambda: set(os.listdir(regions)) <= before, "the others' files are removed")
        assert its <= set(os.listdir(regions))
    with open(os.devnull, "rb") as null:
        for fd in its_files:
            os.dup2(null.fileno(), fd)
    until(lambda: not its & set(os.listdir(regions)), "and these, when they are closed")


@pytest.mark.parametrize("which", [0, 1])
def test_a_server_that_starts(mount: Mount, which: int) -> None:
    """Whatever it has to do in that region waits; it serves the others."""
    for name in ("r", "other"):
        with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as region:
            region.truncate(SIZE)
            region.map(0, SIZE)
            populate(region, 2)
    with msharefs.open(mount.path / "r") as region:
        fds = files(region)
    mount.kill()
    with holding.file(fds[which]):
        mount.start()
        with msharefs.open(mount.path / "other") as again:
            populate(again, 1)
            unmap(again)
    with msharefs.open(mount.path / "r") as again:
        until(lambda: done(unmap, again), "it is a region like any other")
    for fd in fds:
        os.close(fd)
