"""Building blocks of `accounted_macs`: the MACs of a model's parts, and how often a trace asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Skip, Trace, outside
from dynbench.dynamic.trace import Entry

# --- MACs ---


def static_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of the static twin for one sample in evaluation mode; modes of modules are restored.

    Args:
        model: takes floating-point inputs.
        shape: of one input, without the sample dimension.

    Raises:
        NoFormulaError: it runs an operator whose FLOPs are not known.
    """
    counter = FlopCounter(strict=True)
    _run_once(model, _zeros(model, shape), counter)
    return sum(counter.by_part.values()) // 2


def linear_macs(module: nn.Module) -> int:
    """Multiply-accumulates of all linear layers in a module for one item (a token): one for each weight."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def skip_macs(
    model: nn.Module, skips: Iterable[Skip], shape: tuple[int, ...]
) -> tuple[int, dict[str, tuple[int, int]]]:
    """Multiply-accumulates of a network of Skips for one sample in evaluation mode.

    Args:
        model: its static twin runs the body of every Skip once.
        skips: the Skips of the model, not nested in each other.
        shape: of one input, without the sample dimension.

    Returns:
        The MACs outside all bodies; for each Skip, by name, those of its body and of what replaces the body.
    """
    counter, hooks, given = FlopCounter(strict=True), [], dict[str, Any]()

    def begin(skip: Skip, x: Any) -> None:
        given[skip.name] = x
        counter.enter("body", skip.name, 1)

    skips = list(skips)
    for skip in skips:
        hooks.append(skip.body.register_forward_pre_hook(lambda _, x, skip=skip: begin(skip, x[0])))
        hooks.append(skip.body.register_forward_hook(lambda *_: counter.exit()))
    try:
        _run_once(model, _zeros(model, shape), counter)
    finally:
        for hook in hooks:
            hook.remove()
    each = {}
    for skip in skips:
        instead = FlopCounter(strict=True)
        if skip.otherwise is not None:
            _run_once(skip.otherwise, given[skip.name], instead)
        each[skip.name] = counter.by_part["body", skip.name, 1] // 2, sum(instead.by_part.values()) // 2
    return counter.by_part[None] // 2, each


def macs_run(model: nn.Module, skips: Iterable[Skip], trace: Trace, shape: tuple[int, ...]) -> float:
    """Multiply-accumulates per sample of a network of Skips, with those bodies that a trace asks for; without gates.

    Args:
        model: as for `skip_macs`.
        skips: as for `skip_macs`.
        trace: decisions of a stream.
        shape: of one input, without the sample dimension.
    """
    fixed, each = skip_macs(model, skips, shape)
    macs = float(fixed)
    for name, (body, otherwise) in each.items():
        rate = run_rate(trace, name)
        macs += rate * body + (1 - rate) * otherwise
    return macs


def _zeros(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    like = next(model.parameters(), torch.zeros(()))
    return torch.zeros(1, *shape, dtype=like.dtype, device=like.device)


def _run_once(model: nn.Module, x: Any, counter: FlopCounter) -> None:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), outside(), counter:
            model(x)
    finally:
        for module, training in modes:
            module.training = training


# --- rates ---


def decided(trace: Trace, point: str) -> Entry:
    """The decisions of a point with one table in the trace, for any coordinates below the sample.

    Raises:
        ValueError: it has none, or several.
    """
    (entry,) = (entry for (name, _), entry in trace.entries.items() if name == point)
    return entry


def run_rate(trace: Trace, skip: str, sizes: tuple[int, ...] = ()) -> float:
    """The share of the items that reach a Skip for which its body is run.

    Args:
        trace: decisions of a stream.
        skip: name of the Skip.
        sizes: of the item's coordinates below the sample.
    """
    value, reached = trace.entries[skip, sizes]
    return float(value[reached].double().mean())


def exits_taken(trace: Trace, point: str, exits: int) -> Tensor:
    """The exit at which each sample leaves an Exits that is not nested in other points.

    Args:
        trace: decisions of a stream.
        point: name of the Exits.
        exits: how many exits it has.

    Returns:
        [items] long, 0 to exits - 1.
    """
    left = trace.entries[point, (exits,)].value.view(-1, exits).bool().clone()
    left[:, -1] = True  # the last exit takes all that are left
    return left.long().argmax(1)


def mean_over_exits(trace: Trace, point: str, costs: Sequence[float]) -> float:
    """The mean cost of a sample.

    Args:
        trace: decisions of a stream.
        point: name of an Exits that is not nested in other points.
        costs: of a sample that leaves there, for each exit.
    """
    taken = exits_taken(trace, point, len(costs))
    return sum(cost * float((taken == k).double().mean()) for k, cost in enumerate(costs))
