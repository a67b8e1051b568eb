"""How decided work is executed: one strategy a file."""

from dynbench.strategies.base import Strategy
from dynbench.strategies.cascading import Cascading
from dynbench.strategies.compaction import Compaction
from dynbench.strategies.dense import Dense
from dynbench.strategies.masking import Masking
from dynbench.strategies.per_sample import PerSample

STRATEGIES: dict[str, type[Strategy]] = {s.name: s for s in (Dense, Masking, Compaction, Cascading, PerSample)}

__all__ = ["STRATEGIES", "Cascading", "Compaction", "Dense", "Masking", "PerSample", "Strategy"]
