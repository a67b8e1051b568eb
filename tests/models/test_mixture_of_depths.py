"""Mixture-of-Depths: who goes through a block, what it adds, and decoding that decides what a whole pass would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynbench.dynamic import Execution, Pick, points
from dynbench.meters.cost import cost
from dynbench.models.mixture_of_depths import MoD, accounted_macs, mixture_of_depths, mod_decoder
from dynbench.models.moe_gpt import dense_gpt
from dynbench.strategies import STRATEGIES, Compaction
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

SMALL: dict[str, Any] = {"layers": 4, "width": 16, "heads": 2, "context": 24, "vocab": 11, "capacity": 0.25}


def make(**args: Any) -> MoD:
    """With predictors that say both yes and no."""
    torch.manual_seed(0)
    return lively(mixture_of_depths(**{**SMALL, **args}))


def lively(net: MoD) -> MoD:
    with torch.no_grad():
        for p in [*net.predictors.parameters(), *net.weights.parameters()]:
            p.normal_()
    return net.eval()


def tokens(n: int = 3, length: int = 24) -> Tensor:
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_every_strategy_answers_alike(strategy: str) -> None:
    net, x = make(), tokens()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


@torch.inference_mode()
def test_the_decision_point_does_what_the_equation_says() -> None:
    net, x = make(), tokens()
    y, trace = run(net, x, "compaction")
    block, pick = net.blocks[1], points(net)["route1"]
    assert isinstance(pick, Pick)
    at = trace.entries["route1", ()].value
    h = net.blocks[0](net.embed(x))
    r = h.float() @ net.weights["1"].weight[0]
    got = Execution(Compaction()).run(pick, h.clone())
    for i in range(len(x)):
        best = r[i].sort(descending=True).indices[:6]  # a quarter of 24
        assert at[i].tolist() == sorted(best.tolist())
        alone = h[i : i + 1, at[i]]  # a sequence of those six, in their order
        want = alone + r[i, at[i]].view(1, -1, 1) * (block(alone) - alone)
        assert torch.allclose(got[i, at[i]], want[0], atol=1e-5)
        others = [t for t in range(24) if t not in at[i].tolist()]
        assert torch.equal(got[i, others], h[i, others])
    assert torch.allclose(net.training_form(x)[0], y, atol=1e-5)


@torch.inference_mode()
def test_without_decisions_it_is_an_ordinary_decoder() -> None:
    net, x = make(), tokens()
    twin = dense_gpt(**{k: SMALL[k] for k in ("layers", "width", "heads", "context", "vocab")}, ff_multiple=4)
    twin.load_state_dict(net.state_dict(), strict=False)
    assert torch.allclose(twin(x), net(x), atol=1e-6)


@pytest.mark.parametrize(("every", "routed"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])])
def test_every_so_many_th_block_is_routed(every: int, routed: list[int]) -> None:
    assert list(points(make(every=every))) == [f"route{k}" for k in routed]


@pytest.mark.parametrize(("capacity", "length", "taken"), [(0.125, 24, 3), (0.125, 7, 1), (0.5, 9, 4), (1.0, 24, 24)])
def test_capacity_is_a_share_of_the_sequence(capacity: float, length: int, taken: int) -> None:
    trace = run(make(capacity=capacity), tokens(2, length), "compaction")[1]
    assert trace.entries["route1", ()].value.shape == (2, taken)


def test_the_predictors_learn_without_touching_the_network() -> None:
    net = make().train()
    said, lessons = net.training_form(tokens())
    sum(torch.nn.functional.binary_cross_entropy_with_logits(g, p.float()) for g, p in lessons).backward()  # type: ignore[union-attr]
    learned = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"predictors"}
    said.sum().backward()
    assert bool(net.weights["1"].weight.grad.any())  # the router learns through what it multiplies
    for guess, picked in lessons:
        assert guess.shape == picked.shape and picked.sum(1).tolist() == [6, 6, 6]


def decoder() -> Any:
    torch.manual_seed(0)
    net = mod_decoder(**SMALL, max_new_tokens=10).eval()
    lively(net.net)
    return net


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_decoding_is_the_same_under_every_strategy(strategy: str) -> None:
    net, x = decoder(), tokens(4, 6)
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("strategy", ["compaction", "masking", "per_sample"])
@pytest.mark.parametrize("length", [1, 6])
@torch.inference_mode()
def test_decoding_decides_and_says_what_a_causal_pass_over_its_text_does(length: int, strategy: str) -> None:
    net, prompt = decoder(), tokens(4, length)
    text, trace = run(net, prompt, strategy)
    logits, through = net.net.causal(torch.cat([prompt, text], 1))
    new = slice(length - 1, length + 9)  # positions whose answer is a generated token
    assert torch.equal(logits[:, new].argmax(-1), text)
    for k in (1, 3):
        assert torch.equal(through[k][:, new].flatten(), trace.entries[f"route{k}", (10,)].value)


@torch.inference_mode()
def test_a_later_token_changes_nothing_before_it_in_a_causal_pass() -> None:
    net, x = make(), tokens(1)
    other = x.clone()
    other[0, 12:] = (x[0, 12:] + 1) % 11
    (a, went), (b, also) = net.causal(x), net.causal(other)
    assert torch.allclose(a[:, :12], b[:, :12], atol=1e-6) and not torch.allclose(a[:, 12:], b[:, 12:], atol=1e-3)
    assert all(torch.equal(went[k][:, :12], also[k][:, :12]) for k in net.routed)


def test_what_is_accounted_is_what_is_required() -> None:
    net, x = make(), tokens()
    macs, rule = accounted_macs(net, run(net, x, "compaction")[1], (24,))
    assert macs == cost(net, x)["required_macs"] < cost(net, x)["macs"] and "routers" in rule


def test_decoding_accounts_for_the_blocks_that_ran() -> None:
    net, x = decoder(), tokens(4, 6)
    trace = run(net, x, "compaction")[1]
    ran = sum(float(value.double().sum()) for value, _ in trace.entries.values()) / 4
    plain, block, d = 2, 12 * 16 * 16, 16
    want = (5 + 10) * plain * block + 5 * 2 * block + ran * (block + d)
    want += 10 * (11 * d + 2 * (d * d // 4 + d // 4))
    assert accounted_macs(net, trace, (6,))[0] == pytest.approx(want)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"heads": 3}, "heads=3"),
        ({"capacity": 0.0}, "capacity=0.0"),
        ({"capacity": 1.5}, "capacity=1.5"),
        ({"every": 0}, "every=0"),
        ({"every": 5}, "every=5 of 4"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_reason(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture_of_depths(**{**SMALL, **args})


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit the context of 24"):
        decoder()(tokens(1, 15))
    with pytest.raises(ValueError, match="max_new_tokens=24"):
        mod_decoder(**SMALL, max_new_tokens=24)


def test_no_strategy_waits_for_the_router() -> None:
    waited: list[str] = []

    class Watching:
        def enter(self, phase: str, point: str | None, index: int | None) -> None:
            waited.append(phase)

        def exit(self) -> None:
            pass

    Execution(STRATEGIES["compaction"](), profile=Watching()).run(make(), tokens())
    assert "body" in waited and "sync" not in waited
