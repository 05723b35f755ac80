"""Parts of a region: as with mmap(2) of a part of a file, only that a part is of whole quanta."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import msharefs

from support.actor import MAP_FIXED, PAGE, READ_WRITE, Actor, accerr, maperr
from support.audit import assert_whole
from support.calls import refused
from support.memory import QUANTUM
from support.stopping import go_on, stop
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

# Strict: one entry for each page that is touched.
pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")

READ, NONE = mmap.PROT_READ, 0
SHARED = mmap.MAP_SHARED
PLACE = 1 << 45  # a multiple of every quantum; nothing is mapped there
SIZE = 6 * QUANTUM
NOTHING = bytes([0x31, 0xC0, 0xC3])  # x86: xor %eax, %eax; ret


class Process:
    """An actor that has parts of a region, or of a memfd, in its memory."""

    def __init__(self, actor: Actor, region: msharefs.Region | None, fd: int) -> None:
        self.actor = actor
        self.region = region
        self.fd = actor.give(fd)

    def part(self, offset: int, size: int, prot: int = READ_WRITE, address: int = 0) -> int:
        """Where it has that part now."""
        flags = SHARED | (MAP_FIXED if address else 0)
        if self.region is not None:
            return self.actor.attach(self.fd, address, prot, flags, offset, size)
        return self.actor.number("plain-map", address, size, prot, flags, self.fd, offset)

    def fill(self, address: int, offset: int, size: int, seed: int = 1) -> None:
        assert self.actor.call("fill", address, size, seed, offset // PAGE) == []

    def has(self, address: int, offset: int, size: int, seed: int = 1) -> bool:
        return self.actor.call("check", address, size, seed, offset // PAGE) == [0]

    def surround(self, address: int, size: int) -> list[int]:
        """Memory of its own before and behind a window; `unharmed` looks at it."""
        around = [address - QUANTUM, address + size]
        for at in around:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
            self.actor.call("plain-map", at, QUANTUM, READ_WRITE, flags, -1, 0)
            self.fill(at, 0, QUANTUM, 9)
        return around

    def unharmed(self, around: list[int]) -> bool:
        return all(self.has(at, 0, QUANTUM, 9) for at in around) and all(
            self.actor.call("store", at + at % 8, self.actor.number("load", at)) == []
            for at in around
        )


SHADOW = pytest.param(
    "msharefs shadow",
    marks=pytest.mark.unsanitized("a shadow has nothing that a sanitizer's functions could use"),
)


@pytest.fixture(params=["kernel", "msharefs", SHADOW])
def process(
    request: pytest.FixtureRequest,
    actors: Actors,
    make_region: Regions,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[], Process]]:
    """Processes that have the same six quanta of memory open: of Linux's own, or a region."""
    if request.param.endswith("shadow"):
        monkeypatch.setenv("MSHAREFS_CLIENT", "shadow")
    if request.param == "kernel":
        fd = os.memfd_create("parts")
        os.ftruncate(fd, SIZE)
        yield lambda: Process(actors(), None, fd)
        os.close(fd)
    else:
        region = make_region(SIZE)
        yield lambda: Process(actors(), region, region.fd)


@pytest.fixture
def region(make_region: Regions) -> msharefs.Region:
    return make_region(SIZE)


@pytest.fixture
def own(actors: Actors, region: msharefs.Region) -> Process:
    return Process(actors(), region, region.fd)


def reader_of(actors: Actors, region: msharefs.Region) -> Process:
    fd = os.open(region.path, os.O_RDONLY)
    try:
        return Process(actors(), region, fd)
    finally:
        os.close(fd)


def shown(region: msharefs.Region, pid: int) -> list[tuple[int, int, int]]:
    return sorted(
        (client["base"], client["offset"], client["size"])
        for client in region.clients()
        if client["pid"] == pid
    )


# The same on Linux


def test_the_bytes_are_those_of_the_part(process: Callable[[], Process]) -> None:
    first, second = process(), process()
    whole = first.part(0, SIZE)
    first.fill(whole, 0, SIZE)
    places = {offset: second.part(offset, size) for offset, size in PARTS.items()}
    for offset, base in places.items():
        assert second.has(base, offset, PARTS[offset])
        assert second.actor.call("store", base + PARTS[offset] - 1, 77) == []
        assert first.actor.call("load", whole + offset + PARTS[offset] - 1) == [77]
        first.actor.call("store", whole + offset, 88)
        assert second.actor.call("load", base) == [88]


PARTS = {QUANTUM: QUANTUM, 3 * QUANTUM: 2 * QUANTUM, 5 * QUANTUM: QUANTUM}


def test_pages_that_nobody_has_touched(process: Callable[[], Process]) -> None:
    first, second = process(), process()
    base = first.part(2 * QUANTUM, 3 * QUANTUM)
    assert first.actor.call("load", base + QUANTUM + 5 * PAGE) == [0]
    first.fill(base, 2 * QUANTUM, 3 * QUANTUM)  # in a row, up to the end
    whole = second.part(0, SIZE)
    assert second.has(whole + 2 * QUANTUM, 2 * QUANTUM, 3 * QUANTUM)
    assert second.actor.call("load", whole + 2 * QUANTUM - 1) == [0]
    assert second.actor.call("load", whole + 5 * QUANTUM) == [0]


def test_the_same_part_twice(process: Callable[[], Process]) -> None:
    one = process()
    first, second = one.part(QUANTUM, QUANTUM), one.part(QUANTUM, QUANTUM)
    assert first != second
    assert one.actor.call("store", first + 5, 55) == []
    assert one.actor.call("load", second + 5) == [55]
    assert one.actor.call("store", second + QUANTUM - 1, 56) == []
    assert one.actor.call("load", first + QUANTUM - 1) == [56]


def test_one_part_over_another(process: Callable[[], Process]) -> None:
    one = process()
    base = one.part(4 * QUANTUM, QUANTUM, address=PLACE)
    one.fill(base, 4 * QUANTUM, QUANTUM)
    assert one.part(0, QUANTUM, address=PLACE) == base
    assert one.actor.call("load", base + 8) == [0]
    assert one.part(4 * QUANTUM, QUANTUM, address=PLACE) == base
    assert one.has(base, 4 * QUANTUM, QUANTUM)


def test_a_child_has_the_parts_of_its_parent(process: Callable[[], Process]) -> None:
    one = process()
    first, second = one.part(QUANTUM, QUANTUM), one.part(4 * QUANTUM, 2 * QUANTUM)
    one.fill(first, QUANTUM, QUANTUM)
    with one.actor.fork(first + 3 * PAGE) as child:
        assert child.finish() == one.actor.call("load", first + 3 * PAGE)
        assert child.call("check", first, QUANTUM, 1, QUANTUM // PAGE) == [0]
        assert child.call("store", second + QUANTUM, 66) == []
        assert one.actor.call("load", second + QUANTUM) == [66]
        if one.region is not None:
            whole = [(first, QUANTUM, QUANTUM), (second, 4 * QUANTUM, 2 * QUANTUM)]
            until(lambda: shown(one.region, child.pid) == sorted(whole), "the child's parts")


# What is taken away


@pytest.mark.parametrize("reads", [False, True], ids=["writer", "reader"])
def test_a_change_reaches_what_each_has_of_it_and_no_more(
    actors: Actors, region: msharefs.Region, own: Process, reads: bool
) -> None:
    """Changes of all of the region, whose other parts would be the program's own memory."""
    own.fill(own.part(0, SIZE), 0, SIZE)
    other = reader_of(actors, region) if reads else Process(actors(), region, region.fd)
    base = other.part(2 * QUANTUM, QUANTUM, READ if reads else READ_WRITE, address=PLACE)
    around = other.surround(base, QUANTUM)
    last = base + QUANTUM - PAGE
    assert other.has(base, 2 * QUANTUM, QUANTUM)
    region.advise(0, SIZE, mmap.MADV_DONTNEED)
    assert other.has(base, 2 * QUANTUM, QUANTUM)
    region.protect(0, SIZE, READ)
    assert other.actor.call("store", last, 1) == accerr(last)
    region.protect(0, SIZE, NONE)
    for at in (base, last):
        assert other.actor.call("load", at) == accerr(at)
    region.protect(0, SIZE, READ_WRITE)
    assert other.has(base, 2 * QUANTUM, QUANTUM)
    region.unmap(0, SIZE)
    for at in (base, last):
        assert other.actor.call("load", at) == maperr(at)
    region.map(0, SIZE)
    assert other.actor.call("load", base) == [0]
    assert other.actor.call("load", last) == [0]
    assert other.unharmed(around)
    assert_whole(region)


def test_a_change_of_a_range_that_begins_before_a_part_and_ends_in_it(
    region: msharefs.Region, own: Process
) -> None:
    base = own.part(2 * QUANTUM, 2 * QUANTUM)
    twice = own.part(2 * QUANTUM, 2 * QUANTUM)
    for at in (base, twice):
        own.fill(at, 2 * QUANTUM, 2 * QUANTUM)
    region.unmap(QUANTUM, QUANTUM + 8 * PAGE)
    for at in (base, twice):
        assert own.actor.call("load", at + 8 * PAGE - 1) == maperr(at + 8 * PAGE - 1)
        assert own.has(at + 8 * PAGE, 2 * QUANTUM + 8 * PAGE, 2 * QUANTUM - 8 * PAGE)
    region.protect(4 * QUANTUM - 8 * PAGE, 2 * QUANTUM, READ)
    for at in (base, twice):
        behind = at + 2 * QUANTUM - 8 * PAGE
        assert own.actor.call("store", behind, 1) == accerr(behind)
        assert own.actor.call("store", behind - 1, 1) == []


def test_a_stopped_process_keeps_nothing(
    actors: Actors, region: msharefs.Region, own: Process
) -> None:
    """The server takes rights, and watches again what a process does not watch, by itself."""
    own.fill(own.part(0, SIZE), 0, SIZE)
    other = Process(actors(), region, region.fd)
    base = other.part(3 * QUANTUM, 2 * QUANTUM, address=PLACE)
    around = other.surround(base, 2 * QUANTUM)
    assert other.has(base, 3 * QUANTUM, QUANTUM)  # all there, so that nobody watches it now
    for page in range(8):
        assert other.actor.call("store", base + QUANTUM + page * PAGE, 3) == []
    stop(other.actor)
    try:
        region.protect(0, SIZE, READ)
        region.unmap(0, 3 * QUANTUM + 4 * PAGE)
    finally:
        go_on(other.actor)
    assert other.actor.call("load", base + 3 * PAGE) == maperr(base + 3 * PAGE)
    assert other.actor.call("load", base + QUANTUM) == [3]
    assert other.actor.call("store", base + QUANTUM, 1) == accerr(base + QUANTUM)
    assert other.unharmed(around)


def test_code(region: msharefs.Region, own: Process) -> None:
    """Who may execute is arranged ahead, in the part alone."""
    base = own.part(QUANTUM, QUANTUM, address=PLACE)
    around = own.surround(base, QUANTUM)
    for at, byte in enumerate(NOTHING, base):
        assert own.actor.call("store", at, byte) == []
    assert own.actor.call("call", base) == accerr(base)
    region.protect(0, SIZE, READ | mmap.PROT_EXEC)
    assert own.actor.call("call", base) == [0]
    late = own.part(QUANTUM, QUANTUM)
    assert own.actor.call("call", late) == [0]
    region.protect(0, SIZE, READ)
    for at in (base, late):
        assert own.actor.call("call", at) == accerr(at)
    assert own.unharmed(around)


def test_a_stopped_process_with_another_part_does_not_hold_up_a_change_of_code(
    actors: Actors, region: msharefs.Region, own: Process
) -> None:
    region.map(0, SIZE, READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    base = own.part(0, QUANTUM)
    for at, byte in enumerate(NOTHING, base):
        assert own.actor.call("store", at, byte) == []
    assert own.actor.call("call", base) == [0]
    other = Process(actors(), region, region.fd)
    other.actor.call("load", other.part(3 * QUANTUM, QUANTUM))
    stop(other.actor)
    try:
        region.protect(0, QUANTUM, READ)
    finally:
        go_on(other.actor)
    assert own.actor.call("call", base) == accerr(base)


# Files, budgets, servers


def test_a_block_of_a_large_file_ends_with_the_part(actors: Actors, make_region: Regions) -> None:
    """So large that it is mapped in blocks of 4 MiB, which are more than a quantum."""
    size = 16 << 30
    region = make_region(size, mapped=False)
    file = os.memfd_create("large")
    os.ftruncate(file, size)
    flags = SHARED | MAP_FIXED
    region.map(0, size, READ_WRITE, flags, file)
    one = Process(actors(), region, region.fd)
    for number, offset in enumerate((3 * QUANTUM, 8 * QUANTUM, size - QUANTUM)):
        base = one.part(offset, QUANTUM, address=PLACE + 8 * number * QUANTUM)
        around = one.surround(base, QUANTUM)
        os.pwrite(file, b"\x11", offset + 7)
        assert one.actor.call("load", base + 7) == [0x11]
        assert one.actor.call("store", base + QUANTUM - 1, 0x22) == []
        assert os.pread(file, 1, offset + QUANTUM - 1) == b"\x22"
        region.unmap(0, size)
        assert one.actor.call("load", base + 7) == maperr(base + 7)
        region.map(0, size, READ_WRITE, flags, file)
        assert one.actor.call("load", base + 7) == [0x11]
        assert one.unharmed(around)
    os.close(file)


def test_a_budget_of_a_part(actors: Actors, make_region: Regions) -> None:
    spans = 48
    region = make_region(3 * spans * QUANTUM)
    one = Process(actors(), region, region.fd)
    base = one.part(spans * QUANTUM, spans * QUANTUM, address=PLACE)
    around = one.surround(base, spans * QUANTUM)
    for span in range(8):
        one.fill(base + span * QUANTUM, spans * QUANTUM + span * QUANTUM, PAGE)
    assert one.actor.call("budget", base, 32 * PAGE) == []
    for span in range(spans):
        one.fill(base + span * QUANTUM, (spans + span) * QUANTUM, PAGE)
    (client,) = region.clients()
    assert client["evicted_spans"] > 0
    for span in range(spans):
        assert one.has(base + span * QUANTUM, (spans + span) * QUANTUM, PAGE)
    region.protect(0, 3 * spans * QUANTUM, READ)
    assert one.actor.call("store", base + QUANTUM, 1) == accerr(base + QUANTUM)
    assert one.unharmed(around)
    assert_whole(region)


@pytest.mark.parametrize("options", [(), ("faults=linux",)], ids=["ours", "linux"])
def test_a_new_server(
    mounts: Callable[..., Mount], actors: Actors, options: tuple[str, ...]
) -> None:
    mount = mounts("quantum=2M", "fault_around=1", *options)
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as made:
        made.truncate(SIZE)
        made.map(0, SIZE)
        writer, reader = Process(actors(), made, made.fd), reader_of(actors, made)
    base = writer.part(2 * QUANTUM, 2 * QUANTUM, address=PLACE)
    around = writer.surround(base, 2 * QUANTUM)
    seen = reader.part(3 * QUANTUM, QUANTUM, READ)
    writer.fill(base, 2 * QUANTUM, QUANTUM + 4 * PAGE)
    assert reader.has(seen, 3 * QUANTUM, 4 * PAGE)
    mount.kill()
    writer.fill(base, 2 * QUANTUM, 2 * QUANTUM)
    with writer.actor.fork(base) as child:
        child.finish()
        assert child.call("check", base, 2 * QUANTUM, 1, 2 * QUANTUM // PAGE) == [0]
        mount.start()
        with msharefs.open(mount.path / "r") as region:
            for actor in (writer.actor, child):
                until(
                    lambda actor=actor: (
                        shown(region, actor.pid) == [(base, 2 * QUANTUM, 2 * QUANTUM)]
                    ),
                    "its part",
                )
            until(
                lambda: shown(region, reader.actor.pid) == [(seen, 3 * QUANTUM, QUANTUM)],
                "the reader's part",
            )
            assert reader.has(seen, 3 * QUANTUM, QUANTUM)
            region.unmap(0, 3 * QUANTUM + 8 * PAGE)
            for actor, at in (
                (writer.actor, base + QUANTUM + 8 * PAGE),
                (child, base + QUANTUM + 8 * PAGE),
                (reader.actor, seen + 8 * PAGE),
            ):
                assert actor.call("load", at - 1) == maperr(at - 1)
                assert actor.call("check", at, PAGE, 1, (3 * QUANTUM + 8 * PAGE) // PAGE) == [0]
            assert writer.unharmed(around)
            assert_whole(region)
    os.unlink(mount.path / "r")


# What is refused, and what is shown


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (PAGE, QUANTUM),
        (QUANTUM + 1, QUANTUM),
        (0, PAGE),
        (0, QUANTUM + PAGE),
        (QUANTUM, 2 * QUANTUM - 2 * PAGE),
        (SIZE, QUANTUM),
        (SIZE, 0),
        (0, SIZE + QUANTUM),
        (QUANTUM, SIZE),
        (5 * QUANTUM, 2 * QUANTUM),
        (-QUANTUM, QUANTUM),
        (-QUANTUM, 2 * QUANTUM),
        (QUANTUM, 2**64 - QUANTUM),
        (QUANTUM, 2**64 - PAGE),
        (1 << 62, QUANTUM),
    ],
)
def test_what_is_no_part(own: Process, region: msharefs.Region, offset: int, size: int) -> None:
    signed = size - (1 << 64) if size >> 63 else size
    with refused(errno.EINVAL):
        own.actor.attach(own.fd, offset=offset, size=signed)
    with pytest.raises(OSError, match=r"a part begins and ends at|is not inside 0x[0-9a-f]+, the"):
        region.attach(offset=offset, size=size)
    assert region.clients() == []


def test_beyond_the_addresses_of_a_host_mm(actors: Actors, make_region: Regions) -> None:
    region = make_region(1 << 48, mapped=False)
    one = Process(actors(), region, region.fd)
    with refused(errno.ENOMEM):
        one.part(1 << 47, QUANTUM)
    region.map(1 << 46, PAGE)
    base = one.part(1 << 46, QUANTUM)
    assert one.actor.call("store", base, 3) == []
    assert one.actor.call("load", base + PAGE) == maperr(base + PAGE)


def test_who_has_which_part(region: msharefs.Region, own: Process) -> None:
    first, second = own.part(QUANTUM, QUANTUM), own.part(4 * QUANTUM, 0)
    own.part(QUANTUM, QUANTUM, address=PLACE)
    expected = [
        (first, QUANTUM, QUANTUM),
        (PLACE, QUANTUM, QUANTUM),
        (second, 4 * QUANTUM, 2 * QUANTUM),
    ]
    assert shown(region, own.actor.pid) == sorted(expected)
    command = [sys.executable, "-m", "msharefs", "clients", region.path]
    told = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True).stdout)
    found = [(each["base"], each["offset_bytes"], each["size_bytes"]) for each in told["clients"]]
    assert sorted(found) == sorted(expected)
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert any("8 MiB" in line and "4 MiB" in line for line in table.splitlines())
    assert own.actor.call("detach", second) == []
    assert own.actor.call("detach", PLACE) == []
    assert shown(region, own.actor.pid) == [(first, QUANTUM, QUANTUM)]


def test_a_page_is_shared_by_those_who_have_its_part(
    region: msharefs.Region, own: Process, actors: Actors
) -> None:
    own.fill(own.part(0, 3 * QUANTUM), 0, 3 * QUANTUM)
    other = Process(actors(), region, region.fd)
    base = other.part(QUANTUM, QUANTUM)
    rows = region.describe("smaps")["mappings"]
    assert [(row["start"], row["rss"], row["pss"]) for row in rows] == [
        (0, QUANTUM, QUANTUM),
        (QUANTUM, QUANTUM, QUANTUM // 2),
        (2 * QUANTUM, QUANTUM, QUANTUM),
        (3 * QUANTUM, 0, 0),
    ]
    command = [sys.executable, "-m", "msharefs", "smaps", region.path, "--pid"]
    lines = subprocess.run(
        [*command, str(other.actor.pid)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert [line.split()[0] for line in lines if "-" in line.split()[0]] == [
        f"{base:012x}-{base + QUANTUM:012x}"
    ] * 2
    assert "Pss:                1024 kB" in lines


def test_in_python(region: msharefs.Region) -> None:
    whole = region.attach()
    part: Any = region.attach(offset=QUANTUM, size=2 * QUANTUM)
    rest = region.attach(offset=5 * QUANTUM)
    assert (len(part), len(rest)) == (2 * QUANTUM, QUANTUM)
    part[3], rest[-1] = 7, 8
    assert (whole[QUANTUM + 3], whole[SIZE - 1]) == (7, 8)
    assert [(base, size) for base, _, size in shown(region, os.getpid())] == sorted(
        zip(region.addresses, (SIZE, 2 * QUANTUM, QUANTUM), strict=True)
    )
    region.detach(part)
    assert len(region.addresses) == 2
