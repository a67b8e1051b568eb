"""The checks of an adapted network: from the same decisions, every strategy gives the answer of `per_sample`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Trace
from dynbench.dynamic.sources import edge
from dynbench.strategies import STRATEGIES
from tests.networks import DYNAMIC

TOLERANCE = 2e-5  # of the answer's largest value


@torch.inference_mode()
def run(net: nn.Module, inputs: tuple[Tensor, ...], strategy: str, replay: Trace | None = None) -> tuple[Tensor, Trace]:
    ex = Execution(STRATEGIES[strategy](), replay=replay, record=True)
    answer = ex.run(net, *inputs)
    assert ex.trace is not None
    return answer, ex.trace


def assert_same_answer(net: nn.Module, inputs: tuple[Tensor, ...], edges: tuple[str, ...] = ("random",)) -> None:
    every = run(net, inputs, "masking")[1]
    for trace in (None, *(edge(every, net, kind) for kind in edges)):
        want, asked = run(net, inputs, "per_sample", trace)
        for strategy in DYNAMIC:
            if STRATEGIES[strategy]().refuses(net) is None and strategy != "per_sample":
                got, recorded = run(net, inputs, strategy, trace)
                assert difference(got, want) < TOLERANCE, strategy
                assert recorded == asked, strategy


def difference(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))


@torch.inference_mode()
def assert_same_static(adapted: nn.Module, original: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Outside any execution, and under dense, the answers are equal to the last bit, for one item and for many."""
    for n in (1, inputs[0].shape[0]):
        batch = tuple(t[:n] for t in inputs)
        want = original(*batch)
        assert torch.equal(adapted(*batch), want)
        assert torch.equal(Execution(STRATEGIES["dense"]()).run(adapted, *batch), want)


def assert_shares_weights(adapted: nn.Module, original: nn.Module) -> None:
    """The original's tensors, by their names; its dictionary loads, and so does its own."""
    theirs, ours = original.state_dict(), adapted.state_dict()
    assert theirs.keys() <= ours.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert {p.data_ptr() for p in original.parameters()} <= {p.data_ptr() for p in adapted.parameters()}
    changed = {name: tensor + 1 for name, tensor in theirs.items()}
    adapted.load_state_dict(changed)
    assert all(torch.equal(adapted.state_dict()[name], tensor) for name, tensor in changed.items())
    adapted.load_state_dict(ours | {name: tensor - 1 for name, tensor in changed.items()})
