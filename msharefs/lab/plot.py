"""Pictures of the measurements, as PNG; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

from msharefs import units

from . import ptmap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

# Okabe and Ito's colours, which everybody can tell apart.
COLOURS = {
    "memfd": "#d55e00",
    "sysv": "#e69f00",
    "thp": "#0072b2",
    "hugetlb": "#56b4e9",
    "msharefs": "#009e73",
    "msharefs-strict": "#6fc7ab",
    "msharefs-native": "#cc79a7",
}
OTHER = "#777777"
HEADLINES = {
    "ns_per_page": "time a 4 KiB page", "ns": "time", "p50_ns": "time, median of the calls",
    "ns_per_fork": "time a fork", "page_table_bytes": "page tables of the host mm",
}  # fmt: skip
INK = "#222222"
HATCH_INK = "#00000099"
DPI = 130
# Colours of the map, for cells with one holder, and for others. They are Okabe and Ito's; depth is
# how full a cell is, which leaves little of some, so each has a hatch too: 42 of the two together.
ONE = ("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
HATCHES = ("", "////", "\\\\\\\\", "xxxx", "....", "----", "||||")
MANY = {"nobody": "#bbbbbb", "several": "#555555", "all": "#009e73"}
MANY_HATCHES = {"nobody": "*", "several": "", "all": "oo"}
MAP_WIDTH = 64  # cells per line: 128 MiB


def draw_bench(found: dict[str, Any], directory: str) -> list[Path]:
    """Draws everything of a benchmark into `directory`; returns the files written."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    scenarios = {scenario["name"]: scenario for scenario in found["scenarios"]}
    drawn = []
    if "pagetables" in scenarios and has_figures(scenarios["pagetables"]):
        drawn.append(target / "pagetables.png")
        draw_pagetables(scenarios["pagetables"], str(drawn[-1]))
    # Two that answer one question share a picture.
    groups = {"first-touch": "cost", "populated": "cost"}
    pictures: dict[str, list[dict[str, Any]]] = {}
    for name, scenario in scenarios.items():
        if name != "pagetables" and has_figures(scenario):
            pictures.setdefault(groups.get(name, name), []).append(scenario)
    for name, together in pictures.items():
        drawn.append(target / f"{name}.png")
        draw_cost(together, str(drawn[-1]))
    if found.get("map"):
        drawn.append(target / "map.png")
        draw_map(found["map"], str(drawn[-1]))
    return drawn


def has_figures(scenario: dict[str, Any]) -> bool:
    """Whether anything of a scenario was measured, so that there is something to draw."""
    return any(case["rows"] for case in scenario["cases"])


def draw_pagetables(scenario: dict[str, Any], path: str) -> None:
    """Page-table memory over processes, a line for each kind of memory, both axes logarithmic."""
    figure, axes = new_figure(10.2, 5.2)
    labels: list[tuple[float, float, str, str]] = []
    for name, counts, sizes in _lines(scenario):
        row = name.removesuffix(", own tables today")
        dashed = name != row
        axes.plot(
            counts, sizes, color=COLOURS.get(row, OTHER), linestyle="--" if dashed else "-",
            marker="o", markersize=4, linewidth=1.3 if dashed else 2.2, zorder=2 if dashed else 3,
        )  # fmt: skip
        labels.append((counts[-1], sizes[-1], name, COLOURS.get(row, OTHER)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({case["processes"] for case in scenario["cases"]})
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    _bytes_axis(axes)
    axes.set_xlabel("processes")
    axes.set_title(
        f"Page tables of processes that all read the same {units.size(scenario['size_bytes'])}",
        loc="left",
    )
    _label_ends(axes, labels)
    _save(figure, path)


def _lines(scenario: dict[str, Any]) -> Iterable[tuple[str, list[int], list[float]]]:
    """Name, processes and bytes of each line; zeros have no place on such an axis."""
    rows = dict.fromkeys(row for case in scenario["cases"] for row in case["rows"])
    for row in rows:
        for key, name in (("tables_bytes", row), ("vmpte_bytes", f"{row}, own tables today")):
            points = [
                (case["processes"], case["rows"][row]["figures"][key]["median"])
                for case in scenario["cases"]
                if row in case["rows"]
            ]
            points = [point for point in points if point[1] > 0]
            if points and (key == "tables_bytes" or "msharefs" in row):
                yield name, [count for count, _ in points], [size for _, size in points]


def _bytes_axis(axes: Axes) -> None:
    low, high = axes.get_ylim()
    steps = range(math.floor(math.log2(low) / 4) * 4, math.ceil(math.log2(high)) + 1, 4)
    axes.yaxis.set_major_locator(FixedLocator([2.0**step for step in steps]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.size(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)


def _label_ends(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name at its end; those that would overlap are moved apart."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    room, ceiling = (high - low) / 18, high
    for _, y, name, colour in sorted(labels, key=lambda label: -label[1]):
        at = min(ceiling, math.log10(y))
        ceiling = at - room
        axes.annotate(
            f"{name}  {units.size(y)}", (1, y), xytext=(1.02, 10**at),
            xycoords=axes.get_yaxis_transform(), textcoords=axes.get_yaxis_transform(),
            color=colour, va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip


def draw_cost(scenarios: list[dict[str, Any]], path: str) -> None:
    """The headline of each row, one panel per case, with the ratio to the first row."""
    cases = [(scenario, case) for scenario in scenarios for case in scenario["cases"]]
    columns = 2
    lines = math.ceil(len(cases) / columns)
    most = max(len(case["rows"]) for _, case in cases)
    figure = new_canvas(10.4, 0.5 + lines * (0.75 + 0.24 * most))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for panel, (scenario, case) in zip(panels.flat, cases, strict=False):
        _points(panel, scenario, case)
    for panel in panels.flat[len(cases) :]:
        panel.set_axis_off()
    headline = scenarios[0]["headline"]
    for panel in panels[-1]:
        panel.set_xlabel(HEADLINES.get(headline, headline))
    names = " and ".join(scenario["name"] for scenario in scenarios)
    figure.suptitle(f"{names}: median and range of the rounds", x=0.01, ha="left", fontsize=12)
    _save(figure, path)


def _points(axes: Axes, scenario: dict[str, Any], case: dict[str, Any]) -> None:
    rows, headline = list(case["rows"]), scenario["headline"]
    say = units.size if headline.endswith("_bytes") else _duration
    for place, row in enumerate(rows):
        found = case["rows"][row]
        spread, ratio = found["figures"][headline], found["ratio"]
        middle = spread["median"]
        colour = COLOURS.get(row, OTHER)
        axes.plot([spread["low"], spread["high"]], [place, place], color=colour, linewidth=2)
        axes.plot([middle], [place], color=colour, marker="o", markersize=7)
        times = f"  {ratio['median']:,.3g}x" if ratio and row != scenario["baseline"] else ""
        axes.annotate(
            f"{say(middle)}{times}", (max(middle, spread["high"]), place), xytext=(7, 0),
            textcoords="offset points", va="center", fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_xscale("log", base=2 if headline.endswith("_bytes") else 10)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.5)
    axes.grid(axis="both", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    count = case["processes"]
    what = [*case["case"].values(), *([f"{count:,} processes"] if count > 1 else [])]
    axes.set_title(
        f"{scenario['name']}: {', '.join(what) or 'one process'}", loc="left", fontsize=9
    )


def _duration(nanoseconds: float) -> str:
    if nanoseconds >= 1e6:
        return f"{nanoseconds / 1e6:.3g} ms"
    return f"{nanoseconds / 1e3:.3g} us" if nanoseconds >= 1e3 else f"{nanoseconds:.3g} ns"


def draw_map(found: dict[str, Any], path: str) -> None:
    """The page-table map of `ptmap.look`, into a file."""
    _save(map_figure(found), path)


def map_figure(found: dict[str, Any]) -> Figure:
    """The page-table map: a cell for each 2 MiB, darker the fuller it is, its colour says whose."""
    picture, marks, squares = _cells(found)
    figure, axes = new_figure(9.6, 1.55 + 0.128 * len(picture))
    axes.pcolormesh(picture, edgecolors="white", linewidth=0.8)
    for hatch, corners in squares.items():
        cells = [
            [
                (x + dx, y + dy)
                for dx, dy in ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94))
            ]
            for x, y in corners
        ]
        axes.add_collection(
            PolyCollection(
                cells, facecolors="none", edgecolors=HATCH_INK, linewidths=0, hatch=hatch
            )
        )
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
        f"{units.size(found['cell_bytes'])}, the darker the fuller",
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
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=nothing)
    drawn = text.getvalue().partition("<svg")[2].join(("<svg", ""))
    # matplotlib numbers the parts of each picture from 1, and in a page there is one of each id.
    used = set(re.findall(r"""(?:href="|url\()#([^")]+)""", drawn))
    return re.sub(r' id="([^"]*)"', lambda part: part[0] if part[1] in used else "", drawn)


def _cells(
    found: dict[str, Any],
) -> tuple[
    list[list[tuple[float, ...]]], list[tuple[int, str]], dict[str, list[tuple[float, float]]]
]:
    """Colours by lines, the lines that carry an offset, and the corners of cells for each hatch."""
    picture: list[list[tuple[float, ...]]] = []
    marks = []
    squares: dict[str, list[tuple[float, float]]] = {}
    for part in found["ranges"]:
        cells = list(zip(part["present"], part["who"], strict=True))
        for at in range(0, len(cells), MAP_WIDTH):
            start = part["start"] + at * found["cell_bytes"]
            marks.append((len(picture), f"{start / 2**30:.4g} GiB"))
            line = cells[at : at + MAP_WIDTH]
            for x, (present, who) in enumerate(line):
                hatch = _hatch(_holder(found, who)) if present else ""
                if hatch:
                    squares.setdefault(hatch, []).append((x, len(picture)))
            colours = [_cell(found, *cell) for cell in line]
            picture.append(colours + [(1.0, 1.0, 1.0)] * (MAP_WIDTH - len(line)))
    every = math.ceil(len(marks) / 32)
    return picture or [[(1.0, 1.0, 1.0)] * MAP_WIDTH], marks[::every], squares


def _holder(found: dict[str, Any], group: int) -> str:
    return ptmap.holder(found["groups"][group], len(found["clients"]))


def _cell(found: dict[str, Any], present: int, group: int) -> tuple[float, ...]:
    if present == 0:
        return to_rgb("#f0f0f0")
    colour = to_rgb(_holder_colour(_holder(found, group)))
    depth = 0.4 + 0.6 * present / ptmap.ENTRIES
    return tuple(1 - depth * (1 - part) for part in colour)


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
    return [*legend, Patch(color="#f0f0f0", label="no table")]


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


def _save(figure: Figure, path: str) -> None:
    figure.savefig(path)
