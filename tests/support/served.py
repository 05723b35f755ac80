"""Processes of servers, started like a `subprocess.Popen`, but forked from one with all imports.

Only where that makes no difference: see `start()`.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

from . import leftovers

HERE = Path(__file__).parent
INHERITED = (
    "Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Cap", "NoNewPrivs", "Seccomp",
    "Cpus_allowed", "Mems_allowed",
)  # fmt: skip
NAMESPACES = ("mnt", "pid", "user", "ipc", "net", "cgroup")
# What a server may read before it has been forked: all but what changes from test to test.
ENVIRONMENT = dict(os.environ)
OURS = ("PYTEST_CURRENT_TEST", "MSHAREFS_TEST_SECONDS", leftovers.TOKEN)
MESSAGE_MAX = 1 << 12
ANSWER_LIMIT = 60.0  # seconds


class Served:
    """One server; what `subprocess.Popen` has of the same names."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_LIMIT)
        data, (self._pidfd,), _, _ = socket.recv_fds(sock, MESSAGE_MAX, 1)
        self.pid: int = pickle.loads(data)  # noqa: S301  # our own child's
        self.returncode: int | None = None
        self._socket = sock

    def poll(self) -> int | None:
        """Its status if it has ended."""
        if self.returncode is None and self._has_ended(0):
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its status, once it has ended. subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not self._has_ended(timeout):
                assert timeout is not None
                raise subprocess.TimeoutExpired("server", timeout)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def _end(self) -> None:
        with self._socket as sock:
            data = sock.recv(MESSAGE_MAX)
        assert data, "the process that forks servers has ended"
        self.returncode = pickle.loads(data)  # noqa: S301  # our own child's
        os.close(self._pidfd)


class ForkServer:
    """The process of support/serve.py that forks them."""

    def __init__(self) -> None:
        self.surroundings = _surroundings()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler",
                 HERE / "serve.py", "--fork", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
                env={**ENVIRONMENT, leftovers.TOKEN: os.environ.get(leftovers.TOKEN, "")},
            )  # fmt: skip
        self._channel = ours
        leftovers.kept.add(self.process.pid)

    def start(self, arguments: list[str], log: IO[bytes], environment: dict[str, str]) -> Served:
        """A new server; what it says goes to `log`."""
        message = pickle.dumps((arguments, environment, os.getcwd()))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._channel, [message], [theirs.fileno(), log.fileno()])
        return Served(ours)


_forkserver: ForkServer | None = None


def start(
    arguments: list[str],
    log: IO[bytes],
    environment: dict[str, str],
    wrapper: tuple[str, ...] = (),
) -> Served | subprocess.Popen[bytes]:
    """`msharefs ARGUMENTS` in a session of its own.

    A program of its own if a `wrapper` runs it, under sanitizers, and where this process is not
    the one, or not as, it was when the first one was started.
    """
    global _forkserver  # noqa: PLW0603  # one in a run
    if not wrapper and "MSHAREFS_SANITIZE" not in os.environ:
        if _forkserver is None:
            _forkserver = ForkServer()
        if _forkserver.surroundings == _surroundings() and _usual(environment):
            return _forkserver.start(arguments, log, environment)
    return subprocess.Popen(
        [*wrapper, sys.executable, "-P", "-X", "faulthandler", HERE / "serve.py", *arguments],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        env=environment,
    )  # fmt: skip


def _usual(environment: dict[str, str]) -> bool:
    """Whether it is the one that the tests were started with: Python reads some of it at once."""
    return all(
        environment.get(name) == ENVIRONMENT.get(name)
        for name in environment.keys() | ENVIRONMENT.keys()
        if name not in OURS
    )


def _surroundings() -> tuple[object, ...]:
    """What a child inherits, except for environment and directory."""
    status = Path("/proc/self/status").read_text().splitlines()
    return (
        os.getpid(),
        [line for line in status if line.startswith(INHERITED)],
        [Path(f"/proc/self/{name}").read_text() for name in ("limits", "cgroup")],
        [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES],
    )
