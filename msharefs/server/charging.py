"""Pages that the owner of a region pays for (-o charge=owner).

Linux charges a page of a file to the memory cgroup of the process that makes it. So with that
option no client makes pages of a region: the server has them made by a process of ours in the
memory cgroup of the region's owner (charger.py). There is one for each such cgroup while it is
needed: until nobody has asked for a while, or its last owner has ended.

Where that cannot be done, whoever touches a page pays for it, as without the option, and `stat`
says why. Over the limit of the owner's cgroup Linux has its OOM killer end the owner, and whoever
touches a page then gets SIGSEGV, as in the series.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from msharefs import proc, processes, verbs
from msharefs.native import lib

from . import fetching
from .charger import Charger
from .mapping import punch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .hostmm import HostMM
    from .owners import Owner

log = logging.getLogger(__name__)

Cgroup = tuple[int, bytes]
"""Version and path, as of proc.memory_cgroup()."""

CHARGERS_MAX = 64
# A cgroup in which no charger can be had is not tried again before that.
_REFUSED_SECONDS = 5.0
# A page that the owner could not pay for can be asked for again after that.
_REFUSED_PAGE_SECONDS = 1.0
# The OOM killer has taken a process: how long to wait whether it was the owner.
_DYING_SECONDS = 5.0
# Pages of one request: others of the same cgroup wait for it.
_PIECE = 4 << 20
# A charger may be ended from outside, with the other processes of its cgroup.
_TRIES = 2


class _RefusedError(Exception):
    """Nobody can make pages at the owner's expense; the text says why."""


class Charges:
    """The chargers of a mount."""

    def __init__(self) -> None:
        self._chargers: dict[Cgroup, Charger] = {}
        self._starting: defaultdict[Cgroup, trio.Lock] = defaultdict(trio.Lock)
        self._refused: dict[Cgroup, tuple[float, str]] = {}
        self._watched: set[Owner] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then they end."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def make(self, owner: Owner, ident: int, fd: int, start: int, size: int) -> int:
        """Has pages of region `ident` made in the memory cgroup of its owner: 0 or -errno.

        ENOMEM: that is at its limit. _RefusedError.
        """
        result = -errno.EPIPE
        for _ in range(_TRIES):
            cgroup = _cgroup_of(owner)
            charger = await self._charger(cgroup)
            charger.users[ident] = owner
            self._watch(owner)
            kills = charger.oom_kills()
            result = await charger.ask(fd, start, size)
            if charger.oom_kills() != kills and await _ends(owner):
                return -errno.ENOMEM  # that has cost the owner its life
            if result == -errno.ETIMEDOUT:
                raise self._refuse(cgroup, "a process there does not run: is it frozen?")
            if result != -errno.EPIPE:
                return result
        if not charger.was_killed:
            raise self._refuse(cgroup, "the process that is to make pages there ends at once")
        return -errno.ENOMEM  # the OOM killer has found nothing larger

    def start(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Starts a task, while there are chargers."""
        if self._nursery is not None:
            self._nursery.start_soon(work, *arguments)

    def forget(self, ident: int) -> None:
        """Region `ident` has ended, or has another owner."""
        for charger in self._chargers.values():
            charger.users.pop(ident, None)
        self._dismiss_unused()

    async def _charger(self, cgroup: Cgroup) -> Charger:
        until, why = self._refused.get(cgroup, (0.0, ""))
        if trio.current_time() < until:
            raise _RefusedError(why)
        async with self._starting[cgroup]:
            found = self._chargers.get(cgroup)
            if found is None or found.ended:
                found = self._chargers[cgroup] = await self._start(cgroup)
            return found

    async def _start(self, cgroup: Cgroup) -> Charger:
        self._make_room()
        try:
            ours = proc.memory_cgroup("self") == cgroup
            charger = await Charger.start(None if ours else processes.cgroup_directory(*cgroup))
        except OSError as error:
            raise self._refuse(cgroup, str(error.strerror)) from None
        self.start(self._serve, cgroup, charger)
        return charger

    async def _serve(self, cgroup: Cgroup, charger: Charger) -> None:
        await charger.serve()
        if self._chargers.get(cgroup) is charger:
            del self._chargers[cgroup]
            self._starting.pop(cgroup, None)

    def _make_room(self) -> None:
        """There are not too many; if all are at work, _RefusedError."""
        self._refused = {
            cgroup: each for cgroup, each in self._refused.items() if each[0] > trio.current_time()
        }
        if len(self._chargers) < CHARGERS_MAX:
            return
        for charger in self._chargers.values():
            if charger.idle:
                charger.dismiss()
                return
        raise _RefusedError(f"pages are made in {CHARGERS_MAX} memory cgroups at this moment")

    def _refuse(self, cgroup: Cgroup, why: str) -> _RefusedError:
        why = f"memory cgroup {os.fsdecode(cgroup[1])}: {why}"
        if cgroup not in self._refused:
            log.warning("pages cannot be charged to a region's owner: %s", why)
        self._refused[cgroup] = trio.current_time() + _REFUSED_SECONDS, why
        return _RefusedError(why)

    def _watch(self, owner: Owner) -> None:
        """A cgroup can be removed when its last process has ended: ours must not be in the way."""
        if owner not in self._watched:
            self._watched.add(owner)
            self.start(self._wait_for_end, owner)

    async def _wait_for_end(self, owner: Owner) -> None:
        try:
            await _end_of(owner)
        finally:
            self._watched.discard(owner)
        for charger in self._chargers.values():
            for ident in [each for each, user in charger.users.items() if user == owner]:
                del charger.users[ident]
        self._dismiss_unused()

    def _dismiss_unused(self) -> None:
        for charger in self._chargers.values():
            if not charger.users and charger.idle:
                charger.dismiss()


class Region(Protocol):
    """What is used of a region: region.Region."""

    ident: int
    owner: Owner
    host: HostMM | None
    users: int

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def ended(self) -> bool:
        """Its owner is gone, and its mappings too."""

    async def settle(self) -> None:
        """Ends the region if its owner has ended."""


class Account:
    """Who pays for one region's pages."""

    def __init__(self, charges: Charges, region: Region) -> None:
        self._charges = charges
        self._region = region
        self.left = 0
        """Bytes for which whoever touched them had to pay."""
        self.why = ""
        """Why that was so at last."""
        self._short: set[int] = set()
        """Pages that the owner could not pay for, lately."""

    async def cover(self, host: HostMM, start: int, end: int) -> bool:
        """Has the absent pages of [start, end) made.

        False: whoever touches them has to make them. ENOMEM: the owner's cgroup is at its limit.
        ENOSPC: there is no room for pages. Precondition: anonymous memory is mapped there.
        """
        region = self._region
        region.users += 1
        try:
            for at in range(start, end, _PIECE):
                size = min(_PIECE, end - at)
                made = partial(self._charges.make, region.owner, region.ident, host.mem_fd, at)
                result = await made(size)
                # Memory may be short for pages filled ahead, but not for the page itself.
                if result in (-errno.ENOMEM, -errno.ENOSPC) and size > verbs.PAGE:
                    with contextlib.suppress(_RefusedError):  # the owner has ended by that
                        result = await made(verbs.PAGE)
                if result:
                    raise OSError(-result, _sentence(region.name, at, result))
        except _RefusedError as refused:
            self.left += end - at
            self.why = str(refused)
            return False
        finally:
            region.users -= 1
        return True

    async def touch(self, host: HostMM, start: int, end: int) -> bool:
        """As `cover`, for a process that touches the first of these pages.

        EAGAIN: the mappings are changing, and it is to look again. If this has ended the owner, and
        with it the region, the region has ended when this returns.
        """
        if start % verbs.PAGE or end % verbs.PAGE or not start < end <= host.size:
            raise OSError(errno.EINVAL, f"{host.name}: pages [{start:#x}, {end:#x})")
        if not _is_anonymous(host, start, end):
            raise OSError(errno.EAGAIN, f"{host.name}: [{start:#x}, {end:#x}) is changing")
        try:
            made = await self.cover(host, start, end)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                self._let_ask_again(host, start)
            raise
        finally:
            with contextlib.suppress(OSError):
                await self._region.settle()
        if not _is_anonymous(host, start, end):
            await _take_back(host, start, end)
        return made

    def _let_ask_again(self, host: HostMM, page: int) -> None:
        """Accesses to a page were refused: the limit may be another one later."""
        if not self._short:
            self._charges.start(self._rearm, host)
        self._short.add(page)

    async def _rearm(self, host: HostMM) -> None:
        await trio.sleep(_REFUSED_PAGE_SECONDS)
        pages, self._short = self._short, set()
        if self._region.host is host and not self._region.ended:
            with contextlib.suppress(OSError):
                await host.rearm(min(pages), max(pages) + verbs.PAGE)

    def forget(self) -> None:
        """The region has ended, or has another owner."""
        self._charges.forget(self._region.ident)

    def figures(self) -> dict[str, Any]:
        """For `stat`."""
        return {"to": "owner", "left_bytes": self.left, "why": self.why}


TOUCHER: dict[str, Any] = {"to": "toucher", "left_bytes": 0, "why": ""}
"""Figures for `stat` of a region of which whoever touches a page first pays for it."""


def _sentence(name: str, at: int, result: int) -> str:
    if result == -errno.ENOMEM:
        return f"{name}: a page at {at:#x}: the memory cgroup of its owner is at its limit"
    return f"{name}: a page at {at:#x}: {os.strerror(-result)}"


async def _ends(owner: Owner) -> bool:
    """Whether the owner has ended, or is about to."""
    with trio.move_on_after(_DYING_SECONDS):
        await _end_of(owner)
        return True
    return False


async def _end_of(owner: Owner) -> None:
    """Returns when the owner has ended."""
    try:
        pidfd = os.pidfd_open(processes.process_of(owner.pid))
    except OSError as error:
        log.debug("owner %d: %s", owner.pid, error)
        return
    try:
        if fetching.is_same(owner.pid, owner.start_time):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _cgroup_of(owner: Owner) -> Cgroup:
    """Where it is now: it may have been moved."""
    if not owner.pid:
        raise _RefusedError("the owner is in another pid namespace, or not known")
    try:
        found = proc.memory_cgroup(owner.pid)
    except ProcessLookupError:
        raise _RefusedError("the owner has ended") from None
    runs = processes.runs(processes.process_of(owner.pid))
    if not runs or not fetching.is_same(owner.pid, owner.start_time):
        raise _RefusedError("the owner has ended")
    return found


def _is_anonymous(host: HostMM, start: int, end: int) -> bool:
    """Whether all of the range is memory of the region's own, and nobody changes that."""
    return not (
        lib.hostmm_check(host.mm, start, end, lib.VMA_BUSY | lib.VMA_GUARD, 0, False)
        or lib.hostmm_has_objects(host.mm, start, end)
    )


async def _take_back(host: HostMM, start: int, end: int) -> None:
    """Pages that have come to a part of the range where there is no mapping any more."""
    async with host.unchanged():
        for low, high in _without(host, start, end):
            await host.clients.look_and_wait(
                partial(punch, host.mem_fd, offset=low, size=high - low)
            )


def _without(host: HostMM, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that have no anonymous memory."""
    for vma in host.vmas():
        if vma.object or vma.end <= start:
            continue
        if vma.start >= end:
            break
        if start < vma.start:
            yield start, int(vma.start)
        start = int(vma.end)
    if start < end:
        yield start, end
