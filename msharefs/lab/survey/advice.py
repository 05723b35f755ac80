"""What would help on this kernel, today: from what was counted, each with its figure and its price.

Nothing is tried. The figures are page tables that would not be there; the prices are memory, what
must be set or started anew, and what gets slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msharefs import proc, units
from msharefs.lab.plan import TABLE_BYTES

from .objects import ANON, SHM, SYSV

if TYPE_CHECKING:
    from collections.abc import Iterator

HUGE_BYTES = 2 << 20
_GIGABYTE = 1 << 30
BUDGET_BYTES = 1 << 20
_OBJECTS = 3
_WORTH = 0.01  # of all page tables
_LINK_SECONDS = 0.3e-6  # a page that comes back under a budget: native/README.md
_SHMEM = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_HUGETLB = {
    "postgres": "huge_pages = on in postgresql.conf",
    "oracle": "USE_LARGE_PAGES = ONLY",
    "mariadbd": "large-pages",
    "mysqld": "large-pages",
}


def advice(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Ways that are worth it, the largest first."""
    made = [
        one
        for what in found["objects"][:_OBJECTS]
        for one in _for_object(what)
    ]  # fmt: skip
    made += [one for program in found["programs"][:_OBJECTS] for one in _for_program(program)]
    worth = _WORTH * found["vmpte_bytes"]
    return sorted(
        (one for one in made if one["saved_bytes"] > worth), key=lambda one: -one["saved_bytes"]
    )


def _for_object(what: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if what["class"] not in {ANON, SYSV, SHM} or what["processes"] < 1:
        return
    pte = what["own_pte_tables_bytes"]
    yield _thp(what, pte)
    yield _hugetlb(what, pte)
    if what["class"] == ANON:
        yield _budget(what, pte)


def _one(way: str, what: str, saved: float, price: str, how: str) -> dict[str, Any]:
    return {"way": way, "for": what, "saved_bytes": round(saved), "price": price, "how": how}


def _thp(what: dict[str, Any], pte: int) -> dict[str, Any]:
    most = what["pte_tables"] * HUGE_BYTES
    resident = what["resident_bytes"]
    if resident is None:
        price = f"up to {units.size(most)} of memory, where now only touched pages are"
    else:
        more = max(0, most - resident)
        price = f"up to {units.size(more)} more memory" if more else "no more memory"
    return _one(
        "transparent huge pages",
        what["name"],
        pte,
        f"{price}; no effect where memory is fragmented",
        f"{_SHMEM.parent.name}/{_SHMEM.name} is {_setting()}: within_size or always, or advise "
        "with madvise(MADV_HUGEPAGE); a tmpfs has huge=",
    )


def _setting() -> str:
    try:
        return _SHMEM.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "not there: this kernel has none for shared memory"


def _hugetlb(what: dict[str, Any], pte: int) -> dict[str, Any]:
    pages = -(-what["bytes"] // HUGE_BYTES)
    # Whole gigabytes at a multiple of one: huge_pmd_share().
    linked = (what["bytes"] // _GIGABYTE) * max(0, what["processes"] - 1) * TABLE_BYTES
    pmd = min(linked, what["own_tables_bytes"] - pte)
    free = proc.meminfo().get("HugePages_Free", 0)
    programs = [_HUGETLB[name] for name in what["programs"] if name in _HUGETLB]
    setting = {ANON: "MAP_HUGETLB", SYSV: "SHM_HUGETLB", SHM: "MFD_HUGETLB"}[what["class"]]
    return _one(
        "hugetlb",
        what["name"],
        pte + pmd,
        f"{pages:,} pages of 2 MiB set aside for it alone ({free:,} are free), which are never "
        "swapped; a restart",
        f"vm.nr_hugepages, and {programs[0] if programs else setting}",
    )


def _budget(what: dict[str, Any], pte: int) -> dict[str, Any]:
    kept = what["processes"] * BUDGET_BYTES
    microseconds = _LINK_SECONDS * 1e6 * 512
    return _one(
        "a page-table budget",
        what["name"],
        max(0, pte - kept),
        f"2 MiB that come back cost up to {microseconds:.0f} us; a restart",
        f"MSHAREFS_PT_BUDGET={units.size(BUDGET_BYTES)[0]}M msharefs run --adopt-anon "
        f"{max(1, what['bytes'] >> 21)}M -- ...",
    )


def _for_program(program: dict[str, Any]) -> Iterator[dict[str, Any]]:
    processes = program["processes"]
    if processes < 2:
        return
    each = program["vmpte_bytes"] / processes
    fewer = processes // 2
    yield _one(
        "fewer processes",
        program["program"],
        fewer * each,
        f"half as many at once: {processes - fewer:,}; others wait",
        f"a pool, or a lower limit: each costs {units.size(each)}",
    )
