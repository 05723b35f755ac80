"""What README.md says of the conformance report is what the report says."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def test_every_difference_has_its_reason() -> None:
    """The table "Where it differs from the series" has the rows that differ with quirks=v3."""
    report = (TOP / "CONFORMANCE.md").read_text(encoding="utf-8")
    differ = re.findall(r"^\| (\S+) \|.*\| \*\*differs\*\* \|", report, re.MULTILINE)
    section = (TOP / "README.md").read_text(encoding="utf-8")
    section = section.partition("## Where it differs from the series")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert differ
    assert sorted(re.findall(r"`(\S+)`", " ".join(rows))) == sorted(differ)
