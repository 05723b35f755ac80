"""Verbs beside a server that is stopped: they say whom they wait for, and not for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.proc import state, tasks
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 2 << 20
LIMIT = 60.0
VERBS = [
    ("stat", "r"),
    ("maps", "r"),
    ("clients", "r"),
    ("pagetable", "r"),
    ("ls", ""),
    ("stat", ""),
]


@pytest.fixture
def region(mount: Mount) -> Iterator[msharefs.Region]:
    # Closed once: the server has told Linux by then that a close need not wait for it.
    msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT).close()
    with msharefs.open(mount.path / "r") as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        yield region


@contextlib.contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        until(lambda: all(state(task) == "T" for task in tasks(mount.pid)), "the server stands")
        yield
    finally:
        os.kill(mount.pid, signal.SIGCONT)


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", script, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(("verb", "name"), VERBS)
def test_a_verb_says_whom_it_waits_for_and_goes_on(
    mount: Mount, region: msharefs.Region, verb: str, name: str
) -> None:
    del region
    with stopped(mount):
        process = start("from msharefs.cli import main; main()", verb, str(mount.path / name))
        assert process.stderr
        said = process.stderr.readline()
    assert said.startswith(f"msharefs: {mount.path}: waiting for its server, process {mount.pid} (")
    assert said.endswith("), which is stopped\n")
    out, more = process.communicate(timeout=LIMIT)
    assert (process.returncode, more) == (0, "")
    assert out


def test_it_gives_up(mount: Mount, region: msharefs.Region) -> None:
    del region
    script = "from msharefs.cli import _patience, main; _patience.GIVE_UP_SECONDS = 1.5; main()"
    with stopped(mount):
        process = start(script, "stat", str(mount.path / "r"))
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert said.splitlines()[-1].endswith(
        "has not answered for 1.5 seconds: let it go on (kill -CONT), or end it and mount again"
    )


def test_run_says_so_too(mount: Mount) -> None:
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT):
        pass
    with stopped(mount):
        script = "from msharefs.cli import main; main()"
        process = start(script, "run", "--mount", str(mount.path), "--", "true")
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    first, last = said.splitlines()
    assert f"waiting for its server, process {mount.pid} (" in first
    assert "does not answer: let it go on" in last


def test_run_that_names_no_mount_says_what_it_waits_for(mount: Mount) -> None:
    """It looks at every mount that it could take, and takes none that does not answer."""
    with stopped(mount):
        process = start("from msharefs.cli import main; main()", "run", "--", "true")
        assert process.stderr
        began = time.monotonic()
        said = process.stderr.readline()
        assert time.monotonic() - began < 4  # and not only when it has given up
        assert said == (
            f"msharefs: {mount.path}: waiting for its server, process {mount.pid} "
            "(python), which is stopped, 5 s at most\n"
        )
        _, more = process.communicate(timeout=LIMIT)
    assert more.startswith(f"msharefs: {mount.path}: its server, process {mount.pid} ")
    assert more.endswith("does not answer: not used\n")
    assert process.returncode == 0


@pytest.mark.parametrize("verb", ["mount", "umount"])
def test_mount_and_umount_say_so_too(mount: Mount, verb: str) -> None:
    with stopped(mount):
        process = start("from msharefs.cli import main; main()", verb, str(mount.path))
        assert process.stderr
        assert "waiting for its server" in process.stderr.readline()
        process.kill()
        process.communicate()


def test_detaching_waits_a_second(mount: Mount, region: msharefs.Region) -> None:
    region.attach()[0] = 1
    with stopped(mount):
        start = time.monotonic()
        region.detach()
        assert time.monotonic() - start < 5
    assert region.stat()["clients"] == 0
    assert region.attach()[0] == 1
    region.detach()


def test_an_honest_verb_says_nothing(mount: Mount, region: msharefs.Region) -> None:
    del region
    # Beside other work even an idle server may take longer than half a second.
    script = "from msharefs.cli import _patience, main; _patience.LOOK_SECONDS = 20; main()"
    process = start(script, "stat", str(mount.path / "r"))
    _, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, said) == (0, "")
