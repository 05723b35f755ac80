"""Running scenarios: every row of a case in turns, round by round, into one document."""

from __future__ import annotations

import datetime as dt
import errno
import os
import platform
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from msharefs import proc, units

from . import targets
from .backends import Backends
from .figures import ratio, summary
from .pagetables import sample_map
from .scenario import Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .figures import Sample
    from .scenario import Scenario

KIND = "msharefs bench"
VERSION = 1
# The errors by which a kernel, or an older part of ours, lacks something, or has it for root only;
# the row is left out.
_CANNOT = {
    errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOMEM, errno.EACCES, errno.EPERM,
}  # fmt: skip


class Observer(Protocol):
    """Somebody who wants to see the progress of a run."""

    def step(self, title: str, total: int) -> Callable[[int], None]:
        """A step begins; call the result with amounts that add up to `total`."""


@dataclass(frozen=True)
class Wishes:
    """The user's wishes that differ from the scenarios' defaults."""

    processes: tuple[int, ...] = ()
    size: int | None = None
    rounds: int | None = None
    backends: tuple[str, ...] = ()
    seed: int = 1
    with_map: bool = False
    """Also take a page-table map of a region that several processes use differently."""


def machine() -> dict[str, Any]:
    """The machine that this was measured on."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": ", ".join(proc.cpuinfo("model name")),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "page_tables_bytes": proc.meminfo()["PageTables"],
        "load": os.getloadavg()[0],
    }


def run(scenarios: Sequence[Scenario], wishes: Wishes, observer: Observer) -> dict[str, Any]:
    """Play them all; the document of ``--json``. OSError: something is broken, not only missing."""
    started = dt.datetime.now(dt.UTC)
    notify = observer.step("looking what there is", 1)
    with Backends(wishes.backends) if wishes.backends else Backends() as backends:
        notify(1)
        found = {
            "kind": KIND,
            "version": VERSION,
            "started": started.isoformat(timespec="seconds"),
            "machine": machine(),
            "backends": backends.document,
            "scenarios": [play(scenario, wishes, backends, observer) for scenario in scenarios],
            **({"map": sample_map(backends)} if wishes.with_map else {}),
        }
    return {**found, "targets": targets.judge(found)}


def play(
    scenario: Scenario, wishes: Wishes, backends: Backends, observer: Observer
) -> dict[str, Any]:
    """One scenario, all its cases."""
    rows = scenario.available(backends)
    rounds = wishes.rounds or scenario.rounds
    counts = wishes.processes or scenario.processes
    size = scenario.size if wishes.size is None else wishes.size
    notify = observer.step(scenario.name, len(scenario.cases) * len(counts) * len(rows) * rounds)
    missing: dict[str, str] = {}
    _check_memory(scenario, len(rows), max(counts), size)
    with ExitStack() as stack:
        grounds: dict[str, Any] = {}
        for row in rows:
            with _left_out(row, missing):
                grounds[row] = stack.enter_context(scenario.ground(backends, row, size))
        notify(len(scenario.cases) * len(counts) * (len(rows) - len(grounds)) * rounds)
        cases = [
            _case(
                scenario,
                [
                    Setting(backends, row, case, count, size, wishes.seed, ground)
                    for row, ground in grounds.items()
                ],
                rounds,
                missing,
                notify,
            )
            for case in scenario.cases
            for count in counts
            if grounds
        ]
    return {
        "name": scenario.name,
        "title": scenario.title,
        "about": " ".join((scenario.__doc__ or "").split()),
        "size_bytes": size,
        "rounds": rounds,
        "headline": scenario.headline,
        "also": list(scenario.also),
        "baseline": scenario.rows[0],
        "cases": cases,
        "missing": missing,
    }


def _check_memory(scenario: Scenario, rows: int, processes: int, size: int) -> None:
    """ENOMEM if memory is too small: figures of a machine that swaps or kills are worthless."""
    need = scenario.need(rows, processes, size)
    available = psutil.virtual_memory().available
    if need > available:
        raise OSError(
            errno.ENOMEM,
            f"{scenario.name} with {processes} processes over {units.size(size)} needs "
            f"{units.size(need)} of memory and {units.size(available)} is available: give a "
            "smaller --size or --processes, or fewer rows with --backend",
        )


@contextmanager
def _left_out(row: str, missing: dict[str, str]) -> Iterator[None]:
    """Notes a row that this machine does not have, with the reason; other errors are raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        missing[row] = error.strerror or str(error)


def _case(
    scenario: Scenario,
    settings: Sequence[Setting],
    rounds: int,
    missing: dict[str, str],
    notify: Callable[[int], None],
) -> dict[str, Any]:
    """All rows of one case; those that turn out not to be there are added to `missing`."""
    samples: dict[str, list[Sample]] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        trials: dict[str, Callable[[], Sample]] = {}
        for setting in settings:
            with _left_out(setting.row, missing):
                trials[setting.row] = stack.enter_context(scenario.stage(setting))
        names = list(trials)
        notify((len(settings) - len(names)) * rounds)
        for number in range(rounds):
            turn = number % max(1, len(names))
            # A B C, B C A, ...: no row always plays after the same other one, and in its mess.
            for row in names[turn:] + names[:turn]:
                if row not in failed:
                    with _left_out(row, failed):
                        samples.setdefault(row, []).append(trials[row]())
                notify(1)
    missing.update(failed)
    for row in failed:
        samples.pop(row, None)
    baseline = samples.get(scenario.rows[0])
    return {
        "case": settings[0].case,
        "processes": settings[0].processes,
        "rows": {
            setting.row: {
                "figures": summary(samples[setting.row]),
                "ratio": ratio(samples[setting.row], baseline, scenario.headline)
                if baseline
                else None,
                "ratios": {key: ratio(samples[setting.row], baseline, key) for key in scenario.also}
                if baseline
                else {},
            }
            for setting in settings
            if setting.row in samples
        },
    }
