"""route_experts: a mixture of experts that a network has already, as a Route."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.adapt.calls import main_output, only_call, watch
from dynbench.adapt.network import (
    Example,
    StandsFor,
    batches,
    module_named,
    module_names,
    name_tensors,
    replace,
    said,
    shared_copy,
)
from dynbench.dynamic import Each, Route
from dynbench.errors import UserError

Weigh = Callable[[Tensor, Tensor], Tensor]
TOLERANCE = 1e-4  # of the answer's largest value: experts are added in another order


def of_chosen(scores: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over the chosen experts, as in Mixtral: scores [n, E], chosen [n, k] -> weights [n, k]."""
    return scores.float().gather(1, chosen).softmax(-1).to(scores.dtype)


def of_all(scores: Tensor, chosen: Tensor) -> Tensor:
    """Softmax over all experts, of which the chosen keep theirs, as in Switch: [n, E], [n, k] -> weights [n, k]."""
    return scores.float().softmax(-1).gather(1, chosen).to(scores.dtype)


def route_experts(
    model: nn.Module,
    names: Iterable[str],
    *,
    k: int | None = None,
    router: str = "gate",
    experts: str = "experts",
    weigh: Weigh | None = None,
    example: Example = None,
) -> nn.Module:
    """A network whose mixtures of experts are Routes: each token, or item, goes to k of the experts.

    A block takes x [n, d], or [n, ..., d] with tokens as items, has a router `x -> scores [n, E]` and a ModuleList of E
    experts `x -> y`, and answers with the weighted sum of k of them, alone or first in a tuple. Every Route has its
    block's name.

    Args:
        model: left as it is. Its parameters and buffers are shared with the result, and keep their names.
        names: of the blocks, as in `named_modules`: 'layers.1.moe'.
        k: experts per item; None: what the block's `top_k`, `num_experts_per_tok` or `k` says.
        router: name of the router within a block.
        experts: name of the ModuleList of experts within a block.
        weigh: `(scores [n, E], chosen [n, k]) -> weights [n, k]`; None: softmax over the chosen or over all experts,
            whichever gives the block's own answer.
        example: some inputs of the model, a tensor [n, ...] or a tuple of some; None: random images [n, 3, 32, 32], or
            what the model's `input_shape` says.

    Returns:
        The network. Under an execution it answers as `model` does, up to rounding; outside any, as a static network
        of every expert.

    Raises:
        UserError: a block is not there or not called exactly once, lacks a part, or is more than a weighted sum of its
            experts.
    """
    names = module_names(names, "names")
    net = shared_copy(model)
    inputs = batches(model, example)
    blocks = {name: module_named(net, name) for name in names}
    calls = watch(net, inputs[-1], blocks)[1]
    for name, block in blocks.items():
        call = only_call(net, name, calls)
        x, y = next(iter(call.args), None), main_output(call.out)
        if len(call.args) != 1 or call.kwargs or not isinstance(x, Tensor) or y is None or y.shape != x.shape:
            raise UserError(f"{name!r} is not called with one tensor x, or does not answer with one of its shape")
        if x.shape[0] != inputs[-1][0].shape[0]:
            raise UserError(
                f"{name!r} takes {said(x)} for {inputs[-1][0].shape[0]} items: x is [n, d] or [n, tokens, d]"
            )
        route = _route(name, block, router, experts, k, weigh, (x, y))
        rest = None if isinstance(call.out, Tensor) else len(call.out) - 1
        replace(net, name, Mixture(block, route, {router: "router", experts: "experts"}, rest))
    return net.train(model.training)


class Mixture(StandsFor):
    """A Route in the place of a mixture of experts, with the names that its parts had there.

    Args:
        block: the mixture of experts.
        route: takes x [n, d].
        parts: names in the block of what the Route calls 'router' and 'experts'.
        rest: how many values the block returns beside its output: None is returned for them; None: it returns no tuple.
    """

    def __init__(self, block: nn.Module, route: Route, parts: dict[str, str], rest: int | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # plainly set, it would be a child
        self.each, self.rest = Each(route), rest
        names = {f"each.inner.{inner}.": f"{outer}." for outer, inner in parts.items()}

        def outer(name: str) -> str:
            start = next(start for start in names if name.startswith(start))
            return names[start] + name.removeprefix(start)

        name_tensors(self, outer, lambda name: False, block.state_dict())

    def _stood_for(self) -> Iterator[nn.Module]:
        yield self.block

    def forward(self, x: Tensor) -> Any:
        """x [n, d] or [n, ..., d] -> y in the same shape."""
        y = self.each.inner(x) if x.dim() == 2 else self.each(x.flatten(1, -2)).view_as(x)
        return y if self.rest is None else (y, *[None] * self.rest)


def _route(
    name: str,
    block: nn.Module,
    router: str,
    experts: str,
    k: int | None,
    weigh: Weigh | None,
    answer: tuple[Tensor, Tensor],
) -> Route:
    """The Route that answers as the block does."""
    parts = dict(block.named_children())
    if missing := [part for part in (router, experts) if part not in parts]:
        raise UserError(f"{name!r} has no {missing[0]!r}; its parts are {', '.join(parts) or 'none'}")
    held = parts[experts]
    if not isinstance(held, nn.ModuleList):
        raise UserError(f"{name}.{experts} is {said(held)}, not a ModuleList of experts")
    each = list(held)
    found = k or next((getattr(block, a) for a in ("top_k", "num_experts_per_tok", "k") if hasattr(block, a)), None)
    if not isinstance(found, int) or not 1 <= found <= len(each):
        raise UserError(f"k={found!r}: how many of the {len(each)} experts of {name!r} an item goes to, from 1 on")
    x, y = (t.flatten(0, -2) for t in answer)
    scores = _scores(name, parts[router], x, len(each))
    worst = []
    for rule in [weigh] if weigh else [of_chosen, of_all]:
        route = Route(name, parts[router], each, found, rule)
        worst.append(difference(route, x, y, scores))
        if worst[-1] <= TOLERANCE:
            return route
    others = sorted(parts.keys() - {router, experts})
    besides = f"; it has other parts, {', '.join(others)}" if others else ""
    raise UserError(
        f"{name!r} is more than the weighted sum of {found} experts: its answer differs by {min(worst):.1g} of its "
        f"largest value{besides}; weigh= says how experts are added"
    )


@torch.no_grad()
def _scores(name: str, router: nn.Module, x: Tensor, experts: int) -> Tensor:
    try:
        scores = router(x)
    except Exception as e:
        raise UserError(f"the router of {name!r} raised {type(e).__name__} for {said(x)}: {e}") from e
    if not isinstance(scores, Tensor) or scores.shape != (len(x), experts):
        raise UserError(
            f"the router of {name!r} returns {said(scores)} for {said(x)}, not scores [{len(x)}, {experts}]"
        )
    return scores


@torch.no_grad()
def difference(route: Route, x: Tensor, y: Tensor, scores: Tensor) -> float:
    """How far the experts of a Route are from the answer y [n, d] to x [n, d], as a share of its largest value."""
    chosen = route.choose(scores)
    weights = torch.ones_like(scores[:, :1]) if route.weigh is None else route.weigh(scores, chosen)
    total = torch.zeros_like(y)
    for e, expert in enumerate(route.experts):
        share = (weights * (chosen == e)).sum(1, keepdim=True)
        total = total + share * (x if expert is None else expert(x))
    return float((total - y).abs().max() / y.abs().max().clamp(min=1e-30))
