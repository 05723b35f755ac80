"""A plain mmap(2) of a region file maps the region's own memory: the native attachment."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import msharefs
from msharefs.cli import cli
from msharefs.native import lib

from support.actor import PAGE, Actor, Fault
from support.calls import in_child, mmap_refused, refused
from support.memory import QUANTUM
from support.nativemap import Native

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.server import Mount

SIZE = 2 * QUANTUM
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_CREATE = struct.Struct("=QQQIIi4x")
_ANONYMOUS = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED


def attached(actor: Actor, region: msharefs.Region) -> int:
    """Attaches by the library."""
    return actor.attach(actor.give(region.fd))


def clients(region: msharefs.Region) -> list[dict[str, object]]:
    return region.describe("clients")


def test_as_the_series_documents_it(shared_mount: Mount) -> None:
    """open, ftruncate, ioctl, mmap on one descriptor: the whole interface of the series."""
    path = shared_mount.path / "series"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, SIZE)
    create = _CREATE.pack(0, SIZE, 0, READ_WRITE, _ANONYMOUS, -1)
    assert fcntl.ioctl(fd, lib.MSHAREFS_CREATE_MAPPING, create) == create
    with mmap.mmap(fd, SIZE) as memory:
        os.close(fd)
        memory[SIZE - 5 :] = b"hello"

        def other() -> bytes:
            again = os.open(path, os.O_RDONLY)
            return mmap.mmap(again, SIZE, prot=mmap.PROT_READ)[SIZE - 5 :]

        assert in_child(other) == b"hello"
    path.unlink()


def test_the_same_data_as_everybody_elses(
    region: msharefs.Region, native: Native, actors: Callable[[], Actor]
) -> None:
    other = actors()
    base = attached(other, region)
    for offset in range(0, SIZE, PAGE):
        writer, reader = (native.base, native.actor), (base, other)
        if offset // PAGE % 2:
            writer, reader = reader, writer
        writer[1].call("store", writer[0] + offset, offset // PAGE % 251)
        assert reader[1].call("load", reader[0] + offset) == [offset // PAGE % 251]


def test_a_mapping_made_before_the_size_is(
    shared_mount: Mount, actors: Callable[[], Actor]
) -> None:
    """EINVAL in the series. The kernel does not ask us: an access past the end is SIGBUS."""
    path = shared_mount.path / "early"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        native = Native.map(actors(), region.fd, SIZE)
        early = native.load(0)
        assert isinstance(early, Fault)
        assert early.number == signal.SIGBUS
        region.truncate(SIZE)
        region.map(0, SIZE)
        native.store(PAGE, 7)
        with region.attach() as memory:
            assert memory[PAGE] == 7
    path.unlink()


def test_part_of_a_region(region: msharefs.Region, actors: Callable[[], Actor]) -> None:
    """EINVAL in the series, which maps only the whole. The kernel does not ask us."""
    part = Native.map(actors(), region.fd, PAGE, offset=QUANTUM)
    part.store(0, 9)
    with region.attach() as memory:
        assert memory[QUANTUM] == 9


@pytest.mark.parametrize(
    ("flags", "prot", "number"),
    [
        (os.O_RDONLY, READ_WRITE, errno.EACCES),
        (os.O_WRONLY, mmap.PROT_WRITE, errno.EACCES),
        (os.O_RDONLY, mmap.PROT_READ, 0),
        (os.O_RDWR, READ_WRITE, 0),
    ],
)
def test_the_descriptor_decides(
    region: msharefs.Region, flags: int, prot: int, number: int
) -> None:
    fd = os.open(region.path, flags)
    try:
        if number:
            mmap_refused(fd, SIZE, prot, mmap.MAP_SHARED, number)
        else:
            mmap.mmap(fd, SIZE, prot=prot).close()
    finally:
        os.close(fd)


def test_a_private_mapping_is_a_copy(
    region: msharefs.Region, native: Native, actors: Callable[[], Actor]
) -> None:
    """EINVAL in the series. The kernel does not ask us; writes stay private."""
    native.store(0, 1)
    private = Native.map(actors(), region.fd, SIZE, flags=mmap.MAP_PRIVATE)
    assert private.load(0) == [1]
    private.store(0, 2)
    assert native.load(0) == [1]
    assert [client["prot"] for client in clients(region)] == ["rw-s", "rw-p"]


def test_what_is_not_mmap_still_reaches_the_server(region: msharefs.Region) -> None:
    for refuse in (
        lambda: os.read(region.fd, 1),
        lambda: os.write(region.fd, b"x"),
        lambda: os.pread(region.fd, 1, 0),
        lambda: os.pwrite(region.fd, b"x", 0),
        lambda: os.fsync(region.fd),
        lambda: os.ftruncate(region.fd, SIZE),
        lambda: os.posix_fallocate(region.fd, 0, SIZE),
    ):
        with refused(errno.EINVAL):
            refuse()
    status = os.fstat(region.fd)
    assert (status.st_size, status.st_blocks) == (SIZE, 0)


def test_unmapped_memory_reads_zero(region: msharefs.Region, native: Native) -> None:
    native.store(0, 5)
    native.store(QUANTUM, 6)
    region.unmap(0, QUANTUM)
    assert native.load(0) == [0]
    assert native.load(QUANTUM) == [6]


def test_what_is_written_into_a_hole_is_gone_when_memory_is_mapped_there(
    region: msharefs.Region, native: Native
) -> None:
    region.unmap(0, SIZE)
    native.store(PAGE, 5)
    region.map(0, QUANTUM)
    assert native.load(PAGE) == [0]
    with region.attach() as memory:
        assert memory[PAGE] == 0
    assert region.describe("audit")["bad"] == 0


def test_clients_lists_it(
    region: msharefs.Region, native: Native, actors: Callable[[], Actor]
) -> None:
    native.store(0, 1)
    other = actors()
    base = attached(other, region)
    part = Native.map(other, region.fd, PAGE, prot=mmap.PROT_READ, offset=QUANTUM)
    found = {(client["pid"], client["base"]): client for client in clients(region)}
    assert set(found) == {
        (native.actor.pid, native.base), (other.pid, base), (other.pid, part.base),
    }  # fmt: skip

    whole = found[native.actor.pid, native.base]
    assert whole == {
        "pid": native.actor.pid, "start_time": whole["start_time"], "comm": "actor",
        "kind": "native", "base": native.base, "size": SIZE, "offset": 0, "prot": "rw-s",
        "links": None, "faults": None, "materialised_pages": None, "segv": None,
        "budget_bytes": None, "budget_asked_bytes": None, "budget_grown": None,
        "evicted_spans": None, "refaulted_spans": None, "unshared_tables": None,
    }  # fmt: skip
    assert whole["start_time"]
    assert found[other.pid, base]["kind"] == "attached"
    window = found[other.pid, part.base]
    assert (window["kind"], window["size"], window["offset"], window["prot"]) == (
        "native", PAGE, QUANTUM, "r--s",
    )  # fmt: skip

    native.unmap(SIZE)
    other.call("plain-unmap", part.base, PAGE)
    assert [client["kind"] for client in clients(region)] == ["attached"]


def test_a_child_has_it_too(region: msharefs.Region, native: Native) -> None:
    with native.actor.fork() as child:
        child.finish()
        assert {client["pid"] for client in clients(region)} == {native.actor.pid, child.pid}
        child.call("store", native.base, 3)
        assert native.load(0) == [3]
        native.unmap(SIZE)
        assert {client["pid"] for client in clients(region)} == {child.pid}


def test_names_do_not_matter(region: msharefs.Region, native: Native) -> None:
    """A link, a rename, a second region in the place of the first: only the inode counts."""
    path = region.path
    os.link(path, f"{path}-link")
    os.rename(path, f"{path}-new")
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as second:
        second.truncate(SIZE)
        assert clients(second) == []
    with msharefs.open(f"{path}-link") as again:
        assert [client["pid"] for client in clients(again)] == [native.actor.pid]
    os.unlink(f"{path}-link")
    os.unlink(f"{path}-new")


def test_mshare_info_is_not_mapped(shared_mount: Mount) -> None:
    fd = os.open(shared_mount.path / "mshare_info", os.O_RDONLY)
    try:
        mmap_refused(fd, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, errno.ENODEV)
    finally:
        os.close(fd)


def test_opened_and_closed_by_many_at_once(region: msharefs.Region) -> None:
    """A file has one backing id from its first open to its last close; or the kernel says EIO.

    Processes that find it closed, and others that find it open, take turns here in every order.
    """
    path = region.path

    def work() -> None:
        for _ in range(300):
            fd = os.open(path, os.O_RDWR)
            memory = mmap.mmap(fd, PAGE)
            os.close(fd)
            memory[os.getpid() % PAGE] = 1
            memory.close()

    region.close()
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(in_child, work) for _ in range(3)]:
            done.result()


@pytest.mark.mount("quantum=2M", "passthrough=no")
def test_without_passthrough(mount: Mount) -> None:
    path = mount.path / "r"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    for prot in (mmap.PROT_READ, READ_WRITE):
        mmap_refused(fd, SIZE, prot, mmap.MAP_SHARED, errno.ENODEV)
    os.close(fd)


def test_entries_and_pages_are_apart(region: msharefs.Region, native: Native) -> None:
    """Pages that came natively have no entry until somebody attached touches them."""
    for offset in range(0, QUANTUM, PAGE):
        native.store(offset, 1)
    stat = region.stat()
    assert stat["rss_bytes"] == QUANTUM
    assert stat["table_frames"]["pte"] == 0
    assert stat["clients"] == 0
    with region.attach() as memory:
        assert sum(memory[offset] for offset in range(0, QUANTUM, PAGE)) == QUANTUM // PAGE
    assert region.stat()["table_frames"]["pte"] == 1


def test_the_command_says_what_is_not_enforced(region: msharefs.Region, native: Native) -> None:
    lines = CliRunner().invoke(cli, ["clients", region.path]).output.splitlines()
    row = next(line.split() for line in lines if str(native.actor.pid) in line)
    assert row[1:3] == ["actor", "native"]
    assert row[-4:] == ["-"] * 4
    assert "holes and protections are not enforced" in " ".join(lines)
