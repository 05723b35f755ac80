"""Calls per second: attaching, ioctl, and the names of a mount."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs.lab.workers import Workers
from msharefs.launch.private_mount import parent

from .scenario import Scenario, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .figures import Sample

HOLE = 1 << 30  # offset of the region where nothing is mapped, and beyond every baseline's memory
PIECE = 2 << 20


def repeated(workers: Workers, count: int, steps: Callable[[int], str]) -> Sample:
    """Quantiles of one round of a worker's `steps`, and how many a second all do together."""
    answers = workers.ask(lambda number: f"repeat {count} {steps(number)}")
    longest = max(answer.nanoseconds for answer in answers)
    quantiles = ("p50", "p90", "p99", "max")
    each = [answer.each_nanoseconds for answer in answers]
    return {
        "p50_ns": sum(of_one["p50"] for of_one in each) / len(each),
        **{f"{key}_ns": float(max(of_one[key] for of_one in each)) for key in quantiles[1:]},
        "per_second": len(answers) * count * 1e9 / longest,
    }


class AttachDetach(Scenario):
    """Attaching and detaching, with nothing touched in between; includes open and close."""

    name = "attach"
    title = "attach and detach"
    rows = ("memfd", "sysv", "msharefs", "msharefs-native")
    size = 64 << 20
    headline = "p50_ns"
    COUNT = 200

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Processes that have nothing attached."""
        with (
            setting.backends[setting.row].memory(setting.size) as memory,
            Workers(setting.processes, memory.pass_fds) as workers,
        ):
            steps = ";".join([*memory.take, "detach"])
            yield lambda: repeated(workers, self.COUNT, lambda _: steps)


class Calls(Scenario):
    """ioctl(2) on a region, beside the call that does the nearest thing to a memfd."""

    name = "ioctl"
    title = "ioctl round trip on an idle region"
    rows = ("memfd", "msharefs")
    cases = tuple({"call": call} for call in ("unmap a hole", "map and unmap 2 MiB"))
    size = 64 << 20
    headline = "p50_ns"
    COUNT = 500

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Processes with the file open."""
        with (
            setting.backends[setting.row].memory(setting.size) as memory,
            Workers(setting.processes, memory.pass_fds) as workers,
        ):
            workers.ask(f"open {memory.path}")
            region = setting.row == "msharefs"
            if setting.case["call"] == "unmap a hole":
                steps = f"{'unmap' if region else 'punch'} {HOLE} {PIECE}"
            elif region:
                steps = f"create {HOLE} {PIECE};unmap {HOLE} {PIECE}"
            else:
                steps = f"map {PIECE} {memory.path};detach"
            yield lambda: repeated(workers, self.COUNT, lambda _: steps)


class Metadata(Scenario):
    """Names of a mount, beside those of a tmpfs: the cost of the FUSE server."""

    name = "metadata"
    title = "file operations of a mount"
    rows = ("tmpfs", "msharefs")
    cases = tuple({"operation": what} for what in ("create and unlink", "stat", "rename and back"))
    size = 0
    headline = "p50_ns"
    COUNT = 300

    def backend(self, row: str) -> str:
        """Memfds live on a tmpfs, too."""
        return "memfd" if row == "tmpfs" else row

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """For each process a directory that it works in."""
        region = setting.backends.region()
        if setting.row == "msharefs" and region is not None:
            directory = Path(tempfile.mkdtemp(dir=region.directory))
        else:
            directory = Path(tempfile.mkdtemp(dir=parent(), prefix="msharefs-bench-"))
        try:
            with Workers(setting.processes) as workers:
                yield lambda: self._trial(setting, workers, directory)
        finally:
            shutil.rmtree(directory)

    def _trial(self, setting: Setting, workers: Workers, directory: Path) -> Sample:
        what = setting.case["operation"]
        if what == "create and unlink":
            return repeated(
                workers, self.COUNT, lambda n: f"make {directory}/{n};remove {directory}/{n}"
            )
        workers.ask(lambda n: f"make {directory}/{n}")
        verb = what.split()[0]
        sample = repeated(workers, self.COUNT, lambda n: f"{verb} {directory}/{n}")
        workers.ask(lambda n: f"remove {directory}/{n}")
        return sample
