"""Where decisions come from, apart from the model itself: synthetic traces, and the rates a paper reports.

A synthetic trace is *total*: a filled table over all coordinates, whatever would have been asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynbench.dynamic.points import Choice, DecisionPoint, Loop, Pick, Route, Skip, Weights, Width, points
from dynbench.dynamic.program import MODULE, Program
from dynbench.dynamic.trace import Entry, Trace, TraceError


def _normals(
    items: int,
    rest: int,
    by_layer: Tensor,
    by_item: Tensor,
    item_correlation: float,
    layer_correlation: float,
    generator: torch.Generator,
) -> Tensor:
    """[items, rest] standard normals: a part shared by the items, a part shared by the layers, a part of their own."""
    own = torch.randn(items, rest, generator=generator)
    rest_share = max(0.0, 1.0 - item_correlation - layer_correlation)
    mixed: Tensor = item_correlation**0.5 * by_layer + layer_correlation**0.5 * by_item + rest_share**0.5 * own
    return mixed


def _experts(
    experts: int,
    k: int,
    rest: int,
    taste: Tensor,
    item_correlation: float,
    layer_correlation: float,
    skew: float,
    generator: torch.Generator,
) -> Tensor:
    """[items * rest, k] experts by Gumbel top-k, from noise that items share, that points share (`taste`), or own."""
    items = taste.shape[0]
    own = torch.rand(items, rest, experts, generator=generator)
    by_layer = torch.rand(1, 1, experts, generator=generator)
    source = torch.rand(items, rest, 1, generator=generator)
    noise = torch.where(source < item_correlation + layer_correlation, taste[..., :experts], own)
    noise = torch.where(source < item_correlation, by_layer, noise).double().clamp(1e-9, 1 - 1e-9)
    weight = torch.arange(1, experts + 1, dtype=torch.float64) ** -skew
    return (weight.log() - torch.log(-torch.log(noise))).topk(k, dim=-1).indices.flatten(0, 1)


def _programs(entry: Entry) -> Tensor:
    """The distinct layouts [m, N, ..] that were asked for, the most frequent first; on the CPU."""
    layouts, counts = entry.value[entry.reached].cpu().unique(dim=0, return_counts=True)
    return layouts[counts.argsort(descending=True, stable=True)]


def _listed(rate: float | Sequence[float]) -> Sequence[float]:
    return [rate] if isinstance(rate, (int, float)) else rate


def _per_step(point: DecisionPoint, rate: float | Sequence[float]) -> Tensor:
    """The rates of one visit [1], or of each step of a Loop [max_steps]; the last step is never asked."""
    if isinstance(rate, (int, float)):
        return torch.tensor([rate], dtype=torch.float64)
    if not isinstance(point, Loop) or len(rate) != point.max_steps - 1:
        wanted = f"{point.max_steps} steps need one each, but for the last" if isinstance(point, Loop) else "it has one"
        raise ValueError(f"keep_rate of {type(point).__name__} {point.name!r} has {len(rate)} values; {wanted}")
    return torch.tensor([*rate, 1.0], dtype=torch.float64)


def synthetic(
    like: Trace,
    model: nn.Module,
    *,
    keep_rate: float | Sequence[float | Sequence[float]] = 0.5,
    item_correlation: float = 0.0,
    layer_correlation: float = 0.0,
    expert_skew: float = 0.0,
    seed: int = 0,
) -> Trace:
    """Decisions drawn from a Gaussian copula, with exact marginal rates.

    Args:
        like: a trace that has every point's table (recorded under masking, which visits all).
        model: whose decision points the tables belong to.
        keep_rate: probability that a Skip runs its body, that an item stays in a Loop after a step and that it uses a
            channel of a Width; one for all, or one per such point in module order; of a Loop also a list: one per step
            but the last, of those that came so far.
        item_correlation: share of the variance that all items have in common at a point, 0 to 1; of a Route: the
            probability that an item follows what is common there.
        layer_correlation: the same for what all points have in common for an item.
        expert_skew: Zipf exponent s of a Route: expert e is drawn with probability proportional to 1 / (e + 1)^s. The
            same for the codes of Weights.
        seed: of the generator.

    Returns:
        A total trace of as many items, bound to the same stream. A Program is one of those of `like`, of which the most
        frequent counts as the first where there is a skew. A Pick picks as many parts as in `like`, any of those up to
        the last that was picked there. A Choice keeps the values of `like`; 0, or False, where none was asked for.

    Raises:
        ValueError: a rate outside [0, 1], correlations that are negative or add up to more than 1, a negative skew, or
            not one rate per point, or per step.
        TraceError: a point (Weights) whose codes cannot be made up, as it is not known how many there are.
    """
    named = points(model)
    rated = [n for n, p in named.items() if isinstance(p, Skip | Width) or (isinstance(p, Loop) and p.halt is not None)]
    rates = [keep_rate] * len(rated) if isinstance(keep_rate, (int, float)) else list(keep_rate)
    if len(rates) != len(rated):
        raise ValueError(f"keep_rate has {len(rates)} values; the model has {len(rated)} Skip, Loop and Width points")
    if any(not 0 <= r <= 1 for rate in rates for r in _listed(rate)):
        raise ValueError(f"keep_rate {keep_rate} lies outside 0 to 1")
    if not (item_correlation >= 0 and layer_correlation >= 0 and item_correlation + layer_correlation <= 1):
        raise ValueError(
            f"item_correlation {item_correlation} and layer_correlation {layer_correlation} must be at least 0 and "
            "add up to at most 1"
        )
    if not 0 <= expert_skew < math.inf:
        raise ValueError(f"expert_skew {expert_skew} is no Zipf exponent, which is at least 0")
    rate_of = {name: _per_step(named[name], rate) for name, rate in zip(rated, rates, strict=True)}
    generator = torch.Generator().manual_seed(seed)
    programs = {key: _programs(entry) for key, entry in like.entries.items() if isinstance(named.get(key[0]), Program)}
    entries = {}
    by_item = torch.randn(like.items, 1, generator=generator)
    most = max((len(p.experts) for p in named.values() if isinstance(p, Route)), default=0)
    most = max([most, *(p.codes or 0 for p in named.values() if isinstance(p, Weights))])
    most = max([most, *(len(layouts) for layouts in programs.values())])
    taste = torch.rand(like.items, 1, most, generator=generator)
    for (name, sizes), (value, reached) in sorted(like.entries.items()):
        point = named.get(name)
        rest = reached.numel() // max(like.items, 1)
        new: Tensor
        if isinstance(point, Pick):  # among those that anybody picked: only the model knows how many there are
            parts, k = int(value.max()) + 1, value.shape[1]
            likes = torch.rand(like.items, 1, parts, generator=generator)
            picked = _experts(parts, k, rest, likes, item_correlation, 0.0, 0.0, generator)
            new = picked.sort(1).values
        elif isinstance(point, Route):
            new = _experts(
                len(point.experts), point.k, rest, taste, item_correlation, layer_correlation, expert_skew, generator
            )
        elif isinstance(point, Program):
            layouts = programs[name, sizes]
            new = (
                layouts[
                    _experts(len(layouts), 1, rest, taste, item_correlation, layer_correlation, expert_skew, generator)[
                        :, 0
                    ]
                ]
                if len(layouts)
                else value.clone()
            )
        elif isinstance(point, (Skip, Loop)):
            by_layer = torch.randn(1, rest, generator=generator)
            z = _normals(like.items, rest, by_layer, by_item, item_correlation, layer_correlation, generator)
            limit = rate_of[name]
            keep = (torch.special.ndtr(z.double()) < limit.repeat(rest // len(limit))).flatten()
            new = keep if isinstance(point, Skip) else ~keep
        elif isinstance(point, Choice):
            new = value.clone()
        elif isinstance(point, Width):
            channels = value.shape[1]
            by_layer = torch.randn(1, rest * channels, generator=generator)
            z = _normals(like.items, rest * channels, by_layer, by_item, item_correlation, layer_correlation, generator)
            new = (torch.special.ndtr(z.double()) < rate_of[name]).view(-1, channels)
            new = new.sort(1, descending=True).values if point.nested else new
        elif isinstance(point, Weights) and point.codes is not None:
            new = _experts(
                point.codes, 1, rest, taste, item_correlation, layer_correlation, expert_skew, generator
            ).view(value.shape)
        else:
            raise TraceError(f"decisions of point {name!r} ({type(point).__name__}) cannot be made up; replay a trace")
        entries[name, sizes] = Entry(new.to(value.dtype).to(value.device), torch.ones_like(reached))
    return Trace(entries, like.items, like.stream_hash, like.covers)


def edge(like: Trace, model: nn.Module, kind: str, seed: int = 0) -> Trace:
    """Total traces at the edges of what can be decided.

    Args:
        like: a trace that has every point's table.
        model: whose decision points the tables belong to.
        kind: 'all' (everybody runs, stays, or goes to the same experts), 'none' (nobody), 'one' (only the first item),
            'random'.
        seed: for 'random'.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "random":
        return synthetic(like, model, keep_rate=0.5, seed=seed)
    if kind not in ("all", "none", "one"):
        raise ValueError(f"edge trace {kind!r} is none of all, none, one, random")
    total = synthetic(like, model, keep_rate=0.0 if kind in ("none", "one") else 1.0)
    named = points(model)
    for (name, sizes), (value, reached) in total.entries.items():
        point, rest = named[name], reached.numel() // max(like.items, 1)
        if isinstance(point, Route):
            order = torch.arange(point.k, device=value.device)
            value.copy_((order if kind == "all" else order.flip(0) + len(point.experts) - point.k).expand_as(value))
            if kind == "one":
                value[:rest] = order
        elif isinstance(point, Weights) and not isinstance(point, Width):
            value.fill_(0 if kind == "all" else point.codes - 1)  # type: ignore[operator]
            if kind == "one":
                value[:rest] = 0
        elif isinstance(point, Pick):
            last = int(value.max()) + 1 - value.shape[1]
            value.copy_(torch.arange(value.shape[1], device=value.device) + (0 if kind == "all" else last))
            if kind == "one":
                value[:rest] -= last
        elif isinstance(point, Program):
            layouts = _programs(like.entries[name, sizes])
            if len(layouts):
                length = (layouts[..., MODULE] >= 0).sum(1)
                largest, smallest = layouts[length.argmax()], layouts[length.argmin()]
                value.copy_((largest if kind == "all" else smallest).expand_as(value))
                if kind == "one":
                    value[:rest] = largest.to(value.device)
        elif kind == "one" and not isinstance(point, Choice):
            value[:rest] = isinstance(point, Skip | Width)
    return total


def keep_rate(trace: Trace, model: nn.Module) -> float | None:
    """The mean share of asked decisions that ran the body (Skip), stayed (Loop) or chose an expert (Route: k / E).

    Of a Width: of its channels, the share that is used; of a Program: of the nodes that there is room for, the share
    that it has. Of the first kind of point the model has,
    in that order; reached entries only; None where nothing was asked.
    """
    named = points(model)
    for kind in (Skip, Loop, Route, Width, Program):
        kept, asked = 0.0, 0
        for (name, _), (value, reached) in trace.entries.items():
            point = named.get(name)
            if isinstance(point, kind):
                of = value[reached]
                asked += of.shape[0]
                if isinstance(point, Route):
                    kept += float((of >= 0).sum()) / len(point.experts)
                elif isinstance(point, Width):
                    kept += float(of.double().mean(1).sum())
                elif isinstance(point, Program):
                    kept += float((of[..., MODULE] >= 0).double().mean(1).sum())
                else:
                    kept += float((of if isinstance(point, Skip) else ~of).sum())
        if asked:
            return kept / asked
    return None
