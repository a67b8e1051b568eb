"""exits_at: items leave a network after given modules, with the answer of a head."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.adapt.chain import Stages, cut
from dynbench.adapt.network import Example, Inputs, batches, check_same, module_names, name_tensors, said, shared_copy
from dynbench.dynamic import Exits
from dynbench.dynamic.items import tensors
from dynbench.errors import UserError

Policy = Callable[[Any, Any, int], Tensor]


def exits_at(
    model: nn.Module,
    heads: Mapping[str, nn.Module],
    policy: Policy,
    *,
    name: str = "exit",
    example: Example = None,
) -> nn.Module:
    """A network that items may leave after given modules.

    The forward pass is cut after each of these modules: an item that leaves there has the answer of the module's head,
    and nothing of what comes after is computed for it. Between the cuts and the answer, the forward pass has to be a
    chain: only the module's output goes on, besides inputs of the model and what is computed of them alone (a mask,
    position embeddings).

    Args:
        model: left as it is. Its parameters and buffers are shared with the result, and keep their names.
        heads: by the module's name, as in `named_modules` ('layer2', 'blocks.3'): modules `x -> answer`, where x is the
            module's output [n, ...] (the first, if it returns several) and the answer has the shape of the model's.
            Their weights are '<name>.heads.<k>.<...>' in the state dict.
        policy: `(answer, state, k) -> [n] bool`: which items leave after the k-th of the exits, from 0; for classes
            `confident(0.9)`. The state is the tensor at the cut, or a tuple that begins with it.
        name: of the decision point.
        example: some inputs of the model, a tensor [n, ...] or a tuple of some; None: random images [n, 3, 32, 32], or
            what the model's `input_shape` says.

    Returns:
        The network. Outside any execution no item leaves, and it answers exactly as `model` in evaluation mode; of a
        model that answers with an output object of transformers, with its tensor.

    Raises:
        UserError: a module is not there or not called exactly once, the forward pass is not a chain where it is cut, a
            head's answer has another shape than the model's, or the policy's is not [n] bool.
    """
    if not isinstance(heads, Mapping):
        raise UserError(f"heads is {said(heads)}, not a dict from the name of a module to its head")
    cuts = module_names(heads, "heads")
    for at, head in heads.items():
        if not isinstance(head, nn.Module):
            raise UserError(f"heads[{at!r}] is {said(head)}, not a torch.nn.Module")
    if not callable(policy):
        raise UserError(f"policy is {said(policy)}, not a function of (answer, state, k), such as confident(0.9)")
    net, plain = shared_copy(model), shared_copy(model)
    inputs = batches(model, example)
    names = _Names(net)
    staged = cut(net, cuts, inputs)
    adapted = _WithExits(name, staged, [heads[at] for at in staged.cuts], policy, plain, inputs[0]).eval()
    _check(adapted, staged.cuts, policy, plain, inputs[-1])
    check_same(adapted, plain, inputs)
    names.give(adapted)
    return adapted.train(model.training)


def confident(threshold: float) -> Policy:
    """A policy for classes or tokens: an item leaves when the largest probability of its answer is above a threshold.

    Args:
        threshold: 0 to 1. The answer has scores of the classes in its last dimension, [n, classes].

    Raises:
        UserError: a threshold outside 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"confident({threshold}): a probability, 0 to 1")
    return lambda answer, state, k: answer.softmax(-1).amax(-1) > threshold


class _AtCut(nn.Module):
    """A head of the tensor at a cut, as a head of the state, which begins with it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Any) -> Any:
        return self.head(state if isinstance(state, Tensor) else state[0])


class _WithExits(nn.Module):
    """A network cut into stages: inputs -> answer."""

    def __init__(
        self, name: str, staged: Stages, heads: list[nn.Module], policy: Policy, net: nn.Module, inputs: Inputs
    ) -> None:
        super().__init__()
        self.name, self._shape = name, tuple(inputs[0].shape[1:])
        self._arguments = list(inspect.signature(net.forward).parameters)
        self.exits = Exits(name, staged.stages, [*map(_AtCut, heads), nn.Identity()], policy)
        self.enter = staged.enter

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input, that of the example."""
        return self._shape

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """What the network takes -> its answer, or that of the head where an item left."""
        inputs = (*inputs, *(named[a] for a in self._arguments[len(inputs) :] if named.get(a) is not None))
        if self.enter is None:
            return self.exits(inputs[0] if len(inputs) == 1 else inputs)
        return self.exits(self.enter.forward(*inputs))  # as in _Enter: not called as a module


class _Names:
    """The names that the tensors of a network have in its state dict."""

    def __init__(self, net: nn.Module) -> None:
        self._alive = net  # so that its ids stay those of its modules and tensors
        self._modules = {id(module): name for name, module in net.named_modules()}
        self._tensors = {id(t): name for name, t in reversed(_tensors(net).items())}
        self._keys = list(net.state_dict())

    def give(self, adapted: _WithExits) -> None:
        """Gives them to the same tensors of the adapted network."""
        modules, own = dict(adapted.named_modules(remove_duplicate=False)), _tensors(adapted)
        outer: dict[str, str] = {}
        known: dict[int, str] = {}
        new = set()
        for inner in adapted.state_dict():
            name = self._by_module(inner, modules) or self._tensors.get(id(own.get(inner)))
            if name is None:
                new.add(inner)
                name = inner.replace("exits.", f"{adapted.name}.", 1).replace(".head.", ".", 1)
            outer[inner] = known.setdefault(id(own[inner]), name) if inner in own else name
        name_tensors(adapted, outer.__getitem__, new.__contains__, self._keys)

    def _by_module(self, inner: str, modules: Mapping[str, nn.Module]) -> str | None:
        """By the innermost module of the original that it lies in."""
        path, _, rest = inner.rpartition(".")
        while path:
            name = self._modules.get(id(modules.get(path)))
            if name is not None:
                return f"{name}.{rest}" if name else rest
            path, _, last = path.rpartition(".")
            rest = f"{last}.{rest}"
        return None


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@torch.no_grad()
def _check(adapted: _WithExits, cuts: list[str], policy: Policy, plain: nn.Module, inputs: Inputs) -> None:
    """Heads and policy give what is needed of them."""
    n = inputs[0].shape[0]
    want = [t.shape for t in tensors(plain(*inputs))]
    state = (inputs[0] if len(inputs) == 1 else inputs) if adapted.enter is None else adapted.enter(*inputs)
    exits = adapted.exits
    for k, at in enumerate(cuts):
        state = exits.step(state, k)
        x = state if isinstance(state, Tensor) else state[0]
        if not isinstance(x, Tensor) or x.shape[:1] != (n,):
            raise UserError(f"{at!r} returns {said(x)} for {n} items: not a tensor with a row for each item")
        answer = _called(f"the head of {at!r}", partial(exits.heads[k], state), said(x))
        if [t.shape for t in tensors(answer)] != want:
            got = ", ".join(said(t) for t in tensors(answer)) or said(answer)
            raise UserError(
                f"the head of {at!r} makes {got} of {said(x)}, and the model's answer is "
                f"{', '.join(str(list(shape)) for shape in want)}"
            )
        leaves = _called("policy", partial(policy, answer, state, k), said(answer))
        if not isinstance(leaves, Tensor) or leaves.dtype != torch.bool or leaves.shape != (n,):
            got = f"{said(leaves)} {leaves.dtype}" if isinstance(leaves, Tensor) else said(leaves)
            raise UserError(f"policy returned {got} for {n} items, not [{n}] torch.bool: which of them leave")


def _called(what: str, call: Callable[[], Any], given: str) -> Any:
    try:
        return call()
    except Exception as e:
        raise UserError(f"{what} raised {type(e).__name__} for {given}: {e}") from e
