"""The benchmark in small: its document, figures that must be so, and what it reports as missing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from msharefs.cli import bench as verb
from msharefs.lab import bench
from msharefs.lab.bench import backends, figures, hugepages, pictures, run, targets
from msharefs.launch.private_mount import parent

from support import schema
from support.wait import until

if TYPE_CHECKING:
    from support.browser import Browser

pytestmark = pytest.mark.alone

SIZE = 4 << 20
PAGES = SIZE // 4096
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


class Silent:
    """An observer that checks that steps add up."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}

    def step(self, title: str, total: int) -> Any:
        self.left[title] = total

        def notify(amount: int) -> None:
            self.left[title] -= amount

        return notify


def play(names: list[str], **wishes: Any) -> dict[str, Any]:
    observer = Silent()
    scenarios = [bench.SCENARIOS[name] for name in names]
    found = run.run(scenarios, run.Wishes(**{"rounds": 1, "size": SIZE, **wishes}), observer)
    assert set(observer.left.values()) == {0}, observer.left
    return json.loads(json.dumps(found))  # it must be JSON


def rows(found: dict[str, Any], name: str, **case: str) -> dict[str, dict[str, float]]:
    """Medians of the rows of one case."""
    scenario = next(one for one in found["scenarios"] if one["name"] == name)
    chosen = next(one for one in scenario["cases"] if case.items() <= one["case"].items())
    return {
        row: {key: spread["median"] for key, spread in of_row["figures"].items()}
        for row, of_row in chosen["rows"].items()
    }


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    """Every scenario once, with two processes."""
    return play(list(bench.SCENARIOS), processes=(2,))


def test_the_verb_knows_what_there_is() -> None:
    assert tuple(bench.SCENARIOS) == verb.SCENARIOS
    assert verb.BACKENDS == backends.NAMES


def test_the_document(everything: dict[str, Any]) -> None:
    schema.check(everything)
    assert [one["name"] for one in everything["scenarios"]] == list(bench.SCENARIOS)
    for name, backend in everything["backends"].items():
        assert backend["available"] or backend["why_not"], name
    for scenario in everything["scenarios"]:
        assert scenario["cases"], scenario["name"]
        for case in scenario["cases"]:
            played = case["rows"]
            assert scenario["baseline"] in played
            assert "msharefs" in played or "msharefs" in scenario["missing"], scenario["name"]
            for row, found in played.items():
                for key, spread in found["figures"].items():
                    where = (scenario["name"], case["case"], row, key)
                    assert spread["low"] <= spread["median"] <= spread["high"], where
                    assert len(spread["rounds"]) == (scenario["name"] == "pagetables" or 1), where
                assert found["figures"][scenario["headline"]]["median"] >= 0
            ratio = played[scenario["baseline"]]["ratio"]
            assert ratio is None or ratio["median"] == 1


def test_every_scenario_has_a_picture_that_can_be_read(
    everything: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    drawn = pictures.draw(everything, str(tmp_path))
    assert [path.stem for path in drawn] == list(bench.SCENARIOS)
    assert {path.name: browser.look(path) for path in drawn} == {path.name: [] for path in drawn}


def test_memfd_and_regions_are_always_there(everything: dict[str, Any]) -> None:
    for name in ("memfd", "sysv", "msharefs"):
        assert everything["backends"][name]["available"], everything["backends"][name]


@pytest.mark.parametrize("name", ["unmap", "protect"])
def test_shootdowns_beside_the_times(everything: dict[str, Any], name: str) -> None:
    (scenario,) = [one for one in everything["scenarios"] if one["name"] == name]
    for case in scenario["cases"]:
        for row, found in case["rows"].items():
            counts = {
                key: figure["median"]
                for key, figure in found["figures"].items()
                if key.endswith("_messages")
            }
            if row != "msharefs":
                assert not counts
                continue
            assert counts["flush_all_messages"] == os.cpu_count()
            assert 1 <= counts["cpumask_messages"] <= counts["list_messages"]
            assert counts["broadcast_messages"] == 1


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_first_touch(everything: dict[str, Any], order: str) -> None:
    found = rows(everything, "first-touch", order=order)
    assert found["memfd"]["faults_per_page"] == pytest.approx(1, abs=0.1)
    for row in ("memfd", "msharefs"):
        assert found[row]["ns_per_page"] > 0
        # One page for each touched one: random access fills no page that nobody has touched.
        assert found[row]["filled_per_touched"] == 1


@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("order", ["sequential", "random", "zipf"])
def test_populated(everything: dict[str, Any], access: str, order: str) -> None:
    found = rows(everything, "populated", access=access, order=order)
    assert found["msharefs"]["added_table_frames"] == 0
    assert found["msharefs"]["added_page_table_bytes"] == 0
    assert found["memfd"]["vmpte_bytes"] >= PAGES * 8
    if order == "sequential" and access == "write":
        assert found["memfd"]["faults_per_page"] == pytest.approx(1, abs=0.1)


def test_steady_state_takes_no_faults(everything: dict[str, Any]) -> None:
    for access in ("read", "write"):
        found = rows(everything, "steady", access=access, order="random")
        for row, of_row in found.items():
            assert of_row["faults_per_page"] < 0.01, row
            assert of_row["vmpte_bytes"] == 0, row


def test_a_child_that_writes_takes_faults_where_tables_are_its_own(
    everything: dict[str, Any],
) -> None:
    found = rows(everything, "fork", child="write")
    assert found["memfd"]["faults_per_fork"] >= PAGES
    assert found["msharefs"]["faults_per_fork"] < PAGES


def test_every_target_has_its_figure(
    everything: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [target for target in targets.TARGETS if target.size is None]
    assert [found["what"] for found in everything["targets"]] == [one.what for one in wanted]
    by_name = {found["what"]: found for found in everything["targets"]}
    touched = by_name["pages filled for each one touched at random"]
    assert (touched["measured"], touched["target"], touched["met"]) == (1, 1, True)
    frames = by_name["table frames that further clients add"]
    assert (frames["measured"], frames["processes"], frames["met"]) == (0, 2, True)
    verb.show(everything)
    _, _, table = capsys.readouterr().out.partition("\ntargets\n")
    for one in wanted:
        assert one.what in table


def target_document(**figures: float) -> dict[str, Any]:
    """A run of `budget` and `clients`: time and VmPTE relative to the baseline, page tables."""

    def row(**ratios: float) -> dict[str, Any]:
        spreads = {key: {"median": value} for key, value in ratios.items()}
        return {"ratio": spreads.pop("ns"), "ratios": spreads, "figures": spreads}

    moving = [{"access": "moving window"}, {"access": "zipf, whole region"}]
    return {"scenarios": [
        {"name": "budget", "headline": "ns_per_page", "size_bytes": 4 << 30, "rounds": 1, "cases": [
            {"case": case, "processes": count, "rows": {
                "msharefs-budget": row(ns=ns * figures["ns"], vmpte_bytes=figures["vmpte"]),
            }}
            for case in moving for count, ns in ((64, 1), (8, 9))
        ]},
        {"name": "clients", "headline": "page_table_bytes", "size_bytes": figures["size"],
         "rounds": 1, "cases": [
            {"case": {}, "processes": count, "rows": {"msharefs": row(
                ns=1, page_table_bytes=figures["tables"], added_table_frames=0, bookkeeping_bytes=1,
            )}} for count in (1, 2000)
        ]},
    ]}  # fmt: skip


def judged(**figures: float) -> dict[str, bool]:
    defaults = {"ns": 1.0, "vmpte": 0.1, "size": 1 << 30, "tables": 2 << 20}
    found = targets.judge(target_document(**{**defaults, **figures}))
    return {target["what"]: target["met"] for target in found}


def test_targets_are_judged_at_the_most_processes() -> None:
    assert judged() == dict.fromkeys([
        "page tables of a region of 1 GiB, whoever attaches",
        "table frames that further clients add",
        "bookkeeping for a further client",
        "moving windows, budget=1M: VmPTE",
        "moving windows, budget=1M: throughput",
        "Zipf over all of it, budget=1M: throughput",
    ], True)  # fmt: skip


def test_targets_that_are_missed() -> None:
    assert not judged(ns=1.2)["moving windows, budget=1M: throughput"]
    assert not judged(vmpte=0.16)["moving windows, budget=1M: VmPTE"]
    tables = "page tables of a region of 1 GiB, whoever attaches"
    assert not judged(tables=3 << 20)[tables]
    assert tables not in judged(size=1 << 29), "the bound is for 1 GiB"


def test_page_tables(everything: dict[str, Any]) -> None:
    found = rows(everything, "pagetables")
    # Two processes: at least twice PAGES/512 tables, and once with the upper tables.
    assert found["memfd"]["tables_bytes"] >= 2 * PAGES * 8
    assert found["memfd"]["tables_bytes"] == found["memfd"]["vmpte_bytes"]
    assert found["msharefs"]["tables_bytes"] == (PAGES // 512 + 3) * 4096
    assert found["msharefs"]["links"] == 2


def test_host_mm_is_the_same_for_one_and_for_twenty() -> None:
    found = play(["pagetables"], processes=(1, 20), backends=("memfd", "msharefs"))
    one, twenty = (case["rows"] for case in found["scenarios"][0]["cases"])

    def median(of_rows: dict[str, Any], row: str, key: str) -> float:
        return of_rows[row]["figures"][key]["median"]

    assert median(one, "msharefs", "tables_bytes") == median(twenty, "msharefs", "tables_bytes")
    assert median(twenty, "memfd", "tables_bytes") > 15 * median(one, "memfd", "tables_bytes")
    grown = median(twenty, "msharefs", "host_mm_bytes") - median(one, "msharefs", "host_mm_bytes")
    assert grown <= 19 * 4608  # a further client: bookkeeping only


def test_rows_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []
    scenario = bench.SCENARIOS["first-touch"]
    monkeypatch.setattr(
        type(scenario), "_trial",
        lambda _, setting: played.append(setting.row) or {"ns_per_page": float(len(played))},
    )  # fmt: skip
    found = run.run(
        [scenario],
        run.Wishes(rounds=3, size=SIZE, backends=("memfd", "sysv", "msharefs")),
        Silent(),
    )
    one_case = ["memfd", "sysv", "msharefs", "sysv", "msharefs", "memfd", "msharefs", "memfd",
                "sysv"]  # fmt: skip
    assert played == one_case * len(scenario.cases)
    first = found["scenarios"][0]["cases"][0]["rows"]
    assert first["memfd"]["figures"]["ns_per_page"]["rounds"] == [1, 6, 8]
    assert first["sysv"]["ratio"]["median"] == pytest.approx(9 / 8)  # of 2/1, 4/6, 9/8


def test_a_ratio_without_a_baseline_is_none() -> None:
    assert figures.ratio([{"x": 1.0}], [{"x": 0.0}], "x") is None


def test_what_cannot_be_had_is_said_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise OSError(1, "not today")

    monkeypatch.setattr(backends.Thp, "probe", refuse)
    found = play(["attach", "first-touch"], backends=("memfd", "thp"))
    assert found["backends"]["thp"] == {
        "about": backends.Thp.about, "available": False, "why_not": "not today",
    }  # fmt: skip
    assert list(rows(found, "first-touch")) == ["memfd"]


def test_the_pool_of_huge_pages_is_restored() -> None:
    if not POOL.exists() or os.geteuid() != 0:
        pytest.skip("no pool of huge pages that we may change")
    before = POOL.read_text()
    with hugepages.Pool() as pool:
        pool.provide(int(before) * hugepages.HUGE_BYTES + SIZE)
        assert int(POOL.read_text()) >= int(before) + 2
        with pytest.raises(OSError, match="huge pages"):
            pool.provide(1 << 45)
    assert POOL.read_text() == before


@pytest.mark.parametrize("free", [0, 2])
def test_a_pool_that_only_root_may_change_costs_a_row(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`free` pages: none for the first look, or enough for that alone."""

    def refuse(name: str, value: int) -> None:
        raise PermissionError(errno.EACCES, f"Permission denied: {value}", name)

    numbers = {"nr_hugepages": free, "free_hugepages": free, "resv_hugepages": 0}
    monkeypatch.setattr(hugepages, "_read", numbers.__getitem__)
    monkeypatch.setattr(hugepages, "_write", refuse)
    if free:
        monkeypatch.setattr(backends.Hugetlb, "probe", lambda _: None)
    found = play(["first-touch"], backends=("memfd", "hugetlb"), size=2 * SIZE)
    assert list(rows(found, "first-touch")) == ["memfd"]
    said = (
        found["scenarios"][0]["missing"].get("hugetlb") or found["backends"]["hugetlb"]["why_not"]
    )
    assert "only root may make it larger: sysctl vm.nr_hugepages=" in said


def verb_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "msharefs", "bench", *arguments],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_the_verb_prints_ratios_first_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(os.listdir(parent()))
    output = tmp_path / "bench.json"
    result = verb_run(
        "first-touch", "ioctl", "--rounds", "1", "--size", "4M", "--backend", "memfd",
        "--backend", "msharefs", "--output", str(output),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(output.read_text())
    ratio = found["scenarios"][0]["cases"][0]["rows"]["msharefs"]["ratio"]["median"]
    heading = next(line for line in result.stdout.splitlines() if line.startswith("access"))
    assert heading.split()[:3] == ["access", "order", "ratio"]
    assert f"{ratio:.3g}x" in result.stdout
    assert set(os.listdir(parent())) <= before


def test_every_scenario_has_a_picture_of_its_own(tmp_path: Path) -> None:
    """It drew the map of some region where it had no picture."""
    result = verb_run(
        "ioctl", "--rounds", "1", "--size", "4M", "--backend", "msharefs", "--plot", str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path) == ["ioctl.svg"]
    assert result.stderr == f"msharefs: drew {tmp_path}/ioctl.svg\n"


def test_where_no_picture_can_be_written_nothing_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = verb_run("first-touch", "--plot", str(tmp_path / "file" / "pictures"))
    assert (result.returncode, result.stdout) == (1, "")
    assert "cannot be made and written (Not a directory)" in result.stderr


def test_what_does_not_fit_into_memory_is_refused() -> None:
    result = verb_run("steady", "--size", "1P", "--backend", "memfd")
    assert result.returncode == 1
    assert "give a smaller --size" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_left(number: signal.Signals) -> None:
    before = set(os.listdir(parent()))
    pool = POOL.read_text() if POOL.exists() else ""
    process = subprocess.Popen(
        [sys.executable, "-m", "msharefs", "bench", "steady", "--rounds", "1000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
    )  # fmt: skip
    try:
        until(lambda: workers_of(process.pid), "it has workers")
        os.killpg(process.pid, number)  # as a terminal does
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert set(os.listdir(parent())) <= before
    assert not POOL.exists() or POOL.read_text() == pool


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # others come and go
            if child.name() == "mshare-worker":
                found.append(child)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"], ["--processes", "0"], ["--processes", "1,x"], ["--size", "1"],
        ["plan-check", "unmap"], ["plan-check", "--processes", "2"],
    ],
)  # fmt: skip
def test_wrong_usage(arguments: list[str]) -> None:
    assert verb_run(*arguments).returncode == 2
