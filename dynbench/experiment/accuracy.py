"""Accuracy of the dynamic network and of its baselines, on held-out labelled inputs, with the model's own decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynbench.dynamic import Execution
from dynbench.experiment.build import Prepared, to_tensor
from dynbench.experiment.plan import control_strategy
from dynbench.meters.accuracy import accuracy
from dynbench.store.schema import Accuracy
from dynbench.strategies import Masking
from dynbench.unavailable import Unavailable

BATCH = 50


@torch.inference_mode()
def accuracies(p: Prepared) -> dict[str, Accuracy]:
    """By network: 'dynamic' and each baseline's name."""
    runs: dict[str, Callable[[Tensor], Any]] = dict(p.baselines)
    control = control_strategy(p)
    strategy = Masking() if control is None else p.strategy(control)
    runs["dynamic"] = lambda x: Execution(strategy).run(p.model, x)
    if p.evaluation is None or p.evaluation.labels is None:
        why = Unavailable(unavailable="the inputs have no labels, or run.accuracy_items is 0")
        return {name: Accuracy(value=why, metric="accuracy") for name in runs}
    found = {}
    for name, run in runs.items():
        outputs = [
            run(to_tensor(p.evaluation.inputs[i : i + BATCH], p.device, p.dtype)).float().cpu()
            for i in range(0, len(p.evaluation.inputs), BATCH)
        ]
        found[name] = accuracy(torch.cat(outputs), torch.from_numpy(p.evaluation.labels))
    return found
