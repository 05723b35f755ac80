"""The committed reports are those of the rows as they are now."""

from __future__ import annotations

from pathlib import Path

import pytest

from msharefs.conformance.table import ROWS
from msharefs.conformance.world import World

from . import rows  # noqa: F401  # fills ROWS
from .report import Report

TOP = Path(__file__).resolve().parents[2]
STALE = "rows or reasons have changed: run `make conformance`"


@pytest.fixture(scope="module")
def expected() -> Report:
    """As if every row had been asked, and had answered what it says (test_row makes sure)."""
    report = Report()
    for row in ROWS.values():
        for world in row.worlds():
            report.add(row, world, row.expected(world))
    return report


def test_conformance_has_all_rows(expected: Report) -> None:
    assert (TOP / "CONFORMANCE.md").read_text(encoding="utf-8") == expected.conformance(), STALE


def test_the_rows_that_differ_come_first(expected: Report) -> None:
    first = expected.conformance().partition("## All rows")[0]
    listed = [line.split(" | ")[0].removeprefix("| ") for line in first.splitlines()]
    for row in ROWS.values():
        assert listed.count(row.ident) == (row.why is not None), row.ident


def test_readme_has_the_differences(expected: Report) -> None:
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    assert expected.in_readme(readme) == readme, STALE


def test_an_answer_that_is_not_expected_is_shown(expected: Report) -> None:
    """The reports are made of answers, not of what the rows say."""
    row = next(iter(ROWS.values()))
    before = expected.conformance()
    other = Report()
    other._answers = expected._answers | {(row.ident, World.V3): "something else"}
    assert "something else" not in before
    assert f"| {row.ident} | {row.what} | {row.kernel} | {row.default} | something else |" in (
        other.conformance()
    )
