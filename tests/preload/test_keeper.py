"""The keeper of a private mount: its work for each orphan, and what is left when it is killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from msharefs import home, processes
from msharefs.launch import private_mount, running
from msharefs.mountpoint import FSTYPE
from msharefs.proc import mounts

from support import namespace
from support.calls import NOBODY
from support.isolated import isolated
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

RUN = [sys.executable, "-m", "msharefs", "run"]
WAIT = 60.0
ORPHANS = 100
# All end when the program has: they read from a pipe that it has open for writing.
MAKE_ORPHANS = f"""
import os
end, held = os.pipe()
for _ in range({ORPHANS}):
    if os.fork() == 0:
        os.close(held)
        os.read(end, 1)
        os._exit(0)
"""
PROGRAM = """
import mmap, sys
memory = mmap.mmap(-1, 8 << 20)
memory[0] = 7
print("ready", flush=True)
sys.stdin.readline()
memory[4 << 20] = 8
print(memory[0], memory[4 << 20])
"""


def left() -> list[str]:
    found = [str(mount.directory) for mount in mounts() if mount.fstype == FSTYPE]
    return found + os.listdir(namespace.SHM)


def servers() -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if private_mount.PREFIX in " ".join(each.info["cmdline"] or ())
    ]


def test_orphans_do_not_have_it_look_through_all_processes(tmp_path: Path) -> None:
    looks = tmp_path / "looks"

    def work(say: Callable[[str], None]) -> None:
        def counted(pids: Iterable[int]) -> dict[int, list[int]]:
            with looks.open("a") as file:
                file.write("x")
            return processes.by_parent(pids)

        running.by_parent = counted  # type: ignore[attr-defined]
        say(str(running.run([sys.executable, "-c", MAKE_ORPHANS], None, None)))
        until(lambda: not left(), "the private mount gone")

    isolated(work, seconds=60)
    assert 1 <= len(looks.read_text()) < ORPHANS / 10


class Running:
    """A program with adopted memory on a private mount, and who is behind it."""

    def __init__(self) -> None:
        self.command = subprocess.Popen(
            [*RUN, "--adopt-anon", "1M", "--", sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={name: value for name, value in os.environ.items() if name != running.MOUNT},
        )  # fmt: skip
        assert self.command.stdout
        assert self.command.stdout.readline() == "ready\n"
        (self.keeper,) = psutil.Process(self.command.pid).children()
        by_mount = {"mount" in child.cmdline(): child for child in self.keeper.children()}
        self.server, self.program = by_mount[True], by_mount[False]

    def kill(self, *victims: str) -> None:
        """SIGKILL, all at once."""
        chosen = [getattr(self, name) for name in victims]
        for each in chosen:
            each.send_signal(signal.SIGSTOP)
        for each in chosen:
            each.send_signal(signal.SIGKILL)

    def finish(self) -> tuple[str, str]:
        """The program ends; what it and the command say."""
        out, err = self.command.communicate("\n", timeout=WAIT)
        return out, err


@pytest.mark.parametrize("victims", [("keeper",), ("keeper", "server"), ("server", "keeper")])
def test_what_is_left_of_a_killed_keeper_goes_with_the_program(victims: tuple[str, ...]) -> None:
    it = Running()
    it.kill(*victims)
    out, err = it.finish()
    assert out == "7 8\n"
    assert "was killed: how the program ended is not known" in err
    assert it.command.returncode == 1
    until(lambda: not left() and not it.server.is_running(), "all gone")


def test_nothing_is_swept_before_a_killed_keeper_has_ended() -> None:
    """It holds the lock on its mount until it has closed all its files."""

    def work(say: Callable[[str], None]) -> None:
        found = []
        running.sweep = lambda _: found.extend(psutil.Process().children())  # type: ignore[assignment]
        with pytest.raises(running.KeeperError):
            running.run(["sh", "-c", "kill -KILL $PPID"], None, None)
        states = [child.status() for child in found]
        say(str(states))
        assert states == [psutil.STATUS_ZOMBIE]

    isolated(work)
    private_mount.sweep()
    until(lambda: not servers(), "its server has ended")


def test_the_next_one_sweeps_what_nobody_is_left_to_take_away() -> None:
    it = Running()
    # The server first: when its parent ends, Linux lets it go on (an orphaned process group), and
    # it would take its mount away.
    it.kill("server", "keeper", "command")
    it.finish()
    until(lambda: not it.program.is_running(), "the program ended")
    assert len(left()) == 2  # the dead mount, and its directory
    done = subprocess.run([*RUN, "--", "true"], timeout=WAIT, check=False)
    assert done.returncode == 0
    assert not left()


class TestWhatIsNotSwept:
    NAME = f"{private_mount.PREFIX}test"

    def test_one_that_is_in_use(self) -> None:
        with private_mount.PrivateMount() as mount:
            private_mount.sweep()
            assert (mount.directory / "mshare_info").exists()
        assert not left()

    def test_what_is_no_directory_of_this_user(self) -> None:
        other = namespace.SHM / self.NAME
        link = namespace.SHM / f"{self.NAME}-link"
        file = namespace.SHM / f"{self.NAME}-file"
        other.mkdir()
        os.chown(other, NOBODY, NOBODY)
        link.symlink_to(other)
        file.touch()
        private_mount.sweep()
        assert {other.name, link.name, file.name} == set(os.listdir(namespace.SHM))
        link.unlink()
        file.unlink()
        other.rmdir()

    @pytest.mark.parametrize("where", ["own", "beside"])
    def test_one_whose_server_lives(self, where: str) -> None:
        base = namespace.SHM / self.NAME
        base.mkdir()
        state = home.own(base / "mount") if where == "own" else base / "state"
        with home.entered():
            state.mkdir()
        with (state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            private_mount.sweep(0.1)
            assert base.exists()
        private_mount.sweep()
        assert not base.exists()
        assert not state.exists()
