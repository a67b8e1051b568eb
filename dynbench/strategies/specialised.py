"""specialised: layers made for a code are kept, memory for time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Weights, Width, points
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import take
from dynbench.strategies.base import special
from dynbench.strategies.compaction import Compaction


class Specialised(Compaction):
    """As compaction, but a layer made for a code is kept for the next item with that code: memory for time.

    Only where the codes are few and known (tasks, widths): a stream that is measured again and again would make any
    mask look known. A new network needs a new Specialised: copies do not follow weights that change. Of a layer that
    serves items of several codes together, the parameters are kept, of every code, and the batch is not parted.
    """

    name = "specialised"

    def __init__(self) -> None:
        self._copies: dict[Weights, dict[bytes, Callable[[Any], Any]]] = {}
        self._params: dict[Weights, Any] = {}  # of every code

    def refuses(self, model: nn.Module) -> str | None:
        """Also where no point has few and known codes."""
        if not any(isinstance(p, Weights) and _few(p) for p in points(model).values()):
            return "specialised keeps a layer for each task or width; this model has no Weights with few, known codes"
        return super().refuses(model)

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """As compaction; where that costs no more, all items together, with the kept parameters of their codes."""
        if not point.together or point.codes is None:
            return super().weights(ex, point, x, code)
        if point not in self._params:
            with ex.phase("decide", point.name):
                self._params[point] = point.generate(torch.arange(point.codes, device=code.device))
        with ex.phase("gather"):
            params = take(self._params[point], code)
        with ex.phase("body", point.name):
            return point.layer(x, params)

    def specialise(self, ex: Execution, point: Weights, codes: Tensor) -> list[Callable[[Any], Any]]:
        """Kept layers for the codes [m, ...] that came before, new ones for the others."""
        if not _few(point):
            return super().specialise(ex, point, codes)
        kept = self._copies.setdefault(point, {})
        with ex.phase("sync"):
            keys = [row.numpy().tobytes() for row in codes.cpu()]
        new = [i for i, key in enumerate(keys) if key not in kept]
        if new:
            rows = codes if len(new) == len(keys) else codes[torch.tensor(new, device=codes.device)]
            kept.update(zip([keys[i] for i in new], special(ex, point, rows), strict=True))
        return [kept[key] for key in keys]


def _few(point: Weights) -> bool:
    return point.codes is not None or (isinstance(point, Width) and point.nested)
