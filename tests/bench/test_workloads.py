"""The workloads in small: both servers run, and their figures are what they must be."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import msharefs
from msharefs.lab import idle
from msharefs.launch.private_mount import parent

from support.wait import until

if TYPE_CHECKING:
    from support.server import Mount

pytestmark = pytest.mark.slow

WORKLOADS = Path(__file__).parents[2] / "scripts/workloads"
LIMIT = 100
QUICK = ("--seconds", "1", "--rounds", "1")


def played(name: str, path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The document of a workload, and the table it prints."""
    done = subprocess.run(
        [WORKLOADS / name, *QUICK, "--output", path, *arguments],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(path.read_text()), done.stdout


def assert_memory(case: dict[str, Any], least_pages: int) -> None:
    """Regions only under msharefs; there the host mm holds less than the processes' own tables."""
    plain, adopted = (case["rows"][way]["memory"] for way in ("plain", "msharefs"))
    assert plain["clients"] == plain["page_table_bytes"] == plain["region_faults"] == 0
    assert adopted["clients"] >= 2
    assert adopted["region_faults"] >= least_pages
    assert adopted["page_table_bytes"] >= least_pages * 8
    assert adopted["own_tables_bytes"] > adopted["page_table_bytes"]
    for memory in (plain, adopted):
        assert memory["vmpte_bytes"] > memory["own_tables_bytes"]
        assert memory["process_faults"] > 0


def test_prefork(tmp_path: Path) -> None:
    found, text = played("prefork", tmp_path / "p.json", "--size", "16M", "--workers", "4")
    (case,) = found["cases"]
    assert_memory(case, 4096)
    assert case["rows"]["msharefs"]["memory"]["clients"] == 5
    assert case["rows"]["msharefs"]["memory"]["region_faults"] == 4096
    for way, row in case["rows"].items():
        assert row["figures"]["per_second"]["median"] > 0
        assert way in text
    assert f"{case['rows']['msharefs']['ratios']['per_second']['median']:.3g}x" in text


def test_prefork_that_is_ended_leaves_nothing(public_tmp: Path) -> None:
    before = set(os.listdir(parent()))
    process = subprocess.Popen(
        [WORKLOADS / "prefork", "--size", "16M", "--workers", "2", "--seconds", "60"],
        stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(public_tmp)},
    )  # fmt: skip
    try:
        until(lambda: list(public_tmp.glob("*/msharefs.sock")), "it is up")
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert set(os.listdir(parent())) <= before
    assert not os.listdir(public_tmp)


def test_postgresql(tmp_path: Path) -> None:
    if not glob.glob("/usr/lib/postgresql/*/bin/pgbench"):  # Debian's
        pytest.skip("postgresql is not installed: `make test` as root does that")
    found, text = played(
        "postgresql", tmp_path / "p.json",
        "--scale", "1", "--buffers", "32M", "--connections", "4",
    )  # fmt: skip
    assert [case["case"]["script"] for case in found["cases"]] == ["select", "tpcb"]
    for case in found["cases"]:
        assert_memory(case, 1000)
        for row in case["rows"].values():
            assert row["figures"]["tps"]["median"] > 0
            assert row["figures"]["connect_ns"]["median"] > 0
    assert [(goal["figure"], goal["at_least"]) for goal in found["targets"]] == [
        ("tps", True), ("connect_ns", False),
    ]  # fmt: skip
    for goal in found["targets"]:
        ratio = found["cases"][0]["rows"]["msharefs"]["ratios"][goal["figure"]]["median"]
        assert goal["met"] == (ratio >= 0.97 if goal["at_least"] else ratio <= 1.5)
    assert ">= 0.97x" in text


@pytest.mark.parametrize(("kind", "processes"), [("prefork", 16), ("zygote", 12)])
def test_crowd(shared_mount: Mount, kind: str, processes: int) -> None:
    """Its processes are there, and use some of it."""
    path = shared_mount.path / kind

    def somebody_reads(_: float) -> None:
        until(lambda: entries(path) > 0, "an entry is there again")

    with subprocess.Popen(
        [WORKLOADS / "crowd", kind, path], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as crowd:
        assert crowd.stdout
        assert crowd.stdout.readline() == f"{processes} processes use {path}\n"
        found = idle.run([str(path)], 1, 0.5, somebody_reads)
        os.killpg(crowd.pid, signal.SIGKILL)
    (looked,) = found["regions"]
    assert looked["pages"] == 16384
    assert looked["ages"][0]["pages"] > 0


def entries(path: Path) -> int:
    """Those that are present in the region."""
    with msharefs.open(path) as region:
        levels = {each["level"]: each["tables"] for each in region.describe("pagetable")["levels"]}
    return sum(table["present"] for table in levels["pte"])


def test_a_crowd_ends_by_itself(shared_mount: Mount) -> None:
    ended = subprocess.run(
        [WORKLOADS / "crowd", "zygote", shared_mount.path / "short", "--seconds", "0.3"],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
