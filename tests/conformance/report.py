"""CONFORMANCE.md: the rows with the answers that were got."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .table import ROWS, World

if TYPE_CHECKING:
    from pathlib import Path

    from .table import Row

HEAD = """\
# Conformance

Each row is one case of the kernel series msharefs v3 (19 August 2025), with what a 6.12 kernel with
the series answers, and what we answer: by default, and mounted with `-o quirks=v3`. `make
conformance` asks a real mount every question and writes this file from the answers. Rows marked
*plain* have the same semantics on Linux without us (tmpfs, shared memory); they are asked there
first and must answer the same.

`0` is plain success. The source is a part of the specification: 1.2 to 1.11 are the behaviour
stated by the series or read from its code, A to C what the running kernel answered. `Q` is
512 GiB.
"""


class Report:
    """Collects answers."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, World], str] = {}

    def add(self, row: Row, world: World, answer: str) -> None:
        """One answer."""
        self._answers[row.ident, world] = answer

    def write(self, path: Path) -> None:
        """The file, of the rows that were asked."""
        asked = [row for row in ROWS.values() if (row.ident, World.V3) in self._answers]
        lines = [HEAD, *self._summary(asked), ""]
        title = ""
        for row in asked:
            if row.title != title:
                title = row.title
                lines += ["", f"## {title}", "", *_HEADINGS]
            lines.append(self._line(row))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _got(self, row: Row, world: World) -> str:
        return self._answers.get((row.ident, world), "")

    def _summary(self, asked: list[Row]) -> list[str]:
        lines = ["| | rows | same as the kernel | differ | |", "|---|--:|--:|--:|--:|"]
        for world, name in ((World.DEFAULT, "default"), (World.V3, "`-o quirks=v3`")):
            same = sum(self._got(row, world) == row.kernel for row in asked)
            share = 100 * same / len(asked) if asked else 0
            lines.append(
                f"| {name} | {len(asked)} | {same} | {len(asked) - same} | {share:.1f} % |"
            )
        reasons: dict[str, list[str]] = {}
        for row in asked:
            if row.why:
                reasons.setdefault(row.why, []).append(row.ident)
        lines += ["", "Where we differ, by reason:", ""]
        lines += [
            f"- {why} ({len(found)}: {', '.join(found)})"
            for why, found in sorted(reasons.items(), key=lambda item: -len(item[1]))
        ]
        return lines

    def _line(self, row: Row) -> str:
        default, quirks = self._got(row, World.DEFAULT), self._got(row, World.V3)
        same = "same" if (default, quirks) == (row.kernel, row.kernel) else "**differs**"
        if default != row.kernel == quirks:
            same = "same with quirks=v3"
        cells = [
            row.ident, row.what, row.kernel or "(empty)", default or "(empty)",
            quirks or "(empty)", same, row.why, f"{row.source}{'; plain' if row.plain else ''}",
        ]  # fmt: skip
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_HEADINGS = (
    "| row | what | kernel v3 | default | quirks=v3 | | why | source |",
    "|---|---|---|---|---|---|---|---|",
)
