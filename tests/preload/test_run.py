"""msharefs run: which mount a program gets, how it starts and ends, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from msharefs import installed
from msharefs.launch import running
from msharefs.mountpoint import FSTYPE
from msharefs.proc import mounts

from support import namespace
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

RUN = [sys.executable, "-m", "msharefs", "run"]
WAIT = 60.0


def environ(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != running.MOUNT}
    return {**kept, **changes}


def run(*arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments], env=environ(**changes),
        capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """A program that says "ready" when it is."""
    process = subprocess.Popen(
        [*RUN, *arguments], env=environ(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def private_mounts() -> list[Path]:
    return [mount.directory for mount in mounts() if mount.fstype == FSTYPE]


def nothing_of_it_is_left() -> None:
    """When a program without descendants has ended, so has its mount."""
    assert not private_mounts()
    assert not os.listdir(namespace.SHM)


def gone() -> None:
    until(lambda: not private_mounts() and not os.listdir(namespace.SHM), "the private mount gone")


def quantum_of(answer: subprocess.CompletedProcess[str]) -> int:
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout)


class TestWhichMount:
    ASK = ("sh", "-c", f"echo ${running.MOUNT}")

    def test_the_one_given(self, mounts: Callable[..., Mount]) -> None:
        _, second = mounts(), mounts()
        assert run("--mount", second.path, "--", *self.ASK).stdout == f"{second.path}\n"

    def test_the_one_of_the_environment(self, mounts: Callable[..., Mount]) -> None:
        _, second = mounts(), mounts()
        answer = run("--", *self.ASK, **{running.MOUNT: str(second.path)})
        assert answer.stdout == f"{second.path}\n"

    def test_the_only_one_and_which_it_is(self, mount: Mount) -> None:
        answer = run("--", *self.ASK)
        assert answer.stdout == f"{mount.path}\n"
        assert answer.stderr == (
            f"msharefs: on the mount {mount.path}, the only one there is "
            f"(--mount or ${running.MOUNT} names another)\n"
        )
        assert run("--mount", mount.path, "--", *self.ASK).stderr == ""

    def test_a_private_one_if_there_is_none(self) -> None:
        answer = run("--", "sh", "-c", f"cat ${running.MOUNT}/mshare_info")
        assert quantum_of(answer) == 512 << 30
        assert answer.stderr == ""
        nothing_of_it_is_left()

    def test_if_there_are_more_one_must_be_named(self, mounts: Callable[..., Mount]) -> None:
        first, second = sorted([mounts().path, mounts().path])
        answer = run("--", *self.ASK)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert f"several mounts ({first}, {second})" in answer.stderr
        assert f"--mount or ${running.MOUNT}" in answer.stderr

    def test_one_that_is_not_open_to_us_does_not_count(self, mount: Mount) -> None:
        mount.base.chmod(0o700)
        assert running.choose_mount(None) == mount.path
        os.seteuid(65534)
        try:
            assert running.choose_mount(None) is None
        finally:
            os.seteuid(0)

    def test_for_adopted_memory_its_quantum_is_small(self) -> None:
        answer = run("--adopt-anon", "64M", "--", "sh", "-c", f"cat ${running.MOUNT}/mshare_info")
        assert quantum_of(answer) == 2 << 20
        nothing_of_it_is_left()

    def test_others_may_use_a_private_one(self) -> None:
        script = (
            f"cd / && setpriv --reuid 65534 --regid 65534 --clear-groups "
            f"touch ${running.MOUNT}/file && stat -c %u ${running.MOUNT}/file"
        )
        assert run("--", "sh", "-c", script).stdout == "65534\n"
        nothing_of_it_is_left()

    def test_what_is_no_mount_is_refused(self, tmp_path: Path) -> None:
        answer = run("--mount", tmp_path, "--", "true")
        assert answer.returncode == 1
        assert f"{tmp_path}: no msharefs is mounted here" in answer.stderr

    def test_one_whose_server_is_gone_is_refused(self, mount: Mount) -> None:
        mount.kill()
        answer = run("--mount", mount.path, "--", "true")
        assert answer.returncode == 1
        assert "does not answer" in answer.stderr


class TestWhichMountForAdoptedMemory:
    """If regions end with the process that made them, a daemon's memory would end, too."""

    ASK = ("--adopt-anon", "64M", "--", *TestWhichMount.ASK)

    def test_the_only_one_if_it_fits(self, mount: Mount) -> None:
        assert run(*self.ASK).stdout == f"{mount.path}\n"
        assert os.listdir(mount.path) == ["mshare_info"]

    @pytest.mark.mount("owner=process")
    def test_else_a_private_one(self, mount: Mount) -> None:
        answer = run(*self.ASK)
        assert answer.returncode == 0
        assert not answer.stdout.startswith(str(mount.path))
        assert f"on a private mount: the regions on {mount.path} end with" in answer.stderr
        assert private_mounts() == [mount.path]

    @pytest.mark.mount("owner=thread")
    def test_the_one_given_must_fit(self, mount: Mount) -> None:
        answer = run("--mount", mount.path, *self.ASK)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert "its regions end with their owner (-o owner=thread)" in answer.stderr


@pytest.fixture(params=["a mount that is there", "a private mount"])
def either(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to run a program: in our place, and beside a server of its own."""
    if request.param == "a mount that is there":
        request.getfixturevalue("mount")
        yield request.param
    else:
        yield request.param
        nothing_of_it_is_left()


class TestTheProgram:
    def test_gets_its_arguments_as_they_are(self, either: str) -> None:
        del either
        script = 'for argument; do echo "[$argument]"; done'
        answer = run("--", "sh", "-c", script, "sh", "--mount", "a b", "", "--", "-h")
        assert answer.stdout == "[--mount]\n[a b]\n[]\n[--]\n[-h]\n"

    def test_needs_no_dashes_before_it(self, either: str) -> None:
        del either
        assert run("printf", "%s %s", "--mount", "-h").stdout == "--mount -h"

    def test_ends_with_its_own_status(self, either: str) -> None:
        del either
        assert run("--", "sh", "-c", "exit 42").returncode == 42

    def test_killed_by_a_signal(self, either: str) -> None:
        # As in a shell; when we became the program, our parent sees the signal itself.
        status = run("--", "sh", "-c", "kill -KILL $$").returncode
        assert status == (128 + 9 if either == "a private mount" else -9)

    def test_that_is_not_there(self, either: str) -> None:
        answer = run("--", "no-such-program")
        said = answer.stderr.splitlines(keepends=True)
        assert answer.returncode == 127
        assert said.pop() == "msharefs: no-such-program: No such file or directory\n"
        assert len(said) == (either == "a mount that is there")  # which it is

    def test_that_cannot_be_executed(self, either: str, tmp_path: Path) -> None:
        del either
        (tmp_path / "text").touch()
        answer = run("--", tmp_path / "text")
        assert (answer.returncode, "Permission denied" in answer.stderr) == (126, True)

    def test_keeps_its_descriptors_and_input(self, either: str, tmp_path: Path) -> None:
        del either
        file = tmp_path / "out"
        command = subprocess.list2cmdline([*RUN, "--", "sh", "-c", "cat >&7"])
        done = subprocess.run(
            ["sh", "-c", f"{command} 7>{file}"], input="said", env=environ(), text=True,
            timeout=WAIT, check=True,
        )  # fmt: skip
        assert (done.returncode, file.read_text()) == (0, "said")

    def test_may_be_stopped_by_sigpipe(self, either: str) -> None:
        del either
        # Python ignores SIGPIPE; a program that inherits that would go on for ever.
        command = subprocess.list2cmdline([*RUN, "--", "yes"])
        done = subprocess.run(
            ["bash", "-c", f"{command} | head -1; exit ${{PIPESTATUS[0]}}"],
            env=environ(), capture_output=True, timeout=WAIT, check=False,
        )  # fmt: skip
        assert (done.stdout, done.returncode) == (b"y\n", 128 + signal.SIGPIPE)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    def test_gets_signals(self, either: str, number: signal.Signals) -> None:
        del either
        name = number.name.removeprefix("SIG")
        script = f"trap 'echo got; exit 3' {name}; echo ready; while :; do sleep 0.05; done"
        process = start("--", "sh", "-c", script)
        process.send_signal(number)
        out, _ = process.communicate(timeout=WAIT)
        assert (out, process.returncode) == ("got\n", 3)

    def test_has_no_signal_blocked_or_ignored_by_us(self, either: str) -> None:
        del either
        show = ("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
        assert run("--", *show).stdout == subprocess.check_output(show, text=True)


class TestThePreloadLibrary:
    SHOW = ("sh", "-c", f"echo ${running.PRELOAD}")

    def test_comes_after_what_is_there(self, mount: Mount) -> None:
        del mount
        other = "libm.so.6"
        answer = run("--", *self.SHOW, **{running.PRELOAD: other})
        assert answer.stdout == f"{other}:{installed.preload()}\n"

    def test_comes_once(self, mount: Mount) -> None:
        del mount
        answer = run("--", *RUN, "--", *self.SHOW)
        assert answer.stdout == f"{installed.preload()}\n"

    def test_adopting_reaches_programs_of_programs(self, mount: Mount) -> None:
        del mount
        ask = ("sh", "-c", f"echo ${running.ADOPT}")
        assert run("--adopt-anon", "64M", "--", *RUN, "--", *ask).stdout == f"{64 << 20}\n"

    def test_classes_of_memory_have_sizes(self, mount: Mount) -> None:
        del mount
        ask = ("sh", "-c", f"echo ${running.ADOPT} ${running.ADOPT_OTHERS}")
        assert run("--adopt", "sysv:4K,anon", "--", *ask).stdout == f"{2 << 20} sysv:4096\n"
        both = run("--adopt", "all:8K,shm:1M", "--adopt-anon", "64M", "--", *ask).stdout
        others = "zero:8192,sysv:8192,memfd:8192,shm:1048576,file:8192"
        assert both == f"{64 << 20} {others}\n"
        answer = run("--adopt", "sysv,heap", "--", *ask)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert "'heap' is no class of memory: anon, zero, sysv, memfd, shm, file" in answer.stderr


class TestThePrivateMount:
    def test_stays_for_a_daemon_and_nobody_waits(self, tmp_path: Path) -> None:
        # The daemon makes a file long after the program has ended, and waits to be told to go.
        fifo, answer = tmp_path / "fifo", tmp_path / "answer"
        daemon = f"read line <&3; : >${running.MOUNT}/late; : >$ANSWER; read line <&3"
        script = f"exec 3<>$FIFO; echo ready; setsid sh -c '{daemon}' >$NULL 2>&1 <$NULL &"
        os.mkfifo(fifo)
        done = run("--", "sh", "-c", script, FIFO=str(fifo), ANSWER=str(answer), NULL=os.devnull)
        assert (done.returncode, done.stdout) == (0, "ready\n")
        assert len(private_mounts()) == 1
        with fifo.open("w") as tell:
            print("go", file=tell, flush=True)
            until(answer.exists, "the daemon's file made")
            assert (private_mounts()[0] / "late").exists()
            print("end", file=tell, flush=True)
            gone()

    def test_goes_when_the_stand_in_is_killed_and_the_program_ends(self) -> None:
        process = start("--", "sh", "-c", "echo ready; read line")  # from a pipe of ours
        assert len(private_mounts()) == 1
        process.kill()
        assert len(private_mounts()) == 1
        process.communicate(timeout=WAIT)  # ends the program's input
        gone()

    def test_serves_memory_of_a_daemon_whose_parents_are_gone(self, tmp_path: Path) -> None:
        script = (
            "import mmap, os, sys\n"
            "memory = mmap.mmap(-1, 8 << 20)\n"
            "memory[:5] = b'early'\n"
            "if os.fork(): os._exit(0)\n"
            "os.setsid()\n"
            "if os.fork(): os._exit(0)\n"
            "os.closerange(3, 4096)\n"
            "for _ in range(3): os.fork()\n"
            "memory.flush()\n"
            "open(sys.argv[1], 'ab').write(memory[:5] + b'\\n')\n"
        )
        out = tmp_path / "out"
        done = run("--adopt-anon", "1M", "--", sys.executable, "-c", script, out)
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: out.exists() and out.read_bytes() == b"early\n" * 8, "eight daemons done")
        gone()
