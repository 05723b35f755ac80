"""Entries bit for bit: what a real MMU would find in the bytes of a `.mm` object.

Everything is read from the file and decoded here, by the Intel SDM, volume 3A, 4.5:

    63   62..52   51..............12   11..9   8   7    6   5   4..3   2    1    0
    NX     0         address             0     0   PS   D   A    0    US   RW    P
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support.core import EXEC, READ, WRITE, Core
from support.rawmm import HEADER

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
MIB2, GIB1, GIB512 = 2 << 20, 1 << 30, 512 << 30
# The map of addresses in entries is part of the layout: written down here once more.
TABLES_BASE = 0x0000_0100_0000_0000
DATA_BASE = 0x0000_8000_0000_0000
HOST_BASE = GIB512

# P, RW, US, A and, for leaves of pages that are not executable, NX.
UPPER = 0x27
READ_ONLY = 0x8000_0000_0000_0025
READ_WRITE = 0x8000_0000_0000_0027
DIRTY = 0x40


class Path(NamedTuple):
    """The entries on the way to a page."""

    pgd: int
    pud: int
    pmd: int
    pte: int


class File:
    """The table frames of a `.mm` object, by pread(2)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        (self._frames_at,) = struct.unpack("<Q", os.pread(fd, 8, HEADER["frames_at"]))

    def entry(self, table: int, index: int) -> int:
        """Entry `index` of the table at physical address `table`."""
        at = self._frames_at + (table - TABLES_BASE) + 8 * index
        (value,) = struct.unpack("<Q", os.pread(self._fd, 8, at))
        return value

    def path(self, offset: int) -> Path:
        """Walks to a region offset as the MMU does, from frame 0 as CR3 would have it."""
        host = HOST_BASE + offset
        table, found = TABLES_BASE, []
        for shift in (39, 30, 21, 12):
            entry = self.entry(table, host >> shift & 0x1FF)
            found.append(entry)
            if not entry & 1:
                break
            table = entry & 0x000F_FFFF_FFFF_F000
        return Path(*found, *(0,) * (4 - len(found)))


@pytest.fixture
def core() -> Iterator[Core]:
    with Core(2 * GIB512) as made:
        yield made


def test_one_page_is_a_path_of_four_entries(core: Core) -> None:
    core.map(0, MIB2)
    core.touch(core.claim(), 0)
    # Frames are taken in order, and the PGD is frame 0.
    assert File(core.fd).path(0) == (
        TABLES_BASE + 1 * PAGE | UPPER,
        TABLES_BASE + 2 * PAGE | UPPER,
        TABLES_BASE + 3 * PAGE | UPPER,
        DATA_BASE | READ_WRITE,
    )


@pytest.mark.parametrize(
    ("prot", "write", "leaf"),
    [
        (READ, False, READ_ONLY),
        (READ | WRITE, False, READ_WRITE),
        (READ | WRITE, True, READ_WRITE | DIRTY),
        (WRITE, False, READ_WRITE),
        (READ | EXEC, False, READ_ONLY & ~(1 << 63)),
        (EXEC, False, READ_ONLY & ~(1 << 63)),
        (READ | WRITE | EXEC, True, (READ_WRITE | DIRTY) & ~(1 << 63)),
    ],
)
def test_rights_of_a_leaf(core: Core, prot: int, write: bool, leaf: int) -> None:
    core.map(0, MIB2, prot)
    assert core.touch(core.claim(), 5 * PAGE, write=write).verdict == "MAP"
    assert File(core.fd).path(5 * PAGE).pte == DATA_BASE + 5 * PAGE | leaf


def test_a_later_write_makes_it_dirty_and_a_later_read_not_clean(core: Core) -> None:
    core.map(0, MIB2)
    one, other = core.claim(), core.claim()
    file = File(core.fd)
    core.touch(one, 0)
    assert file.path(0).pte == DATA_BASE | READ_WRITE
    assert not core.touch(other, 0, write=True).filled
    assert file.path(0).pte == DATA_BASE | READ_WRITE | DIRTY
    core.touch(one, 0)
    assert file.path(0).pte == DATA_BASE | READ_WRITE | DIRTY


@pytest.mark.parametrize("edge", [MIB2, GIB1, GIB512])
def test_tables_on_both_sides_of_an_edge(core: Core, edge: int) -> None:
    core.map(0, 2 * GIB512)
    slot = core.claim()
    core.touch(slot, edge - PAGE)
    core.touch(slot, edge)
    file = File(core.fd)
    below, above = file.path(edge - PAGE), file.path(edge)
    assert below.pte == DATA_BASE + edge - PAGE | READ_WRITE
    assert above.pte == DATA_BASE + edge | READ_WRITE
    # They share the tables above the edge's level and no other.
    shared = {MIB2: 2, GIB1: 1, GIB512: 0}[edge]
    assert [one == other for one, other in zip(below, above, strict=True)] == [
        level < shared for level in range(4)
    ]
    tables = {entry & 0x000F_FFFF_FFFF_F000 for path in (below, above) for entry in path[:3]}
    assert tables == {TABLES_BASE + PAGE * frame for frame in range(1, 1 + 6 - shared)}


def test_the_last_page_of_the_region(core: Core) -> None:
    core.map(0, 2 * GIB512, READ)
    core.touch(core.claim(), 2 * GIB512 - PAGE)
    path = File(core.fd).path(2 * GIB512 - PAGE)
    assert path.pte == DATA_BASE + 2 * GIB512 - PAGE | READ_ONLY


def test_nothing_else_is_in_the_tables(core: Core) -> None:
    """Four tables hold four entries, and the rest of their bytes is 0."""
    core.map(0, MIB2)
    core.touch(core.claim(), 7 * PAGE, write=True)
    frames_at = core.raw.frames_at
    frames = [os.pread(core.fd, PAGE, frames_at + PAGE * frame) for frame in range(5)]
    used = [
        {index: entry for index, entry in enumerate(struct.unpack("<512Q", frame)) if entry}
        for frame in frames
    ]
    assert used == [
        {1: TABLES_BASE + 1 * PAGE | UPPER},
        {0: TABLES_BASE + 2 * PAGE | UPPER},
        {0: TABLES_BASE + 3 * PAGE | UPPER},
        {7: DATA_BASE + 7 * PAGE | READ_WRITE | DIRTY},
        {},
    ]


def test_unmap_leaves_zeroes(core: Core) -> None:
    core.map(0, MIB2)
    slot = core.claim()
    for page in range(4):
        core.touch(slot, page * PAGE)
    core.unmap(PAGE, 3 * PAGE)
    file = File(core.fd)
    assert [page for page in range(5) if file.path(page * PAGE).pte] == [0, 3]
    core.unmap(0, MIB2)
    assert file.path(0) == (0, 0, 0, 0)
    assert os.pread(core.fd, 4 * PAGE, core.raw.frames_at) == bytes(4 * PAGE)
