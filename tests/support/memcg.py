"""Memory cgroups of our own, of version 2 or 1."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/sys/fs/cgroup")


class Cgroup:
    """A memory cgroup."""

    def __init__(self, path: Path, *, unified: bool) -> None:
        self.path = path
        self._usage = "memory.current" if unified else "memory.usage_in_bytes"
        self._max = "memory.max" if unified else "memory.limit_in_bytes"

    def usage(self) -> int:
        """Bytes charged."""
        return int((self.path / self._usage).read_text())

    def limit(self, size: int) -> None:
        """Bytes that may be charged."""
        (self.path / self._max).write_text(str(size))

    def add(self, pid: int) -> None:
        """Moves a process here."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def processes(self) -> list[int]:
        """Those in it."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def remove(self) -> None:
        """Moves what is left in it to the cgroup above, and removes it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                (self.path.parent / "cgroup.procs").write_text(str(pid))
        until(self._removed, f"{self.path} is removed")

    def _removed(self) -> bool:
        with contextlib.suppress(OSError):  # a process is still about to end
            self.path.rmdir()
        return not self.path.exists()


def top() -> tuple[Path, bool]:
    """Where memory cgroups are, and whether of version 2."""
    controllers = ROOT / "cgroup.controllers"
    unified = controllers.exists() and "memory" in controllers.read_text().split()
    return (ROOT if unified else ROOT / "memory"), unified


@contextlib.contextmanager
def cgroups(*names: str) -> Iterator[list[Cgroup]]:
    """Memory cgroups; the test is skipped where none can be made."""
    directory, unified = top()
    made: list[Cgroup] = []
    try:
        for name in names:
            path = directory / f"msharefs-test-{os.getpid()}-{name}"
            path.mkdir()
            made.append(Cgroup(path, unified=unified))
        made[0].usage()
        yield made
    except OSError as error:
        if len(made) == len(names) and (made[0].path / made[0]._usage).exists():
            raise
        pytest.skip(f"no memory cgroup can be made here: {error}")
    finally:
        for each in made:
            each.remove()
