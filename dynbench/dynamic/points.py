"""Decision points: which modules (Route), how long (Loop), with which weights (Weights); the others are made of these.

Called outside any execution a point is its *static twin*, without gate: that is `dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from operator import methodcaller
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynbench.dynamic.context import Execution, Frame, current
from dynbench.dynamic.items import first, map_items, put_, take

Scope = Literal["item", "sample", "batch"]
_SCOPES: tuple[Scope, ...] = ("item", "sample", "batch")


class DecisionPoint(nn.Module):
    """A place in a model where what is computed depends on the item.

    Args:
        name: unique within the model; the address of its decisions.
        scope: which items the decision or the body couples by the model's own definition: none ('item'), those of one
            sample (attention over tokens), or those of one batch (capacity-limited experts).

    Raises:
        ValueError: an unknown scope.
    """

    def __init__(self, name: str, scope: Scope = "item") -> None:
        super().__init__()
        if scope not in _SCOPES:
            raise ValueError(f"decision point {name!r}: scope {scope!r} is none of {', '.join(_SCOPES)}")
        self.name, self.scope = name, scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, and hooks where there are some.

        A point is passed at every block: the rest of what `nn.Module` does on a call would cost as much as deciding.
        """
        if self._forward_hooks or self._forward_pre_hooks:
            return super().__call__(*args, **kwargs)
        return self.forward(*args, **kwargs)

    def parts(self) -> Iterator[nn.Module]:
        """The modules between this point and those below it: gate, bodies, stages, heads, experts."""
        raise NotImplementedError

    @cached_property
    def widest_scope(self) -> Scope:
        """The widest scope among this point and those inside it."""
        return widest_scope(self)


def points(model: nn.Module) -> dict[str, DecisionPoint]:
    """A model's decision points by name, in module order.

    Raises:
        ValueError: two points share a name.
    """
    found: dict[str, DecisionPoint] = {}
    for module in model.modules():
        if isinstance(module, DecisionPoint):
            if module.name in found:
                raise ValueError(f"two decision points are named {module.name!r}; names are addresses of decisions")
            found[module.name] = module
    return found


def widest_scope(model: nn.Module) -> Scope:
    """The widest coupling scope among a model's decision points."""
    scopes = [_SCOPES.index(m.scope) for m in model.modules() if isinstance(m, DecisionPoint)]
    return _SCOPES[max(scopes, default=0)]


def regions(model: nn.Module) -> list[nn.Module]:
    """The plain modules between decision points: what an engine prepares. None contains a decision point."""
    found: list[nn.Module] = []
    for point in points(model).values():
        for part in point.parts():
            inner = any(isinstance(m, DecisionPoint) for m in part.modules())
            if not inner and not any(part is f for f in found):
                found.append(part)
    return found


def _modules(*candidates: Any) -> Iterator[nn.Module]:
    return (c for c in candidates if isinstance(c, nn.Module))


_positive = methodcaller("gt", 0)


def straight_through(keep: Tensor, scores: Tensor) -> Tensor:
    """The decision as a number that carries the gradient of its probability: hard - sg(p) + p, p = sigmoid(scores).

    Args:
        keep: [n] bool.
        scores: [n] logits.
    """
    p = torch.sigmoid(scores)
    return keep.to(p.dtype) - p.detach() + p


class Skip(DecisionPoint):
    """`body` for some items, `otherwise` for the rest: a Route over {otherwise, body}.

    Args:
        name: address of its decisions.
        gate: `(x, carry) -> (scores [n], carry)`; the body runs where the score, a logit, is above 0. None: an `Ahead`
            decides, whose answer is the carry.
        body: `x -> y`.
        otherwise: `x -> y`, or None: x itself.
        consumes: the caller promises not to use x afterwards, so that a strategy may write into it.
        scope: see `DecisionPoint`.
    """

    def __init__(
        self,
        name: str,
        gate: Callable[..., tuple[Tensor, Any]] | None,
        body: nn.Module,
        otherwise: nn.Module | None = None,
        *,
        consumes: bool = False,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, scope)
        self.gate, self.body, self.otherwise, self.consumes = gate, body, otherwise, consumes

    @property
    def experts(self) -> list[nn.Module | None]:
        """As a Route: expert 0 is `otherwise`, expert 1 the body."""
        return [self.otherwise, self.body]

    def parts(self) -> Iterator[nn.Module]:
        """Gate, body and otherwise."""
        return _modules(self.gate, self.body, self.otherwise)

    def forward(self, x: Any, carry: Any = None) -> tuple[Any, Any]:
        """x [n, ...] and what the gate carries from point to point -> (y [n, ...], carry)."""
        ex = current()
        if ex is None:
            return self.body(x), carry
        gate = self.gate
        if gate is None:
            keep, soft = carry[self.name]
            return ex.strategy.skip(ex, self, x, keep, soft), carry
        profile = ex.profile  # asked here: at a block, `with ex.phase` would take as long as deciding
        if profile is not None:
            profile.enter("decide", self.name, None)
        scores, carry = gate(x, carry)
        keep = ex.decide(self, scores, _positive)
        if profile is not None:
            profile.exit()
        soft = straight_through(keep, scores) if scores.requires_grad else None
        return ex.strategy.skip(ex, self, x, keep, soft), carry


class Ahead(DecisionPoint):
    """Decides several Skips at once, before the first of them is reached: a strategy may wait once for all of them.

    Each Skip's decisions keep their own address, at the coordinates that the items have here: no Loop and no Each lies
    between the two. A Skip that not all items reach again (inside a body, say) is decided alike, and waited for anew.

    Args:
        name: of the policy; it has no decisions of its own.
        policy: `(*x) -> scores [n, K]`, one logit per Skip: its body runs where that is above 0.
        skips: K Skips without a gate; they are part of the model elsewhere.
        scope: see `DecisionPoint`.

    Raises:
        ValueError: a Skip that has a gate.
    """

    def __init__(self, name: str, policy: nn.Module, skips: Iterable[Skip], *, scope: Scope = "item") -> None:
        super().__init__(name, scope)
        self.policy, self.skips = policy, tuple(skips)
        for skip in self.skips:
            if skip.gate is not None:
                raise ValueError(f"Ahead {name!r} decides for Skip {skip.name!r}, which has a gate of its own")

    def parts(self) -> Iterator[nn.Module]:
        """The policy."""
        return _modules(self.policy)

    def forward(self, *x: Any) -> dict[str, tuple[Tensor, Tensor | None]] | None:
        """What the policy takes, [n, ...] -> the carry of the Skips; outside any execution nobody is asked: None."""
        ex = current()
        if ex is None:
            return None
        with ex.phase("decide", self.name):
            scores = self.policy(*x)  # [n, K]
            keep = {
                skip.name: ex.decide(skip, mine, partial(_known, own))
                for skip, mine, own in zip(self.skips, scores.unbind(1), (scores > 0).unbind(1), strict=True)
            }
        ex.strategy.ahead(ex, keep)
        if not scores.requires_grad:
            return {name: (k, None) for name, k in keep.items()}
        soft = (straight_through(k, s) for k, s in zip(keep.values(), scores.unbind(1), strict=True))
        return {name: (k, s) for (name, k), s in zip(keep.items(), soft, strict=True)}


def _known(decision: Tensor, _: Tensor) -> Tensor:
    return decision


class Route(DecisionPoint):
    """Each item goes to k of n experts: y_i = sum_s w[i, s] * experts[chosen[i, s]](x_i).

    Args:
        name: address of its decisions.
        router: `x -> scores [n, E]`.
        experts: modules `x -> y`; None: x itself.
        k: experts per item.
        weigh: `(scores, chosen [n, k]) -> weights [n, k]`, from the decision *used*; None with k=1: unweighted.
        static: `x -> y` outside any execution; default: every expert on every item, weighted over all experts.
        capacity_factor: at most ceil(factor * k * items / E) items per expert, first come first served, slot by slot
            (Switch Transformer, 2.2); who finds no room is dropped there: chosen -1, adding nothing. Couples a batch,
            and asks for experts that answer in the shape of x.

    Raises:
        ValueError: k does not fit the experts, or several experts per item are to be added unweighted.
    """

    def __init__(
        self,
        name: str,
        router: Callable[[Any], Tensor],
        experts: Iterable[nn.Module | None],
        k: int = 1,
        weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        static: nn.Module | None = None,
        capacity_factor: float | None = None,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, "batch" if capacity_factor is not None else scope)
        self.router = router
        self.experts: list[nn.Module | None] | nn.ModuleList = nn.ModuleList(experts)  # type: ignore[arg-type]
        if not 1 <= k <= len(self.experts):
            raise ValueError(f"Route {name!r}: k={k} of {len(self.experts)} experts; k is 1 to the number of experts")
        if k > 1 and weigh is None:
            raise ValueError(f"Route {name!r}: {k} experts per item need `weigh` to say how they are added")
        self.k, self.weigh, self.static, self.capacity_factor = k, weigh, static, capacity_factor

    def parts(self) -> Iterator[nn.Module]:
        """Router and experts."""
        return _modules(self.router, *self.experts)

    def choose(self, scores: Tensor) -> Tensor:
        """scores [n, E] -> chosen [n, k] long, -1 where the expert has no room."""
        chosen = scores.topk(self.k, dim=-1).indices
        if self.capacity_factor is None:
            return chosen
        n, experts = scores.shape
        ex = current()
        live = None if ex is None else ex.frame.live
        present = torch.ones(n, dtype=torch.bool, device=scores.device) if live is None else live
        room = torch.ceil(self.capacity_factor * self.k * present.sum() / experts)
        queue = chosen.T.flatten()  # all first choices, then the second
        taken = torch.nn.functional.one_hot(queue, experts) * present.repeat(self.k).unsqueeze(1)
        place = (taken.cumsum(0) - 1).gather(1, queue.unsqueeze(1)).squeeze(1)  # place in the expert's queue
        return torch.where(place < room, queue, -1).view(self.k, n).T.contiguous()

    def forward(self, x: Any) -> Any:
        """x [n, ...] -> y [n, ...]."""
        ex = current()
        if ex is None:
            return self._static(x)
        with ex.phase("decide", self.name):
            scores = self.router(x)
            chosen = ex.decide(self, scores, self.choose)
            weights = None if self.weigh is None else self.weigh(scores, chosen)
        return ex.strategy.route(ex, self, x, chosen, weights)

    def _static(self, x: Any) -> Any:
        if self.static is not None:
            return self.static(x)
        scores = self.router(x)
        n, experts = scores.shape
        everyone = torch.arange(experts, device=scores.device).expand(n, experts)
        w = scores.softmax(-1) if self.weigh is None else self.weigh(scores, everyone)
        y = 0
        for e, expert in enumerate(self.experts):
            out = x if expert is None else expert(x)
            y = y + out * w[:, e].view(-1, *[1] * (out.dim() - 1))
        return y


class Loop(DecisionPoint):
    """Repeat until the item halts with its answer.

    Args:
        name: address of its decisions.
        step: `(state, k) -> state`.
        halt: `(answer, state, k) -> [n] bool`: who leaves; not asked after the last step. None: a fixed count.
        max_steps: at most so many steps.
        head: `(state, k) -> answer`; default: the state. What a caller needs of the final state belongs in the answer.
        static: `state -> answer` outside any execution; default: all steps, then the last head.
        scope: see `DecisionPoint`. 'sample': the items of a sample step together, each in view of what all have left
            behind (keys and values in a `Shared` memory), so that the work of a step is that of the items in it. A step
            that writes there keeps what items that are not live (`Execution.frame`) have left.

    Raises:
        ValueError: max_steps below 1.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[Any, int], Any],
        halt: Callable[[Any, Any, int], Tensor] | None,
        max_steps: int,
        head: Callable[[Any, int], Any] | None = None,
        *,
        static: nn.Module | None = None,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, scope)
        if max_steps < 1:
            raise ValueError(f"Loop {name!r}: max_steps={max_steps}; a loop has at least one step")
        self.step, self.halt, self.max_steps, self.head, self.static = step, halt, max_steps, head, static

    def parts(self) -> Iterator[nn.Module]:
        """Step, head and halt, as far as they are modules."""
        return _modules(self.step, self.head, self.halt)

    def forward(self, state: Any) -> Any:
        """state, a pytree of [n, ...] -> answer [n, ...], in the order of the items."""
        ex = current()
        return self._static(state) if ex is None else ex.strategy.loop(ex, self, state)

    def _static(self, state: Any) -> Any:
        if self.static is not None:
            return self.static(state)
        for k in range(self.max_steps):
            state = self.step(state, k)
        return state if self.head is None else self.head(state, self.max_steps - 1)

    def once(self, ex: Execution, state: Any, k: int) -> tuple[Any, Any, Tensor | None]:
        """Step k for the items computed now: (state, answer, who halts [n] bool; None: nobody is asked)."""
        before = ex.frame
        ex.frame = Frame(before, "at", k, (*before.extent, self.max_steps))  # `with ex.at` would take twice as long
        try:
            if ex.profile is not None:
                return self._once_told(ex, state, k)
            state = self.step(state, k)
            answer = state if self.head is None else self.head(state, k)
            halt = None if k == self.max_steps - 1 else self.halt
            return state, answer, None if halt is None else ex.decide(self, halt(answer, state, k))
        finally:
            ex.frame = before

    def _once_told(self, ex: Execution, state: Any, k: int) -> tuple[Any, Any, Tensor | None]:
        """`once` with its phases marked, apart: a small step is not slowed by marks that nobody asks for."""
        with ex.phase("body", self.name, k):
            state = self.step(state, k)
        answer = state
        if self.head is not None:
            with ex.phase("head", self.name, k):
                answer = self.head(state, k)
        if self.halt is None or k == self.max_steps - 1:
            return state, answer, None
        with ex.phase("decide", self.name, k):
            return state, answer, ex.decide(self, self.halt(answer, state, k))


def _nth(modules: nn.ModuleList, k: int) -> nn.Module:
    """`modules[k]`, k >= 0, without the checks that take as long as all else at a step."""
    found = modules._modules[str(k)]
    assert found is not None
    return found


class Exits(Loop):
    """A Loop with another stage and head at each step.

    Args:
        name: address of its decisions.
        stages: modules `state -> state`.
        heads: modules `state -> answer`, one per stage.
        policy: `(answer, state, k) -> [n] bool`: who leaves after stage k; not asked after the last.
        static: see `Loop`.

    Raises:
        ValueError: not one head per stage.
    """

    def __init__(
        self,
        name: str,
        stages: Iterable[nn.Module],
        heads: Iterable[nn.Module],
        policy: Callable[[Any, Any, int], Tensor],
        *,
        static: nn.Module | None = None,
        scope: Scope = "item",
    ) -> None:
        stages, heads = nn.ModuleList(stages), nn.ModuleList(heads)
        if len(stages) != len(heads):
            raise ValueError(f"Exits {name!r}: {len(stages)} stages and {len(heads)} heads; each stage has one head")
        super().__init__(name, self._stage, policy, len(stages), self._head, static=static, scope=scope)
        self.stages, self.heads = stages, heads

    def _stage(self, state: Any, k: int) -> Any:
        return _nth(self.stages, k)(state)

    def _head(self, state: Any, k: int) -> Any:
        return _nth(self.heads, k)(state)

    def parts(self) -> Iterator[nn.Module]:
        """Stages, heads and policy."""
        return _modules(*self.stages, *self.heads, self.halt)


class Weights(DecisionPoint):
    """The layer's weights follow a per-item code.

    Args:
        name: address of its decisions.
        choose: `cue -> code [n, ...]`.
        generate: `code [m, ...] -> params`, a pytree of [m, ...].
        layer: `layer(x, params)` computes a batch with per-item parameters, `layer(x)` is its static twin, and
            `layer.special(param)`, given one item's parameters, is an ordinary function of x.
        codes: where a code is the number of a task or a width, [n] long: how many there are, for made-up decisions.
        shared: items may have the same code. False: it is computed from each item, real numbers such as the shares of
            a mixture; then there is nothing to choose between, to record or to group by, and it is no decision.
        together: `layer(x, params)` costs no more than the layers made for each code, as where params only scale rows:
            items of several codes need not be parted, and it is enough to keep their params.
    """

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
        return _modules(self.choose, self.generate, self.layer)

    def forward(self, x: Any, cue: Any = None) -> Any:
        """x [n, ...], and what the code is chosen from (default: x) -> y [n, ...]."""
        ex = current()
        if ex is None:
            return self.layer(x)
        with ex.phase("decide", self.name):
            code = self.choose(x if cue is None else cue)
            if self.shared:
                code = ex.decide(self, code)
        return ex.strategy.weights(ex, self, x, code)


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
        self.rule, self.weigh, self.nested = rule or _positive, weigh, nested

    def parts(self) -> Iterator[nn.Module]:
        """Gate and layer."""
        return _modules(self.choose, self.layer)

    def forward(self, x: Any, cue: Any = None) -> Any:
        """x [n, ...], and what the gate looks at (default: x) -> y [n, ...]."""
        ex = current()
        if ex is None:
            return self.layer(x if self.weigh is None else (x, None))
        with ex.phase("decide", self.name):
            scores = self.choose(x if cue is None else cue)
            mask = ex.decide(self, scores, self.rule)
            given = x if self.weigh is None else (x, self.weigh(scores, mask))
        return ex.strategy.weights(ex, self, given, mask)


def _the_mask(mask: Tensor) -> Tensor:
    return mask


class Choice(DecisionPoint):
    """A value for each item that the computation goes on with, such as where to look.

    What follows is the same computation whatever the value, so a strategy has nothing to do here. As a decision the
    value has an address: it is recorded and replayed, in any dtype, and can be sampled (`Execution(choose=...)`).

    Args:
        name: address of its decisions.
        body: `(*x) -> scores [n, ...]`; part of the network, unless it is a gate.
        rule: `scores -> value [n, ...]`, bool or long: real numbers would differ by their rounding.
        gate: the body serves the decision alone, and the static twin does without: outside any execution it is not
            asked, and the value is None.
        scope: see `DecisionPoint`.
    """

    def __init__(
        self,
        name: str,
        body: nn.Module,
        rule: Callable[[Tensor], Tensor],
        *,
        gate: bool = False,
        scope: Scope = "item",
    ) -> None:
        super().__init__(name, scope)
        self.body, self.rule, self.gate = body, rule, gate

    def parts(self) -> Iterator[nn.Module]:
        """The body."""
        return _modules(self.body)

    def forward(self, *x: Any) -> Any:
        """What the body takes, [n, ...] -> value [n, ...]; of a gate outside any execution, None."""
        ex = current()
        if ex is None:
            return None if self.gate else self.rule(self.body(*x))
        if self.gate:
            with ex.phase("decide", self.name):
                return ex.decide(self, self.body(*x), self.rule)
        with ex.phase("body", self.name):
            scores = self.body(*x)
        return ex.decide(self, scores, self.rule)


class Pick(DecisionPoint):
    """`body` for k parts of each item together, such as k tokens of a sample: which k is decided, how many is not.

    So all shapes are known beforehand: no strategy has to wait for the decision, a batch stays regular, and every item
    asks for the same work.

    Args:
        name: address of its decisions: the places [n, k] of the picked among the parts that are there, ascending; parts
            that are `always` picked are not counted, nor asked about.
        gate: `(x [n, T, ...], there) -> scores [n, T - always]`; the highest are picked.
        body: `(x [n, k, ...], there) -> y`; after `weigh`, `(x, there, weights [n, k])`. Inside it, `there` is None:
            all parts of x are; or the places [n, k] of those that are, ascending: the rest must not make a difference.
        keep: `parts -> k`: how many of so many parts are picked; at most all are.
        weigh: `scores [n, k] of the picked -> weights [n, k]`, for a gate that learns through them; without `always`.
        always: so many parts, the first, go on whatever the gate says; they are not among the k.
        back: the body's answer takes the place of the picked parts, and the others stay as they are; else the others
            are gone, and the body's answer is the point's.
        consumes: the caller promises not to use x afterwards, so that a strategy may write into it.

    Raises:
        ValueError: `weigh` together with `always`.
    """

    def __init__(
        self,
        name: str,
        gate: Callable[[Any, Tensor | None], Tensor],
        body: nn.Module,
        keep: Callable[[int], int],
        *,
        weigh: Callable[[Tensor], Tensor] | None = None,
        always: int = 0,
        back: bool = False,
        consumes: bool = False,
    ) -> None:
        super().__init__(name)
        if weigh is not None and always:
            raise ValueError(f"Pick {name!r}: always={always} parts have no score to be weighed by")
        self.gate, self.body, self.keep, self.weigh = gate, body, keep, weigh
        self.always, self.back, self.consumes = always, back, consumes

    def parts(self) -> Iterator[nn.Module]:
        """Gate and body."""
        return _modules(self.gate, self.body)

    def choose(self, scores: Tensor) -> Tensor:
        """scores [n, T] -> places [n, k] of the highest, ascending."""
        parts = scores.shape[1]
        return scores.topk(min(self.keep(parts), parts), 1).indices.sort(1).values

    def forward(self, x: Any, there: Tensor | None = None) -> Any:
        """x [n, T, ...], of which parts `there` [n, T'] are (None: all) -> x with its parts changed, or the answer."""
        ex = current()
        if ex is None:
            return self.body(x, there)
        profile = ex.profile  # asked here as in `Skip.forward`
        if profile is not None:
            profile.enter("decide", self.name, None)
        scores = self.gate(x, there)
        if there is not None:
            scores = scores.gather(1, there[:, self.always :] - self.always)
        picked = ex.decide(self, scores, self.choose)
        weights = None if self.weigh is None else self.weigh(scores.gather(1, picked))
        at = self._places(picked)
        if there is not None:
            at = there.gather(1, at)
        if profile is not None:
            profile.exit()
        return ex.strategy.pick(ex, self, x, at, weights)

    def _places(self, picked: Tensor) -> Tensor:
        """Of all that go on, among all that are there."""
        if self.always == 0:
            return picked
        others = picked + self.always
        return torch.cat([torch.arange(self.always, device=picked.device).expand(len(picked), -1), others], 1)

    def gathered(self, ex: Execution, x: Any, at: Tensor, weights: Tensor | None) -> Any:
        """The body on the picked parts, their places at [n, k], alone: gathered, computed, put back."""
        (n, k), parts = at.shape, first(x).shape[1]
        with ex.phase("gather"):
            rows, flat = at.flatten(), map_items(_each_an_item, x)
            if n > 1:
                rows = (at + torch.arange(0, n * parts, parts, device=at.device).unsqueeze(1)).flatten()
            mine = map_items(lambda t: t.view(n, k, *t.shape[1:]), take(flat, rows))
        with ex.phase("body", self.name):
            y = self.body(mine, None) if weights is None else self.body(mine, None, weights)
        if not self.back:
            return y
        with ex.phase("scatter"):
            ours = self.consumes and not torch.is_grad_enabled()  # a gradient may need x as it was
            into = put_(flat if ours else map_items(torch.clone, flat), rows, map_items(_each_an_item, y))
            return map_items(lambda t: t.view(n, parts, *t.shape[1:]), into)


class Each(nn.Module):
    """The parts of a sample as items: x [n, T, ...] -> inner on [n * T, ...] -> [n, T, ...]; x may be a state."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        """x, a tensor or state of [n, T, ...] (what is Shared is passed on) -> y [n, T, ...]."""
        n, parts = first(x).shape[:2]
        ex = current()
        items = map_items(_each_an_item, x)
        if ex is None:
            y = self.inner(items)
        else:
            with ex.spread(parts):
                y = self.inner(items)
        return map_items(lambda t: t.unflatten(0, (n, parts)), y)


def _each_an_item(t: Tensor) -> Tensor:
    return t.flatten(0, 1)
