"""Unmounting while processes are attached: their memory stays for them, and then goes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from msharefs import mountpoint
from msharefs.home import default_state

from support import fusectl, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = 30.0
CLIENT = """
import os, sys, msharefs
region = msharefs.open(sys.argv[1])
if region.stat()["vmas"] == 0:
    region.map(0, 1 << 20)
memory = region.attach()
os.close(region.fd)  # the attachment stays; region.close() would detach
for line in sys.stdin:
    at, value = map(int, line.split())
    if value:
        memory[at] = value
    print(memory[at], flush=True)
"""


class Client:
    """A process attached to a region."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", CLIENT, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert self.at(0) == 0
        except BaseException:
            self.end()
            raise

    def at(self, offset: int, value: int = 0) -> int:
        """The byte at `offset`, after writing `value` if that is not 0."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(offset, value, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def directory(public_tmp: Path) -> Iterator[Path]:
    directory = public_tmp / "mnt"
    directory.mkdir()
    yield directory
    if namespace.at(directory) is not None:
        with contextlib.suppress(FileNotFoundError):
            fusectl.abort(namespace.at(directory).minor)  # type: ignore[union-attr]
        namespace.detach(directory)


def msharefs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "msharefs", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.fixture
def server(directory: Path) -> psutil.Process:
    """The server of a mount with quantum 2M and a region "r"."""
    done = msharefs("mount", "-o", "quantum=2M", directory)
    assert done.returncode == 0, done.stderr
    (directory / "r").touch()
    os.truncate(directory / "r", 2 << 20)
    return found_server(directory)


def found_server(directory: Path) -> psutil.Process:
    found = mountpoint.open_server(directory)
    os.close(found.pidfd)
    return psutil.Process(found.pid)


@pytest.fixture
def client(directory: Path, server: psutil.Process) -> Iterator[Client]:
    del server
    client = Client(directory / "r")
    yield client
    client.end()


def wait_for_end(process: psutil.Process) -> None:
    psutil.wait_procs([process], timeout=LIMIT)
    assert not process.is_running()


def unmount(directory: Path) -> None:
    """Like an administrator who does not know our command."""
    subprocess.run(["umount", directory], check=True)


def test_our_command_refuses(directory: Path, server: psutil.Process, client: Client) -> None:
    done = msharefs("umount", directory)
    assert done.returncode == 1
    assert f"attached to its regions are {client.process.pid} " in done.stderr
    assert client.at(5, 7) == 7
    assert (directory / "r").exists()
    client.end()
    assert msharefs("umount", directory).returncode == 0
    wait_for_end(server)
    assert not default_state(directory).exists()


def test_memory_stays_until_the_last_goes(
    directory: Path, server: psutil.Process, client: Client
) -> None:
    second = Client(directory / "r")
    client.at(4096, 11)
    unmount(directory)
    assert os.listdir(directory) == []
    assert second.at(4096) == 11
    assert client.at(3 * 4096, 13) == 13  # a first touch: the fault works without the mount
    assert second.at(3 * 4096) == 13
    client.end()
    assert second.at(4096, 12) == 12
    assert server.is_running()
    second.end()
    wait_for_end(server)
    assert not default_state(directory).exists()


def test_a_new_mount_takes_over(directory: Path, server: psutil.Process, client: Client) -> None:
    client.at(4096, 11)
    assert msharefs("umount", "--lazy", directory).returncode == 0
    deadline = time.monotonic() + LIMIT
    while "keep this server" not in (default_state(directory) / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = msharefs("mount", "-o", "quantum=2M", directory)
    assert done.returncode == 0, done.stderr
    wait_for_end(server)
    assert (directory / "r").stat().st_size == 2 << 20
    other = Client(directory / "r")
    try:
        assert other.at(4096) == 11
        other.at(0, 9)
        assert client.at(0) == 9
    finally:
        other.end()
    client.end()
    last = found_server(directory)
    assert msharefs("umount", directory).returncode == 0
    wait_for_end(last)


def test_a_signal_leaves_the_state_for_the_next(
    directory: Path, server: psutil.Process, client: Client
) -> None:
    client.at(4096, 11)
    server.send_signal(signal.SIGTERM)
    wait_for_end(server)
    assert client.at(4096) == 11
    assert len(os.listdir(default_state(directory) / "memory" / "regions")) == 3
    assert msharefs("mount", "-o", "quantum=2M", directory).returncode == 0
    client.end()
    last = found_server(directory)
    assert msharefs("umount", directory).returncode == 0
    wait_for_end(last)
    assert not default_state(directory).exists()


def test_another_quantum_is_refused(
    directory: Path, server: psutil.Process, client: Client
) -> None:
    server.kill()
    wait_for_end(server)
    done = msharefs("mount", directory)
    assert done.returncode == 1
    assert "-o quantum=2M" in done.stderr
    assert client.at(4096, 3) == 3
    assert msharefs("mount", "-o", "quantum=2M", directory).returncode == 0
    client.end()
    last = found_server(directory)
    assert msharefs("umount", directory).returncode == 0
    wait_for_end(last)
