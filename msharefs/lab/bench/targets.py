"""The figures that msharefs is meant to reach, and those that a run of the benchmark measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scenario import Case

RATIO = ""
"""For `Target.figure`: the scenario's headline."""


@dataclass(frozen=True)
class Target:
    """A bound for one figure of one row of a scenario.

    The case with the most processes is judged, and if there are several of those, the worst.
    """

    what: str
    scenario: str
    limit: float
    row: str = "msharefs"
    case: Case = field(default_factory=dict)
    figure: str = RATIO
    absolute: bool = False
    """The figure itself and not its ratio to the baseline's."""
    throughput: bool = False
    """The work done in a time: the inverse of the ratio, and `limit` is the least."""
    size: int | None = None
    """Bytes; the bound holds for this much memory only."""


TARGETS = (
    Target(
        "attach and write all of a populated region", "populated", 0.25,
        case={"access": "write", "order": "sequential"},
    ),
    Target("sequential first touch", "first-touch", 1.0, case={"order": "sequential"}),
    Target(
        "the same with -o fault_around=1", "first-touch", 1.15, "msharefs-strict",
        case={"order": "sequential"},
    ),
    Target("random first touch", "first-touch", 1.15, case={"order": "random"}),
    Target(
        "pages filled for each one touched at random", "first-touch", 1, case={"order": "random"},
        figure="filled_per_touched", absolute=True,
    ),
    Target(
        "random access to a populated region, cold", "populated", 1.1, case={"order": "random"}
    ),
    Target("Zipf over a populated region, cold", "populated", 1.1, case={"order": "zipf"}),
    Target("loads and stores to mapped pages (5 % is noise)", "steady", 1.05),
    Target("attach and detach", "attach", 15),
    Target("fork of a process with it attached, whose child exits", "fork", 1.5,
           case={"child": "nothing"}),
    Target(
        "page tables of a region of 1 GiB, whoever attaches", "clients", 2.02 * (1 << 20),
        figure="page_table_bytes", absolute=True, size=1 << 30,
    ),
    Target(
        "table frames that further clients add", "clients", 0,
        figure="added_table_frames", absolute=True,
    ),
    Target(
        "bookkeeping for a further client", "clients", 4.5 * 1024,
        figure="bookkeeping_bytes", absolute=True,
    ),
    Target(
        "moving windows, budget=1M: VmPTE", "budget", 0.15, "msharefs-budget",
        case={"access": "moving window"}, figure="vmpte_bytes", size=4 << 30,
    ),
    Target(
        "moving windows, budget=1M: throughput", "budget", 0.9, "msharefs-budget",
        case={"access": "moving window"}, throughput=True,
    ),
    Target(
        "Zipf over all of it, budget=1M: throughput", "budget", 0.95, "msharefs-budget",
        case={"access": "zipf, whole region"}, throughput=True,
    ),
    Target("protect, against the bare UFFDIO_WRITEPROTECT calls", "protect", 1.5),
    Target(
        "ioctl round trip, median", "ioctl", 40_000, case={"call": "unmap a hole"},
        figure="p50_ns", absolute=True,
    ),
    Target(
        "map and unmap of 2 MiB, median", "ioctl", 100_000, case={"call": "map and unmap 2 MiB"},
        figure="p50_ns", absolute=True,
    ),
)  # fmt: skip
"""All figures that a run of the benchmark is held to; workloads have theirs (workload.py)."""


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets that a run (the document of `run.run`) has figures for, each with its verdict."""
    scenarios = {scenario["name"]: scenario for scenario in found["scenarios"]}
    return [
        judged
        for target in TARGETS
        if target.scenario in scenarios
        for judged in [_judge(target, scenarios[target.scenario])]
        if judged is not None
    ]


def _judge(target: Target, scenario: dict[str, Any]) -> dict[str, Any] | None:
    if target.size not in (None, scenario["size_bytes"]):
        return None
    cases = [
        case
        for case in scenario["cases"]
        if target.case.items() <= case["case"].items() and target.row in case["rows"]
    ]
    most = max((case["processes"] for case in cases), default=0)
    measured = [
        (value, case)
        for case in cases
        if case["processes"] == most
        for value in [_measured(target, case["rows"][target.row])]
        if value is not None
    ]
    if not measured:
        return None
    worst = min if target.throughput else max
    value, case = worst(measured, key=lambda one: one[0])
    return {
        "what": target.what,
        "scenario": scenario["name"],
        "case": case["case"],
        "row": target.row,
        "figure": target.figure or scenario["headline"],
        "unit": "absolute" if target.absolute else "ratio",
        "at_least": target.throughput,
        "target": target.limit,
        "measured": value,
        "met": value >= target.limit if target.throughput else value <= target.limit,
        "processes": most,
        "size_bytes": scenario["size_bytes"],
        "rounds": scenario["rounds"],
    }


def _measured(target: Target, row: dict[str, Any]) -> float | None:
    spread: dict[str, float] | None
    if target.absolute:
        spread = row["figures"].get(target.figure)
    else:
        spread = row["ratios"].get(target.figure) if target.figure else row["ratio"]
    if spread is None or (target.throughput and not spread["median"]):
        return None
    return 1 / spread["median"] if target.throughput else spread["median"]
