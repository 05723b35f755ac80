"""The command msharefs as the tests start it: SIGUSR1 writes the stacks of all threads to stderr.

SIGUSR2 writes what each task waits for.

Called with the arguments of msharefs, or as ``serve.py --fork SOCKET``. Then it forks servers: a
message is what one needs (arguments, environment, directory; a socket to answer on, the log), the
answer its pid and its pidfd, and once it has ended its status. To import takes a server half a
second of CPU time, and the tests start hundreds.

MSHAREFS_TEST_SECONDS has other values for limits of the server, which tests would have to wait for:
"connections.SILENT_SECONDS=1".
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING

import trio

from msharefs.cli import main

if TYPE_CHECKING:
    from types import FrameType

MESSAGE_MAX = 1 << 17


class ForkServer:
    """The loop of the process that forks."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._living: dict[int, tuple[int, socket.socket]] = {}
        """By pidfd: the pid, and where its status is waited for."""
        self._ended: dict[int, tuple[int, socket.socket]] = {}
        """By the descriptor of the socket."""

    def serve(self) -> list[str]:
        """Returns in each child, with its arguments; never in this process."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._living:
                    self._tell(fd)
                elif fd in self._ended:
                    self._reap(fd)
                elif (arguments := self._fork()) is not None:
                    return arguments

    def _fork(self) -> list[str] | None:
        data, fds, _, _ = socket.recv_fds(self._channel, MESSAGE_MAX, 2)
        if not data:
            sys.exit()  # the tests are over
        arguments, environment, directory = pickle.loads(data)  # noqa: S301  # from our parent
        answer, log = fds
        if (pid := os.fork()) == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            self._channel.detach()
            for _, sock in (*self._living.values(), *self._ended.values()):
                sock.detach()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(directory)
            return list(arguments)
        os.close(log)
        pidfd = os.pidfd_open(pid)
        sock = socket.socket(fileno=answer)
        self._living[pidfd] = pid, sock
        self._poll.register(pidfd, select.POLLIN)
        socket.send_fds(sock, [pickle.dumps(pid)], [pidfd])
        return None

    def _tell(self, pidfd: int) -> None:
        """It has ended. Its number is nobody else's until our parent knows."""
        pid, sock = self._living.pop(pidfd)
        self._poll.unregister(pidfd)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        os.close(pidfd)
        assert ended is not None
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with contextlib.suppress(BrokenPipeError):  # nobody asks any more
            sock.send(pickle.dumps(status))
        self._ended[sock.fileno()] = pid, sock
        self._poll.register(sock, 0)  # POLLHUP

    def _reap(self, fd: int) -> None:
        pid, sock = self._ended.pop(fd)
        self._poll.unregister(fd)
        sock.close()
        os.waitpid(pid, 0)


def forked(sock: int) -> list[str]:
    """Returns in each child, with its arguments."""
    importlib.import_module("msharefs.server.serving")  # not to be done again in each
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C ends the tests, which end us
    gc.freeze()  # the collector would copy what the children share
    arguments = ForkServer(socket.socket(fileno=sock)).serve()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return arguments


def change_limits() -> None:
    """As MSHAREFS_TEST_SECONDS says."""
    for each in os.environ.get("MSHAREFS_TEST_SECONDS", "").split():
        name, _, value = each.partition("=")
        module, _, limit = name.rpartition(".")
        found = importlib.import_module(f"msharefs.server.{module}")
        assert isinstance(getattr(found, limit), float), name
        setattr(found, limit, float(value))


if sys.argv[1] == "--fork":
    sys.argv[1:] = forked(int(sys.argv[2]))


def tell_tasks(_: int, __: FrameType | None) -> None:
    """Writes what each task of the server waits for."""
    with contextlib.suppress(RuntimeError):  # the loop does not run
        tasks = [trio.lowlevel.current_root_task()]
        for task in tasks:
            if task is None:
                continue
            tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            where = [
                f"{frame.f_code.co_qualname}:{line}" for frame, line in task.iter_await_frames()
            ]
            os.write(2, f"task {task.name}: {' > '.join(where)}\n".encode())


faulthandler.register(signal.SIGUSR1, all_threads=True)
signal.signal(signal.SIGUSR2, tell_tasks)
change_limits()
main()
