"""How far off a sample may be: the half of an interval that holds the truth 19 times in 20."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .survey import Survey

_SIDES = 1.96  # standard deviations
_PRIVATE = -1  # in the sizes of the sample: private memory


def of_spans(found: Survey) -> np.ndarray:
    """The variance of what is saved, by object, that comes from the spans that were drawn."""
    count = len(found.objects.all)
    variance = np.zeros(count)
    if found.drawn is None:
        return variance
    host, made = found.moved.host[0], found.inplace
    seen, spare, squares = host.spread(count)
    for number, (drawn, of) in found.drawn.sizes.items():
        if number == _PRIVATE:
            continue
        scale = of * of * (1 - drawn / of) / drawn
        if number in found.uncertain:  # in each span: the tables of all, but for one
            mean = spare[number] / drawn
            variance[number] += scale * max(0.0, squares[number] / drawn - mean * mean)
        else:  # whether anybody has one: how many there are in all is known
            # Laplace's rule: that all of a sample have one does not say that all others do.
            share = (min(drawn, seen[number]) + 1) / (drawn + 2)
            variance[number] += scale * share * (1 - share)
    if _PRIVATE in found.drawn.sizes:
        drawn, of = found.drawn.sizes[_PRIVATE]
        _, spare, squares = (made.by_object(part) for part in made.rest.spread(made.codes()))
        scale = of * of * (1 - drawn / of) / drawn
        spread = squares / drawn - (spare / drawn) ** 2
        variance += scale * np.maximum(0.0, spread).sum(axis=1)
    return variance


def of_processes(found: Survey) -> float:
    """The variance of what is saved that comes from the processes that were drawn."""
    count, made = len(found.objects.all), found.inplace
    shares = sum(program.estimate()[1] for program in found.programs.values())
    hosts = sum(float(tally.lonely(count).sum()) for tally in found.moved.host)
    return shares + hosts + float(made.rest.lonely(made.codes()).sum())


def bar(variance: float) -> float:
    """The half of the interval."""
    return _SIDES * math.sqrt(variance)
