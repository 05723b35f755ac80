"""Scenarios: rows that are compared, cases, and a stage where each row plays rounds.

All rows of a case are set up at the same time, and then play in turns: A B C, B C A, ... So
whatever changes on the machine meanwhile changes for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from msharefs.lab.workers import PAGE_BYTES, Answer, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from .backends import Backend, Backends, Memory
    from .figures import Sample

Case = dict[str, str]
"""The difference between one table and another: {"order": "random", "access": "read"}."""

Trial = "Callable[[], Sample]"


@dataclass(frozen=True)
class Setting:
    """One row of one case, ready to be played."""

    backends: Backends
    row: str
    case: Case
    processes: int
    size: int
    seed: int
    ground: Any = None
    """The result of `Scenario.ground` for this row."""

    @property
    def pages(self) -> int:
        """4 KiB pages of the memory, whatever its real pages are."""
        return self.size // PAGE_BYTES


# Less than a worker really takes (stack, libraries, the kernel's part): only refuses the hopeless.
_PROCESS_BYTES = 256 * 1024
_ENTRIES = 512


class Scenario(ABC):
    """A question, and how to put it to the machine."""

    name: ClassVar[str]
    title: ClassVar[str]
    rows: ClassVar[tuple[str, ...]]
    """The first is the baseline."""
    cases: ClassVar[tuple[Case, ...]] = ({},)
    processes: ClassVar[tuple[int, ...]] = (1,)
    size: ClassVar[int]
    """In bytes, unless the user asks for another size."""
    headline: ClassVar[str] = "ns_per_page"
    """The figure whose ratio to the baseline is the answer."""
    also: ClassVar[tuple[str, ...]] = ()
    """Other figures whose ratios belong to the answer."""
    rounds: ClassVar[int] = 5
    """Unless the user asks otherwise; one where more would take very long, or teach nothing."""

    together: ClassVar[bool] = True
    """Whether the memory and the processes of all rows are there at the same time."""

    def backend(self, row: str) -> str:
        """The kind of memory a row needs."""
        return row

    def available(self, backends: Backends) -> list[str]:
        """The rows that can be played here."""
        return [row for row in self.rows if self.backend(row) in backends]

    def ground(self, backends: Backends, row: str, size: int) -> AbstractContextManager[Any]:
        """What a row needs once for all its cases: `Setting.ground`."""
        del backends, row, size
        return nullcontext()

    def need(self, rows: int, processes: int, size: int) -> int:
        """The least memory in bytes that it takes: the pages, and every process's page tables."""
        one = size + processes * (size // _ENTRIES + _PROCESS_BYTES)
        return one * (rows if self.together else 1)

    @abstractmethod
    def stage(self, setting: Setting) -> AbstractContextManager[Callable[[], Sample]]:
        """Set up a row; the function it gives plays one round and may be called many times."""


@contextmanager
def filled(backend: Backend, size: int) -> Iterator[Memory]:
    """Memory that a process has written completely; the process stays."""
    pages = size // PAGE_BYTES
    with backend.memory(size) as memory, Workers(1, memory.pass_fds) as filler:
        ask_all(filler, memory.take)
        filler.ask(f"order 0 0 {pages} {pages} sequential")
        filler.ask("touch 1 write")
        yield memory


def orders(*names: str, access: Iterable[str]) -> tuple[Case, ...]:
    """Cases: every access in every order."""
    return tuple({"access": how, "order": name} for how in access for name in names)


def ask_all(workers: Workers, commands: Iterable[str]) -> list[list[Answer]]:
    """Give commands to all workers, one after the other; the answers, a list for each worker."""
    said = [workers.ask(command) for command in commands]
    return [list(of_one) for of_one in zip(*said, strict=True)]


def cost(answers: Sequence[Answer], pages: int) -> Sample:
    """The cost of one worker's timed commands, for each of the `pages` it visited."""
    faults = sum(a.minor_faults.growth + a.major_faults.growth for a in answers)
    cpu = sum(a.user_microseconds.growth + a.system_microseconds.growth for a in answers)
    return {
        "ns_per_page": sum(a.nanoseconds for a in answers) / pages,
        "cpu_ns_per_page": cpu * 1000 / pages,
        "faults_per_page": faults / pages,
        "vmpte_bytes": answers[-1].vmpte_bytes.after - answers[0].vmpte_bytes.before,
    }


def middle(samples: Sequence[Sample]) -> Sample:
    """One sample for many workers: the mean of each figure."""
    return {key: sum(sample[key] for sample in samples) / len(samples) for key in samples[0]}
