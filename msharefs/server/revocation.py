"""Taking rights from attached processes, and giving them back, in their real page tables.

Writing is taken by the server itself, through its duplicate of each client's userfaultfd, stopped
processes included. Reading can only be given up by the client: its service thread is asked. Whoever
does not answer is named, and nothing is changed for anybody. What is given back late costs a fault,
nothing more, so there nobody is waited for.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Protocol

import trio

from msharefs.native import check, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .hostmm import HostMM

log = logging.getLogger(__name__)

# A forked child says hello at once, and a client comes back to a new server within 200 ms.
CONNECT_SECONDS = 2.0
REJOIN_SECONDS = 1.0
# Unless it is the server that is behind: the hello of a child may be among what it has to read.
BACKLOG_SECONDS = 10.0
CONNECT_POLL_SECONDS = 0.002
# A client answers as soon as its service thread runs; one that is stopped will not.
ANSWER_SECONDS = 1.0
# All at once would get their answers ready at the same time: late.
ASKED_AT_ONCE = 16
# Other requests wait that long for us at most.
TURN_SECONDS = 0.002


class Client(Protocol):
    """The control connection of an attached process."""

    pid: int
    uffd: int
    """A duplicate of its userfaultfd."""

    async def ask(self, op: int, *arguments: int) -> int:
        """Sends a message and waits for the answer: 0 (also if it is gone) or -errno."""

    def has_news(self) -> bool:
        """Whether it has sent something that was not read yet."""


async def wait_connected(host: HostMM, start: int, end: int, *, handed: bool = False) -> None:
    """Waits until all who have pages of [start, end) are connected; bounded, then EBUSY.

    `handed`: only those for whom there is something to `watch`.
    """
    deadline = trio.current_time() + CONNECT_SECONDS
    for slot in _touched(host, start, end, handed=handed):
        await _client(host, slot, deadline)


async def watch(host: HostMM, start: int, end: int) -> None:
    """Has every client's absent pages of [start, end) fault to us, also where all were there."""
    await _change(host, start, end, lib.UFFD_WATCH)


async def take_write(host: HostMM, start: int, end: int) -> None:
    """Makes [start, end) read-only in every client's page tables."""
    await _change(host, start, end, lib.UFFD_PROTECT)


async def give_write(host: HostMM, start: int, end: int) -> None:
    """Makes [start, end) writable again, where that can be done at once."""
    try:
        await _change(host, start, end, lib.UFFD_ALLOW)
    except OSError as error:
        log.warning("%s: writing comes back by faults only: %s", host.name, error)


async def take_all(host: HostMM, start: int, end: int, *, objects: bool = False) -> None:
    """Takes the pages of [start, end) out of every client's page tables.

    With `objects` some of them are of other files, whose mappings have to go too.
    """
    flags = lib.REVOKE_OBJECTS if objects else 0
    deadline = trio.current_time() + CONNECT_SECONDS
    done: set[int] = set()
    while slots := [
        slot for slot in _touched(host, start, end) if lib.mm_claim(host.mm, slot) not in done
    ]:
        asked = {
            slot: lib.mm_claim(host.mm, slot)
            for slot in slots
            if await _client(host, slot, deadline) is not None
        }
        refused = await _ask(host, list(asked), lib.MSG_REVOKE, start, end, flags)
        if refused:
            raise OSError(
                errno.EBUSY,
                f"{host.name}: {' and '.join(refused)}; a process that is stopped cannot let go "
                "of memory: let it go on and try again",
            )
        # One whose connection ended has perhaps not heard us, and comes back.
        done |= {claim for slot, claim in asked.items() if slot in host.clients}


async def arrange(host: HostMM, start: int, end: int, *, must: bool = False) -> None:
    """Lets every client have execution in [start, end) where the VMAs have it, and only there.

    With `must` EBUSY if one does not; else it may, for a while, see a SIGSEGV more or less.
    """
    slots = list(host.clients)
    if must:
        deadline = trio.current_time() + CONNECT_SECONDS
        slots = [slot for slot in host.slots() if await _client(host, slot, deadline) is not None]
    refused = await _ask(host, slots, lib.MSG_ARRANGE, start, end)
    if refused and must:
        raise OSError(
            errno.EBUSY,
            f"{host.name}: {' and '.join(refused)}; a process that is stopped cannot stop to "
            "execute memory: let it go on and try again",
        )
    for refusal in refused:
        log.warning("%s: %s; it executes there as before until it does", host.name, refusal)


async def rearm(host: HostMM, start: int, end: int) -> None:
    """Lets the pages of [start, end) that clients made to fault natively reach us again.

    There is memory now; or none any more, and the signal has another code.
    """
    slots = []
    slot = lib.mm_poisoned(host.mm, 0)
    while slot >= 0:
        slots.append(slot)
        slot = lib.mm_poisoned(host.mm, slot + 1)
    if not slots:
        return
    # A client of an earlier server is on its way to us; one that is stopped is not.
    with trio.move_on_after(REJOIN_SECONDS):
        while _away(host, slots):
            host.reap_dead()
            await trio.sleep(CONNECT_POLL_SECONDS)
    refused = await _ask(host, slots, lib.MSG_REARM, start, end)
    refused += [f"process {host.process_of(slot)} has not come back" for slot in _away(host, slots)]
    for refusal in refused:
        log.warning("%s: %s; it may see a stale SIGSEGV", host.name, refusal)


def _away(host: HostMM, slots: list[int]) -> list[int]:
    return [slot for slot in slots if slot not in host.clients and lib.mm_claim(host.mm, slot)]


async def _ask(host: HostMM, slots: list[int], op: int, *arguments: int) -> list[str]:
    """Asks all, some at a time; who did not do it, and why.

    As long as one after the other answers, the rest is waited for: they share the processors.
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
            client = host.clients.get(slot)
            if client is None:
                return
            waiting.add(client)
            result = await client.ask(op, *arguments)
            waiting.remove(client)
        answered.set()
        answered = trio.Event()
        if result < 0:
            refused.append(f"process {client.pid} answers {errno.errorcode.get(-result, result)}")

    async def watch() -> None:
        patience = None
        while patience is None or not patience.cancelled_caught:
            with trio.move_on_after(ANSWER_SECONDS) as patience:
                await answered.wait()
        asking.cancel_scope.cancel()

    async with trio.open_nursery() as watching:
        watching.start_soon(watch)
        async with trio.open_nursery() as asking:
            for slot in slots:
                asking.start_soon(ask, slot)
        watching.cancel_scope.cancel()
    return refused + [f"process {client.pid} does not answer" for client in waiting]


async def _change(host: HostMM, start: int, end: int, change: int) -> None:
    deadline = trio.current_time() + CONNECT_SECONDS
    turn = trio.current_time()
    for slot in _touched(host, start, end, handed=change == lib.UFFD_WATCH):
        at = start
        while at < end and (client := await _client(host, slot, deadline)) is not None:
            at = check(
                lib.touched_change(host.mm, slot, client.uffd, at, end, change),
                f"{host.name}: page tables of process {client.pid}, [{start:#x}, {end:#x})",
            )
            if trio.current_time() - turn > TURN_SECONDS:
                await trio.lowlevel.checkpoint()
                turn = trio.current_time()


async def _client(host: HostMM, slot: int, deadline: float) -> Client | None:
    """The connection of the holder of `slot`, waited for until `deadline`; then EBUSY.

    None: the holder is gone. Whoever has the slot then came later.
    """
    claim = lib.mm_claim(host.mm, slot)
    while slot not in host.clients:
        host.reap_dead()
        if lib.mm_claim(host.mm, slot) != claim:
            return None
        now = trio.current_time()
        if now > deadline + BACKLOG_SECONDS or (now > deadline and not _backlog(host)):
            raise OSError(
                errno.EBUSY,
                f"{host.name}: process {host.process_of(slot)} is attached but not connected; it "
                "is stopped, or has closed our socket: let it go on and try again",
            )
        await trio.sleep(CONNECT_POLL_SECONDS)
    return host.clients[slot]


def _backlog(host: HostMM) -> bool:
    return any(client.has_news() for client in host.clients.values())


def _touched(host: HostMM, start: int, end: int, *, handed: bool = False) -> Iterator[int]:
    """The slots that touched [start, end), as they are when the iteration gets there."""
    slot = lib.mm_touched(host.mm, 0, start, end)
    while slot >= 0:
        if not handed or lib.mm_handed(host.mm, slot):
            yield slot
        slot = lib.mm_touched(host.mm, slot + 1, start, end)
