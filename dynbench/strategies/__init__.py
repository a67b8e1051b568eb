"""How decided work is executed: one strategy a file."""

from dynbench.strategies.base import Strategy
from dynbench.strategies.batch_union import BatchUnion
from dynbench.strategies.cascading import Cascading
from dynbench.strategies.compaction import Compaction
from dynbench.strategies.dense import Dense
from dynbench.strategies.masking import Masking
from dynbench.strategies.per_sample import PerSample
from dynbench.strategies.specialised import Specialised

STRATEGIES: dict[str, type[Strategy]] = {
    s.name: s for s in (Dense, Masking, Compaction, Cascading, BatchUnion, Specialised, PerSample)
}

__all__ = [
    "STRATEGIES",
    "BatchUnion",
    "Cascading",
    "Compaction",
    "Dense",
    "Masking",
    "PerSample",
    "Specialised",
    "Strategy",
]
