"""compaction: gather the items that need a module, compute it, put the results back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynbench.dynamic import Loop, Route, Skip, Weights, points
from dynbench.dynamic.context import Execution
from dynbench.dynamic.items import blank, cat, count, first, map_items, put_, rows_where, take, tensors, wide, zeros
from dynbench.strategies.base import Strategy, alone, special, together


class _Known(NamedTuple):
    """What the host knows of a Skip's decisions before it is reached."""

    keep: Tensor  # [n] bool, the decision
    rows: Tensor  # items that run the body
    rest: Tensor  # the others


class Compaction(Strategy):
    """Computes exactly what was decided, on dense groups of items; waits once per decision for its outcome."""

    name = "compaction"

    def refuses(self, model: nn.Module) -> str | None:
        """Also where every item has weights of its own and nothing else is decided."""
        own = [p for p in points(model).values() if isinstance(p, Weights) and not p.shared]
        if own and len(own) == len(points(model)):
            return f"{self.name} groups items of equal weights; here every item's weights are its own ({own[0].name})"
        return super().refuses(model)

    def route(self, ex: Execution, point: Route | Skip, x: Any, chosen: Tensor, weights: Tensor | None) -> Any:
        """Group the (item, slot) pairs by expert, compute each group, put back, add the slots."""
        n, k = chosen.shape
        if n == 1:
            return alone(ex, point, x, chosen, weights)
        with ex.phase("sync"):
            key, order = (chosen.flatten() + 1).sort(stable=True)  # 0: dropped
            sizes = _run_lengths(key, len(point.experts) + 1).tolist()
        dropped, kept = sizes[0], order[sizes[0] :]
        if k == 1 and n in sizes[1:]:  # all to one expert: nothing moves
            e = sizes[1:].index(n)
            expert = point.experts[e]
            with ex.phase("body", point.name, e):
                out = x if expert is None else expert(x)
        elif dropped == n * k:
            return zeros(x, n)
        else:
            rows = kept if k == 1 else kept // k
            with ex.phase("gather"):
                parts = take(x, rows)
            done, begin = [], 0
            for e, size in enumerate(sizes[1:]):
                if size == 0:
                    continue
                mine = slice(begin, begin + size)
                begin += size
                expert = point.experts[e]
                part = map_items(lambda t, mine=mine: t[mine], parts)
                with ex.narrow(rows[mine]), ex.phase("body", point.name, e):
                    done.append(part if expert is None else expert(part))
            with ex.phase("scatter"):
                y = cat(done)
                out = put_(zeros(y, n * k) if dropped else blank(y, n * k), kept, y)
        if weights is None:
            return out
        with ex.phase("scatter"):
            w = weights.flatten()
            out = map_items(lambda t: t * wide(w, t), out)
            return out if k == 1 else map_items(lambda t: t.unflatten(0, (n, k)).sum(1), out)

    def ahead(self, ex: Execution, keep: dict[str, Tensor]) -> None:
        """Waits once, for how many items run each body; which ones they are stays on the device."""
        with ex.phase("sync"):
            every = torch.stack(list(keep.values()))  # [K, n]
            running = every.sum(1).tolist()
            one = every.shape[1] == 1  # with a single item there is nothing to sort
            order = every if one else every.argsort(dim=1, descending=True, stable=True)
            known = {
                name: _Known(k, mine[:active], mine[active:])
                for (name, k), mine, active in zip(keep.items(), order.unbind(), running, strict=True)
            }
        ex.frame.ahead = known if ex.frame.ahead is None else ex.frame.ahead | known

    def skip(self, ex: Execution, point: Skip, x: Any, keep: Tensor, soft: Tensor | None) -> Any:
        """The body for the items that keep it, put back over the rest."""
        n, profile, known = keep.numel(), ex.profile, ex.frame.ahead  # asked here as in `Skip.forward`
        mine = None if known is None else known.get(point.name)
        if mine is not None and mine.keep is keep:
            rows, rest = mine.rows, mine.rest
            active = rows.numel()
        else:
            rest = None
            if profile is not None:
                profile.enter("sync", None, None)
            if n == 1:
                active = int(keep.item())
            else:
                rows = keep.nonzero().squeeze(1)
                active = rows.numel()
            if profile is not None:
                profile.exit()
        if active in (0, n):  # all alike: nothing moves
            part = point.body if active else point.otherwise
            if part is None:
                return x
            if profile is None:
                return part(x)
            with ex.phase("body", point.name, int(active > 0)):
                return part(x)
        with ex.phase("gather"):
            part = take(x, rows)
        with ex.narrow(rows), ex.phase("body", point.name, 1):
            y = point.body(part)
        if point.otherwise is None:
            with ex.phase("scatter"):
                ours = point.consumes and not torch.is_grad_enabled()  # a gradient may need x as it was
                return put_(x if ours else map_items(torch.clone, x), rows, y)
        if rest is None:
            with ex.phase("sync"):
                rest = rows_where(~keep, n - active)
        with ex.phase("gather"):
            part = take(x, rest)
        with ex.narrow(rest), ex.phase("body", point.name, 0):
            z = point.otherwise(part)
        with ex.phase("scatter"):
            return put_(put_(blank(y, n), rows, y), rest, z)

    def loop(self, ex: Execution, point: Loop, state: Any) -> Any:
        """Gather the items that are still running, compute, scatter the state back."""
        n = count(state)
        live = torch.arange(n, device=first(state).device)
        answer, ours = None, False  # ours: no other reference to it exists, so it may be written in place
        part, gone = state, False  # gone: some items of `part` are no longer running
        for k in range(point.max_steps):
            everyone = live.shape[0] == n
            if gone:
                with ex.phase("gather"):
                    part = take(state, live)
            with ex.narrow(live):
                new_state, new, halted = point.once(ex, part, k)
            with ex.phase("scatter"):
                if everyone:
                    answer = new
                else:
                    answer, ours = put_(answer if ours else map_items(torch.clone, answer), live, new), True
                state = new_state if everyone else _scatter_back(state, part, new_state, live, n)
            part, gone = new_state, False
            if halted is not None:
                with ex.phase("sync"):
                    stay = live[~halted]
                if stay.shape[0] == 0:
                    break
                live, gone = stay, stay.shape[0] < live.shape[0]
        return answer

    def weights(self, ex: Execution, point: Weights, x: Any, code: Tensor) -> Any:
        """Group by distinct code; one specialised layer per group, its parameters generated once."""
        if not point.shared:  # every item has weights of its own: there is nothing to group by
            return together(ex, point, x, code)
        n = code.shape[0]
        if n == 1:
            layer = self.specialise(ex, point, code)[0]
            with ex.phase("body", point.name):
                return layer(x)
        with ex.phase("sync"):
            distinct, group, counts = code.unique(dim=0, return_inverse=True, return_counts=True)
            order = group.argsort(stable=True)
            sizes = counts.tolist()
        layers = self.specialise(ex, point, distinct)
        out, begin = None, 0
        for layer, size in zip(layers, sizes, strict=True):
            rows = order[begin : begin + size]
            begin += size
            with ex.phase("gather"):
                part = x if size == n else take(x, rows)
            with ex.narrow(rows), ex.phase("body", point.name):
                y = layer(part)
            if size == n:
                return y
            with ex.phase("scatter"):
                out = put_(blank(y, n) if out is None else out, rows, y)
        return out

    def specialise(self, ex: Execution, point: Weights, codes: Tensor) -> list[Callable[[Any], Any]]:
        """The layer for each of several distinct codes [m, ...]."""
        return special(ex, point, codes)


def _run_lengths(key: Tensor, values: int) -> Tensor:
    """How often each of 0 to `values` - 1 stands in a sorted key [m]."""
    return key.bincount(minlength=values) if key.device.type == "cpu" else _searched_lengths(key, values)


def _searched_lengths(key: Tensor, values: int) -> Tensor:
    """The same without waiting for a GPU, as `bincount` would."""
    ends = torch.searchsorted(key, torch.arange(values, device=key.device), right=True)
    return ends.diff(prepend=ends.new_zeros(1))


def _scatter_back(old: Any, part: Any, new: Any, live: Tensor, n: int) -> Any:
    """`new` [m] as a state of n items; rows of items that left are never read again. What did not change stays put."""
    if isinstance(new, Tensor):
        return old if new is part else put_(blank(new, n), live, new)
    unchanged = {id(t): kept for t, kept in zip(tensors(part), tensors(old), strict=True)}
    return map_items(lambda t: unchanged[id(t)] if id(t) in unchanged else put_(blank(t, n), live, t), new)
