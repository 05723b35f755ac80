"""A host mm read from the bytes of its file, and nothing else: a second opinion on the core.

Nothing here calls the core. The layout is written down once more, the header from
native/core/layout.h and the entries from the Intel SDM (volume 3A, 4.5), so that the two can
disagree.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
MIB2, GIB1, GIB512 = 1 << 21, 1 << 30, 1 << 39
HOST_BASE = 512 << 30
TABLES_BASE = 1 << 40
DATA_BASE = 1 << 47
OBJECTS_BASE = 1 << 48
ENTRIES = 512

# Offsets in the header.
HEADER = {
    name: 8 * at
    for at, name in enumerate(
        ("magic", "signature", "region", "size", "quantum", "file_size", "slots_at",
         "vmas_at0", "vmas_at1", "touched_at", "records_at", "words_at", "frames_at",
         "touched_stride", "maximum", "frames_max")
    )
}  # fmt: skip
HEADER |= {
    "epoch": 448, "vmas_used0": 456, "vmas_used1": 464,
    "intent_op": 472, "intent_start": 480, "intent_end": 488, "intent_epoch": 496,
    "intent_prot": 504,
    "frames_hint": 512, "frames_high": 520, "slots_high": 528, "traced": 544,
    "serial": 624,
}  # fmt: skip
RECORD_WORDS = 6  # of 8 bytes: struct mm_record
SLOT_SIZE, SLOT_CLAIM, SLOT_EPOCH, SLOT_UNSHARED = 192, 40, 64, 128
VMA = struct.Struct("=QQQIIQ")

P, RW, US, A, D, PS, NX = (1 << bit for bit in (0, 1, 2, 5, 6, 7, 63))
# The processor ignores this bit in an entry that is not present: it is Linux's mark for a page that
# must not be accessed.
PROTNONE = 1 << 8
ADDRESS = 0x000F_FFFF_FFFF_F000

FREE, HELD, TABLE = 0, 1, 2


class Leaf(NamedTuple):
    """A leaf entry."""

    offset: int  # in the region, by the entry's place in the tree
    target: int  # in the region, by the entry's address
    flags: int


class Table(NamedTuple):
    """A table that can be reached from the PGD."""

    level: int  # 0: PTE page ... 3: PGD
    start: int  # host address
    frame: int
    flags: int  # of the entry that points to it


@dataclass(frozen=True)
class Tree:
    """Everything that can be reached from the PGD."""

    leaves: dict[int, Leaf]
    tables: list[Table]
    wrong: list[str]

    def spans(self) -> set[tuple[int, int]]:
        """Level and region offset of each table below the PGD."""
        return {(table.level, table.start - HOST_BASE) for table in self.tables if table.level < 3}


class RawMM:
    """The `.mm` object of descriptor `fd`, mapped."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.bytes = memoryview(self._map)
        self.words_at, self.frames_at = self.header("words_at"), self.header("frames_at")

    def close(self) -> None:
        """Unmaps it."""
        self.bytes.release()
        self._map.close()

    def read(self, at: int) -> int:
        """The 64-bit number at byte `at`."""
        return int.from_bytes(self.bytes[at : at + 8], "little")

    def write(self, at: int, value: int) -> None:
        """Overwrites the 64-bit number at byte `at`."""
        self.bytes[at : at + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")

    def header(self, name: str) -> int:
        """A field of the header."""
        return self.read(HEADER[name])

    def word_at(self, frame: int) -> int:
        """The file offset of a frame's word."""
        return self.words_at + 8 * frame

    def frame_at(self, frame: int) -> int:
        """The file offset of a frame."""
        return self.frames_at + PAGE * frame

    def slot_at(self, slot: int) -> int:
        """The file offset of a client slot."""
        return self.header("slots_at") + SLOT_SIZE * slot

    def word(self, frame: int) -> tuple[int, int, int, int]:
        """State, level, slot and host address of a frame's word."""
        word = self.read(self.word_at(frame))
        return word & 3, word >> 2 & 3, word >> 4 & 0xFFFF, word >> 32 << 21

    def vma_at(self, index: int, area: int | None = None) -> int:
        """The file offset of a VMA of a snapshot area, by default of the current one."""
        area = self.header("epoch") & 1 if area is None else area
        return self.header(f"vmas_at{area}") + VMA.size * index

    def vmas(self) -> list[tuple[int, int, int, int, int, int]]:
        """The current VMAs: start, end, offset, flags, object, serial."""
        used = self.header(f"vmas_used{self.header('epoch') & 1}")
        at = self.vma_at(0)
        return list(VMA.iter_unpack(self.bytes[at : at + used * VMA.size]))

    def entries(self, frame: int) -> Iterator[tuple[int, int]]:
        """The entries of a table that are not 0, with their index."""
        at = self.frame_at(frame)
        view = self.bytes[at : at + PAGE].cast("Q")
        for index, value in enumerate(view.tolist()):
            if value:
                yield index, value
        view.release()

    def entry_at(self, level: int, host: int) -> int | None:
        """The file offset of the entry for host address `host` in a table of `level`, or None."""
        frame = 0
        for above in range(3, level - 1, -1):
            at = self.frame_at(frame) + 8 * (host >> 12 + 9 * above & 511)
            if above == level:
                return at
            value = self.read(at)
            if not value & P:
                return None
            frame = ((value & ADDRESS) - TABLES_BASE) // PAGE
        return None

    def tree(self) -> Tree:
        """Walks like the MMU: by present bits and addresses only."""
        tree = Tree({}, [Table(3, 0, 0, 0)], [])
        self._walk(tree, 0, 3, 0)
        return tree

    def _walk(self, tree: Tree, frame: int, level: int, start: int) -> None:
        for index, value in self.entries(frame):
            host = start + (index << 12 + 9 * level)
            address = value & ADDRESS
            flags = value & ~ADDRESS
            is_leaf = level == 0 or (level == 1 and value & PS)
            if is_leaf and value & (P | PROTNONE) in (P, PROTNONE):
                offset = host - HOST_BASE
                tree.leaves[offset] = Leaf(offset, address - DATA_BASE, flags)
            elif is_leaf or not value & P:
                tree.wrong.append(f"level {level} at {host:#x}: {value:#x} is nothing")
            else:
                below = (address - TABLES_BASE) // PAGE
                tree.tables.append(Table(level - 1, host, below, flags))
                if not 0 < below < self.header("frames_max"):
                    tree.wrong.append(f"level {level} at {host:#x}: no frame {below}")
                    continue
                self._walk(tree, below, level - 1, host)
