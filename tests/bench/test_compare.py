"""Two runs compared, and the gate: documents made by hand, and the verb on real runs."""

from __future__ import annotations

import copy
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from msharefs.cli import bench as verb
from msharefs.lab.bench import compare, run

if TYPE_CHECKING:
    from pathlib import Path


def spread(*rounds: float) -> dict[str, Any]:
    ordered = sorted(rounds)
    return {"median": ordered[len(ordered) // 2], "low": ordered[0], "high": ordered[-1]}


def document(ratio: dict[str, Any], tables: dict[str, Any], rounds: int = 5) -> dict[str, Any]:
    """A run of one scenario with one case and two rows."""
    time = spread(7.0)
    return {
        "kind": run.KIND,
        "version": run.VERSION,
        "started": "2026-01-01T00:00:00+00:00",
        "machine": {"kernel": "6", "cpu": "x", "cpus": 2},
        "scenarios": [{
            "name": "populated", "title": "", "size_bytes": 1 << 22, "rounds": rounds,
            "headline": "ns_per_page", "also": [], "baseline": "memfd",
            "cases": [{"case": {"access": "read"}, "processes": 1, "rows": {
                "memfd": {"figures": {"ns_per_page": time}, "ratio": spread(1.0), "ratios": {}},
                "msharefs": {
                    "figures": {"ns_per_page": time, "vmpte_bytes": tables},
                    "ratio": ratio, "ratios": {},
                },
            }}],
        }],
    }  # fmt: skip


OLD = document(spread(1.0, 1.1, 1.2), spread(4096.0))


def changed(new: dict[str, Any], old: dict[str, Any] = OLD) -> list[tuple[str, float, float]]:
    found = compare.compare(old, new)
    assert found["compared"] == 2
    return [(one["figure"], one["before"], one["now"]) for one in found["changes"]]


def test_what_is_as_before() -> None:
    assert changed(copy.deepcopy(OLD)) == []


def test_rounds_that_overlap_are_noise() -> None:
    assert changed(document(spread(1.15, 1.5, 1.9), spread(4096.0))) == []


def test_steady_rounds_that_hardly_differ_are_noise() -> None:
    old = document(spread(1.0, 1.0, 1.0), spread(4096.0))
    assert changed(document(spread(1.04, 1.04, 1.04), spread(4096.0)), old) == []


def test_slower_and_larger() -> None:
    assert changed(document(spread(1.3, 1.4, 1.5), spread(8192.0))) == [
        ("ns_per_page", 1.1, 1.4),
        ("vmpte_bytes", 4096.0, 8192.0),
    ]


def test_faster() -> None:
    assert changed(document(spread(0.5, 0.6, 0.7), spread(4096.0))) == [("ns_per_page", 1.1, 0.6)]


def test_one_round_says_little() -> None:
    old = document(spread(1.0), spread(4096.0), rounds=1)
    assert changed(document(spread(1.2), spread(4096.0), rounds=1), old) == []
    assert changed(document(spread(1.3), spread(4096.0), rounds=1), old) != []


def test_another_size_is_another_case() -> None:
    new = copy.deepcopy(OLD)
    new["scenarios"][0]["size_bytes"] *= 2
    assert compare.compare(OLD, new)["compared"] == 0


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "msharefs bench", "version": 0}'])
def test_a_file_that_is_no_run(text: str) -> None:
    file = io.StringIO(text)
    file.name = "old.json"
    with pytest.raises(ValueError, match=r"^old\.json is n"):
        compare.read(file)


def test_what_the_gate_says(capsys: pytest.CaptureFixture[str]) -> None:
    verb.gate([{"what": "a", "met": True}])
    for targets, said in (
        ([{"what": "a", "met": True}, {"what": "b", "met": False}], "msharefs: missed: b\n"),
        ([], "msharefs: --gate: nothing that was measured has a target\n"),
    ):
        with pytest.raises(SystemExit) as ended:
            verb.gate(targets)
        assert ended.value.code == 3
        assert capsys.readouterr().err == said


def test_the_verb(tmp_path: Path) -> None:
    """A run, then one that is compared with it, without and with a target that nobody meets."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    arguments = ["attach", "--rounds", "1", "--backend", "memfd"]
    first = CliRunner().invoke(verb.command, [*arguments, "-o", str(old)])
    assert first.exit_code == 0, first.output
    again = [*arguments, "-o", str(new), "--compare", str(old), "--gate"]
    second = CliRunner().invoke(verb.command, again)
    assert second.exit_code == 3, "nothing of ours was measured"
    assert "\ncompared with the run of " in second.output
    assert json.loads(new.read_text())["compared"]["same_machine"] is True
    old.write_text("{}")
    refused = CliRunner().invoke(verb.command, again)
    assert (refused.exit_code, "is not the JSON of msharefs bench" in refused.output) == (2, True)
