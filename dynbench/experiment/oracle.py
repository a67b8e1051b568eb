"""The right answer: what `per_sample` returns in float64 for the same decisions, and how far from it is rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.dynamic.items import tensors
from dynbench.experiment.build import Batch
from dynbench.strategies import Dense

ERROR_FACTOR = 4.0  # a strategy may be this much further from float64 than the static net is
ERROR_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def answers(call: Callable[[int, Tensor], Any], batches: list[Batch]) -> list[Tensor]:
    """The answer to several batches: its tensors, each with the batches one after the other."""
    parts = [list(tensors(call(start, x))) for start, x in batches]
    return [torch.cat(same) for same in zip(*parts, strict=True)]


def output_error(got: list[Tensor], reference: list[Tensor]) -> float:
    """Largest difference from the reference, relative to its largest value; NaN and Inf count as infinite."""
    worst = 0.0
    for a, b in zip(got, reference, strict=True):
        scale = float(b.abs().max().clamp(min=1e-30))
        difference = float((a.to(b.dtype) - b).abs().max()) / scale
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


class Oracle:
    """A float64 copy of a model, and the tolerance that follows from the static twin's own rounding.

    Args:
        model: as it is measured.
        batches: of a stream.
        items: of the stream.
        dtype: of the measured model.

    Attributes:
        tolerance: the error up to which an answer counts as the same.
    """

    def __init__(self, model: nn.Module, batches: list[Batch], items: int, dtype: torch.dtype) -> None:
        self._model = copy.deepcopy(model).double()
        self._batches = [(start, x.double() if x.is_floating_point() else x) for start, x in batches]
        self._items = items
        twin = Execution(Dense())
        static = output_error(
            answers(lambda start, x: twin.run(model, x, start=start, items=items), batches), self.answer(twin)
        )
        self.tolerance = ERROR_FACTOR * static + ERROR_FLOOR[dtype]

    def answer(self, execution: Execution) -> list[Tensor]:
        """The answer in float64 under an execution, such as `per_sample` with a trace."""
        return answers(lambda start, x: execution.run(self._model, x, start=start, items=self._items), self._batches)
