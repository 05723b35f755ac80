"""The memory column of a workload: all figures of one moment, or none."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from msharefs.cli import _workload
from msharefs.lab.bench import stopping
from msharefs.lab.bench.workload import ADOPTED, PLAIN, Way, document, faults
from msharefs.lab.sampling import Sampler

from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Faults as fast as it can, and says so first.
FAULTING = """
import mmap
print("up", flush=True)
while True:
    memory = mmap.mmap(-1, 64 << 10)
    for at in range(0, 64 << 10, 4096):
        memory[at] = 1
    memory.close()
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen([sys.executable, "-c", FAULTING], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    yield started
    for process in started:
        process.kill()
        process.communicate()


def after_the_look(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """Something happens between the look at the page tables and all that comes after."""
    look = Sampler.look

    def watched(sampler: Sampler) -> None:
        look(sampler)
        then()

    monkeypatch.setattr(Sampler, "look", watched)


def test_the_faults_are_those_of_the_look(
    processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = [process.pid for process in processes]
    seen: list[int] = []
    after_the_look(monkeypatch, lambda: seen.append(sum(map(faults, pids))))
    found = Way(PLAIN).memory(pids)
    assert found["processes"] == len(pids)
    assert found["vmpte_bytes"]
    assert set(seen) == {found["process_faults"]}
    for pid in pids:
        before = faults(pid)
        until(lambda pid=pid, before=before: faults(pid) > before, "it goes on")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_process_that_ends_makes_the_row_incomplete(
    processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def end() -> None:
        processes[1].kill()
        processes[1].wait()

    pids = [process.pid for process in processes]
    if when == "before":
        end()
    else:
        after_the_look(monkeypatch, end)
    found = Way(PLAIN).memory(pids)
    assert len(found) == 7
    assert set(found.values()) == {None}
    until(lambda: psutil.Process(pids[0]).status() != psutil.STATUS_STOPPED, "the rest goes on")


def test_too_few_processes_make_the_row_incomplete(processes: list[subprocess.Popen[str]]) -> None:
    """The load has ended, or has not begun."""
    pids = [process.pid for process in processes]
    assert set(Way(PLAIN).memory(pids, least=4).values()) == {None}
    assert Way(PLAIN).memory(pids, least=3)["processes"] == 3


def test_a_look_that_fails_lets_them_go_on(
    processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("no look today")

    after_the_look(monkeypatch, fail)
    with pytest.raises(OSError, match="no look today"):
        Way(PLAIN).memory([process.pid for process in processes])
    before = faults(processes[0].pid)
    until(lambda: faults(processes[0].pid) > before, "it goes on")


def test_a_process_that_does_not_stop_in_time_makes_the_row_incomplete(
    processes: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in a system call that takes no signal, as long as that lasts."""
    monkeypatch.setattr(stopping, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(psutil.Process, "suspend", lambda _: None)
    assert set(Way(PLAIN).memory([processes[0].pid]).values()) == {None}


def test_the_cells_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    memory = {"vmpte_bytes": 4096, "own_tables_bytes": 0, "page_table_bytes": 0,
              "process_faults": 17, "region_faults": 0}  # fmt: skip

    def row(memory: dict[str, Any]) -> dict[str, Any]:
        figure = {"median": 1.0, "low": 1.0, "high": 1.0}
        return {"figures": {"tps": figure}, "ratios": {"tps": figure}, "memory": memory}

    rows = {PLAIN: row(memory), ADOPTED: row(dict.fromkeys(memory))}
    found = document("x", {}, [{"case": {"n": "1"}, "rows": rows}])
    _workload.write(found, {"tps": "tps"}, None, as_json=False)
    printed = capsys.readouterr().out
    assert printed.count("incomplete") == 5
    assert " 17 " in printed
