"""Backing files of open regions, which let a plain mmap(2), without any library, map a region.

With FUSE passthrough an open file has a second one that mmap(2) maps in its place: the region's
`.mem`, at native speed, with no fault of ours. That is the *native* attachment. It asks us nothing,
so holes and protections are not enforced for it, and MAP_PRIVATE is not refused.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from . import fuse

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class BackingFiles:
    """One backing id per region, from its first open to its last close: the kernel takes only one.

    `wanted` is what the mount's options say; the first open finds out whether we may.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._allowed: bool | None = None if wanted else False
        self._ids: dict[int, int] = {}
        self._opens: dict[int, int] = {}

    def open(self, ident: int, open_memory: Callable[[], int | None]) -> int:
        """The backing id for one more open of region `ident`; 0: no passthrough.

        `open_memory` opens its `.mem`, or answers None. Each success has its `close`.
        """
        if self._allowed is False:
            return 0
        if ident not in self._ids:
            self._ids[ident] = self._register(open_memory)
            if not self._ids[ident]:
                return self._ids.pop(ident)
        self._opens[ident] = self._opens.get(ident, 0) + 1
        return self._ids[ident]

    def close(self, ident: int) -> None:
        """An open that had an id has ended."""
        self._opens[ident] -= 1
        if not self._opens[ident]:
            del self._opens[ident]
            fuse.backing_close(self._ids.pop(ident))

    def _register(self, open_memory: Callable[[], int | None]) -> int:
        fd = open_memory()
        if fd is None:
            return 0
        try:
            backing = fuse.backing_open(fd)
        except OSError as error:
            if self._allowed:  # it has worked: this is about one region
                raise
            self._allowed = False
            log.info("a plain mmap(2) of a region is ENODEV here: %s", error.strerror)
            return 0
        finally:
            os.close(fd)
        self._allowed = True
        return backing
