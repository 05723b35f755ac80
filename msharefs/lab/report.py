"""The report of a run: what shared page tables would do for the program, as text, HTML and JSON.

The figures are those of `sampling.Sampler`. The HTML stands alone: it contains its pictures and
fetches nothing.
"""

from __future__ import annotations

import html
import json
import shlex
from typing import TYPE_CHECKING, Any

from msharefs import units

from . import head, missed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .sampling import Sampler

KIND = "msharefs run"
VERSION = 2
_REGIONS = 20  # in a table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em;
       color: #222; }
h1 { font-size: 1.3em; } h2 { font-size: 1.05em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .15em 1.2em .15em 0; text-align: left; }
p, h1, h2 { overflow-wrap: anywhere; } table { margin-top: 1em; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.answer td { font-weight: 600; border-top: 1px solid #bbb; }
img { max-width: 100%; } code { background: #f3f3f3; padding: 0 .3em; } .note { color: #666; }
"""


def document(
    program: Sequence[str],
    status: int,
    seconds: float,
    faults: int,
    seen: Sampler,
    options: Mapping[str, str] | None = None,
    shootdowns: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """Everything about a run: `faults` are those of the program and its children (getrusage).

    `shootdowns` are those of the mount meanwhile, whoever caused them.
    """
    return {
        "kind": KIND,
        "version": VERSION,
        **head.head(),
        "program": list(program),
        "options": dict(options or {}),
        "status": status,
        "seconds": seconds,
        "faults": faults,
        "shootdowns": shootdowns or {},
        **seen.document(),
    }


def write(found: dict[str, Any], path: Path) -> list[Path]:
    """Write the report: HTML, and its figures as JSON beside it; JSON alone if `path` is *.json."""
    written = [path.with_suffix(".json")]
    written[0].write_text(json.dumps(found, indent=1) + "\n")
    if path.suffix != ".json":
        path.write_text(page(found))
        written.insert(0, path)
    return written


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The lines of the report: a name, a figure and a remark; the answer comes last."""
    own, held = found["own_tables_bytes"], found["page_table_bytes"]
    when = f"after {found['moment_seconds']:.1f} s, when they had most page tables"
    yield "processes", f"{found['processes']:,}", when
    yield "  with a region attached", f"{found['clients']:,}", ""
    yield "memory in regions", units.size(found["mapped_bytes"]), ""
    yield "page tables of all processes", units.size(found["vmpte_bytes"]), "VmPTE"
    yield "  of that for the regions", units.size(own), "what each process pays for itself today"
    yield "page tables of the regions", units.size(held), "host mm: with sharing paid once"
    if found["unshared_tables_bytes"]:
        unshared = units.size(found["unshared_tables_bytes"])
        yield "  and in the processes still", unshared, "unshared: windows they changed (private)"
    if found["upper_tables_bytes"]:
        kept = units.size(found["upper_tables_bytes"])
        yield "  and in the processes still", kept, "tables above a quantum, which is below 512 GiB"
    yield "faults", f"{found['faults']:,}", "the program and its children, getrusage(2)"
    yield "  first touches of region pages", f"{found['region_faults']:,}", "once for all processes"
    yield "  pages filled ahead of them", f"{found['prefaulted']:,}", "while access is sequential"
    yield "  links", f"{found['links']:,}", "one for each attachment and quantum"
    for verb, counted in found["shootdowns"].items():
        if counted["times"]:
            yield f"shootdowns by {verb}", f"{counted['times']:,}", _messages(counted)
    if found["ratio"] is not None:
        yield "ratio", f"{found['ratio']:.3g}x", "what sharing saves of page tables for the regions"


def _messages(counted: dict[str, int]) -> str:
    return (
        f"messages to processors: {counted['flush_all']:,} if all are flushed (v3), "
        f"{counted['list']:,} process by process (2026), {counted['cpumask']:,} by one cpumask, "
        f"{counted['broadcast']:,} by broadcasts; a model"
    )


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""The heads of columns, of which all but the first are figures, and the lines."""


def tables(found: dict[str, Any]) -> Iterator[Table]:
    """The same moment by the classes of memory that a survey has, and by region."""
    columns = "memory", "own tables", "shared", "would go"

    def figures(one: dict[str, Any]) -> tuple[str, ...]:
        own, held = one["own_tables_bytes"], one["page_table_bytes"]
        return tuple(map(units.size, (one["mapped_bytes"], own, held, max(0, own - held))))

    if found["classes"]:
        yield (
            ("class", "regions", *columns),
            [(one["what"], f"{one['regions']:,}", *figures(one)) for one in found["classes"]],
        )
    if found["shared_pt"]:
        yield _shared_pt(found["shared_pt"])
    there = [one for one in found["regions"] if one["mapped_bytes"]][:_REGIONS]
    if there:
        yield (
            ("region", "processes", *columns),
            [(one["name"], f"{one['clients']:,}", *figures(one)) for one in there],
        )


def _shared_pt(found: dict[str, Any]) -> Table:
    """What Android's kernel would share of what Linux has."""
    return (
        ("MAP_SHARED_PT by Android's rules", "tables"),
        [
            (
                f"of {found['processes']:,} processes, as Linux has them",
                units.size(found["own_tables_bytes"]),
            ),
            ("shared, there once", units.size(found["page_table_bytes"])),
            *((f"unshared: {one['what']}", units.size(one["bytes"])) for one in found["unshared"]),
            ("would go", units.size(found["saved_bytes"])),
        ],
    )


def remarks(found: dict[str, Any]) -> Iterator[str]:
    """Remarks that the reader needs beside the figures."""
    if not found["regions"] and not found["shared_pt"]:
        yield "The program attached no region: was its memory large enough for --adopt?"
    yield from missed.lines(found)
    if found["unseen_clients"]:
        yield (
            f"The own page tables of {found['unseen_clients']} attachments could not be seen "
            "(another user's, or a kernel before 6.7) and are not counted."
        )
    if not found["moment_steady"]:
        yield (
            f"It was no moment: in the {found['moment_took_seconds']:.2g} s that it took to look, "
            f"all page tables together changed by {units.size(abs(found['moment_grew_bytes']))}."
        )
    if found["shared_pt"] and found["shared_pt"]["inexact"]:
        yield "A process has unshared so many places that more counts as unshared than is."
    if found["incomplete"]:
        yield f"Watching ended before the program did: {found['incomplete']}"


def title(found: dict[str, Any]) -> str:
    """The program that was run, and how it ended."""
    return f"{shlex.join(found['program'])}: {found['seconds']:.1f} s, status {found['status']}"


def about(found: dict[str, Any]) -> Iterator[str]:
    """Where and with what it was run."""
    yield head.line(found)
    if found["options"]:
        yield ", ".join(f"{name} {value}" for name, value in found["options"].items())


def aligned(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A table for a terminal."""
    wide = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if place else f"{cell:{width}}"
            for place, (cell, width) in enumerate(zip(line, wide, strict=True))
        )
        for line in (heads, *lines)
    )


def text(found: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = list(rows(found))
    wide = max(len(name) for name, _, _ in lines)
    right = max(len(figure) for _, figure, _ in lines)
    return "\n".join(
        [
            title(found),
            *about(found),
            "",
            *(f"{name:{wide}}  {figure:>{right}}  {note}".rstrip() for name, figure, note in lines),
            *(f"\n{aligned(*table)}" for table in tables(found)),
            *(f"\n{remark}" for remark in remarks(found)),
            "",
        ]
    )


def page(found: dict[str, Any]) -> str:
    """The report as one HTML page."""
    body = [f"<h1>{html.escape(title(found))}</h1>"]
    body += [f'<p class="note">{html.escape(line)}</p>' for line in about(found)]
    body.append("<table>")
    for name, figure, note in rows(found):
        mark = ' class="answer"' if name == "ratio" else ""
        indent = "&emsp;" if name.startswith(" ") else ""
        body.append(
            f"<tr{mark}><td>{indent}{html.escape(name.strip())}</td>"
            f'<td class="number">{html.escape(figure)}</td>'
            f'<td class="note">{html.escape(note)}</td></tr>'
        )
    body.append("</table>")
    for heads, lines in tables(found):
        body.append("<table>" + "".join(f"<th>{html.escape(each)}</th>" for each in heads))
        body += [_row(line) for line in lines]
        body.append("</table>")
    body += [f'<p class="note">{html.escape(remark)}</p>' for remark in remarks(found)]
    body += pictures(found)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title(found))}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _row(cells: tuple[str, ...]) -> str:
    first, *rest = map(html.escape, cells)
    figures = "".join(f'<td class="number">{cell}</td>' for cell in rest)
    return f"<tr><td>{first}</td>{figures}</tr>"


def pictures(found: dict[str, Any]) -> Iterator[str]:
    """The pictures, as HTML; a sentence instead where matplotlib is missing."""
    try:
        from . import plot
    except ImportError:
        yield '<p class="note">For pictures install matplotlib: <code>msharefs[plot]</code>.</p>'
        return
    if len(found["samples"]) > 1:
        yield "<h2>Page tables while it ran</h2>"
        yield plot.svg(plot.timeline(found))
    for region in found["regions"]:
        if region["map"] is not None:
            name = html.escape(region["name"])
            yield f"<h2>Map of {name} when it had most</h2>"
            yield plot.svg(plot.map_figure(region["map"]))
