"""Each: the parts of a sample, such as its tokens, as items."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynbench.dynamic.context import current
from dynbench.dynamic.items import first, flat_parts, map_items


class Each(nn.Module):
    """The parts of a sample as items: x [n, T, ...] -> inner on [n * T, ...] -> [n, T, ...]; x may be a state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        """x, a tensor or state of [n, T, ...] (what is Shared is passed on) -> y [n, T, ...]."""
        n, parts = first(x).shape[:2]
        ex = current()
        items = map_items(flat_parts, x)
        if ex is None:
            y = self.inner(items)
        else:
            with ex.spread(parts):
                y = self.inner(items)
        return map_items(lambda t: t.unflatten(0, (n, parts)), y)
