"""Who has opened a region for reading only cannot write it, whatever he does with what he gets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import random
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import processes
from msharefs.native import ffi, lib

from support import byhand, hugepages, rawmm, wire
from support.actor import PAGE, Actor
from support.audit import assert_whole
from support.calls import refused
from support.isolated import isolated
from support.nativemap import Native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)

SIZE = 4 << 20
NOBODY = 65534
READ, RW = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
BASE = 0x7000_0000_0000
MAP_HUGETLB = 0x40000
PR_SET_DUMPABLE = 4


@pytest.fixture
def region(mount: Mount) -> Iterator[msharefs.Region]:
    """A region that everybody may read, with memory that has been touched."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as made:
        path.chmod(0o644)
        made.truncate(SIZE)
        made.map(0, SIZE)
        yield made
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: str) -> Iterator[tuple[msharefs.Region, socket.socket]]:
    """A region opened for reading only, and a connection."""
    with msharefs.open(path, os.O_RDONLY) as region, wire.connected(region) as sock:
        yield region, sock


def attach(sock: socket.socket) -> tuple[int, int, int]:
    """`.mm`, `.mem` and the device."""
    wire.send(sock, lib.MSG_ATTACH, READ)
    result, fds = wire.answer(sock)
    assert result == 0
    return fds[0], fds[1], fds[2]


def call(sock: socket.socket, op: int, *arguments: int, **more: object) -> int:
    wire.send(sock, op, *arguments, **more)  # type: ignore[arg-type]
    return byhand.answer(sock)[0]


def uffd(device: int) -> int:
    made: int = lib.uffd_new(device)
    assert made >= 0
    return made


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    # Otherwise its own /proc is root's, and says no to everything.
    lib.prctl(PR_SET_DUMPABLE, ffi.cast("long", 1))


def test_nothing_that_it_gets_can_be_written(region: msharefs.Region) -> None:
    def attack(say: Callable[[str], None]) -> None:
        become_nobody()
        with reading(region.path) as (_, sock):
            fds = attach(sock)
            for name, fd in zip((".mm", ".mem"), fds, strict=False):
                say(name)
                assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                with refused(errno.EACCES):
                    mmap.mmap(fd, PAGE, mmap.MAP_SHARED, RW)
                view = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, READ)
                where = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
                assert lib.mprotect(ffi.from_buffer(view), PAGE, RW) == -1
                with refused(errno.EBADF):
                    os.pwrite(fd, b"x", 0)
                with refused(errno.EINVAL):
                    os.ftruncate(fd, 0)
                with refused(errno.EBADF):
                    os.posix_fallocate(fd, 0, PAGE)
                with refused(errno.EPERM):
                    os.fchmod(fd, 0o666)
                with refused(errno.EPERM):
                    os.open(f"/proc/self/map_files/{where:x}-{where + PAGE:x}", os.O_RDWR)
                for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_RDONLY):
                    with refused(errno.EACCES):
                        os.open(f"/proc/self/fd/{fd}", flags)
                with refused(errno.EACCES):
                    os.truncate(f"/proc/self/fd/{fd}", 0)
                again = processes.fetch_descriptor(os.getpid(), fd)
                assert fcntl.fcntl(again, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                # UFFDIO_COPY could write to a file.
                registered = struct.pack("=4Q", where, PAGE, 1, 0)
                own = uffd(fds[2])
                fcntl.ioctl(own, 0xC018AA3F, struct.pack("=3Q", 0xAA, 0, 0))
                with refused(errno.EPERM):
                    fcntl.ioctl(own, 0xC020AA00, registered)

    isolated(attack)
    assert_whole(region)


def test_the_library_keeps_nothing_that_can_be_written(
    region: msharefs.Region, mount: Mount, actors: Callable[[], Actor]
) -> None:
    actor = actors()
    with msharefs.open(region.path, os.O_RDONLY) as reader:
        base = actor.attach(actor.give(reader.fd), prot=READ)
    assert actor.call("load", base) == [0]
    regions = str(mount.state / "regions")
    lines = Path(f"/proc/{actor.pid}/maps").read_text().splitlines()
    assert {line.split()[1] for line in lines if regions in line} == {"r--s", "r--p"}
    assert actor.modes(regions) == [os.O_RDONLY, os.O_RDONLY]


def test_the_verbs_are_refused(region: msharefs.Region) -> None:
    def attack(say: Callable[[str], None]) -> None:
        become_nobody()
        with reading(region.path) as (reader, sock):
            for number in range(2):
                say(f"connection {number}")
                assert call(sock, lib.MSG_UNMAP, 0, PAGE) == -errno.EACCES
                assert call(sock, lib.MSG_PROTECT, 0, PAGE, 0) == -errno.EACCES
                assert call(sock, lib.MSG_MAP, 0, PAGE, READ, 0x31) == -errno.EACCES
                assert call(sock, lib.MSG_ATTACH, RW) == -errno.EACCES
                assert call(sock, lib.MSG_ADOPT) == -errno.EACCES
                for what in (b"reap", b"repair"):
                    assert call(sock, lib.MSG_DESCRIBE, text=what) == -errno.EACCES
                assert call(sock, lib.MSG_FAULT) == -errno.EPERM, "it is not attached yet"
                if not number:
                    with wire.connected(reader) as other:
                        device = attach(other)[2]
                        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                        assert call(other, lib.MSG_READY, BASE, READ, fds=(uffd(device),)) == 0
                        wire.send(other, lib.MSG_FORKED, BASE, fds=(theirs.fileno(), uffd(device)))
                        assert call(ours, lib.MSG_UNMAP, 0, PAGE) == -errno.EACCES
            with refused(errno.EACCES):
                reader.unmap(0, PAGE)

    isolated(attack)
    assert [vma["end"] for vma in region.maps()] == [SIZE]


def test_who_may_only_write_gets_nothing(region: msharefs.Region) -> None:
    """As with mmap(2): what is mapped can be read."""
    with (
        msharefs.open(region.path, os.O_WRONLY) as writer,
        wire.connected(writer) as sock,
    ):
        for prot in (0, mmap.PROT_WRITE):
            wire.send(sock, lib.MSG_ATTACH, prot)
            assert wire.answer(sock) == (-errno.EACCES, [])


def slot_of(mm: int, number: int) -> tuple[int, int, int, int]:
    """Process, start time, base and claim that a slot says."""
    view = mmap.mmap(mm, 0, mmap.MAP_SHARED, READ)
    at = struct.unpack_from("=Q", view, rawmm.HEADER["slots_at"])[0] + rawmm.SLOT_SIZE * number
    process, started, base = struct.unpack_from("=3Q", view, at)
    [claim] = struct.unpack_from("=Q", view, at + rawmm.SLOT_CLAIM)
    return process, started, base, claim


def test_rejoining_gives_no_more_than_was_given(
    region: msharefs.Region, mount: Mount, actors: Callable[[], Actor]
) -> None:
    """Whose slot it names, and what the slot says, makes no difference."""
    writer = actors()
    base = writer.attach(writer.give(region.fd))
    writer.call("store", base, 42)

    def attack(say: Callable[[str], None]) -> None:
        become_nobody()
        with reading(region.path) as (reader, sock):
            mm, _, device = attach(sock)
            claim = slot_of(mm, 0)[3]
            for arguments in ((0, claim), (base, RW), (BASE, RW)):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
                    say(f"{arguments}")
                    other.connect(str(mount.state / "control"))
                    assert call(other, lib.MSG_REJOIN, *arguments, fds=(mm, uffd(device))) == 0
                    assert call(other, lib.MSG_UNMAP, 0, PAGE) == -errno.EACCES
                    assert len(reader.describe("clients")) == 2
                    found = [each for each in reader.describe("clients") if each["base"] == base]
                    assert writer.pid in {each["pid"] for each in found}, "its slot is its own"
                    ask = ffi.new("struct fault_ask *", {"start": 0, "end": PAGE, "fill": 1})
                    assert call(other, lib.MSG_FAULT, text=bytes(ffi.buffer(ask))) == 0
            path = os.open(f"/proc/self/fd/{mm}", os.O_PATH)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
                other.connect(str(mount.state / "control"))
                assert call(other, lib.MSG_REJOIN, fds=(path, uffd(device))) == -errno.EBADF

    isolated(attack)
    region.unmap(PAGE, PAGE)
    assert writer.call("load", base) == [42]
    assert [each["pid"] for each in region.describe("clients")] == [writer.pid]
    assert_whole(region)


def test_a_rejoin_after_a_crash_gives_no_more_either(mount: Mount) -> None:
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
    fd = os.open(path, os.O_RDONLY)
    with socket.socket(fileno=lib.control_connect(fd)) as sock:
        mm, mem, device = attach(sock)
    mount.kill()
    with contextlib.suppress(OSError):  # its server is gone
        os.close(fd)
    mount.start()
    writable = os.open(f"/proc/self/fd/{mm}", os.O_RDWR)  # we are root
    with msharefs.open(path) as region:
        for shown, wanted in ((mm, -errno.EACCES), (writable, 0)):
            slot = claim = 0
            if shown == writable:  # as the library of one who may write does it
                opened = ffi.new("struct mm *")
                assert lib.mm_open(opened, os.dup(shown)) == 0
                slot = lib.slot_claim(opened, os.getpid(), 0)
                claim = lib.mm_claim(opened, slot)
                lib.mm_close(opened)
            own = uffd(device)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
                other.connect(str(mount.state / "control"))
                assert call(other, lib.MSG_REJOIN, slot, claim, fds=(shown, own)) == 0
                assert call(other, lib.MSG_UNMAP, 0, PAGE) == wanted
                assert len(region.describe("clients")) == 1
                assert call(other, lib.MSG_DETACH) == 0
            os.close(own)
    for kept in (mm, mem, device, writable):
        os.close(kept)
    path.unlink()


def test_questions_without_sense(region: msharefs.Region) -> None:
    """The server takes no harm from them, and answers others; the tables stay whole."""
    region.unmap(SIZE // 2, PAGE)

    def attack(say: Callable[[str], None]) -> None:
        become_nobody()
        chance = random.Random(1)
        edges = [0, 1, PAGE, SIZE - PAGE, SIZE, SIZE // 2, 1 << 39, 1 << 47, 1 << 63, (1 << 64) - 1]
        pages = range(0, SIZE, PAGE)
        with reading(region.path) as (_, sock):
            device = attach(sock)[2]
            assert call(sock, lib.MSG_READY, BASE, READ, fds=(uffd(device),)) == 0
            for number in range(3000):
                ask = ffi.new("struct fault_ask *")
                raw = ffi.buffer(ask)
                raw[:] = chance.randbytes(len(raw))
                if number % 4:
                    for field in ("offset", "start", "end", "limit", "ahead"):
                        kinds = edges if chance.random() < 0.3 else pages
                        setattr(ask, field, chance.choice(kinds))
                    ask.object = chance.choice([0, 0, 0, 1, 99])
                say(bytes(raw).hex())
                call(sock, lib.MSG_FAULT, text=bytes(raw))

    isolated(attack, seconds=60)
    assert_whole(region)
    region.unmap(0, SIZE)
    assert region.stat()["rss_bytes"] == 0


@pytest.mark.parametrize("kind", ["huge", "file"])
def test_the_files_in_a_region(
    region: msharefs.Region, public_tmp: os.PathLike[str], kind: str
) -> None:
    """They come for reading only, and not even by way of /proc for more."""
    with hugepages.at_least(4) if kind == "huge" else contextlib.nullcontext():
        if kind == "huge":
            region.map(0, 2 << 20, RW, 0x31 | MAP_HUGETLB)
        else:
            with (public_tmp / "f").open("w+b") as file:
                file.truncate(PAGE)
                region.map(0, PAGE, RW, 0x11, file.fileno())

        def attack(say: Callable[[str], None]) -> None:
            become_nobody()
            with reading(region.path) as (_, sock):
                number = 2  # serial numbers of mappings: the whole was the first
                wire.send(sock, lib.MSG_OBJECT, number)
                result, fds = wire.answer(sock)
                say(f"{result}")
                assert fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                with refused(errno.EACCES):
                    os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR)

        isolated(attack)
        region.unmap(0, SIZE)


def test_a_plain_mapping_of_a_reader(region: msharefs.Region, actors: Callable[[], Actor]) -> None:
    """Linux maps the pages itself, and knows how the region was opened."""
    actor = actors()
    with msharefs.open(region.path, os.O_RDONLY) as reader:
        with refused(errno.EACCES):
            Native.map(actor, reader.fd, SIZE)
        native = Native.map(actor, reader.fd, SIZE, prot=READ)
    assert native.load(0) == [0]
    with refused(errno.EACCES):
        actor.call("plain-protect", native.base, PAGE, RW)


@pytest.mark.mount("quantum=2M", "quirks=v3", limit=60)
def test_with_the_series_quirks_everybody_may_write(
    region: msharefs.Region, actors: Callable[[], Actor]
) -> None:
    reader, writer = actors(), actors()
    with msharefs.open(region.path, os.O_RDONLY) as opened:
        base = reader.attach(reader.give(opened.fd), prot=READ)
    assert reader.call("store", base, 42) == []
    assert writer.call("load", writer.attach(writer.give(region.fd))) == [42]
