"""Owners: who made a region, and the watch over those whose end is the region's end.

In the kernel series a region ends with the task that made it, before wait(2) reports its death. We
hear of it a moment later. So every request on a region first looks at its owner, and only a bare
access to attached memory can still succeed in between.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from msharefs import proc, processes
from msharefs.native import lib

from . import fetching, shortage
from .files import owner_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = logging.getLogger(__name__)

KINDS = {
    "file": lib.OWNER_FILE,
    "process": lib.OWNER_PROCESS,
    "thread": lib.OWNER_THREAD,
    "gone": lib.OWNER_GONE,
    "creator": lib.OWNER_CREATOR,
}
"""Numbers of the kinds in the host mm's header; "gone": the region has ended."""

# How often we look at a thread that the kernel does not let us watch: nothing else shows that a
# first thread has exited whose process goes on.
_LOOK_SECONDS = 0.05
# A region that cannot be emptied, because an attached process is stopped inside a fault.
_AGAIN_SECONDS = 0.5
# As much as a busy machine may need for a call that nobody holds up.
_MAKER_SECONDS = 0.1
# So long close(2) waits for the end of the region.
_CLOSE_SECONDS = 0.2


@dataclass(frozen=True)
class Owner:
    """Who made a region: a process, or a thread if `kind` is "thread". `pid` is 0 if unknown.

    The start time (ticks since boot) tells it from a later one of its number.
    """

    pid: int
    start_time: int
    cgroup: str
    kind: str = "file"
    """Whose end is the region's end; see `KINDS`."""

    @classmethod
    def of(cls, tid: int, kind: str) -> Owner:
        """The owner of what thread `tid` makes now, on a mount with `-o owner=kind`."""
        pid = tid if kind == "thread" else processes.process_of(tid)
        if not pid and kind != "file":
            log.warning("a region's maker is in another pid namespace: it lives as owner=file")
        return cls(pid, processes.start_time(pid), processes.cgroup(pid), kind if pid else "file")

    def is_thread(self, tid: int) -> bool:
        """Whether thread `tid` is the owner, or one of its threads."""
        pid = tid if self.kind == "thread" else processes.process_of(tid)
        return bool(pid) and (pid, processes.start_time(pid)) == (self.pid, self.start_time)

    @classmethod
    def behind(cls, caller: int, pidfd: int, kind: str) -> Owner:
        """The owner that process `caller` names by a pidfd of its own. EBADF, ESRCH, EPERM."""
        pid, one_thread = proc.pidfd_of(caller, pidfd)
        if one_thread and kind != "thread" and pid > 0:
            pid = processes.process_of(pid)
        owner = cls(pid, processes.start_time(pid), processes.cgroup(pid), kind)
        # Asked once more: so it is not another process with that number.
        if pid <= 0 or not processes.is_alive(pid, 0) or proc.pidfd_of(caller, pidfd)[0] <= 0:
            raise OSError(errno.ESRCH, "the new owner has ended, or the server does not see it")
        return owner


def save(directory: Path, ident: int, owner: Owner) -> None:
    """Records who owns a region, for a later server: clients can write what its host mm says."""
    _write(owner_path(directory, ident), {"owner": vars(owner)})


def load(directory: Path, ident: int) -> Owner:
    """Who owns a region. One without a record is nobody's. OSError: it cannot be read."""
    try:
        return Owner(**json.loads(owner_path(directory, ident).read_text())["owner"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        log.warning("the record of who owns region %d is lost: %s", ident, error)
        return Owner(0, 0, "")


def save_unsized(directory: Path, ident: int, owner: Owner, *, frozen: bool) -> None:
    """Records a region that has no host mm yet, for a later server."""
    _write(_unsized(directory, ident), {"frozen": frozen, "owner": vars(owner)})


def _write(path: Path, record: dict[str, object]) -> None:
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(record))
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def load_unsized(directory: Path, ident: int) -> tuple[Owner, bool]:
    """What `save_unsized` recorded: owner and `frozen`. A missing or broken record is nobody's.

    OSError: it cannot be read, which says nothing about it.
    """
    try:
        record = json.loads(_unsized(directory, ident).read_text())
        owner = Owner(**record["owner"])
        return owner, bool(record["frozen"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        log.warning("the record of unsized region %d is lost: %s", ident, error)
        return Owner(0, 0, ""), False


def forget_unsized(directory: Path, ident: int) -> None:
    """The region has a host mm, or is gone."""
    _unsized(directory, ident).unlink(missing_ok=True)


def _unsized(directory: Path, ident: int) -> Path:
    return directory / f"{ident}.unsized"


class Watch:
    """One owner whose end is the end of the regions it made."""

    def __init__(self, owner: Owner, *, maker_waits: bool = False) -> None:
        """`maker_waits`: the owner waits for us, and so is not in the middle of execve(2)."""
        self.owner = owner
        self.regions: dict[int, Callable[[], Awaitable[None]]] = {}
        """How to end each, by number."""
        self.cancel = trio.CancelScope()
        self.running = False
        """A task waits on it, and will close it."""
        self._pidfd = self._event = -1
        self._ring: mmap.mmap | None = None
        self._thread = owner.kind == "thread"
        try:
            self._pidfd = os.pidfd_open(owner.pid, processes.PIDFD_THREAD if self._thread else 0)
        except OSError as error:
            # Nobody has ended for a lack of descriptors or memory.
            if error.errno in shortage.ERRORS:
                raise
        # Another process may have the number by now.
        if not fetching.is_same(owner.pid, owner.start_time):
            self.close()
        if self._thread and self._pidfd >= 0:
            self._open_perf(_MAKER_SECONDS if maker_waits else 0)

    def gone(self) -> bool:
        """Whether the owner has ended; a zombie has."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(0):
            return True
        if self._exact:
            return False
        return not processes.thread_runs(self.owner.pid)

    @property
    def _exact(self) -> bool:
        """Whether the descriptor alone tells when it ends."""
        return self._event >= 0 or not self._thread

    @property
    def _fd(self) -> int:
        return self._pidfd if self._event < 0 else self._event

    async def wait(self) -> None:
        """Returns when the owner has ended."""
        while not self.gone():
            with trio.move_on_after(float("inf") if self._exact else _LOOK_SECONDS):
                await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """Lets go of the descriptors."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        for fd in (self._pidfd, self._event):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._event = -1

    def _open_perf(self, seconds: float) -> None:
        """Watches the thread through a perf event that counts nothing and hangs up when it exits.

        Nothing else is exact for the first thread of a process: its pidfd stays silent when it
        exits before the others, and when another thread calls exec and takes over its number. While
        it is in execve(2) there is none, so this waits for so many seconds only.
        """
        fetching.watch(self.owner.pid, self._take_event, seconds=seconds)

    def _take_event(self, fd: int) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                # Without a ring buffer it always polls as hung up.
                self._ring = mmap.mmap(fd, 2 * mmap.PAGESIZE)
                self._event = fd
                return
        os.close(fd)


class Owners:
    """The watches of a mount, one for each living owner."""

    def __init__(self) -> None:
        self._watches: dict[Owner, Watch] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ends regions as their owners end; until cancelled."""
        async with trio.open_nursery() as self._nursery:
            for watch in self._watches.values():
                self._start(self._nursery, watch)
            task_status.started()
            await trio.sleep_forever()

    def watch(
        self,
        owner: Owner,
        ident: int,
        end: Callable[[], Awaitable[None]],
        *,
        maker_waits: bool = False,
    ) -> Watch | None:
        """Calls `end` of region `ident` when its owner ends. None: it does not depend on one.

        `maker_waits`: as of Watch.
        """
        if owner.kind not in ("process", "thread", "creator"):
            return None
        watch = self._watches.get(owner)
        if watch is None:
            watch = self._watches[owner] = Watch(owner, maker_waits=maker_waits)
            if self._nursery is not None:
                self._start(self._nursery, watch)
        watch.regions[ident] = end
        return watch

    async def closed(self, watch: Watch, ident: int) -> None:
        """The owner has closed region `ident`: ends it now, or as soon as it can be."""
        if self._nursery is None:
            return
        ended = trio.Event()

        async def end() -> None:
            while ident in watch.regions:
                await _end_regions(watch, [ident])
            self.forget(watch, ident)
            ended.set()

        self._nursery.start_soon(end)
        # A process that exits closes its files while its last thread cannot answer us.
        with trio.move_on_after(_CLOSE_SECONDS):
            await ended.wait()

    def forget(self, watch: Watch, ident: int) -> None:
        """Region `ident` is gone, or its owner."""
        watch.regions.pop(ident, None)
        if not watch.regions and self._watches.get(watch.owner) is watch:
            del self._watches[watch.owner]
            watch.cancel.cancel()
            if not watch.running:
                watch.close()

    def close(self) -> None:
        """Lets go of everything."""
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()

    def _start(self, nursery: trio.Nursery, watch: Watch) -> None:
        watch.running = True
        nursery.start_soon(self._run, watch)

    async def _run(self, watch: Watch) -> None:
        try:
            with watch.cancel:
                await watch.wait()
                log.info("%s %d, an owner, is gone", watch.owner.kind, watch.owner.pid)
                while watch.regions:
                    await _end_regions(watch, list(watch.regions))
        finally:
            watch.close()


async def _end_regions(watch: Watch, idents: list[int]) -> None:
    """Ends regions of the watch; those that are busy stay, to be tried again."""
    for ident in idents:
        end = watch.regions.get(ident)
        if end is None:
            continue  # it went while we ended another one
        try:
            await end()
        except OSError as error:
            if error.errno == errno.EBUSY:
                log.warning("%s", error)
                continue
            log.exception("region %d cannot be emptied; it stays as it is", ident)
        watch.regions.pop(ident, None)
    if any(ident in watch.regions for ident in idents):
        await trio.sleep(_AGAIN_SECONDS)
