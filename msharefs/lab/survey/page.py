"""A survey as one HTML page, which contains its pictures and fetches nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from msharefs import units
from msharefs.lab import head
from msharefs.lab.report import STYLE

from . import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def page(looks: Sequence[dict[str, Any]]) -> str:
    """The last of these looks; with several, also what was seen over time."""
    found = looks[-1]
    title = f"What sharing page tables would save on {found['host']}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">{html.escape(head.line(found))}</p>',
        f"<p><b>{html.escape(words.answer(found))}</b></p>",
        *(f'<p class="note">{html.escape(remark)}</p>' for remark in words.remarks(found)),
        *_pictures(looks),
        *_tables(found),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _pictures(looks: Sequence[dict[str, Any]]) -> Iterator[str]:
    try:
        from . import pictures
    except ImportError:
        yield '<p class="note">For pictures install matplotlib: <code>msharefs[plot]</code>.</p>'
        return
    if len(looks) > 1:
        yield pictures.watched(looks)
    if looks[-1]["objects"]:
        yield pictures.objects(looks[-1])
        yield pictures.schemes(looks[-1])


def _tables(found: dict[str, Any]) -> Iterator[str]:
    yield from _table(
        "Objects",
        ("object", "class", "processes", "programs", "size", "own tables", "shared", "would go"),
        (
            (
                one["name"], one["class"], f"{one['processes']:,}", ", ".join(one["programs"]),
                _size(one["bytes"]), _size(one["own_tables_bytes"]),
                _size(one["page_table_bytes"]), units.size(one["saved_bytes"]),
            )
            for one in found["objects"]
        ),
    )  # fmt: skip
    yield from _table(
        "Programs",
        ("program", "processes", "page tables", "for shared memory alone"),
        (
            (
                one["program"], f"{one['processes']:,}", units.size(one["vmpte_bytes"]),
                units.size(one["gone_bytes"]),
            )
            for one in found["programs"]
        ),
    )  # fmt: skip
    yield from _table(
        "Classes",
        ("class", "would go", "what it is"),
        ((one["class"], units.size(one["saved_bytes"]), one["what"]) for one in found["classes"]),
    )
    yield from _table(
        "Ways to share tables, each by itself",
        ("way", "would go", "what it is"),
        ((one["scheme"], units.size(one["saved_bytes"]), one["what"]) for one in found["schemes"]),
    )
    yield from _table(
        "What would help on this kernel today",
        ("way", "for", "saves", "price", "how"),
        (
            (one["way"], one["for"], units.size(one["saved_bytes"]), one["price"], one["how"])
            for one in found["advice"]
        ),
    )


def _size(count: int) -> str:
    return units.size(count) if count else ""


def _table(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    rows = [
        # A long path is broken at a slash.
        "".join(f"<td>{html.escape(cell).replace('/', '/<wbr>')}</td>" for cell in line)
        for line in lines
    ]
    if not rows:
        return
    yield f"<h2>{html.escape(title)}</h2>"
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    yield f"<table><tr>{heads}</tr>"
    yield from (f"<tr>{row}</tr>" for row in rows)
    yield "</table>"
