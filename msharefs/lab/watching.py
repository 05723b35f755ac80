"""Watching a program that `msharefs run --report` runs, and writing the report at its end."""

from __future__ import annotations

import contextlib
import resource
import sys
from typing import TYPE_CHECKING

import psutil

from msharefs.launch.running import GivenMount, Outcome

from . import report
from .sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from msharefs.launch.running import Home


@contextlib.contextmanager
def reporting(path: Path, arguments: Sequence[str], mount: Home) -> Iterator[Outcome]:
    """Looks at the page tables of all our descendants meanwhile, then writes the report to `path`.

    Nothing is written after an error.
    """

    def processes() -> list[int]:
        every = psutil.Process().children(recursive=True)
        return [process.pid for process in every if process.pid != mount.server_pid]

    path.touch()  # so that an error comes now, not after the run
    outcome = Outcome()
    with Sampler(processes, mount.state, others=isinstance(mount, GivenMount)) as sampler:
        yield outcome
        seconds = sampler.seconds
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # the server has not ended yet
    faults = used.ru_minflt + used.ru_majflt
    found = report.document(arguments, outcome.status, seconds, faults, sampler)
    written = report.write(found, path)
    sys.stderr.write(f"\n{report.text(found)}\nwritten to {', '.join(map(str, written))}\n")
    sys.stderr.flush()
