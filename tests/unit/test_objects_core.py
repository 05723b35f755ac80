"""Mappings of files in the host mm: addresses of their own, blocks filled at once, 2 MiB leaves."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from msharefs.native import ffi, lib

from support.core import EXEC, GIB1, MIB2, PAGE, READ, WRITE, Core, Fault, check
from support.rawmm import DATA_BASE, NX, PROTNONE, PS, RW, US, A, D, P

if TYPE_CHECKING:
    from collections.abc import Iterator

# The map of addresses in entries is part of the layout: written down here once more.
OBJECTS_BASE = 0x0001_0000_0000_0000
HUGE = lib.VMA_HUGE
BLOCK = 16 * PAGE


@pytest.fixture
def core() -> Iterator[Core]:
    with Core() as made:
        yield made
        assert made.audit().problems() == {}
        assert made.raw.tree().wrong == []


def block(offset: int) -> tuple[int, int]:
    """64 KiB around it, as in a client."""
    return offset & -BLOCK, (offset & -BLOCK) + BLOCK


def huge_page(offset: int) -> tuple[int, int]:
    """2 MiB around it."""
    return offset & -MIB2, (offset & -MIB2) + MIB2


def leaves(core: Core) -> dict[int, int]:
    """Region offset of each leaf, and its entry."""
    tree = core.raw.tree()
    return {at: leaf.target + DATA_BASE | leaf.flags for at, leaf in tree.leaves.items()}


def test_a_fault_fills_the_block(core: Core) -> None:
    core.map(0, 4 * BLOCK, file=7, offset=3 * PAGE)
    slot = core.claim()
    at = BLOCK + 5 * PAGE
    found = core.touch(slot, at, write=True, look=block)
    assert found == Fault("MAP", frozenset(), 1, protect=False, beside=15, object=7)
    bits = P | RW | US | NX
    assert leaves(core) == {
        page: OBJECTS_BASE + page | bits | (A | D if page == at else 0)
        for page in range(BLOCK, 2 * BLOCK, PAGE)
    }
    again = core.touch(slot, at, look=block)
    assert (again.filled, again.beside) == (0, 0)


def test_nothing_is_filled_past_the_end_of_the_file(core: Core) -> None:
    core.map(0, 4 * BLOCK, file=7)
    slot = core.claim()
    found = core.touch(slot, BLOCK, look=block, limit=BLOCK + 3 * PAGE)
    assert (found.verdict, found.filled, found.beside) == ("MAP", 1, 2)
    beyond = core.touch(slot, BLOCK + 9 * PAGE, look=block, limit=BLOCK + 3 * PAGE)
    assert (beyond.verdict, beyond.filled, beyond.beside) == ("MAP", 0, 0)
    none = core.touch(slot, 3 * BLOCK, look=block, limit=0)
    assert (none.verdict, none.filled, none.beside) == ("MAP", 0, 0)
    assert sorted(leaves(core)) == [BLOCK, BLOCK + PAGE, BLOCK + 2 * PAGE]


def test_a_block_is_cut_to_its_mapping(core: Core) -> None:
    core.map(3 * PAGE, 7 * PAGE, file=1)
    core.map(7 * PAGE, 9 * PAGE)
    assert core.touch(core.claim(), 4 * PAGE, look=block).beside == 3
    assert sorted(leaves(core)) == [page * PAGE for page in range(3, 7)]


def test_a_block_may_span_tables(core: Core) -> None:
    core.map(0, GIB1, file=1)
    found = core.touch(core.claim(), MIB2, look=lambda _: (MIB2 - PAGE, MIB2 + PAGE))
    assert (found.filled, found.beside) == (1, 1)
    assert core.audit().tables == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("prot", "write", "verdict"),
    [
        (READ, False, "MAP"),
        (READ, True, "ACCERR"),
        (WRITE, False, "MAP"),
        (EXEC, False, "MAP"),
        (EXEC, True, "ACCERR"),
        (0, False, "ACCERR"),
    ],
)
@pytest.mark.parametrize("huge", [0, HUGE])
def test_rights(core: Core, prot: int, write: bool, verdict: str, huge: int) -> None:
    """x86 has no write-only and no execute-only pages."""
    core.map(0, MIB2, prot | huge, file=1)
    assert core.touch(core.claim(), PAGE, write=write).verdict == verdict


def test_huge_leaves(core: Core) -> None:
    core.map(MIB2, 4 * MIB2, READ | WRITE | HUGE, file=1)
    slot = core.claim()
    at = 2 * MIB2 + 77 * PAGE
    assert core.touch(slot, at, look=huge_page).filled == 1
    assert core.touch(slot, at + PAGE, look=huge_page).filled == 0
    assert core.touch(slot, 2 * MIB2, write=True, look=huge_page).filled == 0
    assert leaves(core) == {2 * MIB2: OBJECTS_BASE + 2 * MIB2 | P | RW | US | NX | PS | A | D}
    # No table of PTEs is below.
    assert core.audit().tables == (0, 1, 1, 1)
    assert listed(core, level=1) == [(1, 1)]
    assert core.touch(slot, 3 * MIB2, look=lambda _: (MIB2, 4 * MIB2)).beside == 1
    assert listed(core, level=1) == [(3, 3)]
    pages = ffi.new("uint64_t[2]")
    assert lib.mm_huge_pages(core.mm, pages, 2) == 3
    assert list(pages) == [lib.HOST_BASE + MIB2, lib.HOST_BASE + 2 * MIB2]


def listed(core: Core, level: int) -> list[tuple[int, int]]:
    """Present entries, and huge ones of them, of each table of a level."""
    tables = ffi.new("struct mm_table[]", 16)
    count = check(lib.mm_tables(core.mm, tables, 16))
    return [(t.present, t.huge) for t in tables[0:count] if t.level == level]


def test_huge_and_small_pages_side_by_side(core: Core) -> None:
    core.map(0, MIB2, file=1)
    core.map(MIB2, 2 * MIB2, READ | HUGE, file=2)
    core.map(2 * MIB2, 3 * MIB2)
    slot = core.claim()
    for at in (MIB2 - PAGE, MIB2, 2 * MIB2):
        assert core.touch(slot, at).filled == 1
    assert leaves(core) == {
        MIB2 - PAGE: OBJECTS_BASE + MIB2 - PAGE | P | RW | US | NX | A,
        MIB2: OBJECTS_BASE + MIB2 | P | US | NX | PS | A,
        2 * MIB2: DATA_BASE + 2 * MIB2 | P | RW | US | NX | A,
    }


def test_a_huge_leaf_goes_and_comes_with_other_rights(core: Core) -> None:
    core.map(0, 2 * MIB2, READ | WRITE | HUGE, file=1)
    slot = core.claim()
    core.touch(slot, 0, write=True)
    core.protect(0, MIB2, 0)
    assert leaves(core) == {0: OBJECTS_BASE | PROTNONE | US | NX | PS | A | D}
    core.protect(0, MIB2, READ | EXEC)
    assert leaves(core) == {0: OBJECTS_BASE | P | US | PS | A | D}
    core.unmap(0, MIB2)
    assert leaves(core) == {}
    assert core.touch(slot, 0).verdict == "MAPERR"
    core.map(0, MIB2)
    assert core.touch(slot, 0).filled == 1
    assert leaves(core) == {0: DATA_BASE | P | RW | US | NX | A}


def test_huge_pages_where_small_ones_were(core: Core) -> None:
    """The table of PTEs that they needed is in the way, and goes."""
    core.map(0, 2 * MIB2)
    slot = core.claim()
    core.touch(slot, 0)
    core.touch(slot, MIB2)
    core.map(0, MIB2, READ | WRITE | HUGE, file=1)
    assert core.touch(slot, 0).filled == 1
    assert core.audit().tables == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("start", "end"),
    [(PAGE, MIB2), (0, PAGE), (MIB2 - PAGE, 3 * MIB2), (0, 3 * MIB2 + PAGE), (PAGE, 4 * MIB2)],
)
def test_huge_pages_are_not_cut(core: Core, start: int, end: int) -> None:
    core.map(0, 4 * MIB2, READ | WRITE | HUGE, file=1)
    before = core.vmas()
    for begun in (
        core.begin_unmap(start, end),
        core.begin_map(start, end, READ),
        core.begin_protect(start, end, READ),
    ):
        assert begun == -errno.EINVAL
    check(core.finish())
    assert core.vmas() == before


def test_around_and_between_huge_pages_anything_goes(core: Core) -> None:
    core.map(MIB2, 3 * MIB2, READ | WRITE | HUGE, file=1)
    core.map(PAGE, MIB2 - PAGE)
    core.unmap(2 * PAGE, 2 * MIB2)
    core.map(3 * MIB2 - MIB2, 3 * MIB2 + PAGE)
    assert [vma[:2] for vma in core.vmas()] == [(PAGE, 2 * PAGE), (2 * MIB2, 3 * MIB2 + PAGE)]


@pytest.mark.parametrize(
    ("start", "end", "offset"),
    [(PAGE, MIB2, 0), (0, MIB2 + PAGE, 0), (0, MIB2, PAGE)],
)
def test_huge_mappings_are_aligned(core: Core, start: int, end: int, offset: int) -> None:
    begun = core.begin_map(start, end, READ | HUGE, file=1, offset=offset)
    assert begun == -errno.EINVAL


def test_a_cut_object_keeps_its_offsets(core: Core) -> None:
    core.map(0, 8 * PAGE, file=5, offset=100 * PAGE)
    core.unmap(2 * PAGE, 4 * PAGE)
    core.protect(6 * PAGE, 7 * PAGE, READ)
    found = [(start, offset, number) for start, _, offset, _, number, _ in core.raw.vmas()]
    assert found == [(at * PAGE, (100 + at) * PAGE, 5) for at in (0, 4, 6, 7)]
    core.protect(6 * PAGE, 7 * PAGE, READ | WRITE)
    assert len(core.vmas()) == 2


def test_what_has_objects_and_what_executes(core: Core) -> None:
    core.map(0, 4 * PAGE)
    core.map(4 * PAGE, 8 * PAGE, READ, file=1)
    core.map(8 * PAGE, 9 * PAGE, READ | EXEC)
    for start, end, objects, executes in (
        (0, 4, False, False),
        (0, 5, True, False),
        (7, 8, True, False),
        (8, 100, False, True),
        (0, 9, True, True),
        (9, 100, False, False),
    ):
        assert lib.hostmm_has_objects(core.mm, start * PAGE, end * PAGE) is objects
        assert lib.hostmm_has_exec(core.mm, start * PAGE, end * PAGE) is executes


@pytest.mark.parametrize(
    ("flags", "file"),
    [(READ | WRITE, 1), (READ | WRITE | HUGE, 1), (READ | WRITE, 0)],
)
def test_an_entry_of_another_kind_is_bad(flags: int, file: int) -> None:
    """The audit finds an entry whose address or size is not that of its mapping."""
    with Core() as core:
        core.map(0, MIB2, flags, file=file)
        slot = core.claim()
        core.touch(slot, 0)
        assert core.audit().bad == 0
        level = 1 if flags & HUGE else 0
        at = core.raw.entry_at(level, lib.HOST_BASE)
        good = core.raw.read(at)
        for wrong in (good ^ OBJECTS_BASE ^ DATA_BASE, good + 4 * MIB2, good ^ RW << 62):
            core.raw.write(at, wrong)
            assert core.audit().bad == 1, hex(wrong)
        core.raw.write(at, good)
        # The same entry in a mapping with pages of another size.
        index = core.raw.vma_at(0) + 24
        core.raw.write(index, core.raw.read(index) ^ HUGE)
        audit = core.audit()
        assert (audit.bad, audit.stray) == ((1, 0) if file else (0, 1)), "no VMA, if of no file"
        assert core.touch(slot, 0).verdict == "BROKEN"
