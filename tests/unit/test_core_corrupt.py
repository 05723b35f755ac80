"""Bytes in shared memory are untrusted input: whatever they are, the core answers, and soon."""

from __future__ import annotations

import errno
import faulthandler
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from msharefs.native import ffi, lib

from support.core import GIB1, GIB512, LOOKS, MIB2, PAGE, READ, Core, check, memfd, run
from support.isolated import isolated
from support.operations import PLACES, furnish, run_all
from support.rawmm import (
    DATA_BASE,
    HEADER,
    HELD,
    HOST_BASE,
    NX,
    PS,
    RW,
    SLOT_EPOCH,
    TABLE,
    TABLES_BASE,
    US,
    VMA,
    A,
    D,
    P,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Limits waits in C, where no Python handler runs.
SYS_PAUSE = 34
ALL_ONES = (1 << 64) - 1
GEOMETRY = (
    "magic", "signature", "size", "quantum", "file_size", "slots_at", "vmas_at0", "vmas_at1",
    "records_at", "words_at", "frames_at", "maximum", "frames_max",
)  # fmt: skip


@pytest.fixture
def core() -> Iterator[Core]:
    with Core() as made:
        yield made


# Opening


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize(
    "change", [lambda v: v + 1, lambda v: v - 1, lambda v: v ^ 1 << 63, lambda _: 0, lambda v: ~v]
)
def test_wrong_geometry_is_refused(core: Core, name: str, change: Callable[[int], int]) -> None:
    before = core.raw.header(name)
    core.raw.write(HEADER[name], change(before))
    lib.mm_close(core.mm)
    assert core.open() == -errno.EUCLEAN
    core.raw.write(HEADER[name], before)
    assert core.open() == 0


def test_a_geometry_that_fits_itself_but_not_the_file_is_refused(core: Core) -> None:
    """The header of a region of twice the size: all its fields agree."""
    with Core(2 * GIB512) as other:
        core.raw.bytes[:PAGE] = other.raw.bytes[:PAGE]
    lib.mm_close(core.mm)
    assert core.open() == -errno.EUCLEAN


@pytest.mark.parametrize("size", [0, 1, 100, PAGE, 1 << 20])
def test_what_is_no_host_mm_is_refused(size: int) -> None:
    fd = memfd("other", size)
    os.pwrite(fd, random.Random(size).randbytes(size), 0)
    mm = ffi.new("struct mm *")
    assert lib.mm_open(mm, fd) == -errno.EUCLEAN
    os.close(fd)


@pytest.mark.parametrize("by", [-PAGE, -1, 1, PAGE])
def test_a_file_that_was_cut_or_grew_is_refused(by: int) -> None:
    fd = memfd("mm")
    check(lib.mm_format(fd, 1, GIB512, GIB512))
    os.ftruncate(fd, os.fstat(fd).st_size + by)
    mm = ffi.new("struct mm *")
    assert lib.mm_open(mm, fd) == -errno.EUCLEAN
    os.close(fd)


@pytest.mark.parametrize(
    ("size", "quantum"),
    [
        (0, MIB2), (MIB2 + 1, MIB2), (MIB2 - PAGE, MIB2), (GIB1, GIB512), (MIB2, PAGE), (MIB2, 0),
        (3 * MIB2, 3 * MIB2), (1 << 63, GIB512), (ALL_ONES, MIB2), ((1 << 64) - MIB2, MIB2),
    ],
)  # fmt: skip
def test_sizes_that_no_region_has(size: int, quantum: int) -> None:
    fd = memfd("mm")
    assert lib.mm_format(fd, 1, size, quantum) == -errno.EINVAL
    assert os.fstat(fd).st_size == 0
    os.close(fd)


# Entries. Each case names the level of the table that holds the entry.


def table_entry(frame: int, flags: int = P | RW | US | A) -> int:
    return TABLES_BASE + PAGE * frame | flags


def frame_of(core: Core, level: int, offset: int) -> int:
    """The frame of the table of `level` that spans an offset."""
    span = PAGE << 9 * (level + 1)
    return next(
        table.frame
        for table in core.raw.tree().tables
        if (table.level, table.start) == (level, HOST_BASE + offset & -span)
    )


UPPER = {
    "the PGD itself": lambda *_: table_entry(0),
    "the table it is in": lambda core, level: table_entry(frame_of(core, level, 0)),
    "a table of another level or place": lambda core, level: table_entry(
        frame_of(core, min(level - 1, 1), 1 << 38)
    ),
    "a free frame": lambda core, _: table_entry(core.raw.header("frames_high") + 5),
    "a frame past the last": lambda core, _: table_entry(core.raw.header("frames_max")),
    "the last address there is": lambda *_: 0x000F_FFFF_FFFF_F000 | P,
    "data": lambda *_: DATA_BASE | P | RW | US,
    "below all tables": lambda *_: TABLES_BASE - PAGE | P | RW | US,
    "nothing, not present": lambda *_: 0x1000,
    "a huge page where none can be": lambda core, level: table_entry(
        frame_of(core, level - 1, 0), P | PS | US
    ),
}


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("target", UPPER)
def test_an_upper_entry_that_points_to(level: int, target: str, core: Core) -> None:
    slot = furnish(core)
    at = core.raw.entry_at(level, HOST_BASE)
    assert at is not None
    core.raw.write(at, UPPER[target](core, level))

    assert core.touch(slot, 0).verdict == "BROKEN"
    assert core.touch(slot, 5 * GIB1).verdict == "MAPERR"
    assert core.audit().bad + core.audit().stray > 0
    assert core.audit().lost > 0
    assert_unmap_repairs(core, slot)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("target", UPPER)
def test_mending_an_upper_entry_that_points_to(level: int, target: str, core: Core) -> None:
    furnish(core)
    at = core.raw.entry_at(level, HOST_BASE)
    assert at is not None
    core.raw.write(at, UPPER[target](core, level))
    assert_mended(core)


LEAVES = {
    "another page": lambda value: value + PAGE,
    "a table": lambda _: table_entry(2),
    "nothing, not present": lambda value: value & ~P,
    "its page, for the kernel only": lambda value: value & ~US,
    "its page, executable": lambda value: value & ~NX,
    "its page, read-only": lambda value: value & ~RW,
}


@pytest.mark.parametrize("target", LEAVES)
def test_a_leaf_that_points_to(target: str, core: Core) -> None:
    slot = furnish(core)
    at = core.raw.entry_at(0, HOST_BASE)
    assert at is not None
    core.raw.write(at, LEAVES[target](core.raw.read(at)))

    assert core.touch(slot, 0).verdict == "BROKEN"
    if target != "its page, read-only":  # fewer rights than the VMA cost a fault, not safety
        assert core.audit().problems() == {"bad": 1}
    assert_unmap_repairs(core, slot)


def test_a_writable_leaf_in_a_readonly_mapping(core: Core) -> None:
    slot = furnish(core)
    at = core.raw.entry_at(0, HOST_BASE + PAGE)
    assert at is not None
    core.raw.write(at, core.raw.read(at) | RW | D)
    assert core.touch(slot, PAGE).verdict == "BROKEN"
    assert core.audit().problems() == {"bad": 1}
    assert_mended(core)


def test_a_leaf_in_no_mapping(core: Core) -> None:
    furnish(core)
    pte_page = frame_of(core, 0, 1 << 38)
    core.unmap((1 << 38) + PAGE, (1 << 38) + MIB2)
    core.raw.write(core.raw.frame_at(pte_page) + 8, DATA_BASE + (1 << 38) + PAGE | P | US | A | NX)
    assert core.audit().problems() == {"stray": 1}
    assert_mended(core)


WORDS = {
    "free": 0,
    "of another level": HOST_BASE >> 21 << 32 | 2 << 2 | TABLE,
    "of another place": (HOST_BASE + GIB512) >> 21 << 32 | TABLE,
    "of nowhere": ALL_ONES,
}


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("word", WORDS)
def test_a_linked_frame_whose_word_is(word: str, level: int, core: Core) -> None:
    slot = furnish(core)
    value = WORDS[word]
    if word == "of another level" and level == 2:
        value &= ~(3 << 2)
    core.raw.write(core.raw.word_at(frame_of(core, level, 0)), value)
    assert core.touch(slot, 0).verdict == "BROKEN"
    assert core.audit().bad == 1
    assert core.audit().problems() != {"bad": 1}, "the frame itself is missed too"
    assert_mended(core)


def test_a_frame_that_nobody_holds_any_more(core: Core) -> None:
    """Its holder's slot is free: no reap will ever look for it."""
    furnish(core)
    frame = core.raw.header("frames_high") - 1
    core.raw.write(core.raw.word_at(frame + 1), HOST_BASE >> 21 << 32 | 99 << 4 | HELD)
    core.raw.write(HEADER["frames_high"], frame + 2)
    assert core.audit().problems() == {"held": 1}
    assert_mended(core)


def test_a_free_frame_that_takes_memory(core: Core) -> None:
    furnish(core)
    core.raw.write(core.raw.frame_at(core.raw.header("frames_high") + 9), 1)
    assert core.audit().problems() == {"bytes not of tables": PAGE}
    assert_mended(core)


def assert_mended(core: Core) -> None:
    """Everything that is wrong with page tables goes, and nothing else."""
    before = core.audit()
    check(lib.mm_mend(core.mm))
    after = core.audit()
    assert after.problems() == {}
    assert sum(after.tables) <= sum(before.tables)


def assert_unmap_repairs(core: Core, slot: int) -> None:
    """UNMAP and a sweep make a region whole again."""
    core.unmap(0, core.size)
    check(lib.mm_sweep(core.mm))
    assert core.audit().problems() == {}
    assert core.audit().tables == (0, 0, 0, 1)
    core.map(0, MIB2)
    assert core.touch(slot, PAGE, write=True).verdict == "MAP"
    assert core.audit().problems() == {}


# Snapshots


def test_more_vmas_than_there_can_be(core: Core) -> None:
    slot = furnish(core)
    core.raw.write(HEADER[f"vmas_used{core.raw.header('epoch') & 1}"], lib.MM_VMAS + 3)
    assert core.touch(slot, 0).verdict == "BROKEN"
    assert core.audit().vmas == 1
    assert core.begin_unmap(0, PAGE) == -errno.EUCLEAN
    assert core.begin_map(0, PAGE, READ) == -errno.EUCLEAN
    assert lib.mm_vmas(core.mm, ffi.NULL, 0) == -errno.EUCLEAN


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, GIB512 + PAGE), (0, ALL_ONES), (0, 0), (PAGE, PAGE), (2 * PAGE, PAGE), (1, PAGE),
        (0, PAGE + 1), (1 << 63, 1 << 62),
    ],
)  # fmt: skip
def test_a_vma_that_no_mapping_can_make(core: Core, start: int, end: int) -> None:
    slot = core.claim()
    core.map(0, PAGE)
    core.raw.bytes[core.raw.vma_at(0) : core.raw.vma_at(1)] = VMA.pack(start, end, 0, 3, 0, 1)
    assert core.audit().vmas == 1
    assert core.touch(slot, 0, write=True).verdict in ("BROKEN", "MAPERR")
    assert core.audit().leaves == 0


@pytest.mark.parametrize(
    ("start", "end", "file"),
    [(0, GIB1, 0), (PAGE, GIB1, 0), (PAGE, GIB1, 1), (0, GIB1 - PAGE, 1)],
    ids=["of no file", "of no file, cut", "cut at its start", "cut at its end"],
)
def test_huge_pages_that_cannot_be(start: int, end: int, file: int) -> None:
    """Their entries are where the fault does not look: it must not note them there."""

    def work(_: Callable[[str], None]) -> None:
        with Core() as core:
            slot = core.claim()
            core.map(0, GIB1)
            vma = VMA.pack(start, end, 0, READ | lib.VMA_WRITE | lib.VMA_HUGE, file, 1)
            core.raw.bytes[core.raw.vma_at(0) : core.raw.vma_at(1)] = vma
            for at in (PAGE, MIB2, 3 * PAGE + MIB2, GIB1 - 2 * PAGE):
                for look in LOOKS:
                    assert core.touch(slot, at, write=True, look=look, fill=16).verdict == "BROKEN"
            assert core.audit().leaves == 0
            assert core.audit().vmas == 1

    isolated(work)


@pytest.mark.parametrize("second", [(0, PAGE), (PAGE, 3 * PAGE), (0, 3 * PAGE)])
def test_vmas_out_of_order(core: Core, second: tuple[int, int]) -> None:
    core.map(PAGE, 2 * PAGE)
    core.map(2 * PAGE, 3 * PAGE)
    core.raw.bytes[core.raw.vma_at(1) : core.raw.vma_at(2)] = VMA.pack(*second, 0, 3, 0, 2)
    assert core.audit().vmas == 1


# Frames and slots


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_no_frame_left(core: Core, left: int) -> None:
    """A fault needs three: with fewer it is refused, and the frames that it took are not lost."""
    core.map(0, GIB1)
    slot = core.claim()
    high = core.raw.header("frames_high")
    at, end = core.raw.word_at(high + left), core.raw.word_at(core.raw.header("frames_max"))
    free = bytes(core.raw.bytes[at:end])
    core.raw.bytes[at:end] = b"\xff" * len(free)

    verdict = core.touch(slot, 0).verdict
    assert verdict == ("MAP" if left == 3 else "BROKEN")
    core.raw.bytes[at:end] = free
    audit = core.audit()
    assert audit.problems() == {}
    assert sum(audit.tables) == 1 + left

    assert core.touch(slot, 0).verdict == "MAP"
    assert core.audit().tables == (1, 1, 1, 1)


@pytest.mark.parametrize("name", ["frames_hint", "frames_high", "slots_high"])
@pytest.mark.parametrize("value", [5, 1 << 17, 1 << 32, ALL_ONES])
def test_hints_and_marks_may_hold_any_value(core: Core, name: str, value: int) -> None:
    slot = furnish(core)
    core.raw.write(HEADER[name], max(value, core.raw.header(name)))
    core.touch(slot, GIB1 + MIB2, write=True)
    assert core.audit().problems() == {}
    assert core.straggler() is None
    core.unmap(0, GIB512)
    assert core.audit().problems() == {}
    assert core.audit().tables == (0, 0, 0, 1)


def test_all_slots_taken(core: Core) -> None:
    for number in range(lib.MM_SLOTS):
        assert core.claim() == number
    assert lib.slot_claim(core.mm, 1, 1) == -errno.EUSERS
    check(lib.slot_reap(core.mm, 77))
    assert core.claim() == 77


@pytest.mark.parametrize("number", [lib.MM_SLOTS, lib.MM_SLOTS + 1, (1 << 32) - 1])
def test_there_is_no_such_slot(core: Core, number: int) -> None:
    assert lib.slot_reap(core.mm, number) == -errno.EINVAL
    lib.mm_set_client(core.mm, number, 1, 1)
    assert core.stat().clients == 0


def test_a_slot_inside_an_epoch_that_never_was(core: Core) -> None:
    slot = core.claim()
    core.raw.write(core.raw.slot_at(slot) + SLOT_EPOCH, 1)
    assert core.straggler() == slot
    assert core.begin_unmap(0, PAGE) == -errno.EBUSY
    check(lib.slot_reap(core.mm, slot))
    assert core.straggler() is None


@pytest.mark.parametrize(
    ("start", "end"), [(PAGE, 0), (0, GIB512 + PAGE), (ALL_ONES, ALL_ONES), (0, ALL_ONES)]
)
def test_an_intent_that_makes_no_sense(core: Core, start: int, end: int) -> None:
    furnish(core)
    before = core.raw.tree()
    for name, value in (("op", 1), ("start", start), ("end", end)):
        core.raw.write(HEADER[f"intent_{name}"], value)
    core.raw.write(HEADER["intent_epoch"], core.raw.header("epoch"))
    assert core.finish() == -errno.EUCLEAN
    assert core.raw.tree() == before


@pytest.mark.parametrize(("name", "value"), [("op", 0), ("op", 7), ("epoch", 1), ("epoch", 9999)])
def test_an_intent_that_does_not_count(core: Core, name: str, value: int) -> None:
    furnish(core)
    before = core.raw.tree()
    assert core.begin_unmap(0, GIB1) == 0
    core.raw.write(HEADER[f"intent_{name}"], value)
    assert core.finish() == 0
    assert core.raw.tree() == before


# Anything at all


def spoil(core: Core, chance: random.Random) -> str:
    """Overwrites one place that the core reads with one of the worst values; returns which."""
    raw = core.raw
    places = [
        *(HEADER[name] for name in ("epoch", "vmas_used0", "vmas_used1", "intent_op",
                                    "intent_start", "intent_end", "intent_epoch",
                                    "intent_prot", "frames_hint", "frames_high", "slots_high")),
        *(raw.slot_at(slot) + 8 * word for slot in range(3) for word in range(16)),
        *(raw.vma_at(vma, area) + 8 * word for area in (0, 1) for vma in range(4)
          for word in range(5)),
        *(raw.word_at(frame) for frame in range(20)),
    ]  # fmt: skip
    used = [
        raw.frame_at(frame) + 8 * index for frame in range(20) for index, _ in raw.entries(frame)
    ]
    at = chance.choice(chance.choice([places, used or places]))
    near = chance.choice([raw.frame_at(chance.randrange(20)) + 8 * chance.randrange(512), at])
    value = chance.choice([
        0, 1, 8, ALL_ONES, 1 << 63, chance.getrandbits(64),
        raw.read(at) ^ 1 << chance.randrange(64),
        table_entry(chance.randrange(24)), table_entry(chance.getrandbits(30)), raw.read(near),
        chance.randrange(1 << 20) * PAGE, chance.randrange(70000), raw.read(raw.word_at(3)),
    ])  # fmt: skip
    raw.write(at, value)
    return f"{at:#x} = {value:#x}"


@pytest.mark.parametrize("seed", range(6))
def test_random_damage(seed: int) -> None:
    def work(say: Callable[[str], None]) -> None:
        chance = random.Random(seed)
        for case in range(120):
            with Core() as core:
                slot = furnish(core)
                done = [spoil(core, chance) for _ in range(chance.randint(1, 6))]
                say(f"seed {seed}, case {case}: {', '.join(done)}")
                for _ in range(2):
                    run_all(core, slot)

    isolated(work)


def test_an_undamaged_region_passes_the_same_operations() -> None:
    """Otherwise the tests above would pass because nothing is done."""
    with Core() as core:
        slot = furnish(core)
        assert {core.touch(slot, at).verdict for at in PLACES} == {"MAP"}
        run_all(core, slot)
        core.recover()
        assert core.audit().problems() == {}


def test_entries_that_change_under_the_reader() -> None:
    """A walk must use the value that it has checked: an entry may change before the next look."""

    def flip(core: Core) -> None:
        values = [core.raw.read(at) for at in places(core)]
        wrong = [table_entry(1 << 37), 0, 1 << 51 | P, table_entry(core.raw.header("frames_max"))]
        while True:
            for bad in wrong:
                for at, value in zip(places(core), values, strict=True):
                    core.raw.write(at, bad)
                    core.raw.write(at, value)

    def places(core: Core) -> list[int]:
        found = (core.raw.entry_at(level, HOST_BASE) for level in (1, 2, 3))
        return [at for at in found if at is not None]

    def work(say: Callable[[str], None]) -> None:
        with Core() as core:
            slot = furnish(core)
            flipper = os.fork()
            if flipper == 0:
                flip(core)
            tables = ffi.new("struct mm_table[]", 16)
            audit = ffi.new("struct mm_audit *")
            try:
                for turn in range(4000):
                    if turn % 500 == 0:
                        say(f"turn {turn}")
                    lib.mm_audit(core.mm, audit)
                    lib.mm_tables(core.mm, tables, 16)
                    core.touch(slot, 0, look=run, fill=16)
            finally:
                os.kill(flipper, signal.SIGKILL)
                os.waitpid(flipper, 0)
            assert_unmap_repairs(core, slot)

    isolated(work)


def test_isolated_sees_every_end_of_its_work() -> None:
    def crash(say: Callable[[str], None]) -> None:
        say("here")
        faulthandler.disable()  # pytest's: this one is meant
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(AssertionError, match="SIGSEGV after here"):
        isolated(crash)
    with pytest.raises(AssertionError, match="too long after nothing"):
        isolated(lambda _: lib.syscall(SYS_PAUSE), seconds=1)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        isolated(lambda _: 1 // 0)
    isolated(lambda _: None)
