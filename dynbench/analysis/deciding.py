"""What deciding takes: a network against itself with decisions known ahead, in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dynbench.analysis.statistics import median_interval


@dataclass(frozen=True)
class Taken:
    """A share of the network's own time, the median over rounds, and its 95 % interval; below 0: it took less."""

    share: float
    low: float
    high: float


def taken_by_deciding(deciding_ns: ArrayLike, known_ns: ArrayLike) -> Taken:
    """The share of its time that a network spends on deciding.

    Args:
        deciding_ns: [rounds] times of the stream by the network.
        known_ns: [rounds] the same with decisions known ahead.

    Raises:
        ValueError: different numbers of rounds, none, or a time that is not positive.
    """
    deciding, known = np.asarray(deciding_ns, float), np.asarray(known_ns, float)
    if deciding.shape != known.shape or not deciding.size or min(deciding.min(), known.min()) <= 0:
        raise ValueError(f"{deciding.shape} and {known.shape} rounds; times are positive, and paired")
    left = median_interval(known / deciding)
    return Taken(1 - left.value, 1 - left.high, 1 - left.low)
