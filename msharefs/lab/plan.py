"""The future cost of page tables: the arithmetic of the series' cover letter, level by level.

Every client that maps a window has tables of its own for the pages it touches; with a region the
host mm has them once. A window is taken to be aligned as a region is (512 GiB), which is the best
case for the unshared side too. x86-64, four levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .survey.objects import SHARED

TABLE_BYTES = 4096
ENTRY_BYTES = 8
ENTRIES = 512
PAGE_SIZES = {"4K": 1 << 12, "2M": 1 << 21, "1G": 1 << 30}
# Bytes that one entry of a table spans, from the leaves up. The top level is not here: a process
# has its PGD anyway.
LEVELS = {"pte": 1 << 12, "pmd": 1 << 21, "pud": 1 << 30}
PGD_SPAN = 1 << 39

# native/core/layout.h: what the emulator keeps for an attached client (struct mm_slot).
SLOT_BYTES = 192


@dataclass(frozen=True)
class Touched:
    """The share of the window's pages that somebody touches, 0 to 1, and its source."""

    client: float
    """By each client: decides what it pays unshared."""
    anybody: float
    """By any of them: decides what the host mm holds."""
    source: str

    @classmethod
    def assume(cls, fraction: float, clients: int) -> Touched:
        """Each client touches `fraction`; nobody knows which pages, so all count as different."""
        return cls(fraction, min(1.0, fraction * clients), "assumed")


def tables(size: int, page: int, touched: float = 1.0) -> dict[str, int]:
    """Tables a mapping of `size` bytes needs below the PGD, by level, the upper levels last.

    `page` is the page size in bytes; leaves of 2 MiB are entries of a PMD table, so there is no PTE
    table then. The share `touched` lies in one piece; `scattered` is the other extreme.
    """
    length = math.ceil(size * touched)
    return {
        level: math.ceil(length / (span * ENTRIES)) if span >= page else 0
        for level, span in LEVELS.items()
    }


def scattered(size: int, page: int, touched: float) -> dict[str, int]:
    """As `tables`, but the touched pages lie as far apart as they can: the most tables."""
    pages = math.ceil(size / page * touched)
    return {level: min(most, pages) for level, most in tables(size, page).items()}


def host_mm(size: int, page: int = PAGE_SIZES["4K"], touched: float = 1.0) -> dict[str, int]:
    """Tables of a region's host mm, by level: it is an mm of its own, so it has a PGD too."""
    return {**tables(size, page, touched), "pgd": 1}


def count_bytes(found: dict[str, int]) -> int:
    """Memory of tables by level."""
    return sum(found.values()) * TABLE_BYTES


def client_share(table_bytes: float, size: int) -> float:
    """The share of `size` bytes for which a process has measured tables of 4 KiB pages.

    Its upper tables may also serve other mappings and be no growth, so only the certain ones are
    subtracted: one PMD table for each 512 PTE tables. That leaves at most two tables too many.
    """
    pte = table_bytes / TABLE_BYTES
    pte -= pte // (ENTRIES + 1)
    return min(1.0, pte / tables(size, PAGE_SIZES["4K"])["pte"])


def host_share(table_bytes: float, size: int) -> float:
    """The share of `size` bytes that the measured tables of a host mm stand for."""
    pte = table_bytes / TABLE_BYTES - sum(host_mm(size, PAGE_SIZES["2M"]).values())
    return min(1.0, max(0.0, pte / tables(size, PAGE_SIZES["4K"])["pte"]))


@dataclass(frozen=True)
class Measured:
    """What a plan learns from a run."""

    size: int
    clients: int
    touched: Touched
    classes: list[dict[str, Any]] = field(default_factory=list)
    """Page tables of all that was measured, by the classes of memory that a survey has."""


def measured(document: Any) -> Measured:
    """From the JSON of `bench pagetables`, `run --report`, `survey`. ValueError: it is neither."""
    kind = document.get("kind") if isinstance(document, dict) else None
    try:
        if kind == "msharefs bench":
            return _from_bench(document)
        if kind == "msharefs run":
            return _from_report(document)
        if kind == "msharefs survey":
            return _from_survey(document)
    except (KeyError, TypeError, StopIteration, ZeroDivisionError) as error:
        raise ValueError(f"this {kind} has no figures of page tables: {error!r}") from None
    raise ValueError("this is no JSON of `msharefs bench`, `run --report` or `survey`")


def _from_bench(document: dict[str, Any]) -> Measured:
    found = next(one for one in document["scenarios"] if one["name"] == "pagetables")
    case = max(found["cases"], key=lambda case: case["processes"])
    size, clients = found["size_bytes"], case["processes"]
    plain, region = (
        case["rows"][row]["figures"]["tables_bytes"]["median"] for row in ("memfd", "msharefs")
    )
    touched = Touched(
        client_share(plain / clients, size),
        host_share(region, size),
        f"measured, {clients} processes",
    )
    return Measured(size, clients, touched)


def _from_report(document: dict[str, Any]) -> Measured:
    size, clients = document["mapped_bytes"], document["clients"]
    touched = Touched(
        client_share(document["own_tables_bytes"] / clients, size),
        host_share(document["page_table_bytes"], size),
        f"measured, {clients} processes",
    )
    return Measured(size, clients, touched, _classes(document))


def _classes(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those with tables. What would go of private memory is shared where it is."""
    found = []
    for one in document.get("classes", ()):  # older reports have none
        own, held = one["own_tables_bytes"], one["page_table_bytes"]
        saved = one.get("saved_bytes", max(0, own - held))
        if own or saved:
            found.append(
                {
                    "class": one["class"],
                    "what": one["what"],
                    "own_tables_bytes": own,
                    "page_table_bytes": held,
                    "saved_bytes": saved,
                }
            )
    return found


def has_window(document: Any) -> bool:
    """Whether most of what sharing would save is of shared memory: of a window that all map.

    Of a zygote's processes it is not. What they have in common is private memory.
    """
    if not isinstance(document, dict) or document.get("kind") != "msharefs survey":
        return True
    of_shared = sum(one["saved_bytes"] for one in document["classes"] if one["class"] in SHARED)
    return bool(2 * of_shared >= document["saved_bytes"])


def grown(document: dict[str, Any], processes: int) -> dict[str, Any]:
    """The page tables of a survey's processes, had they been so many, and alike.

    What would go grows with those that are not the first. In bytes.
    """
    before = document["processes"]
    more, others = processes / before, (processes - 1) / (before - 1)
    tables = document["vmpte_bytes"] - document["linked_bytes"]
    classes = [
        {
            "class": one["class"],
            "what": one["what"],
            "surveyed_bytes": one["saved_bytes"],
            "saved_bytes": round(one["saved_bytes"] * others),
        }
        for one in document["classes"]
        if one["saved_bytes"]
    ]
    return {
        "surveyed_processes": before,
        "surveyed_bytes": tables,
        "processes": processes,
        "vmpte_bytes": round(tables * more),
        "saved_bytes": sum(one["saved_bytes"] for one in classes),
        "classes": classes,
    }


def _from_survey(document: dict[str, Any]) -> Measured:
    """Of the shared object with which most would be saved."""
    found = next(
        one for one in document["objects"] if one["own_tables_bytes"] and one["processes"] > 1
    )
    size, clients = found["bytes"], found["processes"]
    tables_each = found["own_pte_tables_bytes"] / TABLE_BYTES / clients
    most = tables(size, PAGE_SIZES["4K"])["pte"]
    touched = Touched(
        min(1.0, tables_each / most),
        min(1.0, found["pte_tables"] / most),
        f"surveyed, {clients} processes with {found['name']}",
    )
    return Measured(size, clients, touched, _classes(document))


def ways(size: int, clients: int, touched: Touched) -> dict[str, int]:
    """Bytes of page tables of all clients together, for each way to map the same window."""
    small, large, giant = PAGE_SIZES.values()
    each = {page: count_bytes(tables(size, page, touched.client)) for page in (small, large, giant)}
    # hugetlb shares the PMD tables of whole, aligned gigabytes among all who map them
    # (huge_pmd_share()), so a client pays the PUD table only.
    pmd_shared = tables(size // giant * giant, large, touched.anybody)["pmd"] * TABLE_BYTES
    own = tables(size, large, touched.client)
    rest = tables(size % giant, large, touched.client)["pmd"]
    return {
        "unshared 4 KiB pages": clients * each[small],
        "unshared 2 MiB pages (THP)": clients * each[large],
        "hugetlb 2 MiB, the kernel shares PMD tables": (
            pmd_shared + clients * (own["pud"] + rest) * TABLE_BYTES
        ),
        "hugetlb 1 GiB": clients * each[giant],
        "mshare 4 KiB pages": count_bytes(host_mm(size, small, touched.anybody)),
        "mshare 2 MiB pages": count_bytes(host_mm(size, large, touched.anybody)),
    }


def plan(size: int, clients: int, page: int, touched: Touched) -> dict[str, Any]:
    """The whole plan as a document: what ``msharefs plan --json`` writes. Sizes in bytes."""
    own, most = tables(size, page, touched.client), scattered(size, page, touched.client)
    host = host_mm(size, page, touched.anybody)
    unshared, shared = clients * count_bytes(own), count_bytes(host)
    return {
        "size_bytes": size,
        "clients": clients,
        "page_bytes": page,
        "touched": {
            "by_each_client": touched.client,
            "by_anybody": touched.anybody,
            "source": touched.source,
        },
        "unshared": {
            "tables_each": own,
            "bytes_each": count_bytes(own),
            "bytes": unshared,
            "bytes_if_scattered": clients * count_bytes(most),
        },
        "shared": {"tables": host, "bytes": shared},
        "each_client_still": {
            "kernel_bytes": math.ceil(size / PGD_SPAN) * ENTRY_BYTES,
            "emulator_slot_bytes": SLOT_BYTES,
            "emulator_own_tables_bytes": count_bytes(own),
        },
        "ways": ways(size, clients, touched),
        "ratio": unshared / shared,
    }
