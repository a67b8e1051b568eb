"""What a model says about itself reaches its cells and the description of its workload."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.experiment import Options, run_experiment
from dynbench.experiment.build import sha256
from dynbench.store.run import Run
from dynbench.unavailable import Unavailable

NET = """
import numpy as np
from torch import nn


class Net(nn.Sequential):
    weights_file = __file__

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class Outside(Net):
    outside_torch = "OpenCV"


def items(split, seed=0):
    return np.random.default_rng(seed).standard_normal((64, 4)).astype(np.float32)
"""
WORKLOAD = """
schema = 1
name = "hooked"
title = "A network with hooks"
model = "net.py:Net"
inputs = { name = "net.py:items" }
run = { batch_sizes = [4], accuracy_items = 0 }

[[baselines]]
name = "here"
primary = true
model = "net.py:Net"

[[baselines]]
name = "outside"
model = "net.py:Outside"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("hooked")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    (folder / "hooked.toml").write_text(WORKLOAD, encoding="utf-8")
    run_experiment([str(folder / "hooked.toml")], Options(time_limit_s=0.2, precision=0.5), folder / "run", command=[])
    return Run.open(folder / "run")


def test_work_outside_torch_is_unavailable_and_not_what_torch_counts(run: Run) -> None:
    cells = {c.arm.baseline: c for c in run.cells if c.arm.kind == "baseline"}
    outside, here = cells["outside"], cells["here"]
    assert outside.flops is not None and here.flops is not None
    assert here.flops.executed == 2 * (4 * 8 + 8 * 2)
    for found in (outside.flops.executed, outside.flops.required_total, outside.bytes_touched):
        assert isinstance(found, Unavailable) and "OpenCV" in found.unavailable


def test_a_weights_file_that_the_model_names_is_described_with_its_hash(run: Run) -> None:
    file = Path(run.path).parent / "net.py"
    info = run.manifest.workloads["hooked"]
    assert (info.weights, info.weights_sha256) == ("net.py", sha256(file))
