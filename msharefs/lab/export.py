"""A region's page tables for other programs: its entries as CSV, and as simulators read them.

Simulators run programs, and we have none: only which pages have an entry, and which of these were
accessed and written. What their formats want beyond that is left out, or said to be made up.
"""

from __future__ import annotations

import base64
import csv
import io
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from msharefs.native import lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from msharefs.client import Region

LEAF = np.dtype([("start", "<u8"), ("size", "<u8"), ("entry", "<u8")])
"""struct mm_leaf."""
INSTRUCTION = np.dtype(
    [
        ("ip", "<u8"),
        ("is_branch", "u1"),
        ("branch_taken", "u1"),
        ("destination_registers", "u1", 2),
        ("source_registers", "u1", 4),
        ("destination_memory", "<u8", 2),
        ("source_memory", "<u8", 4),
    ]
)
"""A record of a trace for ChampSim: struct input_instr in its inc/trace_instruction.h."""
COLUMNS = (
    "offset_bytes", "size_bytes", "address", "entry", "frame", "flags", "object",
    "object_offset_bytes",
)  # fmt: skip
FRAME_BITS = 0x000F_FFFF_FFFF_F000
PRESENT, ACCESSED, DIRTY = 1 << 0, 1 << 5, 1 << 6
BITS = {
    PRESENT: "P", 1 << 1: "RW", 1 << 2: "US", ACCESSED: "A", DIRTY: "D", 1 << 7: "PS",
    1 << 8: "PROTNONE", 1 << 63: "NX",
}  # fmt: skip
"""Of x86-64, but for PROTNONE, which is Linux's: a page without access, and so without P."""
_CODE = 0x400000
"""Where the loads and stores of a trace are said to be: one page, as they are to add nothing."""
_CODE_BYTES = 2048
_PIECE = 1 << 16  # records


class Mapping(NamedTuple):
    """A mapping: region offsets, what is mapped from where on, and the leaf entries in order."""

    start: int
    end: int
    name: str
    offset: int
    leaves: NDArray[Any]


def look(region: Region) -> list[Mapping]:
    """The mappings of an open region and their entries at this moment. OSError: as describe()."""
    return [
        Mapping(
            each["start"],
            each["end"],
            each["object"],
            each["start"] if each["object"] == "anon" else each["offset"],
            np.frombuffer(zlib.decompress(base64.b64decode(each["leaves"])), LEAF),
        )
        for each in region.describe("leaves")["ranges"]
    ]


def to_csv(mappings: list[Mapping]) -> Iterator[bytes]:
    """Every entry as a line, below a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for mapping in mappings:
        for at in range(0, len(mapping.leaves), _PIECE):
            for start, size, entry in mapping.leaves[at : at + _PIECE].tolist():
                offset = start - lib.HOST_BASE
                writer.writerow(
                    (
                        offset, size, f"{start:#x}", f"{entry:#018x}",
                        f"{(entry & FRAME_BITS) >> 12:#x}",
                        "|".join(name for bit, name in BITS.items() if entry & bit),
                        mapping.name, mapping.offset + offset - mapping.start,
                    )
                )  # fmt: skip
            yield text.getvalue().encode(errors="surrogateescape")
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def to_champsim(mappings: list[Mapping]) -> Iterator[bytes]:
    """A trace that loads once from each 4 KiB or 2 MiB page that was accessed, by address.

    To pages that were written it stores instead.
    """
    done = 0
    for mapping in mappings:
        used = mapping.leaves[mapping.leaves["entry"] & (PRESENT | ACCESSED) == PRESENT | ACCESSED]
        for at in range(0, len(used), _PIECE):
            piece = used[at : at + _PIECE]
            records = np.zeros(len(piece), INSTRUCTION)
            records["ip"] = _CODE + 4 * (done + np.arange(len(piece))) % _CODE_BYTES
            stored = piece["entry"] & DIRTY != 0
            records["destination_memory"][stored, 0] = piece["start"][stored]
            records["source_memory"][~stored, 0] = piece["start"][~stored]
            done += len(piece)
            yield records.tobytes()


def to_virtuoso(mappings: list[Mapping]) -> Iterator[bytes]:
    """The mappings, as the MimicOS of Virtuoso reads them beside a trace: a .vma file."""
    for mapping in mappings:
        start, end = lib.HOST_BASE + mapping.start, lib.HOST_BASE + mapping.end
        yield b"%012x-%012x\n" % (start, end)


FORMATS: dict[str, Callable[[list[Mapping]], Iterator[bytes]]] = {
    "csv": to_csv,
    "champsim": to_champsim,
    "virtuoso": to_virtuoso,
}
