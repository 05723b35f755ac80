"""What a survey cannot see it says: as another user, and where /proc hides processes (hidepid)."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from msharefs import units
from msharefs.lab.survey import words

from support import schema
from support.calls import AS_NOBODY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.actor import Actor

SURVEY = f"{shlex.quote(sys.executable)} -P -m msharefs survey"


@pytest.fixture(scope="module")
def nobodys() -> Iterator[list[int]]:
    """A process of nobody's, and one that it has forked."""
    script = (
        "import os; child = os.fork(); child and print(os.getpid(), child, flush=True); input()"
    )
    command = [*AS_NOBODY.split(), sys.executable, "-c", script]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout
        yield [int(word) for word in process.stdout.readline().split()]
        process.communicate("\n\n")


def asked(*arguments: object, hidepid: int = 0) -> subprocess.CompletedProcess[str]:
    """A survey by nobody; `hidepid`: in a /proc of its own with this option."""
    command = " ".join([f"exec {AS_NOBODY} {SURVEY} --json", *map(str, arguments)])
    mount = f"mount -t proc -o hidepid={hidepid} proc /proc && " if hidepid else ""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount + command],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def seen(*arguments: object, hidepid: int = 0) -> tuple[dict[str, Any], str, str]:
    """What the survey finds, its answer, and what it says beside."""
    done = asked(*arguments, hidepid=hidepid)
    assert done.returncode == 0, done.stderr
    found = schema.check(json.loads(done.stdout))
    return found, words.answer(found), "\n".join(words.remarks(found))


def pids(actors: list[Actor], more: list[int]) -> str:
    return ",".join(map(str, [*(actor.pid for actor in actors), *more]))


def test_none_of_them_can_be_looked_at(three: list[Actor]) -> None:
    found, answer, remarks = seen("--pid", pids(three, []))
    assert answer == (
        f"3 processes: page tables {units.size(found['vmpte_bytes'])}; what sharing would take "
        "away is not known: none of them could be looked at"
    )
    assert "not looked at: 3 processes of root (EACCES)" in remarks
    assert "no page frame numbers (CAP_SYS_ADMIN)" in remarks


def test_some_of_them_can(three: list[Actor], nobodys: list[int]) -> None:
    """The page tables are those of all, but what would go is of some."""
    found, answer, remarks = seen("--pid", pids(three, nobodys))
    assert (found["processes"], found["looked_at"]) == (5, 2)
    assert answer.startswith("5 processes: page tables ")
    assert f"; sharing would take away at least {units.size(found['saved_bytes'])} (" in answer
    assert "not looked at: 3 processes of root (EACCES)" in remarks
    nothing = words.answer({**found, "saved_bytes": 0})
    assert nothing.endswith(
        "sharing would take away nothing of what could be looked at, 2 processes"
    )


def test_processes_of_which_proc_shows_no_size(three: list[Actor], nobodys: list[int]) -> None:
    found, answer, remarks = seen("--pid", pids(three, nobodys), hidepid=1)
    assert found["hidden"] == {"processes": 3, "more": False}
    assert (found["processes"], found["looked_at"], found["unseen"]) == (2, 2, [])
    assert "; sharing would take away at least " in answer
    assert "not counted: 3 processes that /proc hides (hidepid): run this as root" in remarks
    found, _, remarks = seen("--tree", nobodys[0], hidepid=1)
    assert (found["hidden"]["processes"], found["looked_at"]) == (0, 2)
    assert "hidepid" not in remarks


def test_processes_that_proc_does_not_show(three: list[Actor], nobodys: list[int]) -> None:
    found, _, remarks = seen("--system", hidepid=2)
    assert found["hidden"] == {"processes": 0, "more": True}
    assert (found["looked_at"], found["unseen"]) == (found["processes"], [])
    assert found["looked_at"] >= len(nobodys)
    assert "/proc does not show other users' processes (hidepid): run this as root" in remarks
    done = asked("--pid", three[0].pid, hidepid=4)
    assert done.returncode == 1
    assert done.stderr == (
        f"msharefs: /proc shows no process {three[0].pid}: name one that runs (ps -e), and as root "
        "those of other users, which are hidden (hidepid)\n"
    )


def test_nobody_is_left() -> None:
    assert words.answer({"processes": 0}) == "no process that could be looked at"
