"""The threads that receive for clients: none is missing when it is needed."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

import trio

from msharefs.server.inboxes import Inboxes

from support.wait import until


def test_a_look_before_the_first_wish_takes_no_thread_away() -> None:
    """A connection is made, the reader is found idle, and only then a message is asked for."""

    async def scenario() -> Any:
        inboxes = Inboxes()
        ours, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with closing(client):
            older, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with closing(theirs):  # gives the reader a thread, which then has nothing to do
                first = inboxes.open(older, os.getuid(), "the first client")
                theirs.close()
                assert await first.get() is None
            inbox = inboxes.open(ours, os.getuid(), "the client")
            first.close()
            for reader in inboxes._readers.values():
                assert reader.look()
            client.close()
            with trio.fail_after(5):
                assert await inbox.get() is None
            inbox.close()
            (reader,) = inboxes._readers.values()
            assert not reader.look()
            return reader

    reader = trio.run(scenario)
    until(lambda: reader._epoll.closed, "its descriptor goes with its thread")
