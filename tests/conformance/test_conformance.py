"""Every row of the table, asked of Linux where it has the same semantics, and of both mounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from msharefs.conformance.table import ROWS
from msharefs.conformance.world import SkippedError, World

from . import rows  # noqa: F401  # fills ROWS

if TYPE_CHECKING:
    from .conftest import Worlds
    from .report import Report


# With quirks=v3, of the answers of a kernel with v3.
SAME_AT_LEAST = 0.95

# They change settings of the whole machine for a moment.
ALONE = {"CREATE_MAPPING: limits", "Huge pages that Linux makes by itself"}


def asked() -> list[Any]:
    marks = {title: [pytest.mark.alone] for title in ALONE}
    return [pytest.param(each, marks=marks.get(row.title, ())) for each, row in ROWS.items()]


@pytest.mark.parametrize("ident", asked())
def test_row(ident: str, worlds: Worlds, report: Report) -> None:
    row = ROWS[ident]
    for world in row.worlds():
        with worlds.stage(world) as stage:
            try:
                answer = row.check(stage)
            except SkippedError as missing:
                pytest.skip(str(missing))
            if world is World.LIBRARY:
                stage.assert_unharmed()
        report.add(row, world, answer)
        assert answer == row.expected(world), f"{world.value}: {row.what}"


def test_rows_are_the_same_in_most_cases() -> None:
    asked = [row for row in ROWS.values() if World.V3 in row.worlds()]
    assert sum(row.quirks == row.kernel for row in asked) / len(asked) >= SAME_AT_LEAST


def test_the_worlds_differ() -> None:
    """A harness that asked the same mount twice would not see it."""
    assert any(row.default != row.quirks for row in ROWS.values())
    assert any(World.PLAIN in row.worlds() for row in ROWS.values())
    assert any(row.inner not in (None, row.default) for row in ROWS.values())
    assert any(row.call and row.calls != row.default for row in ROWS.values())
    assert any(row.library not in (None, row.default) for row in ROWS.values())
