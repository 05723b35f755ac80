"""Pictures of the benchmark, one for each scenario; they need matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from msharefs import units
from msharefs.lab import plot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

MARKERS = "osD^vP*X"
HEADLINES = {
    "ns_per_page": "time a 4 KiB page", "ns": "time", "p50_ns": "time, median of the calls",
    "ns_per_fork": "time a fork", "page_table_bytes": "page tables of the host mm",
}  # fmt: skip


def draw(found: dict[str, Any], directory: str) -> list[Path]:
    """Draws everything of a benchmark into `directory`; returns the files written."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    drawn = []
    for scenario in filter(has_figures, found["scenarios"]):
        drawn.append(target / f"{scenario['name']}.svg")
        one = draw_pagetables if scenario["name"] == "pagetables" else draw_cost
        one(scenario, str(drawn[-1]))
    if found.get("map"):
        drawn.append(target / "map.svg")
        plot.draw_map(found["map"], str(drawn[-1]))
    return drawn


def has_figures(scenario: dict[str, Any]) -> bool:
    """Whether anything of a scenario was measured, so that there is something to draw."""
    return any(case["rows"] for case in scenario["cases"])


def draw_pagetables(scenario: dict[str, Any], path: str) -> None:
    """Page-table memory over processes, a line for each kind of memory, both axes logarithmic."""
    figure, axes = plot.new_figure(10.2, 5.2)
    labels: list[tuple[float, str, Line2D]] = []
    for place, (name, counts, sizes) in enumerate(_lines(scenario)):
        row = name.removesuffix(", own tables today")
        # A line that lies on another does not hide it.
        (line,) = axes.plot(
            counts,
            sizes,
            color=plot.COLOURS.get(row, plot.OTHER),
            linestyle="-" if name == row else "--",
            linewidth=max(4 - place / 2, 1.2),
            marker=MARKERS[place % len(MARKERS)],
            markersize=max(10 - place, 4),
            fillstyle="none",
        )
        labels.append((sizes[-1], name, line))
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
    plot.save(figure, path)


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


def _label_ends(axes: Axes, labels: list[tuple[float, str, Line2D]]) -> None:
    """Write each line's name beside its end, after its mark; names that would overlap move."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    room, ceiling = (high - low) / 18, high
    for y, name, line in sorted(labels, key=lambda label: -label[0]):
        at = min(ceiling, math.log10(y))
        ceiling = at - room
        axes.plot(
            [1.02], [10**at], transform=axes.get_yaxis_transform(), clip_on=False,
            color=line.get_color(), marker=line.get_marker(), fillstyle="none",
            markersize=line.get_markersize(), linestyle="none",
        )  # fmt: skip
        axes.annotate(
            f"{name}, {units.size(y)}", (1, y), xytext=(1.04, 10**at),
            xycoords=axes.get_yaxis_transform(), textcoords=axes.get_yaxis_transform(),
            color=plot.INK, va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip


def draw_cost(scenario: dict[str, Any], path: str) -> None:
    """The headline of each row, one panel per case, with the ratio to the first row."""
    cases = scenario["cases"]
    columns = min(2, len(cases))
    lines = math.ceil(len(cases) / columns)
    most = max(len(case["rows"]) for case in cases)
    figure = plot.new_canvas(10.4, 0.8 + lines * (0.75 + 0.24 * most))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for panel, case in zip(panels.flat, cases, strict=False):
        _points(panel, scenario, case)
    for panel in panels.flat[len(cases) :]:
        panel.set_axis_off()
    headline = scenario["headline"]
    for panel in panels[-1]:
        panel.set_xlabel(HEADLINES.get(headline, headline))
    figure.suptitle(
        f"{scenario['title']}: median and range of the rounds", x=0.01, ha="left", fontsize=12
    )
    plot.save(figure, path)


def _points(axes: Axes, scenario: dict[str, Any], case: dict[str, Any]) -> None:
    rows, headline = list(case["rows"]), scenario["headline"]
    say = units.size if headline.endswith("_bytes") else _duration
    for place, row in enumerate(rows):
        found = case["rows"][row]
        spread, ratio = found["figures"][headline], found["ratio"]
        middle = spread["median"]
        colour = plot.COLOURS.get(row, plot.OTHER)
        axes.plot([spread["low"], spread["high"]], [place, place], color=colour, linewidth=2)
        axes.plot([middle], [place], color=colour, marker="o", markersize=7)
        times = f", {ratio['median']:,.3g}x" if ratio and row != scenario["baseline"] else ""
        axes.annotate(
            f"{say(middle)}{times}", (max(middle, spread["high"]), place), xytext=(7, 0),
            textcoords="offset points", va="center", fontsize=8, color=plot.INK,
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
    axes.set_title(", ".join(what) or "one process", loc="left", fontsize=9)


def _duration(nanoseconds: float) -> str:
    if nanoseconds >= 1e6:
        return f"{nanoseconds / 1e6:.3g} ms"
    return f"{nanoseconds / 1e3:.3g} us" if nanoseconds >= 1e3 else f"{nanoseconds:.3g} ns"
