"""A survey of a program as it is says what the report of the same program on regions says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.lab import plan
from msharefs.lab.survey import figures, selection

from .conftest import SPAN, TABLE, memory, silent, survey, touch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor

NEAR = 0.02
"""Where memory starts within a PTE table's span is chance: a process may need one more."""
PROGRAM = """
import mmap, os, sys
mib, children, share = map(int, sys.argv[1:])
memory = mmap.mmap(-1, mib << 20)
for at in range(0, mib << 20, 2 << 20 if share > 1 else 4096):
    memory[at] = 1
ready, go = os.pipe(), os.pipe()
for number in range(children):
    if os.fork() == 0:
        os.close(go[1])
        part = (mib << 20) // share
        first = number % share * part
        sum(memory[at] for at in range(first, first + part, 4096))
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
for _ in range(children):
    os.read(ready[0], 1)
print("shared", flush=True)
sys.stdin.readline()
os.close(go[1])
for _ in range(children):
    os.wait()
"""


def start(
    *before: object, arguments: tuple[int, ...], program: str = PROGRAM
) -> subprocess.Popen[str]:
    command = [*map(str, before), sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "shared\n"
    return process


def surveyed(
    arguments: tuple[int, ...], program: str = PROGRAM, kind: str = "anon"
) -> dict[str, Any]:
    process = start(arguments=arguments, program=program)
    found = figures.survey(selection.tree(process.pid), silent, exact=True)
    process.communicate("\n", timeout=60)
    (one,) = (one for one in found["objects"] if one["class"] == kind)
    return dict(one)


def reported(
    path: Path, arguments: tuple[int, ...], seconds: float, program: str = PROGRAM
) -> dict[str, Any]:
    process = start(
        sys.executable, "-m", "msharefs", "run", "--adopt", "anon:1M,sysv", "--report", path, "--",
        arguments=arguments, program=program,
    )  # fmt: skip
    time.sleep(seconds)  # nobody outside sees when the watcher has looked
    process.communicate("\n", timeout=60)
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("arguments", [(256, 3, 1), (256, 4, 2)])
def test_survey_and_report_agree(tmp_path: Path, arguments: tuple[int, ...]) -> None:
    plain = surveyed(arguments)
    assert plain["processes"] == arguments[1] + 1
    for seconds in (0.3, 2, 10):
        adopted = reported(tmp_path / "report.json", arguments, seconds)
        own = adopted["own_tables_bytes"] + adopted["upper_tables_bytes"]
        if own == pytest.approx(plain["own_tables_bytes"], rel=NEAR):
            break
    assert adopted["clients"] == plain["processes"]
    assert own == pytest.approx(plain["own_tables_bytes"], rel=NEAR)
    assert adopted["page_table_bytes"] == pytest.approx(plain["page_table_bytes"], rel=NEAR)


SEGMENT = """
import ctypes, os, subprocess, sys
C = ctypes.CDLL(None)
C.shmat.restype = ctypes.c_void_p
mib, clients, key = map(int, sys.argv[1:])
client = '''
import ctypes, sys
C = ctypes.CDLL(None)
C.shmat.restype = ctypes.c_void_p
size, key = map(int, sys.argv[1:])
segment = C.shmget(key, ctypes.c_size_t(size), 0)
base = C.shmat(segment, None, 0)
memory = (ctypes.c_char * size).from_address(base)
sum(memory[at][0] for at in range(0, size, 4096))
print("attached", flush=True)
sys.stdin.readline()
'''
segment = C.shmget(key, ctypes.c_size_t(mib << 20), 0o1600)
base = C.shmat(segment, None, 0)
ctypes.memset(base, 1, mib << 20)
command = [sys.executable, "-c", client, str(mib << 20), str(key)]
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
processes = [subprocess.Popen(command, **pipes) for _ in range(clients)]
for process in processes:
    process.stdout.readline()
C.shmctl(segment, 0, None)
print("shared", flush=True)
sys.stdin.readline()
for process in processes:
    process.communicate(b"\\n")
"""


def test_they_agree_on_a_segment_of_unrelated_processes(tmp_path: Path) -> None:
    """As of a database on System V memory: the clients are programs of their own, by its key."""
    arguments = (64, 6, os.getpid())
    plain = surveyed(arguments, program=SEGMENT, kind="sysv")
    for seconds in (0.3, 2, 10):
        adopted = reported(tmp_path / "report.json", arguments, seconds, program=SEGMENT)
        own = adopted["own_tables_bytes"] + adopted["upper_tables_bytes"]
        if own == pytest.approx(plain["own_tables_bytes"], rel=NEAR):
            break
    assert adopted["clients"] == plain["processes"] == 7
    assert own == pytest.approx(plain["own_tables_bytes"], rel=NEAR)
    assert adopted["page_table_bytes"] == pytest.approx(plain["page_table_bytes"], rel=NEAR)
    (region,) = adopted["regions"]
    assert region["name"] == f"System V key 0x{os.getpid():x}, 64 MiB"
    assert adopted["not_adopted"] == []


def test_a_plan_from_a_survey(family: Callable[[int], list[Actor]]) -> None:
    """Twice as many processes of what is there: the plan starts from what each has touched."""
    parent = family.parent  # type: ignore[attr-defined]
    memory(parent, size=64 * SPAN)
    actors = family(3)
    for actor in actors:
        touch(actor, size=16 * SPAN)
    found = survey(actors)
    measured = plan.measured(json.loads(json.dumps(found)))
    assert (measured.size, measured.clients) == (64 * SPAN, 4)
    assert measured.touched.client == measured.touched.anybody == 0.25
    made = plan.plan(measured.size, 8, 4096, measured.touched)
    assert made["unshared"]["bytes"] == 8 * 18 * TABLE


def test_a_plan_needs_shared_memory(three: list[Actor]) -> None:
    with pytest.raises(ValueError, match="has no figures"):
        plan.measured(survey(three))
