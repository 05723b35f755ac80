"""Pages out what of a region has not been used for longest, until it fits.

Ages are those of `idle`: by the page, and of all attached processes together. MADV_PAGEOUT of a
region takes pages out of all their page tables first, so that it does not matter how many have
them mapped.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from msharefs import proc, units, verbs

from . import head, idle
from .idle import PAGE, resident

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msharefs.client import Region

    from .idle import Pages

LOOKS = 4
"""Intervals of the look before: pages used in different ones have different ages."""
LOOK_SECONDS = 4.0
_FRUITLESS = 3
"""Passes in which no page has left, after which it is given up."""


def swap_free() -> int:
    """Bytes to which anonymous memory can go."""
    return proc.meminfo().get("SwapFree", 0)


def oldest_first(
    watched: idle.Watched, here: Pages, *, cold_only: bool, movable: Callable[[Pages], Any]
) -> Pages:
    """Those pages of `here` that may be taken, by age; those of one age by address.

    `cold_only`: none that has been used since the looks began.
    """
    pages, used = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start, last in watched.last():
        pages.append(start // PAGE + np.arange(len(last), dtype=np.int64))
        # What nobody has touched at all and what was not touched in any round: as old as can be.
        used.append(np.maximum(last, 0).astype(np.int64))
    every, rounds = np.concatenate(pages), np.concatenate(used)
    chosen = np.isin(every, here) & movable(every)
    if cold_only:
        chosen &= rounds == 0
    found: Pages = every[chosen][np.argsort(rounds[chosen], kind="stable")]
    return found


def runs(pages: Pages) -> Iterator[tuple[int, int]]:
    """Pages in order, as ranges of bytes: offset and size."""
    for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
        if len(run):
            yield int(run[0]) * PAGE, len(run) * PAGE


def _movable(region: Region, *, swap: bool) -> Callable[[Pages], Any]:
    """Which pages can leave memory at all: anonymous ones need swap."""
    stay = [
        (each["start"] // PAGE, each["end"] // PAGE)
        for each in region.maps()
        if each["object"] == "anon" and not swap
    ]

    def which(pages: Pages) -> Any:
        chosen = np.ones(len(pages), bool)
        for first, end in stay:
            chosen &= (pages < first) | (pages >= end)
        return chosen

    return which


@dataclass
class Taken:
    """What has left memory."""

    pages: Pages = field(default_factory=lambda: np.empty(0, np.int64))
    tried: int = 0
    seconds: float = 0.0
    left: int = 0
    """Pages in memory then."""


def take(region: Region, queue: Pages, here: Pages, keep: int) -> Taken:
    """Pages out the first of `queue`, until only `keep` pages are in memory; no page more.

    A page that does not leave counts as tried; the next ones are tried in its place.
    """
    taken = Taken(left=len(here))
    started = time.monotonic()
    fruitless = 0
    while taken.left > keep and taken.tried < len(queue) and fruitless < _FRUITLESS:
        some = np.sort(queue[taken.tried : taken.tried + taken.left - keep])
        taken.tried += len(some)
        for offset, size in runs(some):
            try:
                region.advise(offset, size, verbs.MADV_PAGEOUT)
            except OSError as error:
                # Unmapped, or locked, since the look.
                if error.errno not in (errno.ENOMEM, errno.EINVAL):
                    raise
        here = resident(region)
        gone = some[~np.isin(some, here)]
        taken.pages = np.concatenate((taken.pages, gone))
        taken.left = len(here)
        fruitless = 0 if len(gone) else fruitless + 1
    taken.seconds = time.monotonic() - started
    return taken


@dataclass
class Out:
    """Pages that earlier calls have taken, and that had not come back when these ended."""

    pages: Pages = field(default_factory=lambda: np.empty(0, np.int64))

    def come_back(self, here: Pages) -> int:
        """How many of them are among `here`, the pages in memory; those are forgotten."""
        back = np.isin(self.pages, here)
        self.pages = self.pages[~back]
        return int(back.sum())

    def add(self, pages: Pages) -> None:
        """These have been taken."""
        self.pages = np.union1d(self.pages, pages)


def run(
    path: str,
    keep: int,
    cold: float | None,
    pause: Callable[[float], None] = time.sleep,
    out: Out | None = None,
) -> dict[str, Any]:
    """Pages out what is oldest in the region until `keep` bytes of it are in memory; a document.

    With `cold` no page is taken that was used within so many seconds. Afterwards it looks on for
    one more interval, to count what is in memory again, as Linux's `workingset_refault` does.
    Calls one after the other that have the same `out` also count what has come back in between.
    OSError: with a sentence; then nothing was taken.
    """
    with idle.Watched(path) as watched:
        region = watched.region
        out = out or Out()
        before = resident(region)
        again = out.come_back(before)
        swap = swap_free()
        found = {
            **head.head(),
            "region": path,
            "keep_bytes": keep,
            "cold_seconds": cold,
            "swap_free_bytes": swap,
            "before_bytes": len(before) * PAGE,
        }
        taken = Taken(left=len(before))
        looks: list[idle.Interval] = []
        candidates, back, waited = 0, 0, 0.0
        if len(before) * PAGE > keep:
            movable = _movable(region, swap=swap > 0)
            if not movable(before).any():
                raise OSError(
                    errno.ENOSPC,
                    f"{path}: {units.size(len(before) * PAGE)} of it are in memory, all of them "
                    "anonymous, and there is no swap that they could go to: add some with "
                    "swapon(8), to a disk or to zram",
                )
            watched.begin()
            seconds = (LOOK_SECONDS if cold is None else cold) / LOOKS
            looks = idle.look_on([watched], LOOKS, seconds, pause)
            here = resident(region)
            queue = oldest_first(watched, here, cold_only=cold is not None, movable=movable)
            candidates = len(queue)
            taken = take(region, queue, here, keep // PAGE)
            start = time.monotonic()
            pause(seconds)
            waited = time.monotonic() - start
            out.add(taken.pages)
            back = out.come_back(np.intersect1d(taken.pages, resident(region)))
        return {
            **found,
            "looks": [{"seconds": each.seconds, "cost": each.cost} for each in looks],
            "candidate_bytes": candidates * PAGE,
            "tried_bytes": taken.tried * PAGE,
            "taken_bytes": len(taken.pages) * PAGE,
            "taking_seconds": taken.seconds,
            "left_bytes": taken.left * PAGE,
            "refaulted_pages": back,
            "came_back_pages": again,
            "refault_seconds": waited,
            "error_pages": watched.fault_around - 1,
            "left_out_bytes": watched.left_out_bytes,
            "native_attachments": watched.native,
            "fits": taken.left * PAGE <= keep,
        }
