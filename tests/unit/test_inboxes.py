"""The threads that receive for clients: none is missing when it is needed."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import closing
from typing import Any

import pytest
import trio

from msharefs.server import inboxes
from msharefs.server.inboxes import Inboxes

from support.wait import until


@pytest.fixture(autouse=True)
def soon_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a thread without work stays."""
    monkeypatch.setattr(inboxes, "_IDLE_SECONDS", 0.1)


def test_a_look_before_the_first_wish_takes_no_thread_away() -> None:
    """A connection is made, the reader is found idle, and only then a message is asked for."""

    async def scenario() -> Any:
        given = Inboxes()
        ours, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with closing(client):
            older, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with closing(theirs):  # gives the reader a thread, which then has nothing to do
                first = given.open(older, os.getuid(), "the first client")
                theirs.close()
                assert await first.get() is None
            inbox = given.open(ours, os.getuid(), "the client")
            first.close()
            for reader in given._readers.values():
                assert reader.look()
            client.close()
            with trio.fail_after(5):
                assert await inbox.get() is None
            inbox.close()
            (reader,) = given._readers.values()
            assert not reader.look()
            return reader

    reader = trio.run(scenario)
    until(lambda: reader._epoll.closed, "its descriptor goes with its thread")


def test_a_thread_that_is_not_needed_any_more_closes_the_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has just delivered the last message of the last client, which has gone by now."""
    looked = threading.Event()

    async def scenario() -> Any:
        given = Inboxes()
        ours, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inbox = given.open(ours, os.getuid(), "the client")
        (reader,) = given._readers.values()
        deliver = reader._deliver

        def slowly(*arguments: Any) -> None:
            deliver(*arguments)
            looked.wait(5)

        monkeypatch.setattr(reader, "_deliver", slowly)
        client.close()
        with trio.fail_after(5):
            assert await inbox.get() is None
        inbox.close()
        assert not reader.look()
        looked.set()
        return reader

    reader = trio.run(scenario)
    until(lambda: reader._epoll.closed, "its descriptor goes with its thread")
