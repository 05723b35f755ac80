"""mshare_attach() and mshare_detach() behave as mmap(2) and munmap(2) of the series do."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.native import ffi, lib

from support import proc
from support.actor import (
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    PAGE,
    READ_WRITE,
    Board,
    accerr,
    maperr,
)
from support.calls import refused
from support.memory import QUANTUM
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.actor import Actor
    from support.server import Mount

    Regions = Callable[..., msharefs.Region]
    Actors = Callable[[], Actor]

READ, WRITE, SHARED = mmap.PROT_READ, mmap.PROT_WRITE, mmap.MAP_SHARED
PLACE = 1 << 45  # a multiple of every quantum; nothing is mapped there


def attached(region: msharefs.Region) -> list[dict[str, int]]:
    """The attachments that the server knows of."""
    return region.describe("clients")


class TestWhere:
    def test_anywhere_is_aligned(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region()
        fd = actor.give(region.fd)
        bases = [actor.attach(fd) for _ in range(5)]
        assert len(set(bases)) == 5
        assert all(base % QUANTUM == 0 for base in bases)
        spans = sorted((base, base + 2 * QUANTUM) for base in bases)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))

    @pytest.mark.parametrize(
        ("hint", "base"),
        [
            (PLACE, PLACE),
            (PLACE + 1, PLACE),
            (PLACE + PAGE, PLACE + QUANTUM),
            (PLACE - PAGE, PLACE),
        ],
    )
    def test_a_hint_is_rounded_up(
        self, actors: Actors, make_region: Regions, hint: int, base: int
    ) -> None:
        actor = actors()
        assert actor.attach(actor.give(make_region().fd), hint) == base

    def test_a_hint_that_is_taken(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region()
        fd = actor.give(region.fd)
        assert actor.attach(fd, PLACE) == PLACE
        other = actor.attach(fd, PLACE + QUANTUM)
        assert other % QUANTUM == 0
        assert other >= PLACE + 2 * QUANTUM or other + 2 * QUANTUM <= PLACE

    @pytest.mark.parametrize("flag", [MAP_FIXED, MAP_FIXED_NOREPLACE])
    def test_fixed(self, actors: Actors, make_region: Regions, flag: int) -> None:
        actor = actors()
        fd = actor.give(make_region().fd)
        assert actor.attach(fd, PLACE, flags=SHARED | flag) == PLACE
        for address in (PLACE + PAGE, PLACE + QUANTUM + 1):
            with refused(errno.EINVAL):
                actor.attach(fd, address, flags=SHARED | flag)
        with refused(errno.ENOMEM):
            actor.attach(fd, (1 << 47) - QUANTUM, flags=SHARED | flag)

    def test_fixed_takes_the_place_of_what_is_there(
        self, actors: Actors, make_region: Regions
    ) -> None:
        actor = actors()
        plain = SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
        actor.call("plain-map", PLACE, 4 * QUANTUM, READ_WRITE, plain, -1, 0)
        actor.call("fill", PLACE, 4 * QUANTUM, 1, 0)
        fd = actor.give(make_region().fd)
        assert actor.attach(fd, PLACE + QUANTUM, flags=SHARED | MAP_FIXED) == PLACE + QUANTUM
        assert actor.call("load", PLACE + QUANTUM) == [0]
        assert actor.call("load", PLACE + 3 * QUANTUM - 1) == [0]
        assert actor.call("check", PLACE, QUANTUM, 1, 0) == [0]
        assert actor.call("check", PLACE + 3 * QUANTUM, QUANTUM, 1, 3 * QUANTUM // PAGE) == [0]

    def test_noreplace(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region()
        flags = SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
        actor.call("plain-map", PLACE + 2 * QUANTUM - PAGE, PAGE, READ_WRITE, flags, -1, 0)
        fd = actor.give(region.fd)
        with refused(errno.EEXIST):
            actor.attach(fd, PLACE, flags=SHARED | MAP_FIXED_NOREPLACE)
        assert attached(region) == []
        # None of it was kept: the place in front is free.
        address = PLACE + 2 * QUANTUM
        assert actor.attach(fd, address, flags=SHARED | MAP_FIXED_NOREPLACE) == address

    def test_each_process_where_it_likes(self, actors: Actors, make_region: Regions) -> None:
        region = make_region()
        bases = [PLACE, PLACE + 7 * QUANTUM, PLACE * 2]
        crowd = [actors() for _ in bases]
        for number, (actor, base) in enumerate(zip(crowd, bases, strict=True)):
            fd = actor.give(region.fd)
            assert actor.attach(fd, base, flags=SHARED | MAP_FIXED) == base
            assert actor.call("store", base + number * PAGE, number + 1) == []
        for actor, base in zip(crowd, bases, strict=True):
            assert [actor.call("load", base + i * PAGE) for i in range(3)] == [[1], [2], [3]]
        assert sorted(client["base"] for client in attached(region)) == bases


class TestRefused:
    def test_private(self, actors: Actors, make_region: Regions) -> None:
        actor = actors()
        with refused(errno.EINVAL):
            actor.attach(actor.give(make_region().fd), flags=mmap.MAP_PRIVATE)

    def test_unsized(self, actors: Actors, shared_mount: Mount) -> None:
        actor = actors()
        with msharefs.open(shared_mount.path / "unsized", os.O_RDWR | os.O_CREAT) as region:
            fd = actor.give(region.fd)
            with refused(errno.EINVAL):
                actor.attach(fd)
            with refused(errno.EINVAL):
                actor.call("map", fd, 0, PAGE, READ_WRITE)
            with refused(errno.EINVAL):
                actor.call("unmap", fd, 0, PAGE)
        os.unlink(region.path)

    @pytest.mark.parametrize("kind", ["file", "pipe", "mshare_info", "mount"])
    def test_what_is_no_region(self, actors: Actors, shared_mount: Mount, kind: str) -> None:
        actor = actors()
        fds = [os.memfd_create("x")] if kind == "file" else []
        if kind == "pipe":
            fds = list(os.pipe())
        elif kind != "file":
            path = shared_mount.path / (kind if kind == "mshare_info" else "")
            fds = [os.open(path, os.O_RDONLY)]
        fd = actor.give(fds[0])
        with refused(errno.ENOTTY):
            actor.attach(fd, prot=READ)
        for number in fds:
            os.close(number)

    def test_a_bad_descriptor(self, actors: Actors) -> None:
        actor = actors()
        for fd in (-1, 999):
            with refused(errno.EBADF):
                actor.attach(fd)

    def test_descriptor_for_writing_only(self, actors: Actors, make_region: Regions) -> None:
        actor = actors()
        fd = os.open(make_region().path, os.O_WRONLY)
        number = actor.give(fd)
        os.close(fd)
        for prot in (0, READ, WRITE):
            with refused(errno.EACCES):
                actor.attach(number, prot=prot)

    def test_unknown_flags_and_odd_lengths(self, make_region: Regions) -> None:
        region = make_region()
        size = region.stat()["size_bytes"]
        for offset, length, flags in (
            (PAGE, 0, 0),
            (0, PAGE, 0),
            (0, size + 1, 0),
            (0, 0, mmap.MAP_SHARED),
            (0, 0, 1 << 31),
        ):
            got = lib.mshare_attach(region.fd, offset, length, ffi.NULL, flags)
            assert (int(ffi.cast("intptr_t", got)), ffi.errno) == (-1, errno.EINVAL)
        for length in (0, size, size - 1):  # as with mmap(2), rounded up to pages
            got = lib.mshare_attach(region.fd, 0, length, ffi.NULL, 0)
            assert int(ffi.cast("intptr_t", got)) > 0
            assert lib.mshare_detach(got) == 0

    @pytest.mark.unsanitized("AddressSanitizer's allocator maps memory of its own meanwhile")
    def test_what_failed_left_nothing(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region()
        fd = actor.give(region.fd)
        before = Path(f"/proc/{actor.pid}/maps").read_text()
        fds = os.listdir(f"/proc/{actor.pid}/fd")
        for _ in range(3):
            with refused(errno.EINVAL):
                actor.attach(fd, PLACE + 1, flags=SHARED | MAP_FIXED)
            with refused(errno.EINVAL):
                actor.attach(fd, flags=mmap.MAP_PRIVATE)
        assert os.listdir(f"/proc/{actor.pid}/fd") == fds
        assert Path(f"/proc/{actor.pid}/maps").read_text() == before
        assert attached(region) == []


class TestReadOnlyDescriptor:
    def test_it_reads_and_no_more(self, actors: Actors, make_region: Regions) -> None:
        region = make_region()
        writer = actors()
        base = writer.attach(writer.give(region.fd))
        writer.call("store", base, 42)
        fd = os.open(region.path, os.O_RDONLY)
        actor = actors()
        number = actor.give(fd)
        os.close(fd)
        base = actor.attach(number)
        assert actor.call("load", base) == [42]
        assert actor.call("load", base + PAGE) == [0], "a first touch"
        for offset in (0, PAGE, 2 * PAGE):
            assert actor.call("store", base + offset) == accerr(base + offset)
        with refused(errno.EACCES):
            actor.call("map", number, 0, PAGE, READ)
        with refused(errno.EACCES):
            actor.call("unmap", number, 0, PAGE)
        assert actor.call("load", base) == [42]
        assert [client["prot"] for client in attached(region)] == ["rw-s", "r--s"]

    def test_holes_and_system_calls(self, actors: Actors, make_region: Regions) -> None:
        region = make_region()
        region.unmap(0, PAGE)
        actor = actors()
        base = actor.attach(actor.give(region.fd), prot=READ)
        assert actor.call("load", base) == maperr(base)
        assert actor.call("write", base + PAGE, PAGE) == [PAGE, 0]
        with refused(errno.EFAULT):
            actor.call("read", base + PAGE, PAGE)
        child = actor.fork(base + PAGE)
        with child:
            assert child.finish() == [0]
            assert child.call("store", base + PAGE) == accerr(base + PAGE)


class TestSeveral:
    def test_one_region_twice_in_a_process(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region()
        fd = actor.give(region.fd)
        first, second = actor.attach(fd), actor.attach(fd)
        assert actor.call("fill", first, QUANTUM, 5, 0) == []
        assert actor.call("check", second, QUANTUM, 5, 0) == [0]
        region.unmap(0, PAGE)
        for base in (first, second):
            assert actor.call("load", base) == maperr(base)
        assert len(attached(region)) == 2
        assert actor.call("detach", first) == []
        assert actor.call("load", first) == maperr(first)
        assert actor.call("check", second + PAGE, QUANTUM - PAGE, 5, 1) == [0]
        assert [client["base"] for client in attached(region)] == [second]

    def test_several_regions_in_a_process(self, actors: Actors, make_region: Regions) -> None:
        actor, regions = actors(), [make_region() for _ in range(4)]
        bases = [actor.attach(actor.give(region.fd)) for region in regions]
        for number, base in enumerate(bases):
            assert actor.call("fill", base, QUANTUM, number, 0) == []
        for number, base in enumerate(bases):
            assert actor.call("check", base, QUANTUM, number, 0) == [0]
        regions[1].unmap(0, 2 * QUANTUM)
        assert actor.call("load", bases[1]) == maperr(bases[1])
        for number in (0, 2, 3):
            assert actor.call("load", bases[number] + 8) != maperr(bases[number] + 8)

    def test_fixed_takes_the_place_of_an_attachment(
        self, actors: Actors, make_region: Regions
    ) -> None:
        actor, old, new = actors(), make_region(), make_region()
        base = actor.attach(actor.give(old.fd))
        actor.call("store", base, 1)
        again = actor.attach(actor.give(new.fd), base, flags=SHARED | MAP_FIXED)
        assert again == base
        assert actor.call("load", base) == [0]
        assert attached(old) == []
        assert len(attached(new)) == 1
        assert actor.call("detach", base) == []
        assert actor.call("load", base) == maperr(base)
        with refused(errno.EINVAL):
            actor.call("detach", base)
        assert attached(new) == []

    def test_fixed_over_a_part_of_an_attachment(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region()
        fd = actor.give(region.fd)
        actor.attach(fd, PLACE, flags=SHARED | MAP_FIXED)
        actor.call("store", PLACE, 1)
        for address in (PLACE - QUANTUM, PLACE + QUANTUM):
            with refused(errno.EINVAL):
                actor.attach(fd, address, flags=SHARED | MAP_FIXED)
        assert actor.call("load", PLACE) == [1]
        assert len(attached(region)) == 1

    @pytest.mark.mount("quantum=512G")
    @pytest.mark.slow
    @pytest.mark.unsanitized("AddressSanitizer's shadow takes 16 TiB of it")
    def test_as_many_as_the_address_space_holds(self, mount: Mount, actors: Actors) -> None:
        """About 250 windows of 512 GiB; then ENOMEM, and room again after a detach."""
        actor = actors()
        with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
            region.truncate(512 << 30)
            region.map(0, PAGE)
            fd = actor.give(region.fd)
            bases = []
            with refused(errno.ENOMEM):
                for _ in range(300):
                    bases.append(actor.attach(fd))  # noqa: PERF401  # it ends with an error
            assert 230 <= len(bases) <= 255
            assert actor.call("store", bases[0], 6) == []
            assert [actor.call("load", base) for base in bases] == [[6]] * len(bases)
            assert region.stat()["clients"] == len(bases)
            actor.call("detach", bases.pop())
            bases.append(actor.attach(fd))
            assert actor.call("load", bases[-1]) == [6]


class TestDetach:
    def test_nothing_of_it_stays(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region()
        fd = actor.give(region.fd)
        actor.call("detach", actor.attach(fd))  # starts the service thread, which stays
        fds = os.listdir(f"/proc/{actor.pid}/fd")
        before = Path(f"/proc/{actor.pid}/maps").read_text()
        base = actor.attach(fd)
        actor.call("store", base, 8)
        assert len(attached(region)) == 1
        assert actor.call("detach", base) == []
        assert attached(region) == []
        assert os.listdir(f"/proc/{actor.pid}/fd") == fds
        assert Path(f"/proc/{actor.pid}/maps").read_text() == before
        assert actor.call("load", base) == maperr(base)
        # The memory is the region's, not the attachment's.
        assert actor.call("load", actor.attach(fd)) == [8]

    def test_twice_and_elsewhere(self, actors: Actors, make_region: Regions) -> None:
        actor = actors()
        base = actor.attach(actor.give(make_region().fd))
        for address in (base + PAGE, base - QUANTUM, 0):
            with refused(errno.EINVAL):
                actor.call("detach", address)
        assert actor.call("detach", base) == []
        with refused(errno.EINVAL):
            actor.call("detach", base)

    def test_holes_do_not_outlive_it(self, actors: Actors, make_region: Regions) -> None:
        actor, region = actors(), make_region(mapped=False)
        fd = actor.give(region.fd)
        base = actor.attach(fd, PLACE)
        for offset in range(0, 40 * PAGE, PAGE):
            assert actor.call("load", base + offset) == maperr(base + offset)
        actor.call("detach", base)
        region.map(0, QUANTUM)
        assert actor.attach(fd, PLACE) == PLACE
        for offset in range(0, 40 * PAGE, PAGE):
            assert actor.call("store", base + offset) == []

    def test_the_descriptor_is_not_needed_meanwhile(
        self, actors: Actors, make_region: Regions
    ) -> None:
        actor, region = actors(), make_region()
        fd = actor.give(region.fd)
        base = actor.attach(fd)
        actor.call("close", fd)
        assert actor.call("store", base + PAGE, 1) == []
        child = actor.fork(base + PAGE)
        with child:
            assert child.finish() == [1]
        assert actor.call("detach", base) == []


def test_an_unlinked_region_lives_while_it_is_attached(actors: Actors, shared_mount: Mount) -> None:
    actor = actors()
    region = msharefs.open(shared_mount.path / "gone", os.O_RDWR | os.O_CREAT)
    region.truncate(QUANTUM)
    region.map(0, QUANTUM)
    objects = shared_mount.state / "regions"
    ident = os.stat(region.path).st_ino - 2
    fd = actor.give(region.fd)
    base = actor.attach(fd)
    actor.call("store", base, 3)
    os.unlink(region.path)
    region.close()
    actor.call("close", fd)
    assert actor.call("load", base) == [3]
    assert actor.call("load", base + PAGE) == [0], "a first touch"
    child = actor.fork(base)
    with child:
        assert child.finish() == [3]
    assert (objects / f"{ident}.mem").exists()
    assert actor.call("detach", base) == []
    until(lambda: not (objects / f"{ident}.mem").exists(), "the memory is gone with the last")


def test_a_process_whose_first_thread_has_ended(actors: Actors, make_region: Regions) -> None:
    region = make_region(QUANTUM)
    actor = actors()
    fd = actor.give(region.fd)
    assert actor.call("leave-main") == []
    base = actor.attach(fd)
    assert actor.call("fill", base, QUANTUM, 1, 0) == []
    region.unmap(0, PAGE)
    assert actor.call("load", base) == maperr(base)
    assert actor.call("detach", base) == []


def test_a_window_in_the_place_of_another_is_never_without_a_watch(
    actors: Actors, make_region: Regions
) -> None:
    """Threads that keep storing meanwhile make no memory where the region has none."""
    region = make_region(QUANTUM, mapped=False)
    actor = actors()
    fd = actor.give(region.fd)
    base = actor.attach(fd)
    with Board() as board:
        board.phase(Board.CHANGING)
        actor.call("hammer", actor.give(board.fd), 0, base, QUANTUM // PAGE, 2)
        board.wait(0, 1, 100)
        for _ in range(200):
            actor.attach(fd, base, READ_WRITE, mmap.MAP_SHARED | MAP_FIXED)
        board.phase(Board.STOP)
        actor.call("join")
        assert board.seen(0)[0] == 0, "stores to a hole went through"
    assert region.stat()["rss_bytes"] == 0


@pytest.mark.usefixtures("by_thread")
def test_the_service_thread_keeps_out_of_the_way(actors: Actors, make_region: Regions) -> None:
    actor = actors()
    base = actor.attach(actor.give(make_region().fd))
    assert actor.call("load", base) == [0]  # so that it runs, and has its name
    threads = {}
    for task in proc.tasks(actor.pid):
        threads[proc.comm(task)] = int(proc.status(task, "SigBlk"), 16)
    blocked = threads.pop("mshare-service")
    assert len(threads) == 1
    # All but SIGKILL and SIGSTOP, which nobody can block, and the two that the C library keeps.
    assert blocked | 1 << 8 | 1 << 18 | 3 << 31 == (1 << 64) - 1
