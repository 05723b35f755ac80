"""Sets of VMAs before and after a change, drawn as maps: a character is a page.

AAAA    one mapping, one VMA         .     a hole
aaaa    the same mapping, read-only  |     two VMAs although they look like one
-       a page that UNMAP takes out
"""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msharefs.native import ffi, lib

from support.core import PAGE, READ, WRITE, Core, check
from support.rawmm import HEADER, VMA

if TYPE_CHECKING:
    from collections.abc import Sequence

# Not 0, so that a forgotten offset shows.
OBJECT_OFFSET = 1000 * PAGE
CANARY = 0xDEAD_BEEF


def vma(letter: str, start: int, end: int) -> dict[str, int]:
    """The VMA of pages [start, end) of a mapping."""
    return {
        "start": start * PAGE,
        "end": end * PAGE,
        "offset": OBJECT_OFFSET + start * PAGE,
        "flags": READ | WRITE if letter.isupper() else READ,
        "object": 0,
        "serial": ord(letter.upper()),
    }


def runs(text: str) -> list[tuple[str, int, int]]:
    """Letter, first page and end of each run in a map."""
    found: list[tuple[str, int, int]] = []
    page, joined = 0, False
    for letter in text:
        if letter == "|":
            joined = False
            continue
        if joined and found and found[-1][0] == letter:
            found[-1] = (letter, found[-1][1], page + 1)
        elif letter not in ". ":
            found.append((letter, page, page + 1))
        page, joined = page + 1, letter not in ". "
    return found


def draw(vmas: Sequence[Any], pages: int) -> str:
    """The map of a set."""
    text, page = "", 0
    for at in vmas:
        letter = chr(at.serial)
        if at.flags == READ:
            letter = letter.lower()
        start, end = at.start // PAGE, at.end // PAGE
        text += "." * (start - page)
        if text.endswith(letter):
            text += "|"
        text += letter * (end - start)
        page = end
    return text + "." * (pages - page)


def replace(before: Sequence[Any], start: int, end: int, insert: Any, limit: int) -> Any:
    """vma_replace(); the set or an errno. Nothing past the limit may be written."""
    source = ffi.new("struct mm_vma[]", before)
    to = ffi.new("struct mm_vma[]", limit + 1)
    to[limit].serial = CANARY
    count = lib.vma_replace(source, len(source), start, end, insert, to, limit)
    assert to[limit].serial == CANARY
    return to[0:count] if count >= 0 else -count


def apply(before: str, change: str, limit: int | None = None) -> Any:
    """The set `before` with the one run of `change` put in, or an errno."""
    letter, start, end = runs(change)[0]
    insert = ffi.NULL if letter == "-" else ffi.new("struct mm_vma *", vma(letter, start, end))
    found = [vma(*run) for run in runs(before)]
    return replace(
        found, start * PAGE, end * PAGE, insert, len(found) + 2 if limit is None else limit
    )


CASES = [
    # into nothing
    ("........", "  NN", "..NN...."),
    ("........", "NNNNNNNN", "NNNNNNNN"),
    ("........", "  --", "........"),
    # a neighbour stays unchanged: mappings do not merge because they touch
    ("AA......", "  NN", "AANN...."),
    ("....BB..", "  NN", "..NNBB.."),
    ("AA..BB..", "  NN", "AANNBB.."),
    # over a whole one, a part at either end, the middle
    ("..AAAA..", "  NNNN", "..NNNN.."),
    ("..AAAA..", "  NN", "..NNAA.."),
    ("..AAAA..", "    NN", "..AANN.."),
    ("..AAAA..", "   NN", "..ANNA.."),
    ("..AAAA..", " NNNNNN", ".NNNNNN."),
    ("..AAAA..", " NN", ".NNAAA.."),
    ("..AAAA..", "     NN", "..AAANN."),
    # over several: the outer ones keep their outer parts
    ("AAAAAAAA..BBBB", "    NNNNNNNN", "AAAANNNNNNNNBB"),
    ("AABBCCDD", " NNNNNN ", "ANNNNNND"),
    ("AABBCCDD", "  NNNN", "AANNNNDD"),
    ("AA..BB..CC", " NNNNNNNN", "ANNNNNNNNC"),
    # the same with UNMAP
    ("..AAAA..", "  ----", "........"),
    ("..AAAA..", "  --", "....AA.."),
    ("..AAAA..", "    --", "..AA...."),
    ("..AAAA..", "   --", "..A..A.."),
    ("AABBCCDD", " ------", "A......D"),
    ("AABBCCDD", "--------", "........"),
    # at the first and the last page of the region
    ("AAAAAAAA", "N", "NAAAAAAA"),
    ("AAAAAAAA", "       N", "AAAAAAAN"),
    ("AAAAAAAA", "-", ".AAAAAAA"),
    ("AAAAAAAA", "       -", "AAAAAAA."),
    # parts of one mapping that lie together again become one VMA, wherever the change is
    ("AA|AA...", "      -", "AAAA...."),
    ("A|A|A|A.B", "     -", "AAAA.."),
    ("AA..AA", "  AA", "AAAAAA"),
    ("AA|AA", "  A", "AAAA"),
    # but not with other rights, or across a hole
    ("AAaa....", "      -", "AAaa...."),
    ("AA.AA...", "      -", "AA.AA..."),
    ("AA.AA...", "  a", "AAaAA..."),
    ("AAAA", " a", "AaAA"),
]


@pytest.mark.parametrize(("before", "change", "after"), CASES)
def test_replace(before: str, change: str, after: str) -> None:
    pages = len(after.replace("|", ""))
    found = apply(before, change)
    assert draw(found, pages) == after
    for at in found:
        assert at.offset - at.start == OBJECT_OFFSET, "a part lost its place in the object"


@pytest.mark.parametrize(("before", "change", "after"), CASES)
def test_replace_at_the_limit(before: str, change: str, after: str) -> None:
    needed = len(runs(after))
    assert draw(apply(before, change, needed), len(after.replace("|", ""))) == after
    for limit in range(needed):
        assert apply(before, change, limit) == errno.ENOMEM


@pytest.mark.parametrize(
    ("before", "change", "after", "busy"),
    [
        ("........", "  --", "........", "        "),
        ("AA..BB..", "  --", "AA..BB..", "        "),
        ("..AAAA..", "  ----", "..AAAA..", "  ^^^^  "),
        ("..AAAA..", " ------", "..AAAA..", "  ^^^^  "),
        ("..AAAA..", "  --", "..AA|AA..", "  ^^    "),
        ("..AAAA..", "    --", "..AA|AA..", "    ^^  "),
        ("..AAAA..", "   --", "..A|AA|A..", "   ^^   "),
        ("AABBCCDD", " ------ ", "A|ABBCCD|D", " ^^^^^^ "),
        ("AA..BB..CC", " --------", "A|A..BB..C|C", " ^  ^^  ^ "),
        ("aaAA", " --", "a|aA|A", " ^^ "),
    ],
)
def test_mark_busy(before: str, change: str, after: str, busy: str) -> None:
    """The set during an UNMAP, until the pages are gone: `^` is a page on which faults wait."""
    _, start, end = runs(change)[0]
    needed = len(runs(after))
    for limit in range(needed + 2):
        source = ffi.new("struct mm_vma[]", [vma(*run) for run in runs(before)])
        to = ffi.new("struct mm_vma[]", limit + 1)
        to[limit].serial = CANARY
        count = lib.vma_mark_busy(source, len(source), start * PAGE, end * PAGE, to, limit)
        assert to[limit].serial == CANARY
        if limit < needed:
            assert count == -errno.ENOMEM
            continue
        marks = [" "] * len(busy)
        for at in to[0:count]:
            assert at.offset - at.start == OBJECT_OFFSET
            if at.flags & lib.VMA_BUSY:
                pages = range(at.start // PAGE, at.end // PAGE)
                marks[pages.start : pages.stop] = "^" * len(pages)
                at.flags &= ~lib.VMA_BUSY
        assert "".join(marks) == busy
        assert draw(to[0:count], len(busy)) == after


@pytest.mark.parametrize(
    "difference",
    [{"flags": READ | WRITE | 4}, {"object": 1}, {"offset": OBJECT_OFFSET}, {"serial": 1}],
)
def test_neighbours_that_differ_in_anything_do_not_merge(difference: dict[str, int]) -> None:
    set_of = [vma("A", 0, 2), vma("A", 2, 4)]
    assert len(replace(set_of, 8 * PAGE, 9 * PAGE, ffi.NULL, 4)) == 1
    set_of[1] |= difference
    assert len(replace(set_of, 8 * PAGE, 9 * PAGE, ffi.NULL, 4)) == 2


def test_an_empty_range_changes_nothing() -> None:
    set_of = [vma("A", 0, 4)]
    found = replace(set_of, 2 * PAGE, 2 * PAGE, ffi.NULL, 4)
    assert draw(found, 4) == "AAAA"


maps = st.text("AAABBbC..", min_size=1, max_size=16)


@given(maps, st.sampled_from("-Nab"), st.integers(0, 15), st.integers(1, 16))
def test_any_change_of_any_set(before: str, letter: str, start: int, count: int) -> None:
    """Page by page: inside the range the new mapping, outside the old ones."""
    end = min(start + count, 16)
    change = " " * start + letter * (end - start)
    found = apply(before, change)
    expected = list(before.ljust(16, "."))
    expected[start:end] = (letter if letter != "-" else ".") * (end - start)
    # Equal serial and rights: these merge, so the map has no bar.
    assert draw(found, 16) == "".join(expected)
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert all(at.start < at.end and at.offset - at.start == OBJECT_OFFSET for at in found)


def test_a_region_has_so_many_vmas_and_no_more() -> None:
    """At the limit a change that needs one more is refused and nothing has changed."""
    with Core() as core:
        raw = core.raw
        # As if 65,530 mappings of three pages had been made, each with a hole behind it.
        packed = b"".join(
            VMA.pack(4 * at * PAGE, (4 * at + 3) * PAGE, 0, READ, 0, at + 1)
            for at in range(lib.MM_VMAS)
        )
        raw.bytes[raw.vma_at(0) : raw.vma_at(0) + len(packed)] = packed
        raw.write(HEADER["vmas_used0"], lib.MM_VMAS)
        raw.write(HEADER["serial"], lib.MM_VMAS)
        assert core.audit().vmas == 0
        slot = core.claim()
        last = 4 * (lib.MM_VMAS - 1) * PAGE

        before = core.vmas()
        assert core.begin_unmap(PAGE, 2 * PAGE) == -errno.ENOMEM
        assert core.begin_map(3 * PAGE, 4 * PAGE, READ) == -errno.ENOMEM
        assert core.begin_map(last + PAGE, last + 2 * PAGE, READ) == -errno.ENOMEM
        assert core.finish() == 0
        assert core.vmas() == before

        for at in (0, last, last + 2 * PAGE, last // 2 & -4 * PAGE):
            assert core.touch(slot, at).verdict == "MAP"
            assert core.touch(slot, at | 3 * PAGE).verdict == "MAPERR"

        core.map(0, 3 * PAGE, READ | WRITE)
        assert len(core.vmas()) == lib.MM_VMAS
        # While it lasts, an UNMAP shows the VMA that it cuts in parts; that does not count.
        core.unmap(6 * PAGE, 9 * PAGE)
        core.unmap(13 * PAGE, 16 * PAGE)
        assert len(core.vmas()) == lib.MM_VMAS
        core.unmap(0, 4 * PAGE)
        core.unmap(17 * PAGE, 18 * PAGE)
        assert len(core.vmas()) == lib.MM_VMAS
        assert core.begin_unmap(21 * PAGE, 22 * PAGE) == -errno.ENOMEM
        core.unmap(20 * PAGE, 24 * PAGE)
        core.map(last + 3 * PAGE, last + 4 * PAGE, READ)
        assert len(core.vmas()) == lib.MM_VMAS
        check(lib.slot_reap(core.mm, slot))
        assert core.audit().problems() == {}
