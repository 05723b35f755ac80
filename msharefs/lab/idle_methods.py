"""The ways to learn which pages are used that Linux has, and why `idle` does not use the others.

Each has an error of its own, and some are on few kernels: all are named, so that nobody has to
guess what another way, or another machine, would tell.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from msharefs import proc

from . import pagemap

PAGE_IDLE = Path("/sys/kernel/mm/page_idle/bitmap")
_RWP = (7, 2)
"""The kernel from which on userfaultfd(2) can protect against reads."""
_NOT_BUILT = "not tried: no kernel that has it was at hand"


class Method(NamedTuple):
    """A way; `why_not` is empty for the one that is used."""

    name: str
    here: bool
    """Whether this kernel has it, and we may use it."""
    error: str
    why_not: str


def release() -> str:
    """The kernel's."""
    return os.uname().release


def _since(version: tuple[int, int]) -> bool:
    return tuple(int(part) for part in re.findall(r"\d+", release())[:2]) >= version


def methods(used: str) -> list[Method]:
    """All of them; the first three are those of --method."""
    flushed = "" if not pagemap.has_soft_dirty() else (
        "; pages that a processor's TLB has all the time seem to be idle, since this kernel "
        "forgets them only with soft-dirty marks"
    )  # fmt: skip
    found = [
        Method(
            "entries", here=True, why_not="see --method",
            error="entries are given back, and found again: a page for all processes together, 2 "
            "MiB for each; each page in use is a fault; what is used between two looks is missed",
        ),
        Method(
            "clear_refs", here=proc.has_clear_refs(), why_not="see --method",
            error="accessed bits are cleared, and counted by smaps: how much of a mapping was "
            f"used, and not what, of processes that are there at the end{flushed}",
        ),
        Method(
            "stores", here=pagemap.can_scan(), why_not="see --method",
            error="memory is write-protected, and PAGEMAP_SCAN finds what was written: a page for "
            "each process; loads are not seen, but for first ones, which count as stores, with up "
            "to 16 pages around them; each page written is a fault (an asynchronous protection has "
            "none, but a mapping has one userfaultfd, and ours takes faults)",
        ),
        Method(
            "userfaultfd, protected against reads", here=_since(_RWP),
            error="a page", why_not=_NOT_BUILT,
        ),
        Method(
            "page_idle", here=os.access(PAGE_IDLE, os.W_OK),
            error="a page, whoever has it mapped, programs without msharefs included",
            why_not=_NOT_BUILT,
        ),
    ]  # fmt: skip
    return [each._replace(why_not="") if each.name == used else each for each in found]
