"""The engine interface, and how a network gets a copy of its own that an engine has prepared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, Protocol

from torch import nn

from dynbench.dynamic.regions import Region, find_regions
from dynbench.engines.forms import MicroBatches
from dynbench.errors import DynbenchError

Pass = Callable[[nn.Module], Any]


class Engine(Protocol):
    """What executes regions, the plain modules between decision points. It knows no strategy.

    Attributes:
        name: unique among engines.
        as_written: modules run as they are written: nothing is prepared, and no copy is made.
    """

    name: str
    as_written: bool

    def facts(self) -> dict[str, object]:
        """What a manifest says of it: version, formats, devices, settings."""

    def refuses(self, device: str) -> str | None:
        """Why this engine cannot be used on a device ('cpu', 'cuda:0') here, in a sentence; None: it can."""

    def prepare(self, region: Region) -> Callable[..., Any]:
        """What is to be called in place of the region's module, on the same arguments; the module itself: as it is."""


PROTOCOL = ("name", "as_written", "facts", "refuses", "prepare")
"""What an engine of a user's own must have."""


class CannotPrepare(DynbenchError):
    """An engine cannot prepare a network; the message is the reason, in a sentence."""


def prepared(model: nn.Module, engine: Engine, run: Pass) -> nn.Module:
    """A network whose regions an engine executes.

    The copy shares its parameters and buffers with the original, and both can be called in turns: so arms of several
    engines stand in one group.

    Args:
        model: in evaluation mode; is left as it is.
        engine: prepares every region.
        run: makes one pass over a network that reaches everything (masking does).

    Returns:
        The copy; the model itself where the engine runs modules as they are written.

    Raises:
        CannotPrepare: the network cannot be copied, or a region is not reached in the copy, because the model refers
            to it other than by a submodule.
    """
    if engine.as_written:
        return model
    if isinstance(model, MicroBatches):
        return MicroBatches(prepared(model.model, engine, run), model.size)
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    try:
        own = copy.deepcopy(model, shared)
    except Exception as e:
        raise CannotPrepare(f"the network cannot be copied for engine {engine.name!r}: {type(e).__name__}: {e}") from e
    wanted = {region.name for region in find_regions(model, run)}
    regions = find_regions(own, run)
    if missed := sorted(wanted - {region.name for region in regions}):
        raise CannotPrepare(
            f"engine {engine.name!r} cannot prepare {missed[0]!r}: the model calls it other than as its own submodule"
        )
    for region in regions:
        call = engine.prepare(region)
        if call is not region.module:
            object.__setattr__(region.module, "forward", call)  # plainly set, a module would become a child
    return own
