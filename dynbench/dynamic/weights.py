"""Weights: with which weights a layer is computed for an item. Width: with which of its channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import current
from dynbench.dynamic.draw import Draw
from dynbench.dynamic.faults import check_range, check_tensor
from dynbench.dynamic.items import equal_weights
from dynbench.dynamic.point import ANY, DecisionPoint, Label, Wanted, modules_of
from dynbench.dynamic.skip import positive
from dynbench.dynamic.trace import Entry, Trace


class Weights(DecisionPoint):
    """The layer's weights follow a per-item code.

    Args:
        name: address of its decisions.
        choose: `cue -> code [n, ...]`.
        generate: `code [m, ...] -> params`, a pytree of [m, ...].
        layer: `layer(x, params)` computes a batch with per-item parameters, `layer(x)` is its static twin, and
            `layer.special(param)`, given one item's parameters, is an ordinary function of x.
        codes: where a code is the number of a task or a width, [n] long: how many there are.
        shared: items may have the same code. False: a code is real numbers computed from each item, such as the shares
            of a mixture; then there is nothing to choose between, to record or to group by, and it is no decision.
        together: `layer(x, params)` costs no more than the layers made for each code, as where params only scale rows:
            items of several codes need not be grouped, and it is enough to keep their params.
    """

    can_be_known = True

    def __init__(
        self,
        name: str,
        choose: Callable[[Any], Tensor],
        generate: Callable[[Tensor], Any],
        layer: nn.Module,
        *,
        codes: int | None = None,
        shared: bool = True,
        together: bool = False,
    ) -> None:
        super().__init__(name)
        self.choose, self.generate, self.layer = choose, generate, layer
        self.codes, self.shared, self.together = codes, shared, together

    def parts(self) -> Iterator[nn.Module]:
        """Choose, generate and the layer."""
        return modules_of(self.choose, self.generate, self.layer)

    def forward(self, x: Any, cue: Any = None) -> Any:
        """x [n, ...], and what the code is chosen from (default: x) -> y [n, ...]."""
        ex = current()
        if ex is None:
            return self.layer(x)
        if not ex.gates and self.shared:
            return ex.strategy.weights(ex, self, x, ex.known(self))
        with ex.phase("decide", self.name):
            code = self.choose(x if cue is None else cue)
            if self.shared:
                code = ex.decide(self, code)
        return ex.strategy.weights(ex, self, x, code)

    def wanted(self, n: int) -> Wanted:
        """A code for each item: a number, where it is known how many codes there are."""
        return Wanted("choose gave codes", (n,), "real" if self.codes is None else "whole", more=True)

    def check_decision(self, decision: Tensor) -> None:
        """Whether the codes are codes that there are."""
        if self.codes is not None:
            check_range(self, "choose gave code", decision, 0, self.codes)

    @property
    def can_be_made_up(self) -> bool:
        """Where it is known how many codes there are; and where nothing is decided."""
        return self.codes is not None or not self.shared

    def options(self, tables: Sequence[Entry]) -> int:
        """The codes."""
        return self.codes or 0

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """A code, by the skew: [rows] long, or of the shape that codes have."""
        if self.codes is None:
            return super().make_up(draw, like, rate)
        return draw.choose(self.codes, 1, draw.visits(like)).view(like.value.shape)

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """The first code; the last one."""
        return torch.tensor(0), torch.tensor((self.codes or 1) - 1)


class Width(Weights):
    """Which channels of a layer are computed for each item: Weights whose code is a mask and whose layer slices.

    Args:
        name: address of its decisions.
        gate: `cue -> scores [n, C]`, one for each channel (or group of channels) that may be left out.
        layer: `layer(x, mask)` computes all channels and selects those of mask [n, C]; `layer(x)` is its static twin;
            `layer.special(mask [C])` is sliced once to the m channels of the mask, and then a function of x, or of x
            and which of those m each item uses, [n, m].
        rule: `scores -> mask [n, C]` bool; default: positive scores.
        weigh: `scores, mask -> scale [n, C]`, what the channels that are kept are multiplied by. Then what the layer
            takes is `(x, scale)` in place of x; of the static twin `(x, None)`.
        nested: the first channels first: a mask is True up to some channel and False from there on.
    """

    path = Label(4, "channels used")
    rates = 1

    def __init__(
        self,
        name: str,
        gate: Callable[[Any], Tensor],
        layer: nn.Module,
        *,
        rule: Callable[[Tensor], Tensor] | None = None,
        weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
        nested: bool = False,
    ) -> None:
        super().__init__(name, gate, _the_mask, layer)
        self.rule, self.weigh, self.nested = rule or positive, weigh, nested

    def parts(self) -> Iterator[nn.Module]:
        """Gate and layer."""
        return modules_of(self.choose, self.layer)

    def forward(self, x: Any, cue: Any = None) -> Any:
        """x [n, ...], and what the gate looks at (default: x) -> y [n, ...]."""
        ex = current()
        if ex is None:
            return self.layer(x if self.weigh is None else (x, None))
        if not ex.gates:
            mask = ex.known(self)
            given = x if self.weigh is None else (x, mask.to(equal_weights(x, mask).dtype))
            return ex.strategy.weights(ex, self, given, mask)
        with ex.phase("decide", self.name):
            scores = self.choose(x if cue is None else cue)
            mask = ex.decide(self, scores, self.rule)
            given = x if self.weigh is None else (x, self.weigh(scores, mask))
        return ex.strategy.weights(ex, self, given, mask)

    def wanted(self, n: int) -> Wanted:
        """A score for each item and channel."""
        return Wanted("the gate gave scores", (n, ANY))

    def check_decision(self, decision: Tensor) -> None:
        """Whether it is a mask of channels."""
        check_tensor(self, Wanted("the rule gave", (ANY, ANY), "bool"), decision, decision.device)

    @property
    def can_be_made_up(self) -> bool:
        """Any mask is possible."""
        return True

    def make_up(self, draw: Draw, like: Entry, rate: Tensor) -> Tensor:
        """True at the keep-rate: [rows, channels] bool; where masks are nested, the channels kept come first."""
        channels = like.value.shape[1]
        mask = (draw.uniform(draw.visits(like) * channels) < rate).view(-1, channels)
        return mask.sort(1, descending=True).values if self.nested else mask

    def edges(self, like: Entry) -> tuple[Tensor, Tensor]:
        """All channels; none."""
        return torch.tensor(True), torch.tensor(False)

    def kept(self, decisions: Tensor) -> float:
        """The channels used, as a share of all."""
        return float(decisions.double().mean(1).sum())

    def added(self, trace: Trace, index: int, sizes: tuple[int, ...]) -> tuple[Tensor | int, int]:
        """The channels used."""
        mask = self.decided(trace, sizes)
        return (0, 0) if mask is None else (mask.sum(1), mask.shape[1])


def _the_mask(mask: Tensor) -> Tensor:
    return mask
