"""Watching a program that `msharefs run --report` runs, and writing the report at its end."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil

from msharefs import mountpoint
from msharefs.launch.running import ANDROID, SHARED_PT, GivenMount, Outcome
from msharefs.processes import is_shadow

from . import missed, report
from .sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from msharefs.launch.running import Home


BUDGET = "MSHAREFS_PT_BUDGET"


def _shootdowns(mount: Home) -> dict[str, dict[str, int]]:
    """What the mount has counted; nothing of a server that does not answer."""
    with contextlib.suppress(OSError):
        return mountpoint.shootdowns(mount.directory)
    return {}


@contextlib.contextmanager
def reporting(
    path: Path | None,
    arguments: Sequence[str],
    adopt: Mapping[str, int],
    mount: Home,
) -> Iterator[Outcome]:
    """Looks at the page tables of all our descendants meanwhile, then writes the report to `path`.

    Without one, it is only said what was not adopted. Nothing is written after an error.
    """

    def processes() -> list[int]:
        every = psutil.Process().children(recursive=True)
        pids = [process.pid for process in every if process.pid != mount.server_pid]
        return [pid for pid in pids if not is_shadow(pid)]  # its tables are its program's

    if path is not None:
        path.touch()  # so that an error comes now, not after the run
    outcome = Outcome()
    given = isinstance(mount, GivenMount)
    before = _shootdowns(mount)
    flagged = os.environ.get(SHARED_PT, "")
    ptshare = flagged.startswith(ANDROID)
    told = threading.Lock()  # held while it is said, and after that

    with Sampler(processes, mount.state, others=given, adopt=adopt, ptshare=ptshare) as sampler:

        def found() -> dict[str, Any]:
            after = _shootdowns(mount)
            counted = {
                verb: {name: count - before[verb][name] for name, count in figures.items()}
                for verb, figures in after.items()
                if verb in before
            }
            used = resource.getrusage(resource.RUSAGE_CHILDREN)  # the server has not ended yet
            return report.document(
                arguments, outcome.status, sampler.seconds, used.ru_minflt + used.ru_majflt,
                sampler, options, counted,
            )  # fmt: skip

        options = {"--mount": str(mount.directory)} if given else {}
        if adopt:
            options["--adopt"] = ",".join(f"{name}:{size}" for name, size in adopt.items())
        if flagged:
            options["--shared-pt"] = flagged
        if budget := os.environ.get(BUDGET):
            options[f"{BUDGET}="] = budget

        def tell() -> None:
            if told.acquire(blocking=False):
                _write(found(), path, _LATER)

        outcome.tell_so_far = tell
        yield outcome
    made = found()
    _write(made, path, "", silent=not told.acquire(blocking=False))


_LATER = "; processes of it go on, and it is written anew when they have ended"


def _write(found: dict[str, Any], path: Path | None, after: str, *, silent: bool = False) -> None:
    """Writes the report, and says on standard error what is in it, or what was not adopted."""
    if path is None:
        text = "".join(f"msharefs: {line}\n" for line in missed.lines(found))
    else:
        written = report.write(found, path)
        text = f"\n{report.text(found)}\nwritten to {', '.join(map(str, written))}{after}\n"
    if not silent:
        with contextlib.suppress(OSError):  # its terminal may be gone
            sys.stderr.write(text)
            sys.stderr.flush()
