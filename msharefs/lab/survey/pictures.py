"""Pictures of a survey; they need matplotlib (the extra `plot`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from msharefs import units
from msharefs.lab import plot

from .objects import CLASSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

# Okabe and Ito's colours, as in all pictures.
COLOURS = dict(
    zip(
        CLASSES,
        ("#009e73", "#e69f00", "#56b4e9", "#0072b2", "#f0e442", "#cc79a7", "#999999", "#d55e00"),
        strict=True,
    )
)
_OBJECTS = 15
_LABEL = 44  # characters


def schemes(found: dict[str, Any]) -> str:
    """What each way to share tables would save, by class, as SVG."""
    lines = [(one["scheme"], one["by_class"]) for one in found["schemes"]]
    return _bars(lines, "What would go, for each way to share tables by itself")


def objects(found: dict[str, Any]) -> str:
    """What would go of the largest objects, as SVG."""
    lines = [(one["name"], one["by_class"]) for one in found["objects"][:_OBJECTS]]
    return _bars(lines, "What would go, by object")


def _bars(lines: Sequence[tuple[str, dict[str, int]]], title: str) -> str:
    figure, axes = plot.new_figure(9.6, 1.3 + 0.3 * len(lines))
    used = []
    for place, (_, sizes) in enumerate(lines):
        left = 0
        for kind, colour in COLOURS.items():
            size = sizes.get(kind, 0)
            if size:
                axes.barh(place, size, left=left, color=colour, height=0.7)
                left += size
                used.append(kind)
        axes.annotate(
            units.size(left), (left, place), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=8, color=plot.INK,
        )  # fmt: skip
    axes.set_yticks(range(len(lines)), [_short(name) for name, _ in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_title(title, loc="left", fontsize=10)
    axes.margins(x=0.15)
    _bytes(axes)
    handles = [Patch(color=COLOURS[kind], label=kind) for kind in COLOURS if kind in used]
    figure.legend(handles=handles, loc="outside lower left", ncols=8, frameon=False, fontsize=8)
    return plot.svg(figure)


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"...{name[3 - _LABEL :]}"


def _bytes(axes: Axes) -> None:
    step = 2.0 ** math.ceil(math.log2(max(1.0, axes.get_xlim()[1]) / 6))
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.size(value)))
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def watched(looks: Sequence[dict[str, Any]]) -> str:
    """Page tables over time, and what would go of them, as SVG."""
    figure, axes = plot.new_figure(9.6, 3.6)
    seconds = [one["since_seconds"] for one in looks]
    for key, name, colour in (
        ("vmpte_bytes", "page tables", plot.OTHER), ("saved_bytes", "would go", COLOURS["anon"]),
    ):  # fmt: skip
        axes.plot(seconds, [one[key] for one in looks], color=colour, linewidth=2, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.size(value)))
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    return plot.svg(figure)
