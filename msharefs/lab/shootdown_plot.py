"""The picture of `bench shootdown`, as SVG; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter

from . import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODELS = {"flush_all": (":", "flush all (v3)"), "list": ("--", "list (2026)"),
          "cpumask": ("-.", "mask")}  # fmt: skip
COLOURS = ("#d55e00", "#e69f00", "#56b4e9", "#0072b2", "#cc79a7", "#009e73")
MARKERS = "osD^vP"
AT_PAGES = 512


def draw(found: dict[str, Any]) -> str:
    """TLB interrupts by the number of processes, asleep and running, beside the models."""
    pages = max(
        (row["pages"] for row in found["rows"] if row["pages"] <= AT_PAGES), default=AT_PAGES
    )
    rows = [row for row in found["rows"] if row["pages"] == pages and "tlb" in row]
    figure = plot.new_canvas(9.6, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, running in zip(axes, (False, True), strict=True):
        shown = [row for row in rows if bool(row["running"]) == running]
        _lines(axis, shown)
        who = "some run" if running else "all asleep"
        axis.set_title(f"{pages:,} pages, {who}", loc="left", fontsize=10)
        axis.set_xlabel("processes")
    axes[0].set_ylabel("TLB interrupts (models: messages)")
    handles, labels = axes[1].get_legend_handles_labels()
    if not handles:
        handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    return plot.svg(figure)


def _lines(axis: Axes, rows: list[dict[str, Any]]) -> None:
    hows = list(dict.fromkeys(row["how"] for row in rows))
    for how, colour, marker in zip(hows, COLOURS, MARKERS, strict=False):
        mine = [row for row in rows if row["how"] == how]
        axis.plot(
            [row["processes"] for row in mine],
            [max(row["tlb"] - row["quiet_tlb"], 0) for row in mine],
            color=colour, marker=marker, markersize=5, fillstyle="none", label=how,
        )  # fmt: skip
    first = [row for row in rows if row["how"] == hows[0]] if hows else []
    for model, (style, label) in MODELS.items():
        axis.plot(
            [row["processes"] for row in first], [row["predicted"][model] for row in first],
            color=plot.INK, linestyle=style, linewidth=1, label=label,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("symlog", linthresh=1)
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_ylim(bottom=0)
