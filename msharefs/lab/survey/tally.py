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
        self._columns = np.empty((0, 5))
        """For each key: count, sum of sizes, largest size, weight, code."""
        self._pending: list[tuple[Hashes, np.ndarray]] = []
        self._waiting = 0

    def add(
        self,
        keys: Hashes,
        codes: Ints,
        weights: np.ndarray | float = 1.0,
        sizes: np.ndarray | float = 1.0,
    ) -> None:
        """One look at each of these tables. `sizes`: what goes away with each if it is shared."""
        columns = np.empty((len(keys), 5))
        columns[:, 0] = 1
        columns[:, 1] = columns[:, 2] = sizes
        columns[:, 3] = weights
        columns[:, 4] = codes
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

    def different(self, length: int) -> np.ndarray:
        """How many different tables there are, by code below `length`."""
        self._settle()
        return self._sum(np.ones(len(self._keys)), length)

    def spare(self, length: int) -> np.ndarray:
        """What would go away if each different table were there once, by code below `length`."""
        self._settle()
        return self._sum(self._columns[:, 1] - self._columns[:, 2], length)

    def spread(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of what was sampled, by code: how many, the sum of what is spare in each, and squares."""
        self._settle()
        sampled = self._columns[:, 3] > 1
        spare = np.where(sampled, self._columns[:, 1] - self._columns[:, 2], 0.0)
        codes = self._columns[:, 4].astype(np.int64)
        return (
            np.bincount(codes, sampled, length),
            np.bincount(codes, spare, length),
            np.bincount(codes, spare * spare, length),
        )
