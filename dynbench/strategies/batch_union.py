"""batch_union: the channels that any item of the batch uses, computed for the whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Weights, Width, points
from dynbench.dynamic.context import Execution
from dynbench.strategies.compaction import Compaction


class BatchUnion(Compaction):
    """Computes the channels that any item of the batch uses, for the whole batch; compaction at all other points."""

    name = "batch_union"

    def refuses(self, model: nn.Module) -> str | None:
        """Also where no point decides about channels."""
        if not any(isinstance(p, Width) for p in points(model).values()):
            return "batch_union slices a layer to the channels that a batch uses; this model has no Width"
        return super().refuses(model)

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """One slice of the layer for the batch; within it, each item's mask."""
        if not isinstance(point, Width):
            return super().weights(ex, point, x, code)
        with ex.phase("sync"):
            used = code.any(0)
            everything, alike = torch.stack([used.all(), (code == used).all()]).tolist()
        if everything:
            with ex.phase("body", point.name):
                return point.layer(x, code)
        with ex.phase("gather", point.name):
            layer, mine = point.layer.special(used), None if alike else code[:, used]  # type: ignore[operator]
        with ex.phase("body", point.name):
            return layer(x) if mine is None else layer(x, mine)
