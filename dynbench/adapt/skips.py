"""skip_blocks: a gate before given blocks decides for each item whether it takes the block or goes around it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.adapt.calls import Call, Signature, joined, main_output, only_call, watch
from dynbench.adapt.network import (
    SIZES,
    Example,
    StandsFor,
    batches,
    check_same,
    module_named,
    module_names,
    name_tensors,
    replace,
    said,
    shared_copy,
)
from dynbench.dynamic import Shared, Skip
from dynbench.errors import UserError

Gate = Callable[[Tensor], Tensor]


def skip_blocks(
    model: nn.Module,
    names: Iterable[str],
    gate: Gate | Mapping[str, Gate] | None = None,
    *,
    otherwise: Mapping[str, nn.Module] | None = None,
    example: Example = None,
) -> nn.Module:
    """A network in which items may go around given blocks.

    Every block is the body of a `Skip`, which has the block's name. It is called as the model calls it, with further
    arguments such as a mask, and may return a tuple that begins with its output, as the layers of transformers do.

    Args:
        model: left as it is. Its parameters and buffers are shared with the result, and keep their names.
        names: of the blocks, as in `named_modules`: 'layer3.1', 'blocks.3'.
        gate: `x [n, ...], the block's input -> scores [n]`; an item takes the block where its score, a logit, is above
            0. A module is copied for every block; a dict has the gate of each. None: for each block a linear function
            of x, averaged over all its dimensions but the channels, with weights that are not trained. The gates' own
            weights are '<block>.skip_gate.<...>' in the state dict.
        otherwise: modules `x -> y` by block, for the items that go around it; without one, x itself.
        example: some inputs of the model, a tensor [n, ...] or a tuple of some; None: random images [n, 3, 32, 32], or
            what the model's `input_shape` says.

    Returns:
        The network. Outside any execution it computes every block, and answers exactly as `model` in evaluation mode.

    Raises:
        UserError: a block is not there or not called exactly once, a gate's answer has another shape than [n], or the
            block's output has another shape than its input and nothing else stands in for it.
    """
    names = module_names(names, "names")
    net, plain = shared_copy(model), shared_copy(model)
    inputs = batches(model, example)
    blocks = {name: module_named(net, name) for name in names}
    gates = _by_name("gate", gate if isinstance(gate, Mapping) else {}, blocks)
    stands_in = _by_name("otherwise", otherwise or {}, blocks)
    if isinstance(gate, Mapping) and (missing := [name for name in names if name not in gate]):
        raise UserError(f"gate has none for {missing[0]!r}: a dict of gates has one for every block")
    few, many = (watch(net, batch, blocks)[1] for batch in inputs)
    for name in sorted(names, key=lambda n: -n.count(".")):  # a block inside another one first
        small, large = only_call(net, name, few), only_call(net, name, many)
        signature = Signature(name, small, large)
        x, _ = signature.split(small.args, small.kwargs, [])
        one = gates[name] if name in gates else _own_gate(gate, x)
        y = main_output(small.out)
        if y is None:
            raise UserError(f"{name!r} returns {said(small.out)}, not a tensor or a tuple that begins with one")
        _check(name, one, stands_in.get(name), x, y)
        skipped = _SkipBlock(name, blocks[name], one, stands_in.get(name), signature, small)
        replace(net, name, skipped)
    check_same(net, plain, inputs)
    return net.train(model.training)


def _by_name(argument: str, given: Mapping[str, Any], blocks: Mapping[str, nn.Module]) -> Mapping[str, Any]:
    for name, part in given.items():
        if name not in blocks:
            raise UserError(f"{argument} has one for {name!r}, which is none of the blocks: {', '.join(blocks)}")
        if not callable(part):
            raise UserError(f"{argument}[{name!r}] is {type(part).__name__}, not a module or function")
    return given


def _own_gate(gate: Any, x: Tensor) -> Gate:
    if gate is None:
        return PooledGate(x.shape[-1] if x.dim() == 3 else x.shape[min(1, x.dim() - 1)]).to(x.device, x.dtype)
    if not callable(gate) or isinstance(gate, type):
        raise UserError(f"gate is {said(gate)}, not a module or function: x [n, ...] -> scores [n]")
    return copy.deepcopy(gate) if isinstance(gate, nn.Module) else gate


class PooledGate(nn.Module):
    """A linear function of the input's channels, averaged over all else: [n, c, ...], or [n, T, d] -> scores [n]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, d], [n, T, d] or [n, c, ...] -> scores [n]."""
        pooled = x.mean(1) if x.dim() == 3 else x.flatten(2).mean(2) if x.dim() > 3 else x
        scores: Tensor = self.score(pooled).squeeze(1)
        return scores


class _Gate(nn.Module):
    """A gate of x as the gate of a Skip, which takes a state and carries nothing."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, state: Any, carry: None) -> tuple[Tensor, None]:
        return self.gate(_x(state)), carry


class _Body(nn.Module):
    """A module that is called with more than x, or gives more than y: state -> state."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: Any) -> Any:
        if isinstance(state, Tensor):
            return main_output(self.block(state))
        x, items, tree = state
        args, kwargs = joined(tree.value, x, items)
        return main_output(self.block(*args, **kwargs)), items, tree


class _Instead(nn.Module):
    """A module of x in the place of a block: state -> state."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, state: Any) -> Any:
        return self.module(state) if isinstance(state, Tensor) else (self.module(state[0]), *state[1:])


class _SkipBlock(StandsFor):
    """A Skip in the place of a block, called as the block was."""

    def __init__(
        self, name: str, block: nn.Module, gate: Gate, otherwise: nn.Module | None, signature: Signature, call: Call
    ) -> None:
        super().__init__()
        self.signature = signature
        self.rest = None if isinstance(call.out, Tensor) else tuple(call.out[1:])  # of the tuple it returns
        if more := [said(part) for part in self.rest or () if part is not None]:
            raise UserError(
                f"{name!r} returns {', '.join(more)} beside its output, which going around it would not make"
            )
        simple = signature.is_plain and self.rest is None
        instead = None if otherwise is None else otherwise if simple else _Instead(otherwise)
        self.skip = Skip(name, _Gate(gate), block if simple else _Body(block), instead)
        inside = "skip.body." if simple else "skip.body.block."
        added = {"skip.gate.gate.": "skip_gate."}
        added["skip.otherwise." if simple else "skip.otherwise.module."] = "skip_otherwise."

        def outer(inner: str) -> str:
            for start, public in added.items():
                if inner.startswith(start):
                    return public + inner.removeprefix(start)
            return inner.removeprefix(inside)

        name_tensors(self, outer, lambda inner: inner.startswith(tuple(added)))

    def _stood_for(self) -> Iterator[nn.Module]:
        body = self.skip.body
        yield body.block if isinstance(body, _Body) else body

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block takes -> what it returns."""
        items: list[Tensor] = []
        x, tree = self.signature.split(args, kwargs, items)
        y, _ = self.skip(x if self.signature.is_plain else (x, tuple(items), Shared(tree)))
        y = _x(y)
        return y if self.rest is None else (y, *self.rest)


def _x(state: Any) -> Tensor:
    x: Tensor = state if isinstance(state, Tensor) else state[0]
    return x


@torch.no_grad()
def _check(name: str, gate: Gate, otherwise: nn.Module | None, x: Tensor, y: Tensor) -> None:
    """Gate and shortcut fit the block, which makes y [2, ...] of x [2, ...]."""
    scores = _called(f"the gate of {name!r}", gate, x)
    if not isinstance(scores, Tensor) or scores.shape != (SIZES[0],) or not scores.is_floating_point():
        raise UserError(f"the gate of {name!r} returns {_kind(scores)} for {SIZES[0]} items, not scores [{SIZES[0]}]")
    if otherwise is None:
        z, what = x, f"{name!r} takes {_kind(x)} and gives {_kind(y)}: x itself cannot stand in for it, give otherwise="
    else:
        z = _called(f"otherwise[{name!r}]", otherwise, x)
        what = f"{name!r} gives {_kind(y)}, and what stands in for it {_kind(z)}"
    if not isinstance(z, Tensor) or z.shape != y.shape or z.dtype != y.dtype:
        raise UserError(what)


def _called(what: str, f: Callable[[Tensor], Any], x: Tensor) -> Any:
    try:
        return f(x)
    except Exception as e:
        raise UserError(f"{what} raised {type(e).__name__} for {_kind(x)}: {e}") from e


def _kind(value: Any) -> str:
    """[2, 16, 8, 8] float32."""
    return f"{said(value)} {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else said(value)
