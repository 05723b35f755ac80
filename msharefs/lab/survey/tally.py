"""How often each of very many tables was seen: in memory for the different ones only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .spans import Hashes, Ints

_PENDING = 1 << 20


class Tally:
    """Counts tables by a hash of what is in them; each has a code, and a weight in a sample."""

    def __init__(self) -> None:
        self._keys: Hashes = np.empty(0, np.uint64)
        self._columns = np.empty((0, 6))
        """For each key: count, sum of sizes, largest, weight, code, processes it stands for."""
        self._pending: list[tuple[Hashes, np.ndarray]] = []
        self._waiting = 0

    def add(
        self,
        keys: Hashes,
        codes: Ints,
        weights: np.ndarray | float = 1.0,
        sizes: np.ndarray | float = 1.0,
        scale: float = 1.0,
    ) -> None:
        """One look at each of these tables. `sizes`: what goes away with each if it is shared.

        `scale`: as many processes are there for each that is looked at.
        """
        columns = np.empty((len(keys), 6))
        columns[:, 0] = 1
        columns[:, 2] = sizes
        columns[:, 1] = columns[:, 2] * scale
        columns[:, 3] = weights
        columns[:, 4] = codes
        columns[:, 5] = scale
        self._pending.append((keys, columns))
        self._waiting += len(keys)
        if self._waiting > max(_PENDING, len(self._keys) // 2):
            self._settle()

    def _settle(self) -> None:
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._pending)])
        columns = np.concatenate([self._columns, *(columns for _, columns in self._pending)])
        self._pending.clear()
        self._waiting = 0
        self._keys, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        settled = columns[first]
        for column in (0, 1):
            settled[:, column] = np.bincount(inverse, columns[:, column], len(self._keys))
        np.maximum.at(settled[:, 2], inverse, columns[:, 2])
        self._columns = settled

    def _sum(self, values: np.ndarray, length: int) -> np.ndarray:
        codes = self._columns[:, 4].astype(np.int64)
        return np.bincount(codes, values * self._columns[:, 3], length)

    def _once(self) -> np.ndarray:
        """How many tables there are like each one that was seen.

        One that was seen in a single process stands for as many different ones as the process for
        processes: more than there are, if others that were not looked at have it. So what is told
        to be shared is rather too little.
        """
        return np.where(self._columns[:, 0] == 1, self._columns[:, 5], 1.0)

    def different(self, length: int) -> np.ndarray:
        """How many different tables there are, by code below `length`."""
        self._settle()
        return self._sum(self._once(), length)

    def spare(self, length: int) -> np.ndarray:
        """What would go away if each different table were there once, by code below `length`."""
        self._settle()
        return self._sum(self._columns[:, 1] - self._columns[:, 2] * self._once(), length)

    def lonely(self, length: int) -> np.ndarray:
        """The variance that comes from processes not looked at, by code."""
        self._settle()
        scale = np.where(self._columns[:, 0] == 1, self._columns[:, 5], 1.0)
        return self._sum(scale * (scale - 1) * self._columns[:, 2] ** 2, length)

    def spread(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of what was sampled, by code: how many, the sum of what is spare in each, and squares."""
        self._settle()
        sampled = self._columns[:, 3] > 1
        spare = self._columns[:, 1] - self._columns[:, 2] * self._once()
        spare = np.where(sampled, spare, 0.0)
        codes = self._columns[:, 4].astype(np.int64)
        return (
            np.bincount(codes, sampled, length),
            np.bincount(codes, spare, length),
            np.bincount(codes, spare * spare, length),
        )
