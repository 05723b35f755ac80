"""What did not become a region, found in what processes map, and said at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.lab import missed
from msharefs.launch import running

from .conftest import ANONYMOUS, PAGE, PRIVATE, QUANTUM, READ_WRITE, SHARED

if TYPE_CHECKING:
    from support.agent import Agent, Agents
    from support.server import Mount

SIZE = 2 * QUANTUM
ASKED = {"anon": SIZE, "memfd": SIZE}
RAW = Path(__file__).parents[1] / "programs" / "raw_map.c"
RLIMIT_FSIZE = 1
BITS_32 = 0x40


def shared(agent: Agent, size: int = SIZE, flags: int = 0) -> int:
    return agent.call("mmap", 0, size, READ_WRITE, SHARED | ANONYMOUS | flags, -1, 0)


def told(
    *agents: Agent | subprocess.Popen[str], looks: int = 3, ours: set[missed.Ours] | None = None
) -> list[str]:
    """What is said of these processes after so many looks."""
    found = missed.Missed(ASKED)
    for _ in range(looks):
        found.look([agent.pid for agent in agents], ours or set())
    return list(missed.lines({"not_adopted": found.found(ours or set())}))


def test_of_a_program_without_our_library(plain: Agent) -> None:
    shared(plain)
    child = plain.fork()
    assert told(plain, child) == [
        f"not adopted: shared anonymous memory, 4 MiB of agent: {missed.NO_LIBRARY}"
    ]


@pytest.mark.parametrize(
    ("flags", "why"), [((), missed.PAST_US), (("-static",), missed.NO_LIBRARY)]
)
def test_of_one_that_maps_past_it(
    shared_mount: Mount, tmp_path: Path, flags: tuple[str, ...], why: str
) -> None:
    """By a system call of its own; and as a static program."""
    subprocess.run(["cc", "-Wall", "-Werror", *flags, "-o", tmp_path / "raw", RAW], check=True)
    process = subprocess.Popen(
        [tmp_path / "raw"], env=running.environment(shared_mount.path, SIZE),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout
        assert process.stdout.readline() == "mapped\n"
        assert told(process) == [f"not adopted: shared anonymous memory, 4 MiB of raw: {why}"]
        process.communicate()


def test_of_what_no_file_may_be(adopting: Agent) -> None:
    """And a child that has inherited it knows as well."""
    adopting.put(adopting.pool, SIZE.to_bytes(8, "little") * 2)
    assert adopting.call("prlimit64", 0, RLIMIT_FSIZE, adopting.pool, 0) == 0
    shared(adopting, 2 * SIZE)
    child = adopting.fork()
    why = "no file may be as large (RLIMIT_FSIZE)"
    line = f"not adopted: shared anonymous memory, 8 MiB of agent: {why}"
    assert told(adopting) == told(child) == told(adopting, child) == [line]


@pytest.fixture
def with_a_budget(agents: Agents, agent_program: Path, shared_mount: Mount) -> Agent:
    environ = running.environment(shared_mount.path, {"anon": 1 << 20, "memfd": 1 << 20})
    return agents.start([agent_program], environ | {"MSHAREFS_PT_BUDGET": "1M"})


def test_of_what_a_budget_cannot_have(with_a_budget: Agent) -> None:
    shared(with_a_budget, flags=BITS_32)
    fd = with_a_budget.call("memfd_create", "its", 0)
    with_a_budget.call("ftruncate", fd, SIZE)
    with_a_budget.call("mmap", 0, SIZE, READ_WRITE, SHARED, fd, 0)
    memfds = "a budget counts faults, and Linux makes this memory"
    bits_32 = "with a budget, no locked, executable or 32-bit memory is"
    assert sorted(told(with_a_budget)) == [
        f"not adopted: 4 MiB memfd:its of agent: {memfds}",
        f"not adopted: shared anonymous memory, 4 MiB of agent: {bits_32}",
    ]


def test_of_what_does_not_fit(with_a_budget: Agent, shared_mount: Mount) -> None:
    """With a budget all of it must fit where regions are."""
    place = os.statvfs(shared_mount.state)
    shared(with_a_budget, place.f_blocks * place.f_frsize + SIZE)
    (line,) = told(with_a_budget)
    assert line.endswith(": it does not fit where regions are (ENOSPC)")


def test_of_the_257th(with_a_budget: Agent) -> None:
    for _ in range(257):
        shared(with_a_budget, SIZE)
    why = "a process has 256 attachments at most, or there is no memory (ENOMEM)"
    line = f"not adopted: shared anonymous memory, 4 MiB of agent: {why}"
    assert told(with_a_budget) == [line]


def test_of_one_with_a_filter(adopting: Agent) -> None:
    allow = bytes.fromhex("0600 0000 0000ff7f")
    adopting.put(adopting.pool, allow)
    program = (1).to_bytes(8, "little") + adopting.pool.to_bytes(8, "little")
    adopting.put(adopting.pool + 64, program)
    assert adopting.call("prctl", 38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert adopting.call("prctl", 22, 2, adopting.pool + 64) == 0  # PR_SET_SECCOMP
    shared(adopting)
    assert told(adopting)[0].endswith(missed.FILTERED)


def test_of_a_class_that_was_not_asked_for(plain: Agent) -> None:
    segment = plain.call("shmget", 0, SIZE, 0o600)
    plain.call("shmat", segment, 0, 0)
    plain.call("shmctl", segment, 0, 0)
    (line,) = told(plain)
    assert line == (
        f"not adopted: 4 MiB System V private, shmid {segment} of agent: "
        "not asked for (--adopt sysv)"
    )


@pytest.mark.parametrize("looks", [1, 2])
def test_not_of_what_may_be_on_its_way(plain: Agent, looks: int) -> None:
    """Memory that is to be adopted is Linux's own for a moment."""
    shared(plain)
    assert told(plain, looks=looks) == []


def test_not_of_what_is_smaller_or_private_or_ours(plain: Agent) -> None:
    shared(plain, SIZE - PAGE)
    plain.call("mmap", 0, SIZE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
    fd = plain.call("memfd_create", "ours", 0)
    plain.call("ftruncate", fd, SIZE)
    plain.call("mmap", 0, SIZE, READ_WRITE, SHARED, fd, 0)
    assert [line[:29] for line in told(plain)] == ["not adopted: 4 MiB memfd:ours"]
    assert plain.call("fstat", fd, plain.pool) == 0
    device, inode = (int.from_bytes(plain.get(plain.pool + at, 8), "little") for at in (0, 8))
    assert told(plain, ours={missed.Ours(device, inode, False)}) == []


PROGRAM = """
import mmap, sys
memory = mmap.mmap(-1, 4 << 20)
print("shared", flush=True)
sys.stdin.readline()
"""


def ends(mount: Mount, *before: str, seconds: float) -> str:
    """What `msharefs run` says of the program, which has its memory for so long."""
    run = [sys.executable, "-m", "msharefs", "run", "--adopt", "anon", "--verbose"]
    process = subprocess.Popen(
        [*run, "--mount", mount.path, "--", *before, sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "shared\n"
    time.sleep(seconds)
    _, errors = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return errors


def test_run_says_it_at_the_end(shared_mount: Mount) -> None:
    for seconds in (1, 3, 10):  # nobody outside sees when the watcher has looked
        said = ends(shared_mount, "env", "-u", running.PRELOAD, seconds=seconds)
        if said:
            break
    assert said.startswith("msharefs: not adopted: shared anonymous memory, 4 MiB of ")
    assert said.endswith(f": {missed.NO_LIBRARY}\n")
    assert ends(shared_mount, seconds=0) == ""
