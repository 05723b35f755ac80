"""How the VMAs of a region are changed, and how a change is finished that a dead server began.

A change is published, then waits until no client is inside a fault on the old snapshot (the grace
period), then takes entries and pages away. The wait is bounded: if a client does not leave its
fault, because a debugger holds it there, the change fails with EBUSY and changes nothing.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import trio

from msharefs import processes
from msharefs.native import check, ffi, lib

from . import lateness, revocation
from .clients import LATE_SECONDS, Clients
from .files import records_path
from .objects import Objects
from .prompt_lock import PromptLock
from .view import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = logging.getLogger(__name__)

# A fault takes microseconds; only a stopped process needs longer. The caller cannot be killed while
# it waits in its ioctl, so it must not be long.
GRACE_SECONDS = 2.0
GRACE_POLL_SECONDS = 0.0002
GRACE_LOOK_SECONDS = 0.01
# A new server looks for dead clients so long before it serves a region; then it goes on.
RECOVER_LOOK_SECONDS = 1.0


class Changing(View):
    """A host mm that changes; which changes there are is hostmm.py's business.

    `clients` are the processes attached to it, `objects` the files that its VMAs map.
    """

    def __init__(self, name: str, directory: Path, ident: int) -> None:
        super().__init__(name, directory, ident)
        self._lock = PromptLock()
        self._straggler = ffi.new("unsigned *")
        self._unfinished = False
        self._unswept = False
        self.patience = LATE_SECONDS
        """How much longer `recover` waits for a process that keeps a lock."""
        self._mapped = -1
        """Bytes that are mapped; -1: to be counted."""
        self.objects = Objects(name, records_path(directory, ident))
        self.clients = Clients(self)

    def changing(self) -> bool:
        """A change of its VMAs is under way."""
        return self._lock.locked()

    def unchanged(self) -> PromptLock:
        """To be entered by whoever looks at the VMAs or the tables from a thread."""
        return self._lock

    @property
    def unwatched(self) -> bool:
        """Whether it may have pages without entries, which Linux has filled."""
        return self.adopted or bool(lib.mm_unwatched(self._mm))

    async def recover(self) -> None:
        """Finishes the change of a dead server, and lets go of clients that died meanwhile.

        If a process is stopped inside a fault, or has objects mapped and has yet to come back, the
        change cannot be finished yet: see `catch_up`.
        """
        async with self._lock:
            await self.clients.reap_dead(seconds=RECOVER_LOOK_SECONDS, late=self.patience)
            await self._try_sweep()
            self.objects.load()
            self._unfinished = True
            if self._takes_pages() or not await self._try_recover():
                log.warning(
                    "%s: what the server before was changing is finished when its processes answer",
                    self.name,
                )

    async def mend(self) -> None:
        """Drops wrong entries, frees what is in use for nothing, and has all objects recorded."""
        async with self._lock:
            if self._unfinished:
                await self._grace()
                await self._recover()
            self.open_files()
            mended = await self.clients.lane.do(self.clients.holders, lib.HAND_MEND, mm=self._mm)
            check(mended, f"{self.name}: its page tables")
            await self._sweep()
            self.objects.tidy()

    async def catch_up(self) -> None:
        """Finishes a change that `recover` could not finish, if there is one and it is possible."""
        if self.clients.lane.busy or self.changing():
            return
        if self._unswept:
            async with self._lock:
                await self._try_sweep()
        if self._unfinished:
            async with self._lock:
                try:
                    await self._try_recover()
                except OSError:
                    # The next change tries again, and reports to its caller.
                    self._unfinished = False
                    log.exception("%s: a change cannot be finished", self.name)

    async def _change(
        self, publish: Callable[[], int], take: Callable[[], Awaitable[None]]
    ) -> None:
        """Publishes, waits for the grace period, calls `take`, finishes."""
        self._mapped = -1
        unfinished = self._unfinished
        try:
            await self._change_now(publish, take)
        finally:
            self._mapped = -1
            if unfinished:  # by now the earlier server's change is, and may have replaced objects
                await self._sweep()

    async def _change_now(
        self, publish: Callable[[], int], take: Callable[[], Awaitable[None]]
    ) -> None:
        await self._begin(publish)
        try:
            await self._grace()
            await take()
            intent = self._mm.header.intent
            await self._catch_up_before(intent.start, intent.end)
        except BaseException:
            lib.hostmm_abort(self._mm)
            raise
        finished = lib.hostmm_finish_at_once(self._mm, self.mem_fd)
        if finished == -errno.EAGAIN:
            finished = await self._finish_elsewhere()
        check(finished, f"{self.name}: taking pages away")

    async def _finish_elsewhere(self) -> int:
        """Takes entries and pages away.

        EBUSY: somebody keeps the region's files locked; nothing changed. Unless that began in the
        last moment: then the change is finished when it ends, and the next one waits for that.
        """
        lane = self.clients.lane
        turn = None
        try:
            await lane.free()
            turn = lane.begin(self.clients.holders, lib.HAND_FINISH, mm=self._mm, fd=self.mem_fd)
            return await lane.result(turn)
        except BaseException:
            if turn is None or lane.take_back():
                lib.hostmm_abort(self._mm)
            else:
                self._unfinished = True
            raise

    async def _begin(self, publish: Callable[[], int]) -> None:
        """Publishes, once nobody is inside a fault on a snapshot before the current one."""
        await self.clients.lane.free()
        await self._grace()
        await self._recover()
        while (published := publish()) == -errno.EBUSY:
            await self._grace()  # a fault that had read the old epoch has announced itself since
        check(published, f"{self.name}: changing its VMAs")

    async def _grace(self) -> None:
        if not lib.slot_grace(self._mm, self._straggler):
            return  # nobody is inside a fault: the usual case
        deadline = trio.current_time() + GRACE_SECONDS
        last = deadline + lateness.EXCUSED_SECONDS
        ask = trio.current_time() + GRACE_SECONDS / 4
        look = trio.current_time() + GRACE_LOOK_SECONDS
        while lib.slot_grace(self._mm, self._straggler):
            if trio.current_time() > deadline:
                deadline += lateness.LOOK_SECONDS
                client = self.clients.connected.get(self._straggler[0])
                late = client is not None and lateness.excused([client.pid])
                if late and trio.current_time() < last:
                    continue
                if self.clients.lane.busy:  # a reader's fault is ours, and held up
                    raise OSError(errno.EBUSY, self.clients.holders())
                who = processes.named(self.clients.process_of(self._straggler[0]))
                raise OSError(
                    errno.EBUSY,
                    f"{self.name}: {who} does not leave a page fault; let it go on "
                    "(is it stopped, or in a debugger?) and try again",
                )
            if trio.current_time() > look:  # a fault that goes on ends sooner than a look
                await self.clients.reap_gone([self._straggler[0]])
                look = trio.current_time() + GRACE_LOOK_SECONDS
            if trio.current_time() > ask:
                # Others may have written into its slot. Its own next step clears that.
                with trio.move_on_after(GRACE_SECONDS / 4):
                    await self.clients.nudge(self._straggler[0])
            await trio.sleep(GRACE_POLL_SECONDS)

    async def _recover(self) -> None:
        """Ends a change that another server began, if there is one, after a grace period."""
        if self._unfinished and self._takes_pages():
            intent = self._mm.header.intent
            if len(self.objects):
                await revocation.take_all(self.clients, intent.start, intent.end, objects=True)
            await revocation.watch(self.clients, intent.start, intent.end)
        if self._unfinished and self._mm.header.intent.op in (lib.INTENT_MAP, lib.INTENT_UNMAP):
            await self._catch_up_before(self._mm.header.intent.start, self._mm.header.intent.end)
        if lib.hostmm_pending(self._mm):
            recovered = await self.clients.lane.do(
                self.clients.holders, lib.HAND_RECOVER, mm=self._mm, fd=self.mem_fd
            )
            check(recovered, f"{self.name}: finishing a change")
        self._unfinished = False

    async def _try_recover(self) -> bool:
        """Whether no change of an earlier server is left to finish."""
        try:
            await self._grace()
            await self._recover()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        await self._sweep()
        return True

    def _takes_pages(self) -> bool:
        """Whether clients may have to take part in the end of another server's change."""
        return self._mm.header.intent.op in (lib.INTENT_MAP, lib.INTENT_UNMAP) and (
            bool(len(self.objects)) or self.clients.any_handed()
        )

    async def _catch_up_before(self, start: int, end: int) -> None:
        """Does so in the middle of a change, when no page can come to [start, end) any more."""
        if self.unwatched:
            await self._catch_up_entries(start, end, lib.ENTRIES_BEFORE)

    async def _catch_up_entries(self, start: int, end: int, how: int) -> None:
        """Gives pages that Linux has filled entries. EBUSY: somebody keeps them locked."""
        found = await self.clients.lane.do(
            self.clients.holders, lib.HAND_ENTRIES, mm=self._mm, fd=self.mem_fd,
            start=start, end=end, how=how,
        )  # fmt: skip
        check(found, f"{self.name}: looking at its pages")

    async def _sweep(self) -> None:
        """Lets go of the objects that no VMA names any more."""
        if len(self.objects) and not self._unfinished:  # the previous set may name others
            await self.objects.keep({number for number, _ in self.mapped_objects()})

    async def _sweep_tables(self) -> None:
        """Frees the page tables that the dead have left. EBUSY: the files are locked."""
        self.open_files()
        swept = await self.clients.lane.do(self.clients.holders, lib.HAND_SWEEP, mm=self._mm)
        check(swept, f"{self.name}: its page tables")
        self._unswept = False

    async def _try_sweep(self) -> None:
        self._unswept = True
        try:
            await self._sweep_tables()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            log.warning("%s: page tables of dead processes are freed later: %s", self.name, error)
