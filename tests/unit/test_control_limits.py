"""A client waits for its server within limits: at each step, and whatever signals come."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from msharefs.native import ffi, lib

from support.isolated import isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.alone

LIMIT_MS = 300
CALL_SECONDS = 10.0  # CONTROL_TIMEOUT_MS
SLOW = 5.0  # seconds that this machine may need on top
MESSAGE = {"op": lib.MSG_STAT}


@contextlib.contextmanager
def storm() -> Iterator[None]:
    """Signals with a handler, far more often than any limit ends."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    us = os.getpid()
    if (sender := os.fork()) == 0:
        while os.getppid() == us:
            os.kill(us, signal.SIGUSR1)
            time.sleep(0.02)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(sender, signal.SIGKILL)
        os.waitpid(sender, 0)
        signal.signal(signal.SIGUSR1, before)


def timed(call: Callable[[], int]) -> tuple[int, float]:
    start = time.monotonic()
    with storm():
        result = call()
    return result, time.monotonic() - start


@pytest.fixture
def silent() -> Iterator[int]:
    """A connection to a server that does nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours.fileno()


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[bytes]:
    """The path of a server that accepts nobody, and whose queue is full."""
    path = tmp_path / "control"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                waiting.setblocking(False)
                waiting.connect(str(path))
        yield os.fsencode(path)


def fill(sock: int) -> int:
    """Sends until nothing more fits; the result of the first message that did not."""
    message = ffi.new("struct msg *", MESSAGE)
    result = 0
    while not result:
        result = lib.control_send(sock, message, ffi.NULL, 0, 0)
    return int(result)


def ends_in_time(result: tuple[int, float]) -> None:
    code, seconds = result
    assert code == -errno.ETIMEDOUT
    assert LIMIT_MS / 1000 - 0.05 <= seconds < SLOW


def test_connecting(busy: bytes) -> None:
    ends_in_time(timed(lambda: lib.control_connect_path(busy, lib.control_deadline(LIMIT_MS))))
    assert lib.control_connect_path(busy, 0) == -errno.ETIMEDOUT


def test_sending(silent: int) -> None:
    message = ffi.new("struct msg *", MESSAGE)
    assert fill(silent) == -errno.ETIMEDOUT
    ends_in_time(
        timed(
            lambda: lib.control_send(silent, message, ffi.NULL, 0, lib.control_deadline(LIMIT_MS))
        )
    )


def test_receiving(silent: int) -> None:
    message, fds = ffi.new("struct msg *"), ffi.new("int[]", lib.MSG_FDS)
    ends_in_time(
        timed(lambda: lib.control_recv(silent, message, fds, lib.control_deadline(LIMIT_MS)))
    )


def test_a_call_has_one_limit_for_all_of_it() -> None:
    """Half of the time is over when the request can be sent; the answer never comes."""

    def work(say: Callable[[str], None]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(ffi.sizeof("struct msg")))
        ours.setblocking(True)
        reads = time.monotonic() + CALL_SECONDS / 2
        if (reader := os.fork()) == 0:  # not a thread: signals are for the one that calls
            time.sleep(max(0.0, reads - time.monotonic()))
            theirs.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs.recv(4096)
            time.sleep(2 * CALL_SECONDS)
            os._exit(0)
        message = ffi.new("struct msg *", MESSAGE)
        result, seconds = timed(
            lambda: lib.control_call(ours.fileno(), message, ffi.NULL, 0, ffi.NULL)
        )
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)
        say(f"{result} after {seconds}")
        assert result == -errno.ETIMEDOUT
        assert CALL_SECONDS - 0.05 <= seconds < CALL_SECONDS + SLOW / 2

    isolated(work, seconds=30)
