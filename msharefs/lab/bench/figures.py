"""Numbers of a benchmark: one sample for each round, and a summary of all rounds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Sample = dict[str, float]
"""The figures of one trial; each key ends in its unit: ns_per_page, vmpte_bytes."""


@dataclass(frozen=True)
class Spread:
    """A figure over all rounds: the median, and both extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(statistics.median(values), min(values), max(values))

    @property
    def document(self) -> dict[str, float]:
        """For JSON."""
        return {"median": self.median, "low": self.low, "high": self.high}


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Each figure of a row: its spread and every round's value, in the order of the rounds."""
    return {
        key: {**Spread.of(values).document, "rounds": values}
        for key in samples[0]
        for values in [[sample[key] for sample in samples]]
    }


def ratio(
    samples: Sequence[Sample], baseline: Sequence[Sample], key: str
) -> dict[str, float] | None:
    """How many times the baseline a row is, round by round, since a drift affects both.

    None where there is nothing to divide by.
    """
    pairs = [(mine[key], theirs[key]) for mine, theirs in zip(samples, baseline, strict=True)]
    if any(theirs <= 0 for _, theirs in pairs):
        return None
    return Spread.of([mine / theirs for mine, theirs in pairs]).document
