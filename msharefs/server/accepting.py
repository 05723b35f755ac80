"""Accepting connections: whatever happens, the loop goes on."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

# So long nobody is accepted after an error: what the system is short of may be there again then.
_REST_SECONDS = 0.05
_WARN_SECONDS = 60.0


async def forever(
    listener: trio.socket.SocketType, accepted: Callable[[socket.socket], None]
) -> NoReturn:
    """Calls `accepted` for each connection; it may raise OSError, and has closed the socket then.

    Without a free descriptor accept(2) leaves a connection where it is, and the next call finds it
    again. So one descriptor is kept for that: the connection is accepted and closed.
    """
    reserve = _Reserve()
    warned = -float("inf")
    with contextlib.closing(reserve):
        while True:
            try:
                sock, _ = await listener.accept()
            except OSError as error:
                if trio.current_time() > warned + _WARN_SECONDS:
                    warned = trio.current_time()
                    log.warning("a connection is not accepted: %s", error)
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    reserve.turn_away(listener)
                await trio.sleep(_REST_SECONDS)
                continue
            try:
                accepted(socket.socket(fileno=sock.detach()))
            except OSError as error:
                log.debug("a connection is closed: %s", error)


class _Reserve:
    """A descriptor for when there is no other."""

    def __init__(self) -> None:
        self._fd = -1
        self._take()

    def turn_away(self, listener: trio.socket.SocketType) -> None:
        """Closes the connection that waits the longest."""
        self.close()
        plain = socket.socket(fileno=listener.fileno())
        try:
            with contextlib.suppress(OSError):
                sock, _ = plain.accept()  # it does not wait: the listener is trio's
                sock.close()
        finally:
            plain.detach()
            self._take()

    def close(self) -> None:
        """Gives it up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # somebody was faster
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
