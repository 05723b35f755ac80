"""Descriptors of regions: those that nobody is attached to have few open between them.

A region's files keep their names as long as it exists, in a directory that is ours alone, so they
can be opened again when they are needed. Regions with attached processes keep theirs.
"""

from __future__ import annotations

import resource
from collections import deque
from typing import Protocol

# So many regions with open files that nobody uses: a part of RLIMIT_NOFILE, within these bounds.
_PART = 32
_LEAST, _MOST = 8, 1024
# The files of how many are looked at when those of one are opened: more than one, to catch up.
_LOOKS = 3


class Parkable(Protocol):
    """A region whose files are open."""

    def park(self) -> bool:
        """Closes them, unless somebody uses the region. Whether they are closed now."""


class Parking:
    """Knows the regions whose files are open; closes those that have been open for the longest."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = min(max(soft // _PART, _LEAST), _MOST)
        self._open: deque[Parkable] = deque()

    def opened(self, region: Parkable) -> None:
        """The files of this region have just been opened."""
        for _ in range(_LOOKS):
            if len(self._open) < self._limit:
                break
            oldest = self._open.popleft()
            if not oldest.park():
                self._open.append(oldest)
        self._open.append(region)
