"""Where decisions come from, apart from the model itself: synthetic traces, traces at the edges; and keep-rates.

A synthetic trace is *total*: every entry of its tables is filled in, whether or not an item would have come there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynbench.dynamic.draw import Draw
from dynbench.dynamic.point import DecisionPoint, points
from dynbench.dynamic.trace import Entry, Trace, TraceError

EDGES = ("all", "none", "one")


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
    """Decisions drawn at random, with exact marginal rates; each point says how it draws its own (`make_up`).

    Args:
        like: a trace that has every point's table (recorded under masking, which visits all).
        model: whose decision points the tables belong to.
        keep_rate: probability that an item keeps going: that a Skip runs its body, that an item stays in a Loop after a
            step, that it uses a channel of a Width. One for all, or one for each point that takes one, in module order;
            of a Loop also a list: one for each step but the last, of those that came so far.
        item_correlation: share of the variance that all items have in common at a point, 0 to 1; where a point chooses
            among options (Route): the probability that an item follows what is common there.
        layer_correlation: the same for what all points have in common for an item.
        expert_skew: Zipf exponent s where a point chooses among options: option e is drawn with a probability
            proportional to 1 / (e + 1)^s.
        seed: of the generator.

    Returns:
        A total trace of as many items, bound to the same stream.

    Raises:
        ValueError: a rate outside [0, 1], correlations that are negative or add up to more than 1, a negative skew, or
            not one rate per point, or per step.
        TraceError: a point whose decisions cannot be made up (Weights of which it is not known how many codes there
            are).
    """
    named = points(model)
    rates = _rates(named, keep_rate)
    if not (item_correlation >= 0 and layer_correlation >= 0 and item_correlation + layer_correlation <= 1):
        raise ValueError(
            f"item_correlation {item_correlation} and layer_correlation {layer_correlation} must be at least 0 and "
            "add up to at most 1"
        )
    if not 0 <= expert_skew < math.inf:
        raise ValueError(f"expert_skew {expert_skew} is no Zipf exponent, which is at least 0")
    tables = {name: [entry for (n, _), entry in like.entries.items() if n == name] for name in named}
    draw = Draw.seeded(
        seed,
        like.items,
        max((point.options(tables[name]) for name, point in named.items()), default=0),
        item_correlation=item_correlation,
        layer_correlation=layer_correlation,
        skew=expert_skew,
    )
    entries = {}
    for (name, sizes), entry in sorted(like.entries.items()):
        value = _point(named, name).make_up(draw, entry, rates[name]).to(entry.value.dtype).to(entry.value.device)
        entries[name, sizes] = Entry(value, torch.ones_like(entry.reached))
    return Trace(entries, like.items, like.stream_hash, like.covers)


def _point(named: Mapping[str, DecisionPoint], name: str) -> DecisionPoint:
    if name not in named:
        raise TraceError(f"the trace has a point {name!r}, which the model has not; replay it on its own model")
    return named[name]


def _rates(
    named: Mapping[str, DecisionPoint], keep_rate: float | Sequence[float | Sequence[float]]
) -> dict[str, Tensor]:
    """The keep-rate of every point: [] float64, or [rates]; of those that take none, any."""
    rated = [name for name, point in named.items() if point.rates is not None]
    given = [keep_rate] * len(rated) if isinstance(keep_rate, (int, float)) else list(keep_rate)
    if len(given) != len(rated):
        raise ValueError(f"keep_rate has {len(given)} values; the model has {len(rated)} points that take one")
    rates = dict.fromkeys(named, torch.tensor(1.0, dtype=torch.float64))
    for name, one in zip(rated, given, strict=True):
        rates[name] = torch.tensor(one, dtype=torch.float64)
        if not ((rates[name] >= 0) & (rates[name] <= 1)).all():
            raise ValueError(f"keep_rate {keep_rate} lies outside 0 to 1")
    for name, rate in rates.items():
        if rate.dim() and len(rate) != named[name].rates:
            wanted = named[name].rates
            takes = "a single one" if wanted == 1 else f"a single one, or a list of {wanted}"
            raise ValueError(
                f"keep_rate of {type(named[name]).__name__} {name!r} has {len(rate)} values; it takes {takes}"
            )
    return rates


def edge(like: Trace, model: nn.Module, kind: str, seed: int = 0) -> Trace:
    """Total traces at the edges of what can be decided; each point says what these are (`edges`).

    Args:
        like: a trace that has every point's table.
        model: whose decision points the tables belong to.
        kind: 'all' (all items run, stay, or go to the same experts), 'none' (none do), 'one' (only the first does),
            'random'.
        seed: for 'random'.

    Raises:
        ValueError: an unknown kind.
        TraceError: a point whose decisions cannot be made up.
    """
    if kind == "random":
        return synthetic(like, model, keep_rate=0.5, seed=seed)
    if kind not in EDGES:
        raise ValueError(f"edge trace {kind!r} is none of {', '.join(EDGES)}, random")
    named, entries = points(model), {}
    for (name, sizes), entry in like.entries.items():
        point = _point(named, name)
        if not point.can_be_made_up:
            raise TraceError(f"decisions of point {name!r} ({type(point).__name__}) cannot be made up; replay a trace")
        all_do, none_do = point.edges(entry)
        value = entry.value.clone()
        value[:] = all_do if kind == "all" else none_do
        if kind == "one":
            visits = entry.reached.numel() // max(like.items, 1)
            value[:visits] = all_do.expand_as(entry.value)[:visits]
        entries[name, sizes] = Entry(value, torch.ones_like(entry.reached))
    return Trace(entries, like.items, like.stream_hash, like.covers)


def keep_rate(trace: Trace, model: nn.Module) -> float | None:
    """The mean share of decisions that kept their item going: ran the body, stayed, chose an expert (k / E).

    Counted are the points with the model's first `path` of which any was reached: Skips, else Loops, Programs, Routes,
    Widths.

    Returns:
        0 to 1, of reached entries only; None where none was reached.
    """
    named = points(model)
    for label in sorted({point.path for point in named.values() if point.path is not None}):
        kept, decisions = 0.0, 0
        for (name, _), (value, reached) in trace.entries.items():
            if name in named and named[name].path == label:
                share = named[name].kept(value[reached])
                if share is not None:
                    kept, decisions = kept + share, decisions + int(reached.sum())
        if decisions:
            return kept / decisions
    return None
