"""What the checking pass accuses, and what it does not; and that it costs a run nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Each, Execution, Exits, Loop, ModelError, Route, Skip, Trace, Weights
from dynbench.dynamic.context import Execution as Context
from dynbench.strategies import STRATEGIES, Compaction, Masking, PerSample
from dynbench.strategies.checking import check_model
from tests.networks import NETWORKS

D = 4


def gate(x: Tensor, carry: Any) -> tuple[Tensor, Any]:
    return x[:, 0], carry


class Calls(nn.Module):
    """Calls its parts one after the other; of a Skip only the answer is used."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = list(parts)
        for i, part in enumerate(dict.fromkeys(parts)):
            self.add_module(str(i), part)

    def forward(self, x: Any, k: int = 0) -> Any:
        for part in self.parts:
            y = part(x)
            x = y[0] if isinstance(part, Skip) else y
        return x


def skip(name: str = "block", body: nn.Module | None = None) -> Skip:
    return Skip(name, gate, body or nn.Linear(D, D))


def again() -> nn.Module:
    point = skip()
    return Calls(point, point, point, point)


def in_two_bodies() -> nn.Module:
    inner = skip("inner")
    return Calls(Skip("a", always, Calls(inner)), Skip("b", always, Calls(inner)))


def always(x: Tensor, carry: Any) -> tuple[Tensor, Any]:
    return x[:, 0].abs() + 1, carry


ASKED_TWICE: dict[str, Callable[[], nn.Module]] = {
    "a Skip four times": again,
    "a Skip within Each, twice": lambda: Parts(Each(again())),
    "a Skip twice in each step": lambda: Loop("loop", again(), None, 2),
    "one inside two bodies": in_two_bodies,
    "a Loop twice": lambda: (lambda loop: Calls(loop, loop))(Loop("loop", Calls(nn.Linear(D, D)), leaves, 3)),
    "a Route twice": lambda: (lambda route: Calls(route, route))(Route("r", nn.Linear(D, 2), [nn.Linear(D, D)] * 2)),
}


def leaves(answer: Tensor, state: Tensor, k: int) -> Tensor:
    return answer[:, 0] > 0


class Parts(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(torch.stack([x, -x], 1)).mean(1)
        return y


@pytest.mark.parametrize("network", ASKED_TWICE)
def test_a_point_that_is_asked_twice_about_an_item_is_named(network: str) -> None:
    torch.manual_seed(0)
    net, x = ASKED_TWICE[network]().eval(), torch.randn(12, D)
    says = r"^\w+ '\w+' was asked more than once for the same item .* put it in a Loop"
    with pytest.raises(ModelError, match=says):
        check_model(net, x)
    for strategy in (PerSample, Masking, Compaction):
        with torch.inference_mode(), pytest.raises(ModelError, match=says):
            Execution(strategy(), record=True).run(net, x)


def exclusive() -> nn.Module:
    """One Skip in both experts of a Route, another in body and otherwise of a Skip: an item comes to each once."""
    inner, other = skip("inner"), skip("other")
    return Calls(
        Route("r", nn.Linear(D, 2), [Calls(inner), Calls(inner)]),
        Skip("s", gate, Calls(other), Calls(other, nn.ReLU())),
    )


def tied() -> nn.Module:
    body = nn.Linear(D, D)
    return Calls(*(skip(f"block{i}", body) for i in range(4)))


NOT_ACCUSED: dict[str, Callable[[], nn.Module]] = {
    "in a Loop": lambda: Loop("loop", Calls(skip()), None, 4),
    "in a Loop in a Loop": lambda: Loop("outer", Calls(Loop("inner", Calls(skip()), leaves, 2)), leaves, 3),
    "in Each": lambda: Parts(Each(Calls(skip()))),
    "in Exits": lambda: Exits("e", [Calls(skip("a")), Calls(skip("b"))], [nn.Linear(D, 2) for _ in range(2)], leaves),
    "nested": lambda: Calls(skip("outer", Calls(skip("inner")))),
    "tied modules": tied,
    "either of two ways": exclusive,
}


@pytest.mark.parametrize("network", NOT_ACCUSED)
def test_loops_parts_nesting_batches_and_tied_modules_are_not_accused(network: str) -> None:
    torch.manual_seed(0)
    net, x = NOT_ACCUSED[network]().eval(), torch.randn(12, D)
    check_model(net, x)
    for strategy in (PerSample, Masking, Compaction):
        ex = Execution(strategy(), record=True)
        with torch.inference_mode():
            for _ in range(2):  # a stream may be run again
                for start in range(0, 12, 4):
                    ex.run(net, x[start : start + 4], start=start, items=12)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_that_works_is_accused(name: str) -> None:
    net, inputs = NETWORKS[name]()
    check_model(net.eval(), *inputs)


def test_after_a_refusal_the_next_execution_begins_anew() -> None:
    net, x = again().eval(), torch.ones(2, D)
    ex = Execution(Masking(), record=True)
    for _ in range(2):
        with pytest.raises(ModelError):
            ex.run(net, x)
    assert isinstance(Execution(Masking(), record=True).run(tied(), x), Tensor)


class Layer(nn.Module):
    def forward(self, x: Tensor, params: Tensor | None = None) -> Tensor:
        return x if params is None else x * params


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "state with time first": (
        lambda: TimeFirst(),
        r"^Exits 'exit': it was given \[5, 12, 4\]; wanted \[12, ...\]: the first dimension is the item$",
    ),
    "a body that halves": (
        lambda: Calls(skip(body=nn.Linear(D, 2))),
        r"^Skip 'block': the body gave \[12, 2\]; wanted \[12, 4\], the shape of an item that skips it$",
    ),
    "experts that differ": (
        lambda: Calls(Route("moe", nn.Linear(D, 2), [nn.Linear(D, D), nn.Linear(D, 3)])),
        r"^Route 'moe': expert 1 gave \[12, 3\]; wanted \[12, 4\], as expert 0 gave$",
    ),
    "an expert that is not there": (
        lambda: Calls(Chooses("moe", nn.Linear(D, 2), [nn.Linear(D, D)] * 2)),
        r"^Chooses 'moe': it chose expert 5; wanted -1 to 1$",
    ),
    "a code that is not there": (
        lambda: Calls(
            Weights("w", lambda x: x[:, 0].long() * 0 + 9, lambda c: torch.ones(len(c), D), Layer(), codes=3)
        ),
        r"^Weights 'w': choose gave code 9; wanted 0 to 2$",
    ),
    "parameters for one item": (
        lambda: Calls(Weights("w", lambda x: x[:, 0].long() * 0, lambda c: torch.ones(1, D), Layer(), codes=3)),
        r"^Weights 'w': generate gave \[1, 4\]; wanted \[12, ...\]",
    ),
}


class Chooses(Route):
    def choose(self, scores: Tensor) -> Tensor:
        return torch.full((scores.shape[0], 1), 5)


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.exits = Exits("exit", [nn.Linear(D, D)] * 2, [nn.Linear(D, 2) for _ in range(2)], self.sure)

    def sure(self, answer: Tensor, state: Tensor, k: int) -> Tensor:
        return answer.amax((0, 2)) > 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.exits(x.unsqueeze(0).expand(5, -1, -1))
        return y.transpose(0, 1)


@pytest.mark.parametrize("what", WRONG)
def test_what_a_part_returns_is_checked_at_the_point(what: str) -> None:
    network, says = WRONG[what]
    with pytest.raises(ModelError, match=says):
        check_model(network().eval(), torch.randn(12, D))


def test_a_layout_that_only_fits_one_batch_size_is_found_with_the_other() -> None:
    class Square(TimeFirst):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.exits(x.unsqueeze(0).expand(12, -1, -1))  # as many steps as items
            return y.transpose(0, 1)

    with pytest.raises(ModelError, match=r"it was given \[12, 1, 4\]; wanted \[1, ...\]"):
        check_model(Square().eval(), torch.randn(12, D))


def test_scores_of_items_that_do_not_count_may_be_anything() -> None:
    class Fades(nn.Module):
        """Who does not reach the inner point has NaN there under masking."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 0, x, float("nan"))

    net = Calls(Skip("outer", gate, Calls(Fades(), skip("inner"))))
    check_model(net.eval(), torch.randn(12, D))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_error_of_the_model_s_own_code_names_where_it_comes_from(strategy: str) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("first\nsecond")

    net = Calls(nn.Linear(D, D), Skip("block", always, nn.Sequential(nn.Linear(D, D), Fails())))
    with pytest.raises(ModelError) as caught, torch.inference_mode():
        Execution(STRATEGIES[strategy]()).run(net.eval(), torch.randn(3, D))
    said = str(caught.value)
    assert said.startswith("Skip 'block', 1.body.1 (Fails), test_checking.py line ")
    assert " raised KeyError: " in said and "\n" not in said
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("error", [MemoryError("1 TB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_want_of_memory_is_not_the_model_s_fault(error: Exception) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(type(error)) as caught:
        Execution(Masking()).run(Fails(), torch.ones(1))
    assert caught.value is error


def test_without_a_record_nothing_is_kept_or_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("dynbench.dynamic.context._Asked.add", lambda self, point, frame: seen.append(point.name))
    net, x = tied().eval(), torch.randn(4, D)
    trace = Trace()
    for ex in (Context(Compaction()), Context(Compaction(), replay=trace)):
        if ex.replay is not None:
            trace.items, trace.covers = 4, frozenset(f"block{i}" for i in range(4))
        ex.run(net, x)
    assert seen == []
    Context(Compaction(), record=True).run(net, x)
    assert seen == [f"block{i}" for i in range(4)]
