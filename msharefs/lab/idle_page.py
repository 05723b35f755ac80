"""Ages of pages as one HTML page, which contains its pictures and fetches nothing."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from msharefs import units

from .idle import PAGE
from .report import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterator


def page(found: dict[str, Any]) -> str:
    """The document of `idle.run` for people."""
    title = f"How long pages of {found['target']} have not been used"
    about = (
        f"{found['date']}, {found['host']}, Linux {found['kernel']}, msharefs {found['made_by']}; "
        f"{found['method']}: exact to a {found['exact_to']['all']} for all processes together"
    )
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="note">{html.escape(about)}</p>']
    for region in found["regions"]:
        body.extend(_region(region))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _region(region: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>{html.escape(region['region'])}</h2>"
    yield "<table><tr><th>not used for</th><th>pages</th><th>size</th></tr>"
    for age in region["ages"]:
        least, most = age["at_least_seconds"], age["at_most_seconds"]
        span = f"{least:,.1f} s or longer" if most is None else f"{least:,.1f} to {most:,.1f} s"
        size = units.size(age["pages"] * PAGE)
        yield f"<tr><td>{span}</td><td>{age['pages']:,}</td><td>{size}</td></tr>"
    yield "</table>"
    try:
        from . import plot
    except ImportError:
        yield '<p class="note">For pictures install matplotlib: <code>msharefs[plot]</code>.</p>'
        return
    figure, axes = plot.new_figure(9.6, 3.2)
    seconds = [each["seconds"] for each in region["working_set"]]
    mebibytes = [each["bytes"] / (1 << 20) for each in region["working_set"]]
    axes.plot(seconds, mebibytes, color=plot.OTHER, linewidth=2, marker="o", markersize=3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds looked back")
    axes.set_ylabel("MiB used")
    axes.set_title("Working set", loc="left", fontsize=10)
    yield plot.svg(figure)
