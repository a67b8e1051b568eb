"""cascading: items that are done leave the batch for good; only their answers are scattered back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynbench.dynamic import Loop
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import count, map_items, put_, take
from dynbench.strategies.compaction import Compaction


class Cascading(Compaction):
    """A loop's batch shrinks as items leave; at other points it is compaction."""

    name = "cascading"

    def refuses(self, model: nn.Module) -> str | None:
        """Also where no item can leave early: the model has no Loop or Exits that halts."""
        if not any(isinstance(m, Loop) and m.halt is not None for m in model.modules()):
            return "cascading lets items leave a Loop or Exits early; this model has none that halts"
        return super().refuses(model)

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """Every step for the items still in the loop; answers are put aside."""
        n = count(state)
        live: torch.Tensor | None = None  # rows of the items still in the loop; None: all are
        answer = None
        for k in range(point.max_steps):
            if live is None:
                state, new, halted = point.once(ex, state, k)
            else:
                with ex.narrow(live):
                    state, new, halted = point.once(ex, state, k)
            with ex.phase("scatter"):
                answer = new if live is None else put_(answer, live, new)  # items that stay are overwritten later
            if halted is None:
                continue
            with ex.phase("sync"):
                if n == 1:
                    if bool(halted):
                        return answer
                    continue
                stay = (~halted).nonzero().squeeze(1)
            here = halted.shape[0]
            if stay.shape[0] == 0:
                return answer
            if stay.shape[0] == here:
                continue
            with ex.phase("gather"):
                state = take(state, stay)
                if live is None:  # from here on written in place
                    answer, live = map_items(torch.clone, answer), stay
                else:
                    live = live.index_select(0, stay)
        return answer
