"""`bench shootdown`: the interrupts that Linux counts, beside a bare loop of munmap(2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from msharefs import proc, tlb_model
from msharefs.cli import cli
from msharefs.lab import shootdown_plot
from msharefs.lab.bench import shootdown
from msharefs.lab.bench.backends import Backends

from support import cc, schema
from support.calls import AS_NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.browser import Browser

pytestmark = pytest.mark.alone
CPUS = sorted(os.sched_getaffinity(0))
PROGRAM = Path(__file__).parents[1] / "programs/munmap_loop.c"
TRIES = 2000
CHOSEN = (1, 16)


class Silent:
    """Nobody looks on."""

    def step(self, title: str, total: int) -> Callable[[int], None]:
        del title, total
        return lambda _: None


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Two processes, up to 16 pages."""
    return schema.check(json.loads(json.dumps(shootdown.run([2], 64 << 10, 1, Silent()))))


def test_every_way_takes_pages_away_but_two(found: dict[str, Any]) -> None:
    states = (0, min(2, len(CPUS) - 1)) if len(CPUS) > 1 else (0,)
    assert [(row["running"], row["how"], row["pages"]) for row in found["rows"]] == [
        (running, how, pages) for running in states for how in shootdown.HOWS for pages in CHOSEN
    ]
    for row in found["rows"]:
        # Linux passes over pages that several have mapped; write-protected ones are still there.
        stay = row["how"] in (shootdown.OUTSIDE, shootdown.PROTECT)
        assert row["left_pages"] == (row["pages"] if stay else 0)
        assert row["ns"] > 0
        assert row["victim_lost_ns"] >= 0


def test_the_models_beside_it(found: dict[str, Any]) -> None:
    for row in found["rows"]:
        predicted = row["predicted"]
        assert (predicted["flush_all"], predicted["broadcast"]) == (os.cpu_count(), 1)
        assert 1 <= predicted["cpumask"] <= min(predicted["list"], predicted["flush_all"])
        if row["how"] != shootdown.UNMAP:  # there the server looks, and when it likes
            assert predicted["list"] >= row["processes"], "each of them has run"
        beyond = max(row["tlb"] - row["quiet_tlb"], 0)
        for model, count in predicted.items():
            assert row["ratios"][model] == pytest.approx(beyond / count)


def test_linux_interrupts_as_in_a_bare_loop_of_munmap(tmp_path: Path) -> None:
    """If a process runs on another processor. It may have been put aside: so again and again."""
    if len(CPUS) == 1:
        assert not any(row["running"] for row in shootdown.run([2], 4096, 1, Silent())["rows"])
        return
    bare = cc.build(PROGRAM, tmp_path / "munmap_loop")
    if subprocess.run([bare, str(CPUS[0]), str(CPUS[1])], check=False, timeout=60).returncode:
        assert "tlb" not in shootdown.interrupts() or "invlpgb" in proc.cpuinfo("flags")[0].split()
        return
    with ExitStack() as stack:
        backends = stack.enter_context(Backends(("memfd",)))
        memory = stack.enter_context(backends["memfd"].memory(4096))
        crowd = stack.enter_context(shootdown.crowd_of(memory, 1, running=True))
        for way in shootdown.ways_of_memfd(crowd, memory, stack):
            for _ in range(TRIES):
                sample = shootdown.measure(crowd, 1, lambda way=way: way.call(1))
                way.after(1)
                if sample["tlb"]:
                    break
            else:
                pytest.fail(f"{way.how}: no interrupt in {TRIES} tries")


def test_messages_of_the_models() -> None:
    told = tlb_model.messages([{0}, {0, 1}, set()])
    assert told == {"flush_all": os.cpu_count(), "list": 3, "cpumask": 2, "broadcast": 1}


def test_the_picture(found: dict[str, Any], browser: Browser, tmp_path: Path) -> None:
    picture = tmp_path / "shootdown.svg"
    picture.write_text(shootdown_plot.draw(found))
    assert browser.look(picture) == []


def test_it_needs_root_and_says_so() -> None:
    asked = subprocess.run(
        [*AS_NOBODY.split(), sys.executable, "-m", "msharefs", "bench", "shootdown"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert asked.returncode == 1
    assert asked.stderr.endswith("takes CAP_SYS_NICE: run it as root\n")


def test_the_verb(tmp_path: Path) -> None:
    shown = CliRunner().invoke(
        cli,
        ["bench", "shootdown", "--processes", "1", "--size", "4K", "--rounds", "1",
         "--plot", str(tmp_path), "-o", str(tmp_path / "found.json")],
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "UNMAP of a region" in shown.output
    assert "flush all (v3)" in (tmp_path / "shootdown.svg").read_text()
    told = schema.check(json.loads((tmp_path / "found.json").read_text()))
    assert {row["processes"] for row in told["rows"]} == {1}
    for wrong in (["unmap"], ["--gate"], ["--backend", "memfd"], ["plan-check"]):
        assert CliRunner().invoke(cli, ["bench", "shootdown", *wrong]).exit_code == 2
