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

PREFERRED: tuple[type[Strategy], ...] = (Cascading, Compaction, BatchUnion, Masking)
"""Where one strategy stands for a model: the first of these that the model does not refuse."""

PROTOCOL = ("name", "refuses", "run", "route", "skip", "loop", "weights")
"""What a strategy of a user's own must have; those derived from `Strategy` have it."""

__all__ = [
    "PREFERRED",
    "PROTOCOL",
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
