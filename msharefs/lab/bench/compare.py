"""Two runs of the benchmark: what changed between them beyond the noise of their rounds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .run import KIND, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

NOISE = 0.05
"""Medians that differ by less are alike, however steady the rounds were."""
FEW_ROUNDS, FEW_NOISE = 3, 0.25
"""Fewer rounds say little of their noise: then medians must differ by this much."""


def read(file: TextIO) -> dict[str, Any]:
    """The document of an earlier run. ValueError: it is none."""
    try:
        found = json.load(file)
    except ValueError as error:
        raise ValueError(
            f"{file.name} is no JSON ({error}): give what bench -o has written"
        ) from None
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("version") != VERSION:
        raise ValueError(
            f"{file.name} is not the JSON of {KIND}, version {VERSION}: give what bench -o has "
            "written"
        )
    return found


def compare(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Figures that both runs have: how many, and those that changed.

    Times are compared as ratios to the baseline of their own run, since machines and hours differ;
    bytes and counts as they are.
    """
    before = dict(_figures(old))
    changes, compared = [], 0
    for place, (spread, rounds) in _figures(new):
        if place not in before:
            continue
        compared += 1
        earlier, earlier_rounds = before[place]
        if _beyond_noise(earlier, spread, min(rounds, earlier_rounds)):
            scenario, case, processes, row, figure, unit = place
            changes.append({
                "scenario": scenario,
                "case": dict(case),
                "processes": processes,
                "row": row,
                "figure": figure,
                "unit": unit,
                "before": earlier["median"],
                "now": spread["median"],
            })  # fmt: skip
    return {
        "started": old["started"],
        "same_machine": all(
            old["machine"][key] == new["machine"][key] for key in ("kernel", "cpu", "cpus")
        ),
        "compared": compared,
        "changes": changes,
    }


def _beyond_noise(old: dict[str, float], new: dict[str, float], rounds: int) -> bool:
    """Whether no round of one run is among those of the other, and medians are far enough apart."""
    apart = new["low"] > old["high"] or new["high"] < old["low"]
    noise = NOISE if rounds >= FEW_ROUNDS else FEW_NOISE
    return apart and abs(new["median"] - old["median"]) > noise * abs(old["median"])


Place = tuple[str, tuple[tuple[str, str], ...], int, str, str, str]


def _figures(found: dict[str, Any]) -> Iterator[tuple[Place, tuple[dict[str, float], int]]]:
    """Each figure that can be compared: where it is, its spread, and of how many rounds."""
    for scenario in found["scenarios"]:
        rounds = scenario["rounds"]
        size = ("size", str(scenario["size_bytes"]))
        for case in scenario["cases"]:
            where = (*sorted(case["case"].items()), size)
            for row, of_row in case["rows"].items():
                place = scenario["name"], where, case["processes"], row
                ratios = {scenario["headline"]: of_row["ratio"], **of_row["ratios"]}
                for figure, spread in ratios.items():
                    if spread and row != scenario["baseline"]:
                        yield (*place, figure, "ratio"), (spread, rounds)
                for figure, spread in of_row["figures"].items():
                    if "ns" not in figure.split("_") and figure != "per_second":
                        yield (*place, figure, "absolute"), (spread, rounds)
