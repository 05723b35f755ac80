"""Processes whose every system call we decide: the program native/agent/agent.c.

Calls go through the agent's C library by name, so a preloaded library stands in between as in any
program, and arguments reach the kernel as they are written here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER_SECONDS = 20.0
_SEPARATOR = "\x1f"
_PACKET = 1 << 18

Argument = int | str | bytes


class Agent:
    """One thread of an agent process, and the whole process if it has only one."""

    def __init__(self, agents: Agents, sock: socket.socket) -> None:
        self.agents = agents
        self._sock = sock
        sock.settimeout(ANSWER_SECONDS)
        hello = sock.recv(_PACKET).decode().split(_SEPARATOR)
        self.pid, self.tid, self.pool = (int(word) for word in hello)

    @property
    def by_call(self) -> bool:
        """Whether what is asked is asked of the calls of 2026."""
        return self.agents.by_call

    @property
    def by_library(self) -> bool:
        """Whether it attaches by the library's calls; its others are Linux's alone."""
        return self.agents.by_call or self.agents.by_library

    def ask(self, *words: Argument) -> str:
        """Sends a request and waits for its answer, which is empty if the agent ended instead."""
        self.tell(*words)
        return self.answer()

    def tell(self, *words: Argument) -> None:
        """Sends a request; `answer` waits for the answer."""
        self._sock.send(_SEPARATOR.join(_word(word) for word in words).encode())

    def answer(self) -> str:
        """The answer to the last request."""
        with contextlib.suppress(ConnectionResetError):
            return self._sock.recv(_PACKET).decode()
        return ""

    def result(self, function: str, *arguments: Argument) -> tuple[int, str]:
        """Calls a C function: its result and errno by name ("0" if it set none)."""
        words = self.ask("call", function, *(_argument(given) for given in arguments))
        result, _, error = words.partition(_SEPARATOR)
        return int(result), error

    def call(self, function: str, *arguments: Argument) -> int:
        """Calls a C function that must succeed."""
        result, error = self.result(function, *arguments)
        if result == -1 and error != "0":
            raise OSError(getattr(errno, error), f"{function}{arguments}: {error}")
        return result

    def say(self, function: str, *arguments: Argument) -> str:
        """Calls a C function: the name of its errno if it failed, "0" if not."""
        result, error = self.result(function, *arguments)
        return error if result == -1 and error != "0" else "0"

    def load(self, address: int) -> str:
        """Reads a byte: its value, or the signal, as "SIGSEGV MAPERR", with any other address."""
        return _signal(self.ask("load", address), address)

    def store(self, address: int, byte: int) -> str:
        """Writes a byte: "ok", or the signal."""
        said = _signal(self.ask("store", address, byte), address)
        return "ok" if said == str(byte) else said

    def run(self, address: int) -> str:
        """Calls the code at an address: "ok", or the signal."""
        said = _signal(self.ask("run", address), address)
        return "ok" if said == "0" else said

    def get(self, address: int, size: int) -> bytes:
        """Memory of the agent."""
        return bytes.fromhex(self.ask("get", address, size))

    def put(self, address: int, data: bytes) -> None:
        """Sets memory of the agent."""
        self.ask("put", address, data.hex())

    def fork(self, *how: str) -> Agent:
        """fork(2), or "_Fork", "clone", "syscall": the child, an agent too."""
        self.tell("fork", *how)
        child = self.agents.accept()
        self.answer()
        return child

    def thread(self) -> Agent:
        """One more thread of the process."""
        assert self.ask("thread") == "0"
        return self.agents.accept()

    def exec(self) -> Agent:
        """execve(2) of the agent itself, by this thread."""
        self.tell("exec")
        return self.agents.accept()

    def close(self) -> None:
        """Lets the agent's process end, if it has not ended."""
        self._sock.close()

    def exit(self, *, by: str = "exit") -> None:
        """Ends the process and waits until it is a zombie: by exit(2), "kill" or "leave"."""
        pidfd = os.pidfd_open(self.pid)
        try:
            if by == "kill":
                os.kill(self.pid, signal.SIGKILL)
            else:
                self.tell("exit", 0)
            select.select([pidfd], [], [], ANSWER_SECONDS)
        finally:
            os.close(pidfd)


class Agents:
    """Where agents connect; a context manager that ends them all."""

    def __init__(self, *, by_call: bool = False, by_library: bool = False) -> None:
        self.by_call = by_call
        self.by_library = by_library
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("")  # Linux finds a name that nobody has, in any pid namespace
        self.address = self._listener.getsockname()[1:].decode()
        self._listener.listen(256)
        self._listener.settimeout(ANSWER_SECONDS)
        self._made: list[Agent] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clean()
        self._listener.close()
        for process in self._started:
            process.kill()
            process.wait()

    def start(
        self, command: Sequence[str | os.PathLike[str]], environ: dict[str, str] | None = None
    ) -> Agent:
        """Starts an agent; `command` is its program, after the command it runs under, if any."""
        self._started.append(
            subprocess.Popen([*command, self.address], env={**os.environ, **(environ or {})})
        )
        return self.accept()

    def accept(self) -> Agent:
        """The next agent to connect."""
        sock, _ = self._listener.accept()
        agent = Agent(self, sock)
        self._made.append(agent)
        return agent

    def clean(self, keep: Sequence[Agent] = ()) -> None:
        """Ends all agents but some, and waits for them."""
        kept = {agent.pid for agent in keep}
        gone = [agent for agent in self._made if agent.pid not in kept]
        self._made = [agent for agent in self._made if agent.pid in kept]
        pidfds = []
        for pid in {agent.pid for agent in gone}:
            with contextlib.suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
        for agent in gone:
            agent.close()
        for pidfd in pidfds:
            if not select.select([pidfd], [], [], ANSWER_SECONDS)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [])
            os.close(pidfd)
        for agent in keep:  # the dead are its children, or have become init's
            while agent.result("waitpid", -1, 0, os.WNOHANG)[0] > 0:
                pass


def _word(word: Argument) -> str:
    return word.hex() if isinstance(word, bytes) else str(word)


def _argument(given: Argument) -> str:
    if isinstance(given, bytes):
        return f"x{given.hex()}"
    if isinstance(given, str):
        return f"s{given}"
    return str(given & (1 << 64) - 1)


def _signal(answer: str, address: int) -> str:
    """The signal in words; without its address if that is exact."""
    return answer.removesuffix(f" {address:x}") if answer.startswith("SIG") else answer
