"""Taking rights from attached processes, and giving them back, in their real page tables.

The server itself takes the right to write, through its duplicate of each client's userfaultfd, even
from stopped processes. Only the client can give up reading, so its service thread is asked. If it
does not answer, the error names the process, and nothing is changed for anybody. A right that is
given back late costs a fault and nothing more, so that waits for nobody.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import trio

from msharefs.native import check, ffi, lib
from msharefs.processes import named

from . import lateness

if TYPE_CHECKING:
    from .clients import Client, Clients

log = logging.getLogger(__name__)

# A forked child says hello at once, and a client comes back to a new server within 200 ms.
CONNECT_SECONDS = 2.0
REJOIN_SECONDS = 1.0
# Unless the server itself is late: the hello of a child may be among the messages it has to read.
BACKLOG_SECONDS = 10.0
# Or many come back to it, one after the other: each of them knocks every 200 ms.
COMING_SECONDS = 0.5
CONNECT_POLL_SECONDS = 0.002
# A client answers as soon as its service thread runs; one that is stopped will not.
ANSWER_SECONDS = 1.0
# If all were asked at once, all would have their answers ready at the same time: late.
ASKED_AT_ONCE = 16
# One call changes the page tables of so many.
CHANGED_AT_ONCE = 256
# All that have pages of a range let go of them in this time, however often they change their slots.
TAKE_SECONDS = 20.0
# Looking at all connections takes a while if there are many.
BACKLOG_POLL_SECONDS = 0.2


async def wait_connected(clients: Clients, start: int, end: int, *, handed: bool = False) -> None:
    """Waits, for a limited time, until all that have pages of [start, end) are connected; or EBUSY.

    `handed`: only those that have pages to `watch`.
    """
    deadline = trio.current_time() + CONNECT_SECONDS
    async for slot in clients.touched(start, end, handed=handed):
        await _client(clients, slot, deadline)


async def watch(clients: Clients, start: int, end: int) -> None:
    """Makes every client watch [start, end) again, where it did not: absent pages fault to us."""
    await _change(clients, start, end, lib.UFFD_WATCH)


async def take_write(clients: Clients, start: int, end: int) -> None:
    """Makes [start, end) read-only in every client's page tables."""
    await _change(clients, start, end, lib.UFFD_PROTECT)


async def give_write(clients: Clients, start: int, end: int) -> None:
    """Makes [start, end) writable again, where that is possible at once."""
    try:
        await _change(clients, start, end, lib.UFFD_ALLOW)
    except OSError as error:
        log.warning("%s: writing comes back by faults only: %s", clients.name, error)


async def take_all(clients: Clients, start: int, end: int, *, objects: bool = False) -> None:
    """Takes the pages of [start, end) out of every client's page tables.

    With `objects` some of them are of other files, whose mappings have to go too.
    """
    await take_from_stopped(clients, start, end, objects=objects)
    flags = lib.REVOKE_OBJECTS if objects else 0
    deadline = trio.current_time() + CONNECT_SECONDS
    done: set[Client] = set()
    while slots := [
        slot
        async for slot in clients.touched(start, end)
        if clients.connected.get(slot) not in done
    ]:
        # Claims and bitmaps are shared memory: a client can change them all the time.
        if trio.current_time() > deadline + TAKE_SECONDS:
            raise OSError(
                errno.EBUSY,
                f"{clients.name}: {named(clients.process_of(slots[0]))} changes its slot all "
                "the time; end it and try again",
            )
        await trio.lowlevel.checkpoint()
        asked = {
            slot: client
            for slot in slots
            if (client := await _client(clients, slot, deadline)) is not None
        }
        _check_taken(clients, await _ask(clients, list(asked), lib.MSG_REVOKE, start, end, flags))
        # A client whose connection ended may not have heard us, and comes back.
        done |= {client for slot, client in asked.items() if clients.connected.get(slot) is client}


async def take_from_stopped(
    clients: Clients, start: int, end: int, *, objects: bool = False
) -> None:
    """As `take_all`, of those that are stopped now: if one refuses, nobody let go for nothing."""
    flags = lib.REVOKE_OBJECTS if objects else 0
    stopped = [
        slot
        async for slot in clients.touched(start, end)
        if (client := clients.connected.get(slot)) and not lateness.goes_on(client.pid)
    ]
    _check_taken(clients, await _ask(clients, stopped, lib.MSG_REVOKE, start, end, flags))


def _check_taken(clients: Clients, refused: list[str]) -> None:
    if refused:
        raise OSError(
            errno.EBUSY,
            f"{clients.name}: {' and '.join(refused)}; a process that is stopped cannot let go "
            "of memory: let it go on and try again",
        )


async def arrange(clients: Clients, start: int, end: int, *, must: bool = False) -> None:
    """Makes every client permit execution in [start, end) where the VMAs have it, and only there.

    With `must`, EBUSY if a client does not. Without it, a client that does not may see a SIGSEGV
    too many or too few for a while.
    """
    slots = clients.over(start, end)
    if must:
        deadline = trio.current_time() + CONNECT_SECONDS
        slots = [slot for slot in slots if await _client(clients, slot, deadline) is not None]
    refused = await _ask(clients, slots, lib.MSG_ARRANGE, start, end)
    if refused and must:
        raise OSError(
            errno.EBUSY,
            f"{clients.name}: {' and '.join(refused)}; a process that is stopped cannot stop to "
            "execute memory: let it go on and try again",
        )
    for refusal in refused:
        log.warning("%s: %s; it executes there as before until it does", clients.name, refusal)


async def rearm(clients: Clients, start: int, end: int) -> None:
    """Makes clients remove their guard pages in [start, end), so that faults reach us again.

    There is memory now; or there is none any more, and the signal has another code.
    """
    slots = list(clients.poisoned())
    if not slots:
        return
    # A client of an earlier server is on its way to us, unless it is stopped.
    with trio.move_on_after(REJOIN_SECONDS):
        while away := _away(clients, slots):
            await clients.reap_gone(away)
            await trio.sleep(CONNECT_POLL_SECONDS)
    refused = await _ask(clients, slots, lib.MSG_REARM, start, end)
    refused += [
        f"{named(clients.process_of(slot))} has not come back" for slot in _away(clients, slots)
    ]
    for refusal in refused:
        log.warning("%s: %s; it may see a stale SIGSEGV", clients.name, refusal)


def _away(clients: Clients, slots: list[int]) -> list[int]:
    return [slot for slot in slots if slot not in clients.connected and clients.claim(slot)]


async def _ask(clients: Clients, slots: list[int], op: int, *arguments: int) -> list[str]:
    """Asks all, some at a time; returns those that did not do it, and why.

    As long as one after the other answers, we wait for the rest: they share the processors.
    """
    if not slots:
        return []
    refused = []
    waiting: set[Client] = set()
    answered = trio.Event()
    some = trio.Semaphore(ASKED_AT_ONCE)

    async def ask(slot: int) -> None:
        nonlocal answered
        async with some:
            client = clients.connected.get(slot)
            if client is None:
                return
            waiting.add(client)
            result = await client.ask(op, *arguments)
            waiting.remove(client)
        answered.set()
        answered = trio.Event()
        if result < 0:
            refused.append(f"{named(client.pid)} answers {errno.errorcode.get(-result, result)}")

    async def watch() -> None:
        silent = 0.0
        while not silent or (
            silent < lateness.EXCUSED_SECONDS and lateness.excused(each.pid for each in waiting)
        ):
            with trio.move_on_after(ANSWER_SECONDS) as patience:
                await answered.wait()
            silent = silent + ANSWER_SECONDS if patience.cancelled_caught else 0
        asking.cancel_scope.cancel()

    async with trio.open_nursery() as watching:
        watching.start_soon(watch)
        async with trio.open_nursery() as asking:
            for slot in slots:
                asking.start_soon(ask, slot)
        watching.cancel_scope.cancel()
    return refused + [f"{named(client.pid)} does not answer" for client in waiting]


async def _change(clients: Clients, start: int, end: int, change: int) -> None:
    """Changes the page tables of all that touched [start, end), some in a call.

    A process can keep its address space locked. Then this is EBUSY, and so is the next change of
    the region, until the call has ended: what it does late, nobody has to take back.
    """
    deadline = trio.current_time() + CONNECT_SECONDS
    some: dict[int, Client] = {}
    async for slot in clients.touched(start, end, handed=change == lib.UFFD_WATCH):
        client = await _client(clients, slot, deadline)
        if client is not None and not (client.reader and change != lib.UFFD_WATCH):
            some[slot] = client
        if len(some) == CHANGED_AT_ONCE:
            await _change_some(clients, some, start, end, change)
            some = {}
    if some:
        await _change_some(clients, some, start, end, change)


async def _change_some(
    clients: Clients, some: dict[int, Client], start: int, end: int, change: int
) -> None:
    lane = clients.lane
    await lane.free()
    # Those that have gone meanwhile may be on their way back; nobody else runs from here on.
    here = {slot: client for slot, client in some.items() if client.uffd >= 0}
    each = [(slot, client.uffd, client.pid) for slot, client in here.items()]
    pids = [client.pid for client in here.values()]

    def why() -> str:
        return (
            f"{clients.name}: {named(pids[lane.at()])} keeps its address space locked (is it in a "
            "very large fork, mlock or munmap, or does a file that it has mapped not answer?); "
            "let it go on and try again"
        )

    if each:
        array = ffi.new("struct hand_client[]", each)
        try:
            result = await lane.do(
                why, lib.HAND_CHANGE, mm=clients.mm, start=start, end=end, change=change,
                clients=array, count=len(each),
            )  # fmt: skip
        except BaseException:
            lane.drop()
            raise
        if result == -errno.EAGAIN:
            raise OSError(errno.EBUSY, why())
        check(result, f"{clients.name}: page tables of process {pids[lane.at()]}")
    deadline = trio.current_time() + CONNECT_SECONDS
    back = {slot: await _client(clients, slot, deadline) for slot in some.keys() - here.keys()}
    if again := {slot: client for slot, client in back.items() if client is not None}:
        await _change_some(clients, again, start, end, change)


async def _client(clients: Clients, slot: int, deadline: float) -> Client | None:
    """The connection of the holder of `slot`; waits for it until `deadline`, then EBUSY.

    None: the holder is gone. If the slot has another holder then, it came later.
    """
    claim = clients.claim(slot)
    looked = -float("inf")
    while slot not in clients.connected:
        await clients.reap_gone([slot])
        if slot in clients.connected:
            break
        if not claim or clients.claim(slot) != claim:  # it is free already, or another's
            return None
        now = trio.current_time()
        if now > deadline and now > looked + BACKLOG_POLL_SECONDS:
            looked = now
            backlog = _backlog(clients) or lateness.excused([clients.process_of(slot)])
        coming = now < clients.rejoined + COMING_SECONDS
        if now > deadline + BACKLOG_SECONDS or (now > deadline and not backlog and not coming):
            raise OSError(
                errno.EBUSY,
                f"{clients.name}: {named(clients.process_of(slot))} is attached but not "
                "connected; it is stopped, or has closed our socket: let it go on and try again",
            )
        await trio.sleep(CONNECT_POLL_SECONDS)
    return clients.connected[slot]


def _backlog(clients: Clients) -> bool:
    return any(client.has_news() for client in clients.connected.values())
