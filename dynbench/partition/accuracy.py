"""Accuracy of what is computed from what arrives over a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynbench.data import Dataset
from dynbench.partition.half import Half

BATCH = 250  # inputs at once


class Accuracies:
    """Accuracies of a network on labelled inputs, as they are or as they arrive.

    Args:
        half: computes the network.
        data: the inputs; None: there are none.

    Attributes:
        items: number of inputs that accuracies are of; 0: there are no labels, or the network names no classes, and
            every accuracy is None.
    """

    def __init__(self, half: Half, data: Dataset | None) -> None:
        answer = half.chain.crossings[-1].shapes[0]
        known = data is not None and len(answer) == 1 and _are_classes(data.labels, answer[0])
        self._half, self._data = half, data if known else None
        self.items = 0 if self._data is None else len(self._data)

    def on_device(self) -> float | None:
        """Of the network on its inputs as they are."""
        return None if self._data is None else self.of(self._data.inputs)

    @torch.inference_mode()
    def of(self, inputs: np.ndarray) -> float | None:
        """Of the network on these inputs [items, ...] in place of its own."""
        if self._data is None:
            return None
        batches = self._tensor(inputs).split(BATCH)
        return self._share(self._half.chain.model(x) for x in batches)

    def after(self, cut: int) -> float | None:
        """Of what is sent and arrives at a cut; the halves are for one input at a time."""
        if self._data is None:
            return None
        half, crossing = self._half, self._half.chain.crossings[cut]
        if cut == 0:
            return self.of(half.pixels.decode(half.pixels.encode(self._data.inputs)))
        each = self._tensor(self._data.inputs).split(1)
        sent = (half.to_wire(half.run(0, cut, [x]), crossing) for x in each)
        return self._share(half.run(cut, half.layers, half.from_wire(parts, crossing))[0] for parts in sent)

    def _tensor(self, inputs: np.ndarray) -> Tensor:
        return torch.from_numpy(inputs).to(self._half.source.device)

    def _share(self, answers: Iterable[Tensor]) -> float:
        assert self._data is not None and self._data.labels is not None
        classes = torch.cat(list(answers)).argmax(-1).cpu().numpy()
        return float((classes == self._data.labels).mean())


def _are_classes(labels: Any, classes: int) -> bool:
    """Whether labels are [items] integers of 0 to `classes` - 1, of which the highest score names one."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind != "i" or not labels.size:
        return False
    return classes > 1 and int(labels.min()) >= 0 and int(labels.max()) < classes
