"""Regions: the plain modules between decision points, and the fixed parts of a model. What an engine prepares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from dynbench.dynamic.items import tensors
from dynbench.dynamic.point import DecisionPoint, points


@dataclass
class Region:
    """A module without a decision point in it, callable on tensors without any context.

    Attributes:
        name: of the module within the network; '' is the whole network.
        module: what is called.
        fixed: it lies between the points and runs for every item; False: it is a part of a point (gate, body, ...).
        example: the arguments of the first call that was seen; their first dimension is the item.
        sizes: how many items it was called with, each different number once, in order.
    """

    name: str
    module: nn.Module
    fixed: bool
    example: tuple[Any, ...] = ()
    sizes: list[int] = field(default_factory=list)

    @property
    def leaf(self) -> bool:
        """Whether it is a single layer, in which there is nothing to fuse."""
        return next(self.module.children(), None) is None


def find_regions(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Region]:
    """The largest modules without a decision point that a pass calls: of a static network the network itself.

    Args:
        model: with decision points or without.
        run: makes one pass over the model. It must reach everything, as masking does; what it does not reach is no
            region.

    Returns:
        Regions in module order; none lies in another one.
    """
    seen = {id(module): Region(name, module, True) for name, module in model.named_modules()}

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        region = seen[id(module)]
        size = items_of(args)
        if not region.sizes:
            region.example = args
        if size not in region.sizes:
            region.sizes.append(size)

    plain = {id(m) for m in model.modules() if not any(isinstance(inner, DecisionPoint) for inner in m.modules())}
    watched = plain - _within_one_piece(model)
    # a scripted module forbids the method, not the hook
    hooks = [nn.Module.register_forward_pre_hook(m, watch) for m in model.modules() if id(m) in watched]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    parts = {id(part) for point in points(model).values() for part in point.parts()}
    found = []
    for module in _largest(model, lambda m: id(m) in plain and bool(seen[id(m)].sizes)):
        region = seen[id(module)]
        region.fixed = id(module) not in parts
        found.append(region)
    return found


def items_of(args: tuple[Any, ...]) -> int:
    """How many items a module is called with; a packed sequence has as many as reach its first step."""
    first = args[0] if args else None
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    return next((t.shape[0] for t in tensors(args) if t.dim()), 0)


def _within_one_piece(model: nn.Module) -> set[int]:
    """The ids of the modules inside a scripted or a compiled one: Python does not call these."""
    whole = (m for m in model.modules() if isinstance(m, torch.jit.ScriptModule) or _is_compiled(m))
    return {id(inner) for m in whole for inner in m.modules() if inner is not m}


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule"  # importing torch.compile's class takes seconds


def _largest(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    """The outermost modules of a kind, each once."""
    done: set[int] = set()

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        if id(module) in done:
            return
        done.add(id(module))
        if wanted(module):
            done.update(id(inner) for inner in module.modules())
            yield module
        else:
            for child in module.children():
                yield from visit(child)

    return visit(model)
