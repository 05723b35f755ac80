"""The document of a survey: what ``msharefs survey --json`` writes. Sizes in bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from msharefs import proc
from msharefs.lab.head import head
from msharefs.lab.plan import TABLE_BYTES

from . import errors
from .advice import advice
from .objects import CLASSES, HUGETLB, resident
from .spans import LEVELS
from .survey import Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .survey import Notify

KIND = "msharefs survey"
VERSION = 1
_PGD = 1  # table of a host mm that no process has counted in VmPTE


def survey(
    pids: list[int], step: Callable[[str, int], Notify], *, exact: bool = False
) -> dict[str, Any]:
    """Look at these processes; `step` begins a bar of progress. `exact`: at every page."""
    started, cpu = time.monotonic(), time.process_time()
    found = Survey(pids, step("mappings", len(pids)), exact=exact)
    found.look(step("page tables", len(found.census.seen)))
    made = document(found)
    made["seconds"] = time.monotonic() - started
    made["cpu_seconds"] = time.process_time() - cpu
    return made


def document(found: Survey) -> dict[str, Any]:
    """All that was counted."""
    census = found.census
    count = len(found.objects.all)
    moved = _Moved(found)
    rest = found.inplace.by_object(found.inplace.rest.spare(found.inplace.codes()))
    spread = errors.of_spans(found)
    objects = [_object(found, moved, rest, number, spread[number]) for number in range(count)]
    objects = [one for one in objects if one["own_tables_bytes"] or one["saved_bytes"] > 0]
    objects.sort(key=lambda one: -one["saved_bytes"])
    linked = _bytes(moved.linked.sum())
    made = {
        "kind": KIND,
        "version": VERSION,
        **head(),
        "processes": census.processes,
        "looked_at": found.looked,
        "ended": census.ended,
        "unseen": [
            {"user": user, "processes": len(sizes), "vmpte_bytes": sum(sizes)}
            for user, sizes in sorted(census.unseen.items())
        ],
        "hidden": {"processes": census.hidden, "more": proc.hides()},
        "sees": {"frames": found.frames, "scans": found.scans},
        "vmpte_bytes": census.vmpte_bytes,
        "looked_vmpte_bytes": sum(process.vmpte_bytes for process in census.seen),
        "linked_bytes": linked,
        "counted_bytes": _bytes(found.moved.counted),
        "saved_bytes": sum(max(0, one["saved_bytes"]) for one in objects),
        "error_bytes": _bytes(errors.bar(float(spread.sum()) + errors.of_processes(found))),
        "sampled": {
            "processes": found.looked < census.processes - sum(map(len, census.unseen.values())),
            "spans": bool(found.drawn and found.drawn.sizes),
        },
        "classes": [_class(objects, kind) for kind in CLASSES],
        "unwritten_bytes": _bytes(_unshared(found)),
        "schemes": list(schemes(found, moved)),
        "objects": objects,
        "programs": [
            {
                "program": name,
                "processes": program.processes,
                "vmpte_bytes": program.vmpte_bytes,
                "gone_bytes": _bytes(program.estimate()[0]),
            }
            for name, program in sorted(
                found.programs.items(), key=lambda pair: -pair[1].vmpte_bytes
            )
        ],
    }
    return {**made, "advice": advice(made)}


def _bytes(tables: float) -> int:
    return round(float(tables) * TABLE_BYTES)


class _Moved:
    """What the series would save, by level and object, in tables."""

    def __init__(self, found: Survey) -> None:
        count = len(found.objects.all)
        self.linked = found.moved.linked()
        self.gone = found.moved.gone
        self.host = np.array([tally.different(count) for tally in found.moved.host])
        self.used = self.host.sum(axis=0) > 0

    def saved(self, levels: Sequence[int]) -> np.ndarray:
        """By object, when tables of these levels are shared: negative where it does not pay."""
        saved = (self.gone - self.host)[list(levels)].sum(axis=0)
        if 1 in levels:
            saved -= self.linked
        if 2 in levels:
            saved -= _PGD * self.used
        found: np.ndarray = saved
        return found


def _object(
    found: Survey, moved: _Moved, rest: np.ndarray, number: int, variance: float
) -> dict[str, Any]:
    what = found.objects.all[number]
    host = moved.host[:, number].sum() + _PGD * moved.used[number]
    by_series = max(0.0, float(moved.saved(LEVELS)[number]))
    in_place = {kind: _bytes(rest[number, place]) for place, kind in enumerate(CLASSES)}
    return {
        "name": what.name,
        "class": what.kind,
        "path": what.path,
        "bytes": what.end,
        "resident_bytes": resident(what),
        "processes": what.processes,
        "programs": dict((+what.programs).most_common(5)),
        "own_tables_bytes": _bytes(found.moved.own[:, number].sum()),
        "pte_tables": round(float(moved.host[0, number])),
        "own_pte_tables_bytes": _bytes(found.moved.own[0, number]),
        "gone_bytes": _bytes(moved.gone[:, number].sum() - moved.linked[number]),
        "linked_bytes": _bytes(moved.linked[number]),
        "page_table_bytes": _bytes(host),
        "saved_bytes": _bytes(by_series) + sum(in_place.values()),
        "error_bytes": _bytes(errors.bar(variance)),
        "by_class": {
            kind: size + (_bytes(by_series) if kind == what.kind else 0)
            for kind, size in in_place.items()
        },
    }


def _class(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    own = [one for one in objects if one["class"] == kind]
    return {
        "class": kind,
        "what": CLASSES[kind],
        "objects": len(own),
        "own_tables_bytes": sum(one["own_tables_bytes"] for one in own),
        "page_table_bytes": sum(one["page_table_bytes"] for one in own),
        "saved_bytes": sum(one["by_class"][kind] for one in objects),
    }


def _unshared(found: Survey) -> float:
    """PTE tables that would be the same, had nothing been written since fork."""
    codes = found.inplace.codes()
    made = found.inplace
    return float(made.unwritten.spare(codes).sum() - made.rest.spare(codes).sum())


SCHEMES = {
    "series": "512 GiB, a linked PUD page: the series; memory moved into regions, any address",
    "moved 1G": "1 GiB, a linked PMD page; memory moved into regions, any address",
    "moved 2M": "2 MiB, a linked PTE page; memory moved into regions, any address",
    "in place 512G": "512 GiB, in place, same address",
    "in place 1G": "1 GiB, in place, same address",
    "in place 2M": "2 MiB, in place, same address, as Android's ptshare",
    "any address 512G": "512 GiB, in place, any address",
    "any address 1G": "1 GiB, in place, any address",
    "any address 2M": "2 MiB, in place, any address that starts at the same place of a table",
    "hugetlb": "PMD tables of hugetlbfs that Linux shares now: saved already",
}


def schemes(found: Survey, moved: _Moved) -> list[dict[str, Any]]:
    """What each way to share tables would save, by class."""
    made, codes = found.inplace, found.inplace.codes()
    kinds = [what.kind for what in found.objects.all]
    named: dict[str, dict[str, float]] = {}
    for name, levels in (("series", (0, 1, 2)), ("moved 1G", (0, 1)), ("moved 2M", (0,))):
        named[name] = dict.fromkeys(CLASSES, 0.0)
        for kind, saved in zip(kinds, np.maximum(0, moved.saved(levels)), strict=True):
            named[name][kind] += saved
    for name, tallies in (("in place", made.same), ("any address", made.any)):
        for size, level in (("512G", 2), ("1G", 1), ("2M", 0)):
            saved = made.by_kind(tallies[level].spare(codes))
            if level:
                saved[HUGETLB] = max(0.0, saved[HUGETLB] - float(moved.linked.sum()))
            named[f"{name} {size}"] = saved
    named["hugetlb"] = {HUGETLB: float(moved.linked.sum())}
    return [
        {
            "scheme": name,
            "what": what,
            "saved_bytes": _bytes(sum(named[name].values())),
            "by_class": {kind: _bytes(size) for kind, size in named[name].items() if size},
        }
        for name, what in SCHEMES.items()
    ]
