"""Protection changes in the core alone: VMA sets, a successor's part, the spans touched."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.native import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE, SPAN, QUANTUM = 4096, 2 << 20, 512 << 30
RIGHTS = {"-": 0, "r": lib.VMA_READ, "w": lib.VMA_READ | lib.VMA_WRITE, "x": lib.VMA_PROT}


def vmas(drawn: str) -> tuple[Any, int]:
    """A set as drawn: one character per page; letters are rights, upper case another mapping."""
    found: list[dict[str, int]] = []
    for page, letter in enumerate(drawn):
        if letter == ".":
            continue
        flags, serial = RIGHTS[letter.lower()], 1 + letter.isupper()
        last = found[-1] if found else None
        if last and (last["end"], last["flags"], last["serial"]) == (page * PAGE, flags, serial):
            last["end"] += PAGE
        else:
            found.append({
                "start": page * PAGE, "end": (page + 1) * PAGE, "offset": page * PAGE,
                "flags": flags, "serial": serial,
            })  # fmt: skip
    return ffi.new("struct mm_vma[]", found or 1), len(found)


def draw(found: Any, count: int) -> str:
    """The drawing of a set, with a `|` between VMAs."""
    names = {flags: letter for letter, flags in RIGHTS.items()}
    text, at = "", 0
    for vma in found[0:count]:
        assert vma.offset == vma.start
        text += "." * ((vma.start - at) // PAGE) + ("|" if text and vma.start == at else "")
        letter = names[vma.flags & lib.VMA_PROT]
        text += (letter.upper() if vma.serial == 2 else letter) * ((vma.end - vma.start) // PAGE)
        at = vma.end
    return text


@pytest.mark.parametrize(
    ("before", "start", "end", "rights", "after"),
    [
        ("wwwwww", 0, 6, "r", "rrrrrr"),
        ("wwwwww", 2, 4, "r", "ww|rr|ww"),
        ("wwrrww", 2, 4, "w", "wwwwww"),
        ("wwrrww", 1, 5, "r", "w|rrrr|w"),
        ("wwrrww", 1, 5, "-", "w|----|w"),
        ("wwWWww", 0, 6, "r", "rr|RR|rr"),
        ("ww..WW", 4, 6, "x", "ww..XX"),
        ("..ww..", 2, 4, "w", "..ww"),
        ("ww..WW", 0, 6, "r", None),
        ("ww..WW", 1, 3, "r", None),
        ("ww..WW", 3, 5, "r", None),
        ("ww..WW", 2, 4, "r", None),
        ("", 0, 1, "r", None),
    ],
)
def test_vma_sets(before: str, start: int, end: int, rights: str, after: str | None) -> None:
    found, used = vmas(before)
    room = ffi.new("struct mm_vma[16]")
    count = lib.vma_protect(found, used, start * PAGE, end * PAGE, RIGHTS[rights], room, 16)
    if after is None:
        assert count == -errno.ENOMEM
    else:
        assert draw(room, count) == after


def test_too_many() -> None:
    found, used = vmas("wwwwww")
    room = ffi.new("struct mm_vma[2]")
    assert lib.vma_protect(found, used, 2 * PAGE, 4 * PAGE, 0, room, 2) == -errno.ENOMEM


def test_opening_merges() -> None:
    found, used = vmas("wwrrwwWW")
    room, opened = ffi.new("struct mm_vma[8]"), ffi.new("struct mm_vma[8]")
    busy = RIGHTS["w"] | lib.VMA_BUSY
    count = lib.vma_protect(found, used, 2 * PAGE, 4 * PAGE, busy, room, 8)
    assert count == 4
    assert draw(opened, lib.vma_end_busy(room, count, False, opened)) == "wwwwww|WW"


class Core:
    """A host mm without a server."""

    def __init__(self) -> None:
        self.mm = ffi.new("struct mm *")
        fd = os.memfd_create("mm", os.MFD_CLOEXEC)
        check(lib.mm_format(fd, 1, QUANTUM, QUANTUM), "format")
        check(lib.mm_open(self.mm, fd), "open")
        self.mem = os.memfd_create("mem", os.MFD_CLOEXEC)
        os.ftruncate(self.mem, QUANTUM)
        self.slot = check(lib.slot_claim(self.mm, os.getpid(), 0), "claim")
        vma = ffi.new("struct mm_vma *", {"start": 0, "end": 64 * PAGE, "flags": RIGHTS["w"]})
        check(lib.hostmm_map(self.mm, vma[0]), "map")
        self.finish()

    def finish(self) -> None:
        check(lib.hostmm_finish(self.mm, self.mem), "finish")

    def touch(self, page: int, *, write: bool) -> int:
        """A fault; the verdict."""
        access = lib.ACCESS_WRITE if write else lib.ACCESS_READ
        fault = ffi.new("struct fault *", {
            "offset": page * PAGE, "access": access, "start": page * PAGE, "end": (page + 1) * PAGE,
            "fill": 1,
        })  # fmt: skip
        lib.slot_enter(self.mm, self.slot)
        verdict = lib.mm_fault(self.mm, self.slot, fault)
        lib.slot_leave(self.mm, self.slot)
        return verdict

    def drawn(self) -> str:
        room = ffi.new("struct mm_vma[16]")
        return draw(room, check(lib.mm_vmas(self.mm, room, 16), "vmas"))

    def bad(self) -> int:
        found = ffi.new("struct mm_audit *")
        check(lib.mm_audit(self.mm, found), "audit")
        return found.bad + found.lost + found.stray + found.vmas + found.held


@pytest.fixture
def core() -> Iterator[Core]:
    made = Core()
    yield made
    lib.mm_close(made.mm)
    os.close(made.mem)


def test_a_fault_waits_until_it_is_decided(core: Core) -> None:
    assert core.touch(3, write=True) == lib.FAULT_MAP
    check(lib.hostmm_protect(core.mm, 0, 8 * PAGE, 0), "protect")
    assert core.touch(3, write=True) == lib.FAULT_WAIT
    assert core.touch(8, write=True) == lib.FAULT_MAP
    core.finish()
    assert core.touch(3, write=False) == lib.FAULT_ACCERR
    assert core.bad() == 0
    assert core.drawn() == "-" * 8 + "|" + "w" * 56


def test_a_change_that_is_given_up_leaves_nothing(core: Core) -> None:
    assert core.touch(3, write=True) == lib.FAULT_MAP
    check(lib.hostmm_protect(core.mm, 0, 8 * PAGE, 0), "protect")
    lib.hostmm_abort(core.mm)
    assert core.touch(3, write=True) == lib.FAULT_MAP
    assert core.drawn() == "w" * 64
    assert core.bad() == 0


def test_a_successor_takes_back_what_clients_may_not_know(core: Core) -> None:
    core.touch(3, write=True)
    check(lib.hostmm_protect(core.mm, 0, 8 * PAGE, RIGHTS["r"]), "protect")
    assert core.mm.header.intent.op == lib.INTENT_PROTECT
    check(lib.hostmm_recover(core.mm, core.mem), "recover")
    assert core.drawn() == "w" * 64
    assert core.touch(3, write=True) == lib.FAULT_MAP
    assert core.bad() == 0


def test_a_successor_finishes_what_all_clients_have_done(core: Core) -> None:
    core.touch(3, write=True)
    check(lib.hostmm_protect(core.mm, 0, 8 * PAGE, RIGHTS["r"]), "protect")
    core.mm.header.intent.op = lib.INTENT_RIGHTS  # as hostmm_finish() begins
    check(lib.hostmm_recover(core.mm, core.mem), "recover")
    assert core.mm.header.intent.op == lib.INTENT_NONE
    assert core.drawn() == "r" * 8 + "|" + "w" * 56
    assert core.touch(3, write=True) == lib.FAULT_ACCERR
    assert core.bad() == 0
    check(lib.hostmm_recover(core.mm, core.mem), "again")
    assert core.drawn() == "r" * 8 + "|" + "w" * 56


def test_a_client_inside_a_fault_is_waited_for(core: Core) -> None:
    lib.slot_enter(core.mm, core.slot)
    check(lib.hostmm_protect(core.mm, 0, PAGE, 0), "protect")
    straggler = ffi.new("unsigned *")
    assert lib.slot_grace(core.mm, straggler) == -errno.EAGAIN
    assert straggler[0] == core.slot
    lib.hostmm_abort(core.mm)
    assert lib.hostmm_protect(core.mm, 0, PAGE, 0) == -errno.EBUSY
    lib.slot_leave(core.mm, core.slot)
    check(lib.hostmm_protect(core.mm, 0, PAGE, 0), "protect")
    core.finish()


def runs(core: Core, start: int, end: int) -> list[tuple[int, int]]:
    """The touched runs of [start, end), in spans."""
    found = []
    at, stop = ffi.new("uint64_t *", start), ffi.new("uint64_t *")
    while lib.touched_run(core.mm, core.slot, at, end, stop):
        assert start <= at[0] < stop[0] <= end
        found.append((at[0], stop[0]))
        at[0] = stop[0]
    return found


def test_touched_spans(core: Core) -> None:
    blocks = os.fstat(core.mm.fd).st_blocks
    assert runs(core, 0, QUANTUM) == []
    assert os.fstat(core.mm.fd).st_blocks == blocks, "looking takes no memory"
    for span, pages in ((0, 1), (5, 1024), (63, 513), (200_000, 512)):
        lib.touched_mark(core.mm, core.slot, span * SPAN, pages * PAGE)
    assert runs(core, 0, QUANTUM) == [
        (first * SPAN, after * SPAN)
        for first, after in ((0, 1), (5, 7), (63, 65), (200_000, 200_001))
    ]
    assert runs(core, SPAN + PAGE, 6 * SPAN - PAGE) == [(5 * SPAN, 6 * SPAN - PAGE)]
    assert runs(core, 6 * SPAN + PAGE, 6 * SPAN + 2 * PAGE) == [
        (6 * SPAN + PAGE, 6 * SPAN + 2 * PAGE)
    ]
    assert runs(core, 7 * SPAN, 63 * SPAN) == []
    assert lib.mm_touched(core.mm, 0, lib.MM_SLOTS, 5 * SPAN, 6 * SPAN) == core.slot
    assert lib.mm_touched(core.mm, 0, lib.MM_SLOTS, 8 * SPAN, 9 * SPAN) == -1
    assert lib.mm_touched(core.mm, core.slot + 1, lib.MM_SLOTS, 0, QUANTUM) == -1
    grown = (os.fstat(core.mm.fd).st_blocks - blocks) * 512
    assert grown == 2 * PAGE, "4 KiB for each 64 GiB that was touched"
    lib.slot_reap(core.mm, core.slot)
    assert os.fstat(core.mm.fd).st_blocks == blocks
    core.slot = check(lib.slot_claim(core.mm, os.getpid(), 0), "claim")
    assert runs(core, 0, QUANTUM) == [], "the next holder has touched nothing"


def test_claims_are_told_apart(core: Core) -> None:
    first = lib.mm_claim(core.mm, core.slot)
    assert first
    lib.slot_reap(core.mm, core.slot)
    assert lib.mm_claim(core.mm, core.slot) == 0
    assert lib.slot_claim(core.mm, os.getpid(), 0) == core.slot
    assert lib.mm_claim(core.mm, core.slot) not in (0, first)
