"""A survey of a program as it is says what the report of the same program on regions says."""

from __future__ import annotations

import json
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
"""Adopted memory starts with a PTE table; other memory may need one more in each process."""
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


def start(*before: object, arguments: tuple[int, ...]) -> subprocess.Popen[str]:
    command = [*map(str, before), sys.executable, "-c", PROGRAM, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "shared\n"
    return process


def surveyed(arguments: tuple[int, ...]) -> dict[str, Any]:
    process = start(arguments=arguments)
    found = figures.survey(selection.tree(process.pid), silent, exact=True)
    process.communicate("\n", timeout=60)
    (one,) = (one for one in found["objects"] if one["class"] == "anon")
    return dict(one)


def reported(path: Path, arguments: tuple[int, ...], seconds: float) -> dict[str, Any]:
    process = start(
        sys.executable, "-m", "msharefs", "run", "--adopt-anon", "1M", "--report", path, "--",
        arguments=arguments,
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
