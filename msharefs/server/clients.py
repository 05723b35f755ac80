"""The clients of a region: the slots in its host mm, and the connections of their holders.

A slot is an attachment; the server frees it when its process detaches or dies. Through a connection
the server asks the process for something. An attachment may be without a connection for a while: a
child of fork(2) whose hello was not read yet, a client that has not come back to a new server.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Protocol

from msharefs import processes
from msharefs.native import check, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .view import View


class Client(Protocol):
    """The control connection of an attached process."""

    pid: int
    uffd: int
    """A duplicate of its userfaultfd."""

    async def ask(self, op: int, *arguments: int) -> int:
        """Sends a message and waits for the answer: 0 (also if it is gone) or -errno."""

    def has_news(self) -> bool:
        """Whether it has sent a message that has not been read yet."""


class Clients:
    """The attachments of the region behind `view`, which is open for writing."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.name = view.name
        self.connected: dict[int, Client] = {}
        """Connections, by slot."""

    @property
    def mm(self) -> Any:
        """The core's `struct mm *` of the region."""
        return self._view.mm

    def connect(self, slot: int, claim: int, client: Client) -> None:
        """The attachment of `slot` has a connection. ESTALE: its claim is no longer `claim`."""
        if slot >= lib.MM_SLOTS or not claim or claim != self.claim(slot):
            raise OSError(errno.ESTALE, f"process {client.pid} does not hold slot {slot} any more")
        self.connected[slot] = client
        # The pid in our namespace: the client may live in another.
        lib.mm_set_client(self.mm, slot, client.pid, processes.start_time(client.pid))

    def disconnect(self, slot: int, client: Client) -> None:
        """That connection has ended; the attachment stays."""
        if self.connected.get(slot) is client:
            del self.connected[slot]

    def slots(self) -> list[int]:
        """The slots of the attachments, connected or not."""
        return [client.slot for client in self._view.attachments()]

    def processes(self) -> set[int]:
        """The attached processes."""
        return {client.pid for client in self._view.attachments()}

    def claim(self, slot: int) -> int:
        """The number of the claim by which `slot` is held; 0: it is free."""
        return int(lib.mm_claim(self.mm, slot))

    def process_of(self, slot: int) -> int:
        """Process id of the client of `slot`; 0: it has none."""
        return int(lib.mm_client_pid(self.mm, slot))

    def touched(self, start: int, end: int, *, handed: bool = False) -> Iterator[int]:
        """The slots that touched [start, end), as they are when the iteration gets there.

        `handed`: only those with pages that are not watched (native/client/handover.c).
        """
        slot = lib.mm_touched(self.mm, 0, start, end)
        while slot >= 0:
            if not handed or lib.mm_handed(self.mm, slot):
                yield slot
            slot = lib.mm_touched(self.mm, slot + 1, start, end)

    def any_handed(self) -> bool:
        """Whether any attachment has pages that are not watched."""
        return any(lib.mm_handed(self.mm, slot) for slot in self.slots())

    def poisoned(self) -> Iterator[int]:
        """The slots whose clients have guard pages."""
        slot = lib.mm_poisoned(self.mm, 0)
        while slot >= 0:
            yield slot
            slot = lib.mm_poisoned(self.mm, slot + 1)

    def reap(self, slot: int, claim: int) -> None:
        """Frees the slot of a client that detached or died, if its claim is still `claim`.

        A client that does not hear from us frees its slot itself, and another may have it by now.
        """
        freed = lib.slot_release(self.mm, slot, claim)
        if freed == -errno.ESTALE:
            return
        self.connected.pop(slot, None)
        check(freed, f"{self.name}: slot {slot}")

    def reap_dead(self, *, connected: bool = False) -> None:
        """Frees the slots of processes that are gone without a word.

        The slot of a process with a connection is freed when that ends; `connected`: here, too.
        """
        for client in self._view.attachments():
            unwatched = connected or client.slot not in self.connected
            if unwatched and not self._is_attached(client):
                self.reap(client.slot, client.claim)

    def _is_attached(self, client: Any) -> bool:
        """Whether the process lives, and is still the program that attached (execve(2))."""
        if not processes.is_alive_in(client.pid_namespace, client.pid, client.start_time):
            return False
        return bool(client.pid_namespace) or processes.has_mapped(
            client.pid, os.fstat(self._view.fd)
        )
