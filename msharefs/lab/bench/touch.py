"""Touching memory: for the first time, when others have filled it, and again and again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from msharefs.lab.workers import Workers

from .scenario import Case, Scenario, Setting, ask_all, cost, filled, middle, orders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from .backends import Backends, Memory
    from .figures import Sample

KINDS = (
    "memfd", "thp", "hugetlb", "sysv", "msharefs", "msharefs-strict", "msharefs-watched",
    "msharefs-native",
)  # fmt: skip
# In random order neighbours are rarely touched as well: a part of all pages, each at most once.
RANDOM_SHARE = 4


def pages_of(setting: Setting, number: int) -> tuple[int, int]:
    """First page and number of pages of one of several processes that share the work."""
    share = setting.pages // setting.processes
    return number * share, share


def visits(case: Case, pages: int) -> int:
    """How many of `pages` are visited, or how many visits there are."""
    return pages // RANDOM_SHARE if case["order"] == "random" else pages


class FirstTouch(Scenario):
    """Pages that nobody has touched before; several processes have a part each."""

    name = "first-touch"
    title = "first touch of empty memory"
    rows = KINDS
    cases = orders("sequential", "random", access=["write"])
    size = 256 << 20
    together = False

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Nothing is ready in advance: each round has new memory and new processes."""
        yield lambda: self._trial(setting)

    def _order(self, setting: Setting, number: int) -> str:
        first, pages = pages_of(setting, number)
        count = visits(setting.case, pages)
        return f"order {setting.seed} {first} {pages} {count} {setting.case['order']}"

    def _trial(self, setting: Setting) -> Sample:
        kind = setting.backends[setting.row]
        visited = visits(setting.case, pages_of(setting, 0)[1])
        with (
            kind.memory(setting.size) as memory,
            Workers(setting.processes, memory.pass_fds) as workers,
        ):
            ask_all(workers, memory.take)
            workers.ask(lambda number: self._order(setting, number))
            answers = ask_all(workers, [f"touch 1 {setting.case['access']}"])
            sample = middle([cost(of_one, visited) for of_one in answers])
            held = memory.figures()
            if "rss_bytes" in held:
                filled = held["rss_bytes"] / 4096
                sample["filled_per_touched"] = filled / (visited * setting.processes)
            if "page_table_bytes" in held:
                sample["page_table_bytes"] = held["page_table_bytes"]
            return sample


class Populated(Scenario):
    """Memory that another process has filled: attaching and touching it, by a fresh process."""

    name = "populated"
    title = "attach and touch what another process has filled"
    rows = KINDS
    cases = orders("sequential", "random", "zipf", access=["read", "write"])
    size = 1 << 30

    def ground(self, backends: Backends, row: str, size: int) -> AbstractContextManager[Memory]:
        """The memory, filled by a process that stays."""
        return filled(backends[row], size)

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Nothing more."""
        yield lambda: self._trial(setting, setting.ground)

    def _trial(self, setting: Setting, memory: Memory) -> Sample:
        visited = visits(setting.case, setting.pages)
        before = memory.figures()
        with Workers(setting.processes, memory.pass_fds) as workers:
            order = f"{setting.seed} 0 {setting.pages} {visited} {setting.case['order']}"
            workers.ask(f"order {order}")
            timed = [*memory.take, f"touch 1 {setting.case['access']}"]
            answers = ask_all(workers, timed)
            sample = middle([cost(of_one, visited) for of_one in answers])
            sample["attach_ns"] = middle(
                [{"ns": sum(answer.nanoseconds for answer in of_one[:-1])} for of_one in answers]
            )["ns"]
            held = memory.figures()
            if "page_table_bytes" in held:
                for key in ("page_table_bytes", "table_frames"):
                    sample[f"added_{key}"] = held[key] - before[key]
            return sample


@contextmanager
def touched(setting: Setting, order: str) -> Iterator[Workers]:
    """Processes that have the memory, and have touched all pages."""
    with (
        setting.backends[setting.row].memory(setting.size) as memory,
        Workers(setting.processes, memory.pass_fds) as workers,
    ):
        ask_all(workers, memory.take)
        workers.ask(f"order {setting.seed} 0 {setting.pages} {setting.pages} {order}")
        workers.ask("touch 1 write")
        yield workers


class Steady(Scenario):
    """Pages that the process has touched before, so that only the memory itself costs time."""

    name = "steady"
    title = "loads and stores to pages that are mapped"
    rows = KINDS
    cases = (
        *orders("random", access=["read", "write"]),
        {"access": "read", "order": "every line"},
        {"access": "write", "order": "every line"},
    )
    size = 256 << 20
    PASSES = 4

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Processes that have touched all pages."""
        with touched(setting, "random") as workers:
            yield lambda: self._trial(setting, workers)

    def _trial(self, setting: Setting, workers: Workers) -> Sample:
        access = setting.case["access"]
        command = (
            f"touch {self.PASSES} {access}"
            if setting.case["order"] == "random"
            else f"sweep {self.PASSES} {setting.size} {access}"
        )
        answers = ask_all(workers, [command])
        return middle([cost(of_one, of_one[-1].pages) for of_one in answers])


class Fork(Scenario):
    """A process with the memory attached and touched forks; children do nothing, or touch it all.

    The time is that of fork and wait together, so it includes the child's exit.
    """

    name = "fork"
    title = "fork with the memory attached"
    rows = KINDS
    cases = tuple({"child": what} for what in ("nothing", "read", "write"))
    size = 64 << 20
    headline = "ns_per_fork"
    FORKS = 10

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """A process that has touched all pages."""
        with touched(setting, "sequential") as workers:
            yield lambda: self._trial(setting, workers)

    def _trial(self, setting: Setting, workers: Workers) -> Sample:
        child = setting.case["child"]
        answers = ask_all(workers, [f"fork {self.FORKS} {child}"])
        sample = middle([cost(of_one, self.FORKS) for of_one in answers])
        pages = {} if child == "nothing" else {"ns_per_page": sample["ns_per_page"] / setting.pages}
        return {
            "ns_per_fork": sample["ns_per_page"],
            "cpu_ns_per_fork": sample["cpu_ns_per_page"],
            "faults_per_fork": sample["faults_per_page"],
            **pages,
        }
