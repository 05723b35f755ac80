"""CONFORMANCE.md, the rows with the answers of the mounts; and README.md's table of differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msharefs.conformance.by_call import SOURCES
from msharefs.conformance.reasons import Kind
from msharefs.conformance.table import NO_CALL, ROWS
from msharefs.conformance.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from msharefs.conformance.table import Row

HEAD = """\
# Conformance

Each row is one case of the kernel series msharefs v3 (19 August 2025), with what a 6.12 kernel with
the series answers, and what we answer: by default, and mounted with `-o quirks=v3`. `make
conformance` asks a real mount every question and writes this file from the answers. Rows marked
*plain* have the same semantics on Linux without us (tmpfs, shared memory); they are asked there
first and must answer the same.

Tables about calls on an attachment also say what a mount with `-o window=inner` answers, where a
call of one process within the mappings holds for the region (Wilcox and Singh asked for that).
*2026 call* is what one of the calls of LSFMM+BPF 2026 answers to the same question. *LWN*: LWN's
report of that session names the call. *our choice*: it does not. No code of these calls is public:
in detail all their answers are our choice, which is that of the call of Linux each is modelled on.
`-`: there is no such call, or nothing to ask it.

*library* is what a call says in a program that has attached by our library, without `msharefs run`.
There it is Linux's own, on a shared mapping of a file, and nobody of ours sees it: it is made, and
not refused, for that process alone (MADV_REMOVE: for all). The region stays whole, whatever was
done to the window, and the process can detach; each row looks at that. `-`: not asked, as Linux
would fill 512 GiB with pages or with page tables.

`0` is plain success. The source is a part of the specification: 1.2 to 1.11 are the behaviour
stated by the series or read from its code, A to C what the running kernel answered. `Q` is
512 GiB.
"""

# We write the lines between them in README.md.
BEGIN = "<!-- The differences: written by `make conformance`. -->"
END = "<!-- The end of the differences. -->"


class Report:
    """Collects answers."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, World], str] = {}

    def add(self, row: Row, world: World, answer: str) -> None:
        """One answer."""
        self._answers[row.ident, world] = answer

    def write(self, top: Path) -> None:
        """Both files, of the rows that were asked."""
        (top / "CONFORMANCE.md").write_text(self.conformance(), encoding="utf-8")
        readme = top / "README.md"
        readme.write_text(self.in_readme(readme.read_text(encoding="utf-8")), encoding="utf-8")

    def conformance(self) -> str:
        """CONFORMANCE.md: the rows that differ, and then all of them."""
        lines = [HEAD, *self._counts(), "", "## Where we differ"]
        for kind, rows in self._differ():
            lines += ["", kind.value, "", *_DIFFERENCES]
            lines += [self._line(row, _why(row)) for row in rows]
        lines += ["", "## All rows"]
        title = ""
        for row in self._asked():
            if row.title != title:
                title = row.title
                more = self._more_columns(title)
                lines += ["", f"### {title}", "", *_header(more)]
            source = f"{row.source}{'; plain' if row.plain else ''}"
            others = self._more(row)[: len(more)]
            lines.append(self._line(row, *others, self._verdict(row), source))
        return "\n".join(lines) + "\n"

    def in_readme(self, text: str) -> str:
        """README.md with the table of differences as it is now."""
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        assert begin, f"README.md has no line {BEGIN}"
        assert end, f"README.md has no line {END}"
        asked = self._compared()
        lines = [
            "",
            f"| rows of {len(asked)} that differ | `-o quirks=v3` | by default |",
            "|---|--:|--:|",
            *(
                f"| {kind.value} | {self._count(rows, World.V3)} "
                f"| {self._count(rows, World.DEFAULT)} |"
                for kind, rows in self._differ()
            ),
            "",
        ]
        return before + begin + "\n".join(lines) + end + after

    def _asked(self) -> list[Row]:
        """All rows that were asked."""
        asked = {ident for ident, _ in self._answers}
        return [row for row in ROWS.values() if row.ident in asked]

    def _compared(self) -> list[Row]:
        """Those that the kernel has an answer to."""
        return [row for row in self._asked() if row.kernel != NO_CALL]

    def _more_columns(self, title: str) -> tuple[str, ...]:
        """A table's columns of `window=inner`, of the calls of 2026, and of the library."""
        rows = [row for row in self._asked() if row.title == title]
        if any(row.library for row in rows):
            return _MORE
        return _MORE[:2] if any(row.inner or row.call for row in rows) else ()

    def _more(self, row: Row) -> tuple[str, str, str]:
        """What stands there."""
        call = f"{self._got(row, World.CALLS)} (`{row.call}`, {SOURCES.get(row.call)})"
        return (
            self._got(row, World.INNER) or NO_CALL,
            call if row.call else NO_CALL,
            self._got(row, World.LIBRARY) or NO_CALL,
        )

    def _got(self, row: Row, world: World) -> str:
        return self._answers.get((row.ident, world), "")

    def _count(self, rows: list[Row], world: World) -> int:
        """Of these rows, those whose answer is not the kernel's."""
        return sum(self._got(row, world) != row.kernel for row in rows)

    def _differ(self) -> Iterator[tuple[Kind, list[Row]]]:
        """The rows that have a reason, by its kind."""
        for kind in Kind:
            rows = [row for row in self._compared() if row.why and row.why.kind is kind]
            if rows:
                yield kind, rows

    def _counts(self) -> Iterator[str]:
        asked = self._compared()
        yield "| | rows | same as the kernel | differ | |"
        yield "|---|--:|--:|--:|--:|"
        for world, name in ((World.DEFAULT, "default"), (World.V3, "`-o quirks=v3`")):
            differ = self._count(asked, world)
            same = len(asked) - differ
            share = 100 * same / len(asked) if asked else 0
            yield f"| {name} | {len(asked)} | {same} | {differ} | {share:.1f} % |"

    def _verdict(self, row: Row) -> str:
        if row.kernel == NO_CALL:
            return "ours"
        default, quirks = self._got(row, World.DEFAULT), self._got(row, World.V3)
        if (default, quirks) == (row.kernel, row.kernel):
            return "same"
        return "same with quirks=v3" if quirks == row.kernel else "**differs**"

    def _line(self, row: Row, *more: str) -> str:
        answers = (row.kernel, self._got(row, World.DEFAULT), self._got(row, World.V3))
        if row.kernel == NO_CALL:
            answers = (NO_CALL,) * 3
        cells = [row.ident, row.what, *(answer or "(empty)" for answer in answers), *more]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _why(row: Row) -> str:
    return row.why.text if row.why else ""


_DIFFERENCES = (
    "| row | what | kernel v3 | default | quirks=v3 | why |",
    "|---|---|---|---|---|---|",
)
_MORE = ("window=inner", "2026 call", "library")


def _header(more: tuple[str, ...]) -> tuple[str, str]:
    columns = ("row", "what", "kernel v3", "default", "quirks=v3", *more, "", "source")
    names = " | ".join(columns).replace("|  |", "| |")
    return f"| {names} |", "|---" * len(columns) + "|"
