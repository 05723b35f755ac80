"""For drgn: the host mms of a running program, read from its memory without stopping it.

python3 msharefs_mm.py PID           # or, in drgn -p PID: from msharefs_mm import mms, vmas, walk

Types and symbols are those of libmsharefs, which must not be stripped.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

import drgn

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVELS = ("PTE", "PMD", "PUD", "PGD")
ENTRIES, PAGE = 512, 4096
PRESENT, HUGE, PROTNONE = 1 << 0, 1 << 7, 1 << 8
ADDRESS = 0x000FFFFFFFFFF000
TABLES = 1 << 40  # "physical" address of frame 0
BASE = 1 << 39  # of the region in host addresses
USED = 2  # FRAME_TABLE


def mms(program: drgn.Program) -> Iterator[drgn.Object]:
    """The struct mm of each attachment of the program."""
    attachments = program["attachments"]
    for number in range(int(program["attachments_used"])):
        if attachments[number].live:
            yield attachments[number].mm


def vmas(mm: drgn.Object) -> Iterator[drgn.Object]:
    """The struct mm_vma of the current snapshot, in order."""
    area = int(mm.header.epoch) & 1
    for number in range(int(mm.header.vmas_used[area])):
        yield mm.vmas[area][number]


def tables(mm: drgn.Object) -> Counter[str]:
    """How many page tables there are of each level, by the words of their frames."""
    words = program_words(mm)
    return Counter(LEVELS[word >> 2 & 3] for word in words if word & 3 == USED)


def program_words(mm: drgn.Object) -> list[int]:
    """The words of all frames that were ever used."""
    count = min(int(mm.header.frames_high), int(mm.frames_max))
    data = mm.prog_.read(int(mm.words), 8 * count)
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def walk(mm: drgn.Object, address: int) -> Iterator[tuple[str, int]]:
    """Level and entry, from the top down, for a host address (512 GiB + region offset)."""
    frame = 0  # the PGD
    for level in reversed(range(4)):
        index = address >> 12 + 9 * level & ENTRIES - 1
        at = int(mm.frames) + frame * PAGE + index * 8
        entry = int(mm.prog_.read_u64(at))
        yield LEVELS[level], entry
        if not entry & PRESENT or (level == 1 and entry & HUGE):
            return
        frame = (entry & ADDRESS) - TABLES >> 12


def main() -> None:
    """All host mms of a process."""
    program = drgn.Program()
    program.set_pid(int(sys.argv[1]))
    with contextlib.suppress(drgn.MissingDebugInfoError):  # of other libraries
        program.load_default_debug_info()
    for mm in mms(program):
        header = mm.header
        found = tables(mm)
        print(
            f"region {int(header.region)}: {int(mm.size) >> 20} MiB, snapshot {int(header.epoch)}, "
            f"tables: {', '.join(f'{found[level]} {level}' for level in LEVELS)}"
        )
        for vma in vmas(mm):
            flags, start = int(vma.flags), int(vma.start)
            rights = "".join(each if flags >> bit & 1 else "-" for bit, each in enumerate("rwx"))
            print(f"  {start:012x}-{int(vma.end):012x} {rights}s object {int(vma.object)}")
            entries = [f"{level} {entry:#x}" for level, entry in walk(mm, BASE + start)]
            print(f"    first page: {', '.join(entries)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {os.path.basename(sys.argv[0])} PID")
    main()
