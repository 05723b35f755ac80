"""The clients of a region: the slots in its host mm, and the connections of their holders.

A slot is an attachment; the server frees it when its process detaches or dies. Through a connection
the server asks the process for something. An attachment may be without a connection for a while: a
child of fork(2) whose hello was not read yet, a client that has not come back to a new server.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

import trio

from msharefs import looking, processes
from msharefs.native import check, lib

from .descriptors import share
from .hands import Lane
from .limiters import Limiters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator

    from .view import View

log = logging.getLogger(__name__)

T = TypeVar("T")

# Other requests have to wait for us no longer than this.
TURN_SECONDS = 0.002
# How long one look for dead processes may take; it is a thread's time.
LOOK_SECONDS = 0.05
# And how much longer, before its thread is given up.
LATE_SECONDS = 1.0
# Of that, for the first process that keeps us waiting; see `looking`.
WAITING_SECONDS = 0.4
# What is done to pages may take long by itself.
LOCKED_SECONDS = 60.0
# A process whose end is being waited for is looked for so often.
LOOK_AGAIN_SECONDS = 0.02
# Of bitmaps, in one call.
_LOOK_BYTES = 4 << 20
# So many looks of a user's regions may be held up at once: as a file system of that number.
_LOOKING, _LOOKS = -1, 64


class Client(Protocol):
    """The control connection of an attached process."""

    pid: int
    started: int
    """When that has started: processes.start_time."""
    mark: int
    """processes.mark of it."""
    number: int
    """Of the connection: later ones have higher numbers."""
    flags: int
    """O_RDONLY or O_RDWR: its rights."""
    uffd: int
    """A duplicate of its userfaultfd."""
    reader: bool
    """It has no right to write that could be taken."""

    async def ask(self, op: int, *arguments: int) -> int:
        """Sends a message and waits for the answer: 0 (also if it is gone) or -errno."""

    def end(self) -> None:
        """Hangs up."""

    def has_news(self) -> bool:
        """Whether it has sent a message that has not been read yet."""

    def has_ended(self) -> bool:
        """Whether the client has closed its end."""


class _Holder(NamedTuple):
    """Who holds a slot, as the slot says: anybody who is attached may have written that."""

    slot: int
    claim: int
    process: tuple[int, int, int]
    """Pid namespace, pid, start time."""
    connected: bool
    """A connection says who it is, and not the slot."""

    @classmethod
    def of(cls, client: Any, known: tuple[int, int] | None) -> Self:
        """From a struct mm_client, and the pid and start time of a process that is connected."""
        process = client.pid_namespace, client.pid, client.start_time
        if known is not None:
            process = 0, *known
        return cls(client.slot, client.claim, process, known is not None)


class Clients:
    """The attachments of the region behind `view`, which is open for writing."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.name = view.name
        self.connected: dict[int, Client] = {}
        """Connections, by slot."""
        self.rejoined = -math.inf
        """When a client of an earlier server last came back."""
        self._started: dict[int, int] = {}
        """When their processes have started, which their slots may not say."""
        self.lane = Lane()
        """For whatever takes a lock that an attached process can keep."""
        self._looks = 0
        self._thread = trio.CapacityLimiter(1)
        self._waiting = trio.CapacityLimiter(1)
        self._asking = trio.CapacityLimiter(1)
        self._held_up = False
        """The last look at processes was given up."""
        self._next = 0
        """The slot that the next look for dead processes begins with."""
        self._look_again: dict[tuple[int, ...], float] = {}
        """When to look again for the slots of the last `reap_gone`."""
        self._surplus: set[tuple[int, int]] = set()
        """Slots, and claims, that the last look found to be one too many for their processes."""

    @property
    def mm(self) -> Any:
        """The core's `struct mm *` of the region."""
        return self._view.mm

    @property
    def in_use(self) -> bool:
        """Whether a thread is at the region, which must stay open, or is about to be."""
        return bool(self._looks) or self.lane.busy

    def holders(self) -> str:
        """For a sentence: who may keep the region's files locked."""
        attached = self.processes()
        who = f", such as {processes.listed(attached)}" if attached else ""
        return (
            f"{self.name}: its files are locked by a process that has had it attached{who}; end "
            "that and try again"
        )

    def connect(self, slot: int, claim: int, client: Client) -> None:
        """The attachment of `slot` has a connection. ESTALE: its claim is no longer `claim`."""
        if slot >= lib.MM_SLOTS or not claim or claim != self.claim(slot):
            raise OSError(errno.ESTALE, f"process {client.pid} does not hold slot {slot} any more")
        self.connected[slot] = client
        self._started[slot] = client.started
        # The pid in our namespace: the client may live in another.
        lib.mm_set_client(self.mm, slot, client.pid, self._started[slot])

    def claim_for(
        self,
        client: Client,
        base: int,
        prot: int,
        way: int,
        offset: int,
        size: int,
        *,
        fresh: bool,
    ) -> tuple[int, int]:
        """A slot, and its claim, for a client that can only read: its window is at `base`.

        There it has `size` bytes of the region from `offset` on; 0 is the rest. Without `fresh` the
        one that an earlier server had for it, if it can be found; if not, its window may have any
        page of those. EUSERS: all are taken. EINVAL: no such part of the region can be attached.
        """
        started = client.started
        size = size or max(0, self._view.size - offset)
        if not fresh:
            slot = lib.readers_find(self.mm, client.pid, started, base)
            if slot >= 0 and slot not in self.connected:
                return slot, self.claim(slot)
        slot = check(
            lib.readers_claim(
                self.mm, client.pid, started, base, prot & lib.VMA_PROT, way & 0xFF, offset, size
            ),
            f"{self.name}: a slot for process {client.pid}",
        )
        if not fresh:
            end = min(offset + size, self.mm.host_end - lib.HOST_BASE)
            if offset < end:
                lib.touched_mark(self.mm, slot, offset, end - offset)
        return slot, self.claim(slot)

    def of_process(
        self, pid: int, mark: int, number: int, slot: int, claim: int, base: int
    ) -> Client:
        """The client of a slot that process `pid` holds by `claim`; 0: the reader's at `base`.

        It is the process with that `mark`, and asks by connection `number`. EPERM: it holds none.
        EAGAIN: it has no connection yet, or that is younger: the program may have been another one
        when it made the one by which it asks, with other rights (execve(2)).
        """
        client = self._of_process(pid, slot, claim, base)
        if not mark or client.mark != mark:
            raise OSError(errno.EPERM, f"{self.name}: process {pid} has not made that connection")
        if client.number > number:
            raise OSError(errno.EAGAIN, f"{self.name}: an older connection of process {pid}")
        return client

    def _of_process(self, pid: int, slot: int, claim: int, base: int) -> Client:
        if not claim:
            return self._reader(pid, base)
        if slot >= lib.MM_SLOTS or self.claim(slot) != claim:
            raise OSError(errno.EPERM, f"{self.name}: process {pid} does not hold slot {slot}")
        client = self.connected.get(slot)
        if client is None:
            raise OSError(errno.EAGAIN, f"{self.name}: slot {slot} has no connection yet")
        if client.pid != pid:
            raise OSError(errno.EPERM, f"{self.name}: process {pid} does not hold slot {slot}")
        return client

    def _reader(self, pid: int, base: int) -> Client:
        for slot, client in self.connected.items():
            if client.reader and client.pid == pid:
                held = self._view.attachment(slot)
                if held is not None and held.base == base:
                    return client
        raise OSError(errno.EAGAIN, f"{self.name}: process {pid} has no connection yet")

    def disconnect(self, slot: int, client: Client) -> None:
        """That connection has ended; the attachment stays."""
        if self.connected.get(slot) is client:
            del self.connected[slot]
            del self._started[slot]

    def slots(self) -> list[int]:
        """The slots of the attachments, connected or not."""
        return [client.slot for client in self._view.attachments()]

    def over(self, start: int, end: int) -> list[int]:
        """The slots of the attachments that, as they say, have a part of [start, end)."""
        return [
            client.slot
            for client in self._view.attachments()
            if client.offset < end and client.offset + client.size > start
        ]

    def parts(self) -> list[tuple[int, int, int]]:
        """Where the attachments with a connection begin and end in the region, and whose they are.

        A process may have several.
        """
        return [
            (client.offset, client.offset + client.size, client.pid)
            for client in self._view.attachments()
            if client.slot in self.connected
        ]

    def claims(self) -> list[tuple[int, int]]:
        """Slots and claims of the attachments."""
        return [(client.slot, client.claim) for client in self._view.attachments()]

    def processes(self) -> set[int]:
        """The attached processes."""
        return {client.pid for client in self._view.attachments()}

    def claim(self, slot: int) -> int:
        """The number of the claim by which `slot` is held; 0: it is free."""
        return int(lib.mm_claim(self.mm, slot))

    def process_of(self, slot: int) -> int:
        """Process id of the client of `slot`; 0: it has none."""
        return int(lib.mm_client_pid(self.mm, slot))

    async def touched(self, start: int, end: int, *, handed: bool = False) -> AsyncIterator[int]:
        """The slots that touched [start, end), as they are when the iteration gets there.

        `handed`: only those with pages that are not watched (native/client/handover.c).
        """
        # A client can fill all slots and all bitmaps.
        some = max(1, _LOOK_BYTES // int(self.mm.touched_stride))
        turn = trio.current_time()
        at = 0
        while at < (high := lib.slots_high(self.mm)):
            until = min(at + some, high)
            slot = lib.mm_touched(self.mm, at, until, start, end)
            if slot >= 0 and (not handed or lib.mm_handed(self.mm, slot)):
                yield slot
            at = until if slot < 0 else slot + 1
            turn = await give_way(turn)

    def any_handed(self) -> bool:
        """Whether any attachment has pages that are not watched."""
        return any(lib.mm_handed(self.mm, slot) for slot in self.slots())

    def poisoned(self) -> Iterator[int]:
        """The slots whose clients have guard pages."""
        slot = lib.mm_poisoned(self.mm, 0)
        while slot >= 0:
            yield slot
            slot = lib.mm_poisoned(self.mm, slot + 1)

    async def reap(self, slot: int, claim: int) -> None:
        """Frees the slot of a client that detached or died, if its claim is still `claim`.

        A client that does not hear from us frees its slot itself, and another may have it by now.
        EBUSY: somebody keeps the region's files locked; the slot will be free when that ends.
        """
        client = self.connected.get(slot)
        freed = lib.slot_release_at_once(self.mm, slot, claim)
        # Perhaps a call that is late has taken the claim, and not done the rest.
        if freed == -errno.EAGAIN or (freed == -errno.ESTALE and self.lane.busy):
            self._view.open_files()
            freed = await self.lane.do(
                self.holders, lib.HAND_RELEASE, mm=self.mm, slot=slot, claim=claim
            )
        if freed == -errno.ESTALE:
            return
        if client is not None and self.connected.get(slot) is client:
            del self.connected[slot]
            del self._started[slot]
            client.end()  # others may have the socket, and nobody looks for it from here on
        check(freed, f"{self.name}: slot {slot}")

    async def end_dead(self) -> None:
        """Ends connections that are open though their processes are gone: others have the socket.

        It may be ourselves.
        """
        known = list(self.connected.values())
        if not known:
            return
        gone = await self.look(
            lambda: [client for client in known if processes.mark(client.pid) != client.mark]
        )
        for client in gone:
            client.end()

    async def reap_dead(
        self, *, connected: bool = False, seconds: float = LOOK_SECONDS, late: float = LATE_SECONDS
    ) -> None:
        """Frees the slots of processes that are gone without a word.

        The slot of a process with a connection is freed when we have read the end of that;
        `connected`: here, too. What is not done in `seconds` is left for the next time, which goes
        on from there. `late` is how much longer this waits for a process that keeps a lock.
        """
        skipped = set()
        if not connected:
            skipped = {slot for slot, known in self.connected.items() if not known.has_ended()}
        if len(skipped) < self._view.attached():
            await self._reap(lambda: self._all(skipped), seconds, late)

    async def reap_gone(self, slots: Collection[int]) -> None:
        """Frees those of these slots whose processes are gone; may be called again and again."""
        now = trio.current_time()
        if now < self._look_again.get(tuple(slots), 0):
            return
        await self._reap(
            lambda: [
                _Holder.of(it, self._known(it.slot))
                for it in map(self._view.attachment, slots)
                if it is not None
            ],
            LOOK_SECONDS,
            LATE_SECONDS,
        )
        self._look_again = {tuple(slots): trio.current_time() + LOOK_AGAIN_SECONDS}

    async def nudge(self, slot: int) -> None:
        """Lets the client of a slot do something without any effect, unless it is stopped."""
        if slot in self.connected:
            await self.connected[slot].ask(lib.MSG_REARM, 0, 0)

    async def look(self, work: Callable[[], T]) -> T:
        """The result of `work`, which looks at the region, in a thread. One at a time.

        It takes time, but none of the locks that others can keep.
        """
        self._looks += 1
        try:
            self._view.open_files()  # it is not for a thread to do that
            return await trio.to_thread.run_sync(work, limiter=self._thread)
        finally:
            self._looks -= 1

    async def look_and_wait(self, work: Callable[[], T]) -> T:
        """The result of `work`, in a thread, which may wait for whoever keeps the files locked.

        EBUSY: it did for so long that nobody waits for it any more.
        """
        token = trio.lowlevel.current_trio_token()
        begun = over = False

        def end() -> None:
            nonlocal over
            self._looks -= not over
            over = True

        def run() -> T:
            nonlocal begun
            begun = True
            try:
                if over:  # nobody has waited until we began
                    raise OSError(errno.EBUSY, self.name)
                return work()
            finally:
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(end)

        self._looks += 1
        try:
            self._view.open_files()
            with trio.move_on_after(LOCKED_SECONDS):
                return await trio.to_thread.run_sync(
                    run,
                    abandon_on_cancel=True,
                    # Threads that are held up count against whoever made the region.
                    limiter=Limiters(self._waiting, share(self.lane.user, 0)),  # type: ignore[arg-type]
                )
        finally:
            if not begun:
                end()
        raise OSError(errno.EBUSY, self.holders())

    async def _reap(self, some: Callable[[], list[_Holder]], seconds: float, late: float) -> None:
        self._looks += 1  # the region stays open between the looks, too
        try:
            holders = await self.look(some)
            gone: list[_Holder] = []
            # A process can keep us waiting for its address space. The thread is given up then, and
            # until it comes back nobody waits here again. Another look that is at work is awaited.
            if holders and not (self._held_up and self._asking.borrowed_tokens):
                with trio.move_on_after(seconds + late) as patience:
                    gone = await self._ask(holders, seconds)
                self._held_up = patience.cancelled_caught
            # Nor does anybody wait for one who keeps the region's files locked.
            with trio.move_on_after(seconds + late):
                await self._free(gone)
        finally:
            self._looks -= 1

    async def _free(self, gone: list[_Holder]) -> None:
        turn = trio.current_time()
        for holder in gone:
            try:
                await self.reap(holder.slot, holder.claim)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                log.debug("%s", error)
                break  # the next look finds them again
            turn = await give_way(turn)

    async def _ask(self, holders: list[_Holder], seconds: float) -> list[_Holder]:
        file = os.fstat(self._view.fd)
        connections = Counter(client.pid for client in self.connected.values())
        # A thread that is given up may go on when the region has been closed: it has no `mm`.
        made = int(self.mm.header.owner_start_time)
        return await trio.to_thread.run_sync(
            partial(self._gone, holders, connections, file, made, seconds),
            abandon_on_cancel=True,
            limiter=Limiters(self._asking, self.looking()),  # type: ignore[arg-type]  # as trio's
        )

    def looking(self) -> Limiters:
        """A place among the threads that look at clients, at the expense of who made the region."""
        return share(self.lane.user, _LOOKING, _LOOKS)

    def _all(self, skipped: set[int]) -> list[_Holder]:
        """The attachments, but for some slots; the ones that the last look did not reach first."""
        holders = [
            _Holder.of(client, self._known(client.slot))
            for client in self._view.attachments()
            if client.slot not in skipped
        ]
        return sorted(holders, key=lambda holder: holder.slot < self._next)

    def _known(self, slot: int) -> tuple[int, int] | None:
        """Pid and start time of the process whose connection a slot has. Threads ask, too."""
        client, started = self.connected.get(slot), self._started.get(slot)
        return None if client is None or started is None else (client.pid, started)

    def _gone(
        self,
        holders: list[_Holder],
        connections: Counter[int],
        file: os.stat_result,
        made: int,
        seconds: float,
    ) -> list[_Holder]:
        """Those of these attachments whose processes are gone. For a thread.

        The region was made by a process that started at `made`.

        A client may have filled the slots with whatever takes the longest: each process is asked
        once, none after `seconds`, and none that keeps us waiting for long. Nor is a slot believed
        that names a process with nothing to do with the region, or with no attachment more than its
        connections. The latter may have been about to come or go: two looks have to find it.
        """
        census = processes.Census()  # made after `holders`: it has all of them

        def at(process: tuple[int, int, int]) -> int:
            believed = _believed(process, made)
            return _attachments(census.find(*process), connections, file, believed)

        # One that does not let us see what it has keeps its slots.
        answers = looking.look(
            (holder.process for holder in holders),
            at,
            WAITING_SECONDS,
            begin_seconds=seconds,
            payer=self.lane.user,
        )
        left = set(answers.left)
        self._next = next((it.slot for it in holders if it.process in left), self._next)
        gone = []
        surplus = set()
        for holder in holders:
            found = answers.seen.get(holder.process, _MORE)
            if found == _CONNECTED and not holder.connected:
                surplus.add((holder.slot, holder.claim))
                if (holder.slot, holder.claim) in self._surplus:
                    gone.append(holder)
            elif found == _NONE:
                gone.append(holder)
        self._surplus = surplus
        return gone


# What a process has of a region, as far as we can know: the highest is believed.
_NONE, _CONNECTED, _MORE = range(3)


def _believed(process: tuple[int, int, int], made: int) -> int:
    """From when on a process must have started to be believed though we may not look at it.

    Who attaches says when it has started. Only a child of fork(2) does not at first, and that has
    started after the region was made, by a process that started at `made`.
    """
    return 0 if process[2] else made


def _attachments(
    pids: list[int], connections: Counter[int], file: os.stat_result, believed: int
) -> int:
    """What the best of these processes has. An attachment has the host mm, `file`, mapped once.

    A program that has been replaced (execve(2)) has nothing mapped any more; we have, but are no
    client.
    """
    best = _NONE
    for pid in pids:
        if pid == os.getpid():
            continue
        mapped = processes.times_mapped(pid, file)
        if mapped is None:
            if processes.start_time(pid) >= believed:
                return _MORE
            continue
        if mapped > connections[pid]:
            return _MORE
        if mapped:
            best = _CONNECTED
    return best


async def give_way(since: float) -> float:
    """Lets others have a turn if ours has lasted since `since`; returns when our turn began."""
    if trio.current_time() - since < TURN_SECONDS:
        return since
    await trio.lowlevel.checkpoint()
    return trio.current_time()
