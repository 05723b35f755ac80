"""A map of a region's page tables: for every 2 MiB how full its PTE table is, and who has it.

A 2 MiB page counts as full.

How full it is comes from the host mm. Who has it is looked up in the clients' own, real page tables
(PAGEMAP_SCAN of Linux 6.7), so it shows what each can reach at this moment without a fault.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from msharefs.native import lib

from .pagemap import PRESENT, Pagemap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from msharefs.client import Region

    Ranges = Sequence[tuple[int, int]]

CELL_BYTES = 1 << 21
ENTRIES = 512


def look(region: Region) -> dict[str, Any]:
    """The map of an open region, asked of its server, as a document.

    `ranges` has the mapped parts; in each, `present` is the number of entries of each cell and
    `who` an index into `groups`, lists of clients' numbers. OSError: as from `Region.describe`, and
    ENOTTY on a kernel before 6.7.
    """
    return _map(
        os.path.basename(region.path),
        region.describe("pagetable"),
        clients := [each for each in region.describe("clients") if each["kind"] != "unseen"],
        region.maps(),
        [_cells(client) for client in clients],
    )


def draw(
    name: str,
    tables: dict[str, Any],
    clients: list[dict[str, Any]],
    vmas: Sequence[Mapping[str, Any]],
    held: Sequence[Ranges | None],
) -> dict[str, Any]:
    """A map of what was seen before: as `look`, with the cells that each client had, or None."""
    return _map(name, tables, clients, vmas, [_each(ranges) for ranges in held])


def _each(ranges: Ranges | None) -> set[int] | None:
    return None if ranges is None else {cell for part in ranges for cell in range(*part)}


def _map(
    name: str,
    tables: dict[str, Any],
    clients: list[dict[str, Any]],
    vmas: Sequence[Mapping[str, Any]],
    held: list[set[int] | None],
) -> dict[str, Any]:
    lowest = next(level["tables"] for level in tables["levels"] if level["level"] == "pte")
    present = {(table["start"] - lib.HOST_BASE) // CELL_BYTES: table["present"] for table in lowest}
    present |= {(page - lib.HOST_BASE) // CELL_BYTES: ENTRIES for page in tables["huge_pages"]}
    holders, unseen = _holders(held, set(present))
    groups: dict[tuple[int, ...], int] = {(): 0}
    ranges = [
        {
            "start": first * CELL_BYTES,
            "present": [present.get(cell, 0) for cell in range(first, last)],
            "who": [
                groups.setdefault(tuple(holders.get(cell, ())), len(groups))
                for cell in range(first, last)
            ],
        }
        for first, last in _mapped(vmas)
    ]
    return {
        "name": name,
        "cell_bytes": CELL_BYTES,
        "clients": [{"pid": client["pid"], "comm": client["comm"]} for client in clients],
        "unseen": unseen,
        "groups": [list(group) for group in groups],
        "ranges": ranges,
    }


def _mapped(vmas: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Cells that are at least partly mapped, as ranges that do not adjoin."""
    found: list[tuple[int, int]] = []
    for vma in vmas:
        first, last = vma["start"] // CELL_BYTES, -(-vma["end"] // CELL_BYTES)
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _holders(
    held: list[set[int] | None], tables: set[int]
) -> tuple[dict[int, list[int]], list[int]]:
    """Who has pages of which cell; and the clients whose page tables we may not see."""
    holders: dict[int, list[int]] = {}
    for number, cells in enumerate(held):
        for cell in (cells or set()) & tables:
            holders.setdefault(cell, []).append(number)
    return holders, [number for number, cells in enumerate(held) if cells is None]


def windows(client: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Where a client has which part of the region: addresses, bytes, region offsets."""
    whole = (client["base"], client["size"], client["offset"])
    parts: list[tuple[int, int, int]] = client.get("parts", [whole])
    return parts


def _cells(client: dict[str, Any]) -> set[int] | None:
    """Of which cells a client has pages; None: we may not see it, or it has ended."""
    try:
        return {cell for part in windows(client) for cell in held_cells(client["pid"], *part)}
    except (PermissionError, ProcessLookupError):
        return None


def held_cells(pid: int, base: int, size: int, offset: int = 0) -> Iterator[int]:
    """Cells of which a process has a page in its own tables, in its window [base, base+size).

    The window begins at region offset `offset`. Of adopted memory only a part may be there, and
    the rest may lie past the end of the address space.

    OSError: EPERM for another user's process, ESRCH if it is gone; ENOTTY: old kernel.
    """
    last = -1
    with Pagemap(pid) as table:
        for runs in table.runs(base, min(base + size, lib.HOST_END)):
            for start, stop, what in runs.tolist():
                if what & PRESENT:
                    first = max(last + 1, (start - base + offset) // CELL_BYTES)
                    last = max(last, (stop - 1 - base + offset) // CELL_BYTES)
                    yield from range(first, last + 1)


def holder(group: list[int], clients: int) -> str:
    """Who has a cell, in one word: "nobody", "all", "several", or the client's number."""
    if not group:
        return "nobody"
    if len(group) == 1:
        return str(group[0])
    return "all" if len(group) == clients else "several"
