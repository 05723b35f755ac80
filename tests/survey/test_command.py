"""The command: which processes, and how it says what it found."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs import proc

from .conftest import NAME, SIZE, TABLE, TABLES, memfd, memory, touch
from support import schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.actor import Actor


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "msharefs", "survey", *map(str, arguments)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def shared(three: list[Actor]) -> str:
    """Three that share memory, as a list for --pid."""
    fd = memfd()
    for actor in three:
        memory(actor, actor.give(fd))
        touch(actor)
    os.close(fd)
    return ",".join(str(actor.pid) for actor in three)


def test_the_answer_comes_first(shared: str) -> None:
    done = run("--pid", shared)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, *rest = done.stdout.splitlines()
    assert first.startswith("3 processes: page tables ")
    assert "; sharing would take away " in first
    assert f"{(3 * (TABLES + 2) - (TABLES + 3)) * TABLE >> 10} KiB memfd:{NAME} of 3 actor" in first
    assert second == ""
    assert rest[0].split() == [
        "object", "class", "processes", "size", "own", "tables", "shared", "would", "go",
    ]  # fmt: skip
    assert any(line.startswith(f"memfd:{NAME} ") for line in rest)


def test_progress_is_for_a_terminal(shared: str) -> None:
    """There it is on standard error; test_the_answer_comes_first has none in a pipe."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "msharefs", "survey", "--exact", "--json", "--pid", shared]
    environ = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            while data := os.read(ours, 4096):
                said += data
        assert process.stdout
        assert json.loads(process.stdout.read())["processes"] == 3
    os.close(ours)
    for step in (b"mappings", b"page tables", b"100%"):
        assert step in said


def test_json_says_what_and_where(shared: str) -> None:
    found = schema.check(json.loads(run("--json", "--pid", shared).stdout))
    assert found["kind"] == "msharefs survey"
    assert found["kernel"] == os.uname().release
    assert found["host"] == os.uname().nodename
    assert {one["bytes"] for one in found["objects"] if one["class"] == "shm"} == {SIZE}


def test_a_tree_is_a_process_and_its_descendants(family: Callable[[int], list[Actor]]) -> None:
    actors = family(2)
    actors.append(actors[1].fork())
    actors[-1].finish()
    found = schema.check(json.loads(run("--json", "--tree", actors[0].pid).stdout))
    assert found["processes"] == len(actors)


def test_a_cgroup_without_processes(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    done = run("--cgroup", tmp_path)
    assert (done.returncode, done.stdout) == (0, "no process that could be looked at\n")


def hierarchies() -> list[Path]:
    """Where cgroups are made: those of version 2, and of version 1 by memory if there are some."""
    found = [mount for mount in proc.mounts() if mount.fstype == "cgroup2"]
    found += [one for one in proc.mounts() if one.fstype == "cgroup" and "memory" in one.options]
    return [mount.directory for mount in found]


@pytest.fixture(params=hierarchies(), ids=str)
def cgroup(three: list[Actor], request: pytest.FixtureRequest) -> object:
    """A cgroup with one of three in it, and one below with another; the third is elsewhere."""
    top = Path(request.param) / f"survey-{os.getpid()}"
    below = top / "below"
    below.mkdir(parents=True)
    (top / "cgroup.procs").write_text(str(three[0].pid))
    (below / "cgroup.procs").write_text(str(three[1].pid))
    yield top
    for actor in three:
        actor.kill()
    below.rmdir()
    top.rmdir()


def test_a_cgroup_and_those_below_it(cgroup: Path) -> None:
    for name in (cgroup, cgroup.name, f"/{cgroup.name}"):
        assert json.loads(run("--json", "--cgroup", name).stdout)["processes"] == 2


def test_the_survey_is_not_in_its_own_tree() -> None:
    """Started by a shell that is looked at: the shell is all there is."""
    script = f"{sys.executable} -m msharefs survey --json --tree $$; true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["processes"] == 1


@pytest.mark.alone
def test_the_system_is_everybody_but_the_survey(shared: str) -> None:
    found = schema.check(json.loads(run("--json").stdout))
    assert found["processes"] >= 4  # with us
    assert json.loads(run("--json", "--system").stdout)["processes"] == found["processes"]
    (one,) = (one for one in found["objects"] if one["name"] == f"memfd:{NAME}")
    assert one["processes"] == len(shared.split(","))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--pid", "1,x"), "is no list of process numbers"),
        (("--pid", "0"), "is no list of process numbers"),
        (("--pid", "1", "--system"), "give one of"),
        (("--tree", "-1"), "-1 is not in the range"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], sentence: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_what_is_not_there(three: list[Actor], tmp_path: Path) -> None:
    gone = three[0].pid
    three[0].kill()
    for option in ("--pid", "--tree"):
        done = run(option, gone)
        assert (done.returncode, done.stderr) == (
            1, f"msharefs: there is no process {gone}: name one that runs (ps -e)\n",
        )  # fmt: skip
    done = run("--cgroup", tmp_path)
    assert done.returncode == 1
    assert "is no cgroup" in done.stderr


def test_nothing_is_shared(three: list[Actor]) -> None:
    done = run("--pid", three[0].pid)
    assert "sharing would take away nothing" in done.stdout.splitlines()[0]
