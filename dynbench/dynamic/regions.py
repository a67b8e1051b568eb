"""Regions: the plain modules between decision points, and the fixed parts of a model. What an engine prepares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

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
        size = next((t.shape[0] for t in tensors(args) if t.dim()), 0)
        if not region.sizes:
            region.example = args
        if size not in region.sizes:
            region.sizes.append(size)

    plain = {id(m) for m in model.modules() if not any(isinstance(inner, DecisionPoint) for inner in m.modules())}
    hooks = [m.register_forward_pre_hook(watch) for m in model.modules() if id(m) in plain]
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
