"""The control socket: attach, detach and the verbs of ioctl(2), for clients of any kind.

What a client sends is answered in connection.py. Here is where connections come from, and what is
done for all of them from time to time.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import trio

from msharefs.native import ffi, lib

from . import accepting, descriptors, devices, fetching
from .connection import Connection
from .connections import Connections
from .inboxes import Inboxes
from .messages import client_socket, peer
from .tokens import Tokens
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .region import Region
    from .regions import Regions

log = logging.getLogger(__name__)

# A process that vanishes is noticed by its socket; this interval is for those that had none.
REAP_SECONDS = 5.0
# And even if there is a hurry, nobody looks for them all the time.
REAP_REST_SECONDS = 0.05
# A process that ends has closed its connection before its other files.
REMOVE_AFTER_SECONDS = (0.001, 0.01, 0.1)
# Processes may be waiting for a change that an earlier server began.
CATCH_UP_SECONDS = 0.5


class Control:
    """The connections of a mount.

    They pass clients a descriptor of /dev/userfaultfd: only root may open that, but a process that
    gets it can make a userfaultfd of its own. None is passed if every user may do without.
    """

    def __init__(self, regions: Regions, state: Path) -> None:
        self.regions = regions
        self.path = state / "control"
        self.connections = Connections(regions.limits)
        self.inboxes = Inboxes()
        self.tokens = Tokens(regions.limits.connections)
        self.turns = Turns(self.start)
        self.userfaultfd = devices.open_userfaultfd()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled; has started when connections can be made."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            self.path.unlink(missing_ok=True)
            await listener.bind(os.fspath(self.path))
            os.chmod(self.path, 0o666)  # noqa: S103  a descriptor or token is the permission, not the path
            listener.listen(4096)
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self.inboxes.run)
                self._nursery.start_soon(self._reap)
                self._nursery.start_soon(self._catch_up)
                self._nursery.start_soon(self._remove)
                task_status.started()
                await accepting.forever(listener, self._accepted)

    def _accepted(self, sock: socket.socket) -> None:
        self.serve(Connection(self, sock, None, os.O_RDONLY))

    async def connect(
        self, region: Region, flags: int, data: bytes, caller: int, user: int
    ) -> tuple[int, bytes]:
        """ioctl(MSHAREFS_CONNECT): takes the caller's socket, or tells it how to reach ours.

        EPERM: another process has made that socket, and would be taken for the client.
        """
        self.connections.check_share(user)
        descriptors.check_unclosed(user)
        answer = ffi.new("struct mshare_connect *")
        ffi.buffer(answer)[:] = data
        try:
            fd = await fetching.fetch(caller, answer.fd, user)
        except PermissionError:
            answer.token = self.tokens.issue(region, flags, user)
            answer.flags = lib.MSHARE_CONNECT_TOKEN
            answer.path = os.fsencode(self.path)
        else:
            sock = client_socket(fd, user)
            maker, _ = peer(sock)
            if maker != caller:
                descriptors.close_later(sock.detach(), user=user)
                raise OSError(
                    errno.EPERM, f"process {caller} shows a socket that process {maker} made"
                )
            self.serve(Connection(self, sock, region, flags, user))
        return 0, bytes(ffi.buffer(answer))

    def serve(self, connection: Connection) -> None:
        """Starts to serve a connection."""
        self.start(connection.run)

    def start(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Starts a task of the control socket."""
        if self._nursery is None:
            raise OSError(errno.ENOTCONN, "the control socket is not open yet")
        self._nursery.start_soon(work, *arguments)

    async def _catch_up(self) -> None:
        while True:
            await trio.sleep(CATCH_UP_SECONDS)
            await self.regions.catch_up()

    async def _remove(self) -> None:
        """Removes what a process that was about to end still had open."""
        while True:
            await self.regions.left.wait()
            self.regions.left = trio.Event()
            for seconds in REMOVE_AFTER_SECONDS:
                await trio.sleep(seconds)
                self.regions.remove_some()

    async def _reap(self) -> None:
        while True:
            with trio.move_on_after(REAP_SECONDS):
                await self.regions.hurry.wait()
            await trio.sleep(REAP_REST_SECONDS)
            self.regions.hurry = trio.Event()
            self.tokens.expire()
            try:
                await self.regions.reap_dead()
            except Exception:
                log.exception("looking for processes that have ended failed; it goes on")
