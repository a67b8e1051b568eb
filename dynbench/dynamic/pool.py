"""Heavy memory of items, such as a cache of keys and values: it stays where it is, and only a slot's number travels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynbench.dynamic.context import current
from dynbench.dynamic.items import Shared, wide


class Pool(NamedTuple):
    """A part of an item's state that no strategy moves: `memory[slot]`.

    Made anew in each call of a model, so that no two runs see each other's writes. Whatever the strategy, the memory
    holds what it would if every item were computed alone: what is written for items that are computed but do not count
    (masking, once an item has left) is dropped.

    Attributes:
        slot: [n] long; distinct. All slots at once are in their order, as strategies keep items in their order.
        memory: [slots, ...], shared by all items.
    """

    slot: Tensor
    memory: Shared

    @classmethod
    def new(cls, n: int, *shape: int, like: Tensor) -> Pool:
        """`n` slots of zeros [n, *shape], in the dtype and on the device of `like`.

        Raises:
            NotImplementedError: a strategy is traced into a graph, in which nothing is written in place.
        """
        if torch.jit.is_tracing() and current() is not None:
            raise NotImplementedError("a Pool is written in place, and a graph has no memory of its own")
        memory = torch.zeros(n, *shape, dtype=like.dtype, device=like.device)
        return cls(torch.arange(n, device=like.device), Shared(memory))

    def read(self, *at: Any) -> Tensor:
        """memory[slot, *at], for whole numbers and slices: [n, ...]; not copied where that is all slots."""
        return self._rows(self.memory.value[(slice(None), *at)])

    def write(self, value: Tensor, *at: Any) -> None:
        """memory[slot, *at] = value [n, ...], in place.

        Args:
            value: as wide as what it is written over.
            *at: whole numbers and slices, the same for all items; or among them a tensor [n, m], each item's own
                places, which comes first in the shape of `value`: [n, m, ...].
        """
        memory, ex = self.memory.value, current()
        live = None if ex is None else ex.frame.live
        if any(isinstance(i, Tensor) for i in at):
            rows = (self.slot.unsqueeze(1), *at)
            memory[rows] = value if live is None else torch.where(wide(live, value), value, memory[rows])
            return
        part = memory[(slice(None), *at)]  # a view
        if live is not None:
            value = torch.where(wide(live, value), value, self._rows(part))
        if self._is_whole:
            part.copy_(value)
        else:
            part.index_copy_(0, self.slot, value)

    @property
    def _is_whole(self) -> bool:
        return bool(self.slot.shape[0] == self.memory.value.shape[0])

    def _rows(self, part: Tensor) -> Tensor:
        return part if self._is_whole else part.index_select(0, self.slot)
