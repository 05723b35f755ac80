"""The plan, compared with the kernel series' own figures and with a host mm built for real."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from msharefs import units
from msharefs.cli import bench as bench_verb
from msharefs.cli import plan as verb
from msharefs.lab import plan
from msharefs.lab.bench import plan_check

from support import schema

if TYPE_CHECKING:
    from pathlib import Path

G = 1 << 30
SMALL, LARGE, GIANT = plan.PAGE_SIZES.values()


def all_of_it(clients: int = 1) -> plan.Touched:
    return plan.Touched.assume(1.0, clients)


def test_the_cover_letter() -> None:
    # "300 GB SGA ... 1500 clients ... worst case 878 GB+ of page tables", which counts PTE pages.
    found = plan.plan(300 * G, 1500, SMALL, all_of_it())
    each = found["unshared"]["tables_each"]
    assert each == {"pte": 153600, "pmd": 300, "pud": 1}
    assert each["pte"] * 4096 == 600 << 20
    assert f"{1500 * each['pte'] * 4096 / G:.1f}" == "878.9"
    assert found["shared"]["bytes"] == (153600 + 300 + 1 + 1) * 4096
    assert found["each_client_still"]["kernel_bytes"] == 8


def test_larry_bassels_six_tebibytes() -> None:
    # "6 TiB, 2M pages, 10,000 processes: ~240 GiB of tables", exactly 234.4 of PMD pages.
    each = plan.tables(6 << 40, LARGE)
    assert each == {"pte": 0, "pmd": 6144, "pud": 12}
    assert f"{10_000 * each['pmd'] * 4096 / G:.1f}" == "234.4"


def test_16000_clients_of_32_gib() -> None:
    # 64 MiB of PTEs per process, 1000 GiB for 16,000 (the pgbench runs of the v2 thread).
    each = plan.tables(32 * G, SMALL)["pte"] * 4096
    assert each == 64 << 20
    assert 16_000 * each == 1000 * G


@pytest.mark.parametrize(
    ("size", "page", "expected"),
    [
        (4096, SMALL, {"pte": 1, "pmd": 1, "pud": 1}),
        ((2 << 20) + 4096, SMALL, {"pte": 2, "pmd": 1, "pud": 1}),
        (G + 4096, SMALL, {"pte": 513, "pmd": 2, "pud": 1}),
        (513 * G, SMALL, {"pte": 513 * 512, "pmd": 513, "pud": 2}),
        (G, LARGE, {"pte": 0, "pmd": 1, "pud": 1}),
        (512 * G, GIANT, {"pte": 0, "pmd": 0, "pud": 1}),
    ],
)
def test_tables_level_by_level(size: int, page: int, expected: dict[str, int]) -> None:
    assert plan.tables(size, page) == expected


@given(
    st.integers(1, 1 << 26).map(lambda pages: pages * 4096),
    st.floats(0.001, 1.0),
    st.sampled_from([SMALL, LARGE, GIANT]),
)
def test_less_touched_never_needs_more(size: int, share: float, page: int) -> None:
    part, all_tables = plan.tables(size, page, share), plan.tables(size, page)
    most = plan.scattered(size, page, share)
    for level, count in part.items():
        assert 0 <= count <= all_tables[level]
        assert count <= most[level] <= all_tables[level]


@given(st.integers(1, 300).map(lambda gib: gib * G), st.floats(0.01, 1.0))
def test_a_share_is_found_again_in_its_tables(size: int, share: float) -> None:
    host = plan.count_bytes(plan.host_mm(size, SMALL, share))
    one = 1 / plan.tables(size, SMALL)["pte"]
    # The upper tables of a part are fewer: 1 of 512, so that much of the share may be missed.
    assert -1 / 256 <= plan.host_share(host, size) - share <= one
    # A table for the rounding, and two upper ones that a process may have had before.
    own = plan.count_bytes(plan.tables(size, SMALL, share))
    assert -1e-9 <= plan.client_share(own, size) - share <= 3 * one


def test_what_stands_beside() -> None:
    ways = plan.ways(300 * G, 1500, all_of_it())
    assert ways["unshared 2 MiB pages (THP)"] == 1500 * 301 * 4096
    assert ways["hugetlb 2 MiB, the kernel shares PMD tables"] == (300 + 1500) * 4096
    assert ways["hugetlb 1 GiB"] == 1500 * 4096
    # The kernel does not share the PMD table of a gigabyte that is not whole.
    assert plan.ways(G // 2, 10, all_of_it())["hugetlb 2 MiB, the kernel shares PMD tables"] == (
        10 * 2 * 4096
    )


def run(*arguments: str) -> Any:
    return CliRunner().invoke(verb.command, list(arguments))


def test_the_verb_shows_every_level_and_writes_json(tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    result = run("--size", "300G", "--clients", "1500", "-o", str(output))
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.output.splitlines() if line}
    for level in ("PTE", "PMD", "PUD", "PGD"):
        assert level in rows
    assert "878.9 GiB" in rows["PTE"]
    found = schema.check(json.loads(output.read_text()))
    assert found == {
        "kind": "msharefs plan",
        "version": 1,
        **plan.plan(300 * G, 1500, SMALL, all_of_it()),
    }
    assert units.size(found["unshared"]["bytes"]) in rows["sum"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--size", "300G"],
        ["--size", "300G", "--clients", "0"],
        ["--size", "1", "--clients", "1"],
        ["--size", "1G", "--clients", "1", "--touched", "0%"],
        ["--size", "1G", "--clients", "1", "--touched", "101%"],
        ["--size", "1G", "--clients", "1", "--touched", "some"],
    ],
)
def test_what_cannot_be_planned_is_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("option", ["--from-run", "--output"])
def test_a_file_that_cannot_be_opened_is_no_wrong_usage(option: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "msharefs", "plan", "--size", "1G", "--clients", "2",
         option, tmp_path / "none" / "run.json"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(
        f"msharefs: {tmp_path}/none/run.json: cannot be (read|written) "
        r"\(No such file or directory\): .*\n",
        result.stderr,
    )


def test_json_goes_to_standard_output_and_output_to_a_file(tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    both = run("--size", "1G", "--clients", "2", "--json", "--output", str(output))
    assert json.loads(both.output) == json.loads(output.read_text())
    assert run("--size", "1G", "--clients", "2", "--json", str(output)).exit_code == 2


def measured_run(plain: int, region: int) -> dict[str, Any]:
    def row(count: int) -> dict[str, Any]:
        return {"figures": {"tables_bytes": {"median": count}}}

    cases = [
        {"processes": 1, "rows": {"memfd": row(1), "msharefs": row(1)}},
        {"processes": 100, "rows": {"memfd": row(plain), "msharefs": row(region)}},
    ]
    scenario = {"name": "pagetables", "size_bytes": G, "cases": cases}
    return {"kind": "msharefs bench", "scenarios": [scenario]}


def test_from_a_run_that_touched_half(tmp_path: Path) -> None:
    source = tmp_path / "run.json"
    half = plan.count_bytes(plan.tables(G, SMALL, 0.5))
    source.write_text(json.dumps(measured_run(100 * half, 515 * 4096)))
    output = tmp_path / "plan.json"
    result = run("--from-run", str(source), "-o", str(output))
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    assert (found["size_bytes"], found["clients"]) == (G, 100)
    assert found["touched"]["by_each_client"] == pytest.approx(0.5, abs=0.004)
    assert found["touched"]["by_anybody"] == pytest.approx(1.0, abs=0.004)
    assert "measured, 100 processes" in result.output


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "msharefs bench"}', '{"kind": 7}'])
def test_from_what_is_no_run_is_wrong_usage(text: str, tmp_path: Path) -> None:
    source = tmp_path / "run.json"
    source.write_text(text)
    assert run("--from-run", str(source)).exit_code == 2


@pytest.mark.parametrize("size", [4096, 2 << 20, (1 << 30) + 4096, 3 << 30])
def test_a_host_mm_built_for_real_has_the_planned_bytes(size: int) -> None:
    steps: list[int] = []
    found = plan_check.run(size, steps.append)
    assert found["equal"], found
    assert found["built"]["bytes"] == plan.count_bytes(plan.host_mm(size))
    assert found["built"]["entries"] == size // 4096
    assert sum(steps) == size


def test_plan_check_notices_a_plan_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "host_mm", lambda _: {"pte": 2, "pmd": 1, "pud": 1, "pgd": 1})
    result = CliRunner().invoke(bench_verb.command, ["plan-check", "--size", "2M"])
    assert result.exit_code == 1
    assert "NOT equal" in result.output


@pytest.mark.slow
def test_the_cover_letters_window_built_for_real() -> None:
    result = CliRunner().invoke(bench_verb.command, ["plan-check", "--json"])
    assert result.exit_code == 0, result.output
    found = schema.check(json.loads(result.output))
    assert found["size_bytes"] == 300 * G
    assert found["built"]["bytes"] == (153600 + 300 + 1 + 1) * 4096
    assert found["built"]["entries"] == 300 * G // 4096
