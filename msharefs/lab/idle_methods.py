"""The ways to learn which pages are used that this kernel has, and why `idle` does not use others.

One is used: entries are given back, and found again. The others are looked for and named with
their error, so that nobody has to guess what another machine would tell.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from msharefs import proc

from . import pagemap

USED = "entries given back, and found again"
PAGE_IDLE = Path("/sys/kernel/mm/page_idle/bitmap")
_RWP = (7, 2)
"""The kernel from which on userfaultfd(2) can protect against reads."""


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


def methods() -> list[Method]:
    """All of them, the one that is used first."""
    return [
        Method(
            USED, here=True, why_not="",
            error="a page for all processes together, 2 MiB for each; accesses between two looks",
        ),
        Method(
            "userfaultfd, protected against reads", here=_since(_RWP),
            error="a page", why_not="not tried: no kernel that has it was at hand",
        ),
        Method(
            "page_idle", here=os.access(PAGE_IDLE, os.W_OK),
            error="a page, whoever has it mapped, programs without msharefs included",
            why_not="not tried: no kernel that has it was at hand",
        ),
        Method(
            "PAGEMAP_SCAN with write-protection", here=pagemap.can_scan(),
            error="a page; writes only",
            why_not="a mapping has one userfaultfd, and ours takes faults",
        ),
        Method(
            "clear_refs and smaps", here=proc.has_clear_refs(),
            error="how much of a mapping was used, and not what",
            why_not="it clears the marks of all memory of a process, which reclaim needs",
        ),
    ]  # fmt: skip
