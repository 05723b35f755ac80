"""Asks the rows of one mount, whoever made it: ours, or that of a kernel with the series."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs import installed, mountpoint
from msharefs.launch import running

from . import rows
from .agent import Agents
from .stage import Q, Stage, cleared
from .table import ROWS
from .world import SkippedError, World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .agent import Agent
    from .table import Row


@dataclass(frozen=True)
class Answer:
    """What the mount said to a row."""

    row: Row
    said: str
    """The answer; or why the row was not asked."""
    skipped: bool = False

    @property
    def verdict(self) -> str:
        """Whether it is the kernel's ("same"), one that we know of ours ("known"), or another."""
        if self.skipped:
            return "skipped"
        if self.said == self.row.kernel:
            return "same"
        ours = (self.row.default, self.row.quirks, self.row.inner)
        return "known" if self.said in ours else "differs"

    @property
    def why(self) -> str:
        """Why a known answer is not the kernel's."""
        if self.row.inner not in (None, self.row.default) and self.said == self.row.inner:
            return "With `-o window=inner` it is a call on the region."
        return self.row.why.text if self.row.why else ""


def chosen(patterns: Sequence[str]) -> list[Row]:
    """The rows whose names match one of these patterns; all, if there is none."""
    rows.load()
    return [
        row
        for row in ROWS.values()
        if World.DEFAULT in row.worlds()
        and (not patterns or any(fnmatch(row.ident, pattern) for pattern in patterns))
    ]


def check(directory: Path) -> None:
    """OSError: there is no mount that the rows can be asked of, or not by us."""
    if os.geteuid():
        raise OSError(
            errno.EPERM, "the rows are asked as root and as other users: run this as root"
        )
    try:
        quantum = int((directory / "mshare_info").read_text())
    except (OSError, ValueError):
        raise OSError(
            errno.ENODEV, "is not the root of a mount of msharefs: it has no mshare_info",
            str(directory),
        ) from None  # fmt: skip
    if quantum != Q:
        raise OSError(
            errno.EINVAL,
            f"its regions are multiples of {quantum} bytes, and the rows suppose 512 GiB, as in "
            "the series: mount with -o quantum=512G",
            str(directory),
        )


def ask(directory: Path, wanted: Sequence[Row]) -> Iterator[Answer]:
    """The answers of the mount on `directory`, one after the other.

    A program of ours runs under the preload library, that on a kernel's mount as it is.
    """
    covering = mountpoint.covering(directory)
    ours = covering is not None and covering.fstype.startswith("fuse")
    environ = running.environment(directory, None) if ours else {}
    elsewhere = Path(tempfile.mkdtemp(prefix="msharefs-conformance-"))
    elsewhere.chmod(0o755)
    try:
        with Agents() as agents:
            zygote = agents.start([installed.agent()], environ)
            zygote.call("umask", 0)
            for row in wanted:
                yield _ask(row, directory, elsewhere, agents, zygote)
    finally:
        shutil.rmtree(elsewhere)


def _ask(row: Row, directory: Path, elsewhere: Path, agents: Agents, zygote: Agent) -> Answer:
    stage = Stage(World.DEFAULT, directory / f"conformance-{os.getpid()}", elsewhere, zygote)
    try:
        with cleared(stage, agents, zygote):
            return Answer(row, row.check(stage))
    except SkippedError as missing:
        return Answer(row, f"needs {missing}", skipped=True)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        # A check supposes that the calls around its question work.
        return Answer(row, f"{type(error).__name__}: {error}")
