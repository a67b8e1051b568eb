"""Networks as a user might get them wrong: one part of a small network returns something else than it should, or fails.

`make(place, fault)` builds the network that has the part `place`, and lets this part go wrong in the way `fault`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynbench.dynamic import Choice, Each, Exits, Loop, Op, Pick, Program, Route, Skip, Weights, Width

D, CLASSES, PARTS = 8, 4, 3


class OwnError(Exception):
    """An error of a user's own, whose text has several lines."""


def _raises(kind: type[Exception], *said: Any) -> Callable[[Any], Any]:
    def fail(_: Any) -> Any:
        raise kind(*said)

    return fail


def _on_tensors(f: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """The same for the first tensor of a tuple, as a gate returns it."""

    def go(y: Any) -> Any:
        if isinstance(y, tuple):
            return (go(y[0]), *y[1:])
        return f(y) if isinstance(y, Tensor) else y

    return go


FAULTS: dict[str, Callable[[Any], Any]] = {
    # shapes
    "one dimension more": _on_tensors(lambda y: y.unsqueeze(-1)),
    "one dimension less": _on_tensors(lambda y: y.flatten(0, 1) if y.dim() > 1 else y.sum()),
    "no dimension": _on_tensors(lambda y: y.float().mean()),
    "an item less": _on_tensors(lambda y: y[1:]),
    "twice the items": _on_tensors(lambda y: torch.cat([y, y])),
    "no item": _on_tensors(lambda y: y[:0]),
    "two columns": _on_tensors(lambda y: torch.stack([y, y], -1)),
    "one column": _on_tensors(lambda y: y[:, :1] if y.dim() > 1 else y),
    "turned round": _on_tensors(lambda y: y.transpose(0, -1)),
    "squeezed": _on_tensors(lambda y: y.squeeze()),
    # types
    "float64": _on_tensors(lambda y: y.double()),
    "half": _on_tensors(lambda y: y.half()),
    "long": _on_tensors(lambda y: y.long()),
    "bool": _on_tensors(lambda y: y > 0),
    "complex": _on_tensors(lambda y: y.to(torch.complex64)),
    "meta": _on_tensors(lambda y: y.to("meta")),
    "numpy": _on_tensors(lambda y: y.detach().numpy()),
    "a list": _on_tensors(lambda y: y.tolist()),
    # values
    "nan": _on_tensors(lambda y: torch.full_like(y, float("nan")) if y.is_floating_point() else y),
    "infinite": _on_tensors(lambda y: torch.full_like(y, float("inf")) if y.is_floating_point() else y),
    "negative": _on_tensors(lambda y: torch.full_like(y, -7) if not y.is_floating_point() else y),
    "large": _on_tensors(lambda y: torch.full_like(y, 1000) if y.dtype == torch.long else y),
    # something else
    "None": lambda y: None,
    "a word": lambda y: "skip",
    "a number": lambda y: 3.5,
    "yes": lambda y: True,
    "a pair": lambda y: (y, y),
    "a triple": lambda y: (y, y, y),
    "in a list": lambda y: [y],
    "in a dict": lambda y: {"y": y},
    "an object": lambda y: object(),
    "empty": lambda y: (),
    # errors
    "RuntimeError": _raises(RuntimeError, "cannot"),
    "ValueError": _raises(ValueError, "of no value"),
    "TypeError": _raises(TypeError, "of no type"),
    "KeyError": _raises(KeyError, "key"),
    "IndexError": _raises(IndexError, "too far"),
    "ZeroDivisionError": _raises(ZeroDivisionError, "by zero"),
    "AttributeError": _raises(AttributeError, "it has none"),
    "AssertionError": _raises(AssertionError),
    "NotImplementedError": _raises(NotImplementedError, "later"),
    "StopIteration": _raises(StopIteration, "enough"),
    "OSError": _raises(OSError, 28, "no space"),
    "OwnError": _raises(OwnError, "first line\nsecond line"),
    "product": _on_tensors(lambda y: torch.ones(2, 3) @ torch.ones(4, 5)),
    "cat": _on_tensors(lambda y: torch.cat([torch.ones(1, 2), torch.ones(1, 3)])),
    "index": _on_tensors(lambda y: torch.ones(3)[torch.tensor([7])]),
}


class Part(nn.Module):
    """A part of a network; wrong in one way, or right."""

    def __init__(self, inner: Callable[..., Any], fault: str | None = None) -> None:
        super().__init__()
        self.inner, self.fault = inner, fault

    def forward(self, *given: Any) -> Any:
        y = self.inner(*given)
        return y if self.fault is None else FAULTS[self.fault](y)


class Layer(nn.Module):
    """A layer with per-item scales, or with one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor, params: Any = None) -> Tensor:
        return self.fc(x) if params is None else self.fc(x) * params

    def special(self, param: Tensor) -> Callable[..., Tensor]:
        return lambda x, inner=None: self.fc(x) * param


class FaultyLayer(Layer):
    def __init__(self, fault: str | None) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x: Tensor, params: Any = None) -> Any:
        y = super().forward(x, params)
        return y if self.fault is None else FAULTS[self.fault](y)

    def special(self, param: Tensor) -> Callable[..., Any]:
        layer = super().special(param)
        return layer if self.fault is None else lambda x, inner=None: FAULTS[self.fault](layer(x))


def first_column(x: Tensor, carry: Any) -> tuple[Tensor, Any]:
    return x[:, 0], carry


def spread_first(x: Tensor) -> Tensor:
    return x[:, :PARTS]


class Net(nn.Module):
    """Points one after the other, and a classifier; an answer that may be wrong."""

    def __init__(self, points: nn.Module, answer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.points, self.fc, self.answer = points, nn.Linear(D, CLASSES), answer

    def forward(self, x: Tensor) -> Any:
        y = self.points(x)
        return self.answer(self.fc(y[0] if isinstance(y, tuple) else y))


class Parts(nn.Module):
    """Cuts an item in parts and joins them again."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.unsqueeze(1).expand(-1, PARTS, -1).contiguous())
        return y.mean(1)


class FirstOf(nn.Module):
    def __init__(self, skip: Skip) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.skip(x)[0]
        return y


class Tokens(nn.Module):
    """A body over picked parts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x: Tensor, there: Tensor | None) -> Tensor:
        y: Tensor = self.fc(x)
        return y


class Value(nn.Module):
    """A module of a program."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(D, size)

    def forward(self, given: Any) -> Tensor:
        x, args, _ = given
        y: Tensor = self.fc(x if not args else args[0])
        return y


class Programmed(nn.Module):
    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.program(x, x)
        return y


def layouts(x: Tensor) -> Tensor:
    """Module 0, then head 1 on its value."""
    one = torch.tensor([[0, -1, -1], [1, -1, 0]])
    return one.expand(x.shape[0], 2, 3).clone()


Wrap = Callable[[str, Callable[..., Any]], Any]


def skip(part: Wrap) -> nn.Module:
    return FirstOf(
        Skip("block", part("gate", first_column), part("body", nn.Linear(D, D)), part("otherwise", nn.Linear(D, D)))
    )


def bare_skip(part: Wrap) -> nn.Module:
    return FirstOf(Skip("bare", part("bare gate", first_column), part("bare body", nn.Linear(D, D))))


def route(part: Wrap) -> nn.Module:
    experts = [nn.Linear(D, D), part("expert", nn.Linear(D, D)), nn.Linear(D, D)]
    weigh = part("weigh", lambda scores, chosen: scores.gather(1, chosen.clamp(min=0)).softmax(-1))
    return Route("moe", part("router", nn.Linear(D, 3)), experts, 2, weigh)


def exits(part: Wrap) -> nn.Module:
    stages = [nn.Linear(D, D), part("stage", nn.Linear(D, D)), nn.Linear(D, D)]
    heads = [nn.Linear(D, D), part("head", nn.Linear(D, D)), nn.Linear(D, D)]
    return Exits("exit", stages, heads, part("policy", lambda answer, state, k: answer[:, 0] > 0))


def loop(part: Wrap) -> nn.Module:
    cell, halt = nn.Linear(D, D), part("halt", lambda answer, state, k: answer[:, 0] > 0)
    return Loop("loop", part("step", lambda state, k: cell(state)), halt, 3, part("loop head", lambda state, k: state))


def pick(part: Wrap) -> nn.Module:
    gate = part("pick gate", lambda x, there: x[:, :, 0])
    return Parts(Pick("pick", gate, part("pick body", Tokens()), lambda parts: 2, back=True))


def program(part: Wrap) -> nn.Module:
    ops, heads = [Op(part("op", Value(D)), 0)], [Op(part("program head", Value(D)), 1, looks=False)]
    return Programmed(Program("program", part("parse", layouts), ops, heads, (D,), 2))


def width(part: Wrap) -> nn.Module:
    return Width("width", part("width gate", nn.Linear(D, D)), part("width layer", FaultyLayer(None)))


def weights(part: Wrap) -> nn.Module:
    table = nn.Parameter(torch.randn(3, D))
    choose = part("choose", lambda x: x[:, :3].argmax(1))
    generate = part("generate", lambda code: table[code])
    return Weights("weights", choose, generate, part("weights layer", FaultyLayer(None)), codes=3)


def choice(part: Wrap) -> nn.Module:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.point = Choice("look", part("choice body", nn.Linear(D, 3)), part("rule", lambda s: s.argmax(1)))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.point(x).unsqueeze(1)

    return Looks()


def each(part: Wrap) -> nn.Module:
    inner = Skip("token", part("token gate", first_column), part("token body", nn.Linear(D, D)))
    return Parts(Each(FirstOf(inner)))


NETWORKS = (skip, bare_skip, route, exits, loop, pick, program, width, weights, choice, each)


def places() -> dict[str, Callable[[Wrap], nn.Module]]:
    """The network that each part belongs to, by name of the part."""
    found: dict[str, Callable[[Wrap], nn.Module]] = {}
    for network in NETWORKS:

        def note(name: str, inner: Callable[..., Any], network: Callable[[Wrap], nn.Module] = network) -> Any:
            found[name] = network
            return inner

        network(note)
    return {**found, "answer": skip, "input": skip}


def make(place: str = "", fault: str = "", network: str = "") -> nn.Module:
    """The network that has the part `place`, wrong in the way `fault`; or a network by name, in which all is right."""
    torch.manual_seed(0)

    def part(name: str, inner: Callable[..., Any]) -> Any:
        if name != place:
            return inner
        return FaultyLayer(fault) if isinstance(inner, FaultyLayer) else Part(inner, fault)

    build = places()[place] if place else next(n for n in NETWORKS if n.__name__ == network)
    answer = FAULTS[fault] if place == "answer" else lambda y: y
    net = Net(build(part), answer)
    return nn.Sequential(Part(nn.Identity(), fault), net) if place == "input" else net


def items(split: str, seed: int = 0) -> Any:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((64, D)).astype(np.float32), generator.integers(0, CLASSES, 64)


def recipe(session: Any) -> None:
    """A recipe that trains the workload's network for a step."""
    net = make(**session.workload["model_args"])
    net(torch.randn(4, D)).sum().backward()
