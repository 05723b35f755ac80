"""What clients ask of charging.py: pages that they need, at the owner's expense.

Each is asked for inside a page fault, and answered by a task of its own: the client has other
messages to be read meanwhile, which a change of the region may wait for.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

from msharefs import verbs
from msharefs.native import ffi, lib

from .messages import NO_REPLY, Reply, Request, send

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from .charging import Account
    from .hostmm import HostMM
    from .readers import Reader

log = logging.getLogger(__name__)

# As many as a client has questions open.
_WAITING_MAX = 64
_MAKE_THEM = 1  # whoever touches pages makes them


class Paying:
    """The requests of one connection, of user `user`. `start` begins a task."""

    def __init__(
        self, sock: socket.socket, user: int, start: Callable[..., Awaitable[Any] | None]
    ) -> None:
        self._sock = sock
        self._user = user
        self._start = start
        self._waiting = 0

    def charge(self, account: Account | None, host: HostMM, request: Request) -> Reply:
        """The reply to CHARGE."""
        if account is None:  # a server before us had that option
            return Reply(arguments=(_MAKE_THEM,))
        start, size, *_ = request.arguments

        async def work() -> Reply:
            return Reply(arguments=(0 if await account.touch(host, start, start + size) else 1,))

        return self._later(work, request.seq)

    def fault(
        self, account: Account, host: HostMM, slot: int, request: Request, reader: Reader
    ) -> Reply:
        """The reply to a reader's fault."""
        ask = ffi.from_buffer("struct fault_ask *", request.text)
        if ask.present or ask.object:
            return reader.fault(host, slot, request)
        start, end = ask.offset, min(ask.offset + max(1, ask.fill) * verbs.PAGE, ask.end)

        async def work() -> Reply:
            try:
                await account.touch(host, start, end)
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    told = ffi.new("struct fault_told *")
                    told.verdict = lib.FAULT_MAPERR
                    return Reply(text=bytes(ffi.buffer(told)))
                # The region says itself what is wrong.
            return reader.fault(host, slot, request)

        return self._later(work, request.seq)

    def _later(self, work: Callable[[], Awaitable[Reply]], seq: int) -> Reply:
        if self._waiting >= _WAITING_MAX:
            return Reply(result=-errno.EAGAIN)
        self._waiting += 1
        self._start(self._answer, work, seq)
        return NO_REPLY

    async def _answer(self, work: Callable[[], Awaitable[Reply]], seq: int) -> None:
        try:
            reply = await work()
        except OSError as error:
            log.debug("%s", error)
            reply = Reply(result=-(error.errno or errno.EIO))
        except Exception:
            log.exception("making pages failed")
            reply = Reply(result=-errno.EIO)
        finally:
            self._waiting -= 1
        if reply is NO_REPLY:
            return
        try:
            await send(self._sock, lib.MSG_REPLY, seq, reply, self._user)
        except OSError as error:
            log.debug("whoever needed pages has gone: %s", error)
