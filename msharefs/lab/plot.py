"""How pictures look, and those of a region and of a run; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import io
import itertools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MultipleLocator

from msharefs import units

from . import ptmap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from matplotlib.axes import Axes

# Okabe and Ito's colours, which everybody can tell apart.
COLOURS = {
    "memfd": "#d55e00",
    "sysv": "#e69f00",
    "thp": "#0072b2",
    "hugetlb": "#56b4e9",
    "msharefs": "#009e73",
    "msharefs-strict": "#6fc7ab",
    "msharefs-watched": "#f0e442",
    "msharefs-native": "#cc79a7",
}
OTHER = "#777777"
INK = "#222222"
HATCH_INK = "#00000099"
DPI = 130
# Colours of the map, for cells with one holder, and for others. They are Okabe and Ito's. Each has
# a hatch too, for those who see no colours: 42 of the two together.
ONE = ("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
HATCHES = ("", "////", "\\\\\\\\", "xxxx", "....", "----", "||||")
MANY = {"nobody": "#bbbbbb", "several": "#555555", "all": "#009e73"}
MANY_HATCHES = {"nobody": "*", "several": "", "all": "oo"}
NO_TABLE = "#f0f0f0"
MAP_WIDTH = 64  # cells per line: 128 MiB
MAP_LINES = 256  # that are drawn: beyond, nobody could look at it
_GAP = 0.06  # around a cell
_LEAST_SHOWN = 0.12  # of a cell
_TINT = 0.3


def draw_map(found: dict[str, Any], path: str) -> None:
    """The page-table map of `ptmap.look`, into a file."""
    save(map_figure(found), path)


def map_figure(found: dict[str, Any]) -> Figure:
    """The page-table map: a cell for each 2 MiB, as full as its table; its colour says whose."""
    cells, marks, height = _cells(found)
    figure, axes = new_figure(9.6, 1.55 + 0.128 * height)
    for word, boxes in cells.items():
        whole = [(x, y, 1.0) for x, y, _ in boxes]
        if word is None:
            _boxes(axes, whole, NO_TABLE)
            continue
        colour = _holder_colour(word)
        _boxes(axes, whole, _tint(colour))
        _boxes(axes, boxes, colour, _hatch(word))
    axes.set_xlim(0, MAP_WIDTH)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_yticks([line + 0.5 for line, _ in marks], [text for _, text in marks], fontsize=8)
    places = range(0, MAP_WIDTH + 1, 8)
    axes.set_xticks(
        places, [f"+{units.size(cell * found['cell_bytes'])}" for cell in places], fontsize=8
    )
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    entries = sum(sum(part["present"]) for part in found["ranges"])
    axes.set_title(
        f"Page tables of {found['name']}, {entries:,} entries: a cell is one PTE table of "
        f"{units.size(found['cell_bytes'])}, filled as far as the table is",
        loc="left", fontsize=10,
    )  # fmt: skip
    figure.legend(
        handles=_map_legend(found), loc="outside lower left", ncols=4, frameon=False, fontsize=8,
        title="in the page tables of", title_fontsize=8, alignment="left",
    )  # fmt: skip
    return figure


def timeline(found: dict[str, Any]) -> Figure:
    """Page tables of a program while it ran (`sampling.Sampler.document`)."""
    figure, axes = new_figure(9.6, 4.2)
    samples = found["samples"]
    seconds = [sample["seconds"] for sample in samples]
    labels = []
    for key, name, colour in (
        ("vmpte_bytes", "all processes", OTHER),
        ("own_tables_bytes", "theirs for regions", COLOURS["memfd"]),
        ("page_table_bytes", "regions' host mms", COLOURS["msharefs"]),
    ):
        sizes = [sample[key] for sample in samples]
        axes.plot(seconds, sizes, color=colour, linewidth=2)
        labels.append((seconds[-1], float(max(sizes)), f"{name}, at most", colour))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    # Each step is a power of two; there are about five.
    step = 2.0 ** math.ceil(math.log2(max(1.0, axes.get_ylim()[1]) / 6))
    axes.yaxis.set_major_locator(MultipleLocator(step))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.size(value)))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_xlabel("seconds")
    axes.legend(
        handles=[
            Patch(color=colour, label=f"{name} {units.size(most)}")
            for _, most, name, colour in labels
        ],
        frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3,
    )  # fmt: skip
    return figure


def svg(figure: Figure) -> str:
    """A picture as an element of HTML, beside others. Its letters are letters."""
    text = io.StringIO()
    _write(figure, text, "svg")
    drawn = text.getvalue().partition("<svg")[2].join(("<svg", ""))
    # matplotlib numbers the parts of each picture from 1, and in a page there is one of each id.
    used = set(re.findall(r"""(?:href="|url\()#([^")]+)""", drawn))
    return re.sub(r' id="([^"]*)"', lambda part: part[0] if part[1] in used else "", drawn)


def _cells(
    found: dict[str, Any],
) -> tuple[dict[str | None, list[tuple[float, float, float]]], list[tuple[int, str]], int]:
    """Where the cells of each holder are, and how full; texts beside lines; how many lines.

    A line that is as the one before it is told, and not drawn.
    """
    cells: dict[str | None, list[tuple[float, float, float]]] = {}
    marks: list[tuple[int, str]] = []
    height = 0
    for start, line, times in _map_lines(found):
        if height == MAP_LINES:
            marks.append((height, "and more"))
            return cells, marks, height + 1
        marks.append((height, f"{start / 2**30:,.9g} GiB"))
        for x, (present, who) in enumerate(line):
            word = _holder(found, who) if present else None
            cells.setdefault(word, []).append((x, height, present / ptmap.ENTRIES))
        if times > 1:
            height += 1
            marks.append((height, f"{times - 1:,} more like this"))
        height += 1
    # About 32 texts, and all that stand for lines.
    every = math.ceil(len(marks) / 32)
    shown = [mark for place, mark in enumerate(marks) if place % every == 0 or "more" in mark[1]]
    return cells, shown, max(height, 1)


def _map_lines(found: dict[str, Any]) -> Iterator[tuple[int, list[tuple[int, int]], int]]:
    """Offset and cells of each line, and how many like it follow each other."""
    for part in found["ranges"]:
        cells = list(zip(part["present"], part["who"], strict=True))
        lines = (cells[at : at + MAP_WIDTH] for at in range(0, len(cells), MAP_WIDTH))
        start = part["start"]
        for line, alike in itertools.groupby(lines):
            times = len(list(alike))
            yield start, line, times
            start += times * MAP_WIDTH * found["cell_bytes"]


def _boxes(
    axes: Axes, boxes: Iterable[tuple[float, float, float]], colour: Any, hatch: str = ""
) -> None:
    """Cells by their places, filled from below: one shape, however many they are."""
    corners = []
    for x, y, share in boxes:
        left, right, low = x + _GAP, x + 1 - _GAP, y + 1 - _GAP
        top = low - (1 - 2 * _GAP) * max(share, _LEAST_SHOWN)
        corners.append([(left, low), (right, low), (right, top), (left, top)])
    outline = Outline.make_compound_path_from_polys(np.array(corners))
    patch = PathPatch(outline, facecolor=colour, edgecolor=HATCH_INK, linewidth=0, hatch=hatch)
    patch.set_in_layout(False)  # it lies within the axes: to look at each corner takes seconds
    axes.add_artist(patch)


def _holder(found: dict[str, Any], group: int) -> str:
    return ptmap.holder(found["groups"][group], len(found["clients"]))


def _tint(colour: str) -> tuple[float, ...]:
    """Behind what is filled, so that a cell that is nearly empty has its colour, too."""
    return tuple(1 - _TINT * (1 - part) for part in to_rgb(colour))


def _holder_colour(word: str) -> str:
    return MANY[word] if word in MANY else ONE[int(word) % len(ONE)]


def _hatch(word: str) -> str:
    return MANY_HATCHES[word] if word in MANY_HATCHES else HATCHES[int(word) % len(HATCHES)]


def _map_legend(found: dict[str, Any]) -> list[Patch]:
    words = {
        _holder(found, who)
        for part in found["ranges"]
        for who, present in zip(part["who"], part["present"], strict=True)
        if present
    }
    legend = []
    for word in sorted(words, key=lambda word: (word in MANY, len(word), word)):
        if word in MANY:
            label = f"all {len(found['clients'])} clients" if word == "all" else word
        else:
            label = (
                f"{found['clients'][int(word)]['comm']} {found['clients'][int(word)]['pid']} alone"
            )
        legend.append(
            Patch(
                facecolor=_holder_colour(word), hatch=_hatch(word), edgecolor=HATCH_INK,
                linewidth=0, label=label,
            )
        )  # fmt: skip
    return [*legend, Patch(color=NO_TABLE, label="no table")]


def new_canvas(width: float, height: float) -> Figure:
    """A figure without plots, in the style of all others."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no display is needed
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one plot, in the style of all others."""
    figure = new_canvas(width, height)
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def save(figure: Figure, path: str) -> None:
    """As the end of its name says."""
    _write(figure, path, Path(path).suffix[1:] or "svg")


def _write(figure: Figure, target: str | io.StringIO, kind: str) -> None:
    about = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else {}
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(target, format=kind, metadata=about)
