"""The faults of a client that may only read: it cannot write the host mm, and we do it for it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import trio

from msharefs.native import ffi, lib

from .messages import NO_REPLY, Reply, Request, send, send_now

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from .clients import Clients
    from .hands import Lane
    from .hostmm import HostMM

log = logging.getLogger(__name__)

# Faults that wait for pages which somebody keeps locked: so many of a reader, and how often to
# look.
_WAITING_MAX = 64
_LOCKED_POLL_SECONDS = 0.05


class Reader:
    """What is asked by a process of user `user` through `sock`. `start` begins a task."""

    def __init__(
        self, sock: socket.socket, pid: int, user: int, start: Callable[..., Awaitable[Any] | None]
    ) -> None:
        self._sock = sock
        self._pid = pid
        self._user = user
        self._start = start
        self._waiting: list[int] = []
        """Faults that are to be asked for again."""
        self._closed = False

    def close(self) -> None:
        """Its connection ends: nobody waits any more."""
        self._closed = True

    def fault(self, host: HostMM, slot: int, request: Request) -> Reply:
        """The reply to a fault of the attachment in `slot`."""
        # Our answer must reach the client before what the next change asks of it, so it leaves
        # before anything else can happen here.
        mem_fd = host.mem_fd
        told = ffi.new("struct fault_told *")
        ask = ffi.from_buffer("struct fault_ask *", request.text)
        if ask.present or ask.object:
            lib.readers_fault(host.mm, slot, mem_fd, ask, told)
        elif not self._make_page(
            host.clients, mm=host.mm, slot=slot, fd=mem_fd, ask=ask, told=told
        ):
            return self._later(host.clients.lane, request.seq)
        reply = Reply(text=bytes(ffi.buffer(told)))
        if send_now(self._sock, lib.MSG_REPLY, request.seq, reply):
            return NO_REPLY
        return _ask_again()

    def _make_page(self, clients: Clients, **fields: Any) -> bool:
        """A fault that may have to make a page, if nobody keeps the pages locked."""
        lane = clients.lane
        try:
            return not lane.busy and lane.begin(clients.holders, lib.HAND_FAULT, **fields) is None
        except OSError as error:
            log.debug("process %d: %s", self._pid, error)
            return False

    def _later(self, lane: Lane, seq: int) -> Reply:
        """The pages are locked: the reader asks again, but not before that may have ended."""
        if len(self._waiting) >= _WAITING_MAX:
            return _ask_again()
        if not self._waiting:
            self._start(self._let_ask_again, lane)
        self._waiting.append(seq)
        return NO_REPLY

    async def _let_ask_again(self, lane: Lane) -> None:
        while lane.busy and not self._closed:  # noqa: ASYNC110  # nothing tells us
            await trio.sleep(_LOCKED_POLL_SECONDS)
        waiting, self._waiting = self._waiting, []
        with contextlib.suppress(OSError):  # it has gone
            for seq in waiting:
                await send(self._sock, lib.MSG_REPLY, seq, _ask_again(), self._user)


def _ask_again() -> Reply:
    told = ffi.new("struct fault_told *")
    told.verdict = lib.FAULT_WAIT
    return Reply(text=bytes(ffi.buffer(told)))
