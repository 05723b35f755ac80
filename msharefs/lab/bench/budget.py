"""Keeping the real page tables small: what a budget saves, and what it costs."""

from __future__ import annotations

from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING

from msharefs import client
from msharefs.lab.workers import PAGE_BYTES, Workers

from .backends import BudgetRegion
from .scenario import Scenario, Setting, ask_all, filled

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from contextlib import AbstractContextManager

    from msharefs.lab.workers import Answer

    from .backends import Backends, Memory
    from .figures import Sample

WINDOW_PAGES = (256 << 20) // PAGE_BYTES
PASSES = 100
ZIPF_VISITS = 2_000_000
# At the start all spans are new, and each drives out one that will come back: the question is
# whether the budget learns from that.
ZIPF_PASSES = 10


class Budget(Scenario):
    """Processes with a budget of page tables for the region, far too small for all they touch.

    Each works in a window of its own for 100 passes, then moves on to the next until it has seen
    all; or all of them visit single pages of the whole region by Zipf's law, which no budget of
    this size can hold: it grows. `kept_bytes` is the size of the budgets at the end, `grown` how
    often they grew, and the spans are those that were given back and that came back; for each
    process.
    """

    name = "budget"
    title = "real page tables kept within a budget"
    rows = ("msharefs", "msharefs-budget", "memfd")
    cases = ({"access": "moving window"}, {"access": "zipf, whole region"})
    processes = (64,)
    size = 4 << 30
    rounds = 1
    also = ("vmpte_bytes",)

    def ground(self, backends: Backends, row: str, size: int) -> AbstractContextManager[Memory]:
        """The memory, filled by a process that stays, with tables of its own."""
        return filled(backends[row], size)

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Nothing more: each round has new processes."""
        yield lambda: self._trial(setting)

    def _trial(self, setting: Setting) -> Sample:
        memory = setting.ground
        with Workers(setting.processes, memory.pass_fds) as workers:
            before = workers.ask("report")
            ask_all(workers, memory.take)
            moving = setting.case["access"] == "moving window"
            answers = list(_wander(setting, workers) if moving else _zipf(setting, workers))
            last = workers.ask("report")
            kept = _kept(memory.path, setting.row, workers.pids)
        pages = sum(answer.pages for of_all in answers for answer in of_all)
        return {
            "ns_per_page": sum(a.nanoseconds for of_all in answers for a in of_all) / pages,
            "faults_per_page": sum(
                answer.minor_faults.growth for of_all in answers for answer in of_all
            )
            / pages,
            "cpu_ns_per_page": sum(
                answer.user_microseconds.growth + answer.system_microseconds.growth
                for of_all in answers
                for answer in of_all
            )
            * 1000
            / pages,
            "vmpte_bytes": sum(
                now.vmpte_bytes.after - first.vmpte_bytes.before
                for first, now in zip(before, last, strict=True)
            )
            / len(workers),
            **kept,
        }


def _kept(path: str, row: str, pids: Container[int]) -> Sample:
    """The means of the clients' own figures of their budgets."""
    if row != BudgetRegion.name:
        return {}
    with client.open(path) as region:
        clients = [entry for entry in region.describe("clients") if entry["pid"] in pids]
    figures = {
        "kept_bytes": "budget_bytes",
        "grown": "budget_grown",
        "evicted_spans": "evicted_spans",
        "refaulted_spans": "refaulted_spans",
    }
    return {name: fmean(entry[key] for entry in clients) for name, key in figures.items()}


def _wander(setting: Setting, workers: Workers) -> Iterator[list[Answer]]:
    window = min(WINDOW_PAGES, setting.pages)
    windows = setting.pages // window
    for move in range(windows):

        def order(number: int, move: int = move) -> str:
            first = (number + move) % windows * window
            return f"order {setting.seed + number} {first} {window} {window} random"

        workers.ask(order)
        yield workers.ask(f"touch {PASSES} read")


def _zipf(setting: Setting, workers: Workers) -> Iterator[list[Answer]]:
    visits = min(ZIPF_VISITS, 2 * setting.pages)
    workers.ask(lambda number: f"order {setting.seed + number} 0 {setting.pages} {visits} zipf")
    yield workers.ask(f"touch {ZIPF_PASSES} read")
