"""Real servers, plain and under ``msharefs run --adopt-anon``, in turns: their common part."""

from __future__ import annotations

import datetime as dt
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msharefs import proc
from msharefs.lab.sampling import Sampler
from msharefs.launch.private_mount import PrivateMount

from .figures import ratio, summary
from .run import machine
from .stopping import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .figures import Sample
    from .scenario import Case

KIND = "msharefs workload"
VERSION = 1
PLAIN, ADOPTED = "plain", "msharefs"


@dataclass(frozen=True)
class Way:
    """One of the two ways to run a server."""

    name: str
    before: tuple[str, ...] = ()
    """The beginning of its command line."""
    state: Path = Path("/nonexistent")
    """The state directory of its mount; a plain server has none."""

    def memory(self, pids: Sequence[int], least: int = 0) -> dict[str, int | None]:
        """The page tables of these processes, and their faults so far; at one moment.

        They stand still for it: to look at hundreds takes seconds. All are None if one of the
        processes has ended before the last figure was read, or does not stop, or if there are not
        as many as `least`.
        """
        with Stopped(pids) as processes:
            stood = processes.all_stand() and len(pids) >= least
            sampler = Sampler(lambda: pids, self.state)
            sampler.look()
            found = sampler.document()
            figures = {
                "processes": found["processes"],
                "clients": found["clients"],
                "vmpte_bytes": found["vmpte_bytes"],
                "own_tables_bytes": found["own_tables_bytes"],
                "page_table_bytes": found["page_table_bytes"],
                "process_faults": sum(map(faults, pids)),
                "region_faults": found["region_faults"] + found["prefaulted"],
            }
            whole = stood and processes.all_stand()
        return figures if whole else dict.fromkeys(figures)


def faults(pid: int) -> int:
    """Minor and major faults of a process so far, proc_pid_stat(5); 0 if it is gone."""
    try:
        found = proc.stat(pid)
    except ProcessLookupError:
        return 0
    return found.minor_faults + found.major_faults


@contextmanager
def ways(least: int) -> Iterator[tuple[Way, Way]]:
    """Both ways; the second has a mount and adopts shared memory from `least` bytes on."""
    # As for `msharefs run`: a program's own memory is no multiple of a large quantum.
    with PrivateMount("quantum=2M", shared=True) as mount:
        run = (sys.executable, "-m", "msharefs", "run", "--mount", str(mount.directory))
        adopted = (*run, "--adopt-anon", str(least), "--")
        yield Way(PLAIN), Way(ADOPTED, adopted, mount.state)


@dataclass(frozen=True)
class Load:
    """A case of a workload, ready to be played: functions by the name of the way."""

    case: Case
    trials: dict[str, Callable[[], Sample]]
    """Plays a round and measures."""
    looks: dict[str, Callable[[], dict[str, int | None]]]
    """Plays a round that is not measured, and looks at memory meanwhile."""

    def play(self, rounds: int, notify: Callable[[int], None]) -> dict[str, Any]:
        """All rounds, in turns; a case of the document, in the form of `run.play`'s."""
        names = list(self.trials)
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                samples[name].append(self.trials[name]())
                notify(1)
        memory = {name: look() for name, look in self.looks.items()}
        keys = samples[PLAIN][0]
        return {
            "case": self.case,
            "rows": {
                name: {
                    "figures": summary(samples[name]),
                    "ratios": {key: ratio(samples[name], samples[PLAIN], key) for key in keys},
                    "memory": memory[name],
                }
                for name in names
            },
        }


@dataclass(frozen=True)
class Goal:
    """A bound for the ratio of a figure, the second way's to the first's, in all matching cases."""

    what: str
    figure: str
    limit: float
    at_least: bool = False
    case: Case | None = None

    def judge(self, cases: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each case that it is for, with its verdict; in the form of `targets.judge`."""
        for played in cases:
            found = played["rows"][ADOPTED]["ratios"].get(self.figure)
            if found is None or not (self.case or {}).items() <= played["case"].items():
                continue
            value = found["median"]
            yield {
                "what": self.what,
                "case": played["case"],
                "figure": self.figure,
                "unit": "ratio",
                "at_least": self.at_least,
                "target": self.limit,
                "measured": value,
                "met": value >= self.limit if self.at_least else value <= self.limit,
            }


def document(
    name: str, settings: dict[str, Any], cases: Sequence[dict[str, Any]], goals: Sequence[Goal] = ()
) -> dict[str, Any]:
    """Everything about a workload, for JSON."""
    return {
        "kind": KIND,
        "version": VERSION,
        "name": name,
        "ended": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": settings,
        "cases": list(cases),
        "targets": [verdict for goal in goals for verdict in goal.judge(cases)],
    }
