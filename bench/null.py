"""A network without any decision point, through the whole of dynbench: every strategy must take the baseline's time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.paired import Row
from dynbench.experiment import Options, run_experiment
from dynbench.store.run import Run

NET = """
import numpy as np
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(128, 10))


def images(split, seed=0):
    return np.random.default_rng(seed).standard_normal((64, 3, 32, 32)).astype(np.float32)
"""
WORKLOAD = """
schema = 1
name = "null"
title = "A network without decision points"
model = "net.py:make"
inputs = { name = "net.py:images" }
run = { strategies = ["masking", "compaction"], batch_sizes = [1, 8] }
"""
MOST_OFF = 0.01


def no_decision(seconds: float) -> Iterator[Row]:
    """Speed-up of each strategy over the primary baseline, less 1: what dynbench's own call adds on one side only."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "net.py").write_text(NET, encoding="utf-8")
        (place / "null.toml").write_text(WORKLOAD, encoding="utf-8")
        options = Options(time_limit_s=seconds, precision=0.002)
        run_experiment([str(place / "null.toml")], options, place / "run", command=[])
        cells = [c for c in Run.open(place / "run").cells if c.arm.kind == "strategy" and c.speedups]
        for cell in cells:
            found = cell.speedups[0]
            off = found.model_copy(update={end: getattr(found, end) - 1 for end in ("value", "low", "high")})
            off = off.model_copy(update={"value": abs(off.value)})
            name = f"no decision point: {cell.arm.name}, batch {cell.batch_size}: |speed-up - 1|"
            yield Row(name, off, "<=", MOST_OFF, f"{found.value:.3f}x, {cell.rounds} rounds")
