"""Speculative decoding: the target's own text, its own distribution, and the formulae of the paper."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution
from dynbench.meters.required import PartCosts
from dynbench.models import speculative as module
from dynbench.models.decoder import Decoder
from dynbench.models.speculative import (
    Sampler,
    Speculative,
    accounted_macs,
    expected_operations,
    expected_speedup,
    expected_tokens,
    iterations,
    speculative,
    uniform,
)
from dynbench.strategies import STRATEGIES
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

NET: dict[str, Any] = {"layers": 3, "width": 16, "heads": 2, "context": 20, "vocab": 7}


def make(noise: float = 0.05, draft_layers: int = 1, **args: Any) -> Speculative:
    """The draft is the lower layers of the target, more or less: it is often right, not always."""
    torch.manual_seed(0)
    small = {**NET, "layers": draft_layers}
    net = speculative(**{"target": NET, "draft": small, "gamma": 2, "max_new_tokens": 6, **args}).eval()
    for p in net.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    target = net.target.state_dict()
    net.draft.load_state_dict({k: target[k] + noise * torch.randn_like(v) for k, v in net.draft.state_dict().items()})
    return net


def prompts(n: int = 8, length: int = 5, vocab: int = 7) -> Tensor:
    return torch.randint(0, vocab, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_every_strategy_writes_the_same_text(method: Any, strategy: str) -> None:
    net = make(method=method, stop=5)
    assert decided_both_ways(run(net, prompts(), "per_sample")[1])
    assert_same_answer(net, prompts(), strategy)


@pytest.mark.parametrize("stop", [None, 5])
@pytest.mark.parametrize("gamma", [1, 2, 5])
@pytest.mark.parametrize(("noise", "draft_layers"), [(0.05, 1), (1.0, 1), (0.0, 3)])
def test_greedy_text_is_the_target_s_own_token_by_token(
    noise: float, draft_layers: int, gamma: int, stop: int | None
) -> None:
    net = make(noise, draft_layers, gamma=gamma, stop=stop)
    want, _ = run(Decoder(net.target, None, 6, stop), prompts(), "per_sample")
    assert len(want.unique()) > 3
    for strategy in ("cascading", "masking"):
        assert torch.equal(run(net, prompts(), strategy)[0], want)


def test_dense_is_the_target_alone() -> None:
    net = make()
    with torch.inference_mode():
        assert torch.equal(net(prompts()), Decoder(net.target, None, 6, None)(prompts()))
        with FlopCounter(strict=True) as alone:
            Decoder(net.target, None, 6, None)(prompts())
        with FlopCounter(strict=True) as dense:
            Execution(STRATEGIES["dense"]()).run(net, prompts())
    assert dense.flops == alone.flops


@pytest.mark.parametrize(("gamma", "wanted"), [(1, 3), (2, 2), (5, 1)])
def test_a_draft_like_the_target_is_always_right(gamma: int, wanted: int) -> None:
    for method in ("greedy", "sample"):
        _, trace = run(make(0.0, 3, gamma=gamma, method=method), prompts(), "cascading")
        assert iterations(make(), trace).tolist() == [wanted] * 8


def test_texts_take_different_numbers_of_iterations_and_a_worse_draft_takes_more() -> None:
    taken = []
    for noise in (0.0, 0.05, 5.0):
        net = make(noise)
        taken.append(iterations(net, run(net, prompts(), "cascading")[1]))
    assert len(taken[1].unique()) > 2
    assert taken[0].sum() < taken[2].sum() <= 8 * 6


TINY: dict[str, Any] = {"layers": 1, "width": 8, "heads": 2, "context": 12, "vocab": 4}
MANY = 4000


def tiny(seed: int, gamma: int = 2) -> Speculative:
    torch.manual_seed(3)
    net = speculative(TINY, TINY, gamma=gamma, max_new_tokens=3, method="sample", seed=seed).eval()
    for p in net.parameters():  # two strangers: they agree on little
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.6)
    return net


@torch.inference_mode()
def chances(net: Speculative, prompt: Tensor) -> dict[tuple[int, ...], float]:
    """The target's own probability of every text of three tokens, without a cache."""
    found = {}
    for text in itertools.product(range(4), repeat=3):
        p = net.target(torch.cat([prompt, torch.tensor([text])], 1)).double().softmax(-1)
        at = prompt.shape[1] - 1
        found[text] = math.prod(float(p[0, at + t, token]) for t, token in enumerate(text))
    return found


def fit(net: Speculative, text: Tensor) -> float:
    """The p-value of chi-square: that texts come with the target's probabilities."""
    want = chances(net, prompts(1, 3, 4))
    seen = dict.fromkeys(want, 0)
    for row in text.tolist():
        seen[tuple(row)] += 1
    common = [t for t in want if want[t] * MANY >= 5]  # the rest together
    observed = [seen[t] for t in common] + [MANY - sum(seen[t] for t in common)]
    expected = [want[t] * MANY for t in common] + [MANY - sum(want[t] * MANY for t in common)]
    return float(scipy.stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("gamma", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_sampled_texts_have_the_target_s_distribution(gamma: int, seed: int) -> None:
    net = tiny(seed, gamma)
    text, trace = run(net, prompts(1, 3, 4).expand(MANY, -1), "cascading")
    assert iterations(net, trace).unique().tolist() == ([2, 3] if gamma == 1 else [1, 2, 3])
    assert fit(net, text) > 1e-3


def test_the_static_twin_samples_from_it_as_well() -> None:
    net = tiny(0)
    with torch.inference_mode():
        assert fit(net, net(prompts(1, 3, 4).expand(MANY, -1))) > 1e-3


def test_without_the_rule_of_acceptance_the_distribution_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    net, right = tiny(0), Sampler.verify

    def careless(self: Sampler, q: Tensor, guess: Tensor, p: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        return right(self, p[:, :-1], guess, p, item)  # as if the draft were the target: all guesses stand

    monkeypatch.setattr(Sampler, "verify", careless)
    assert fit(net, run(net, prompts(1, 3, 4).expand(MANY, -1), "cascading")[0]) < 1e-6


def test_a_guess_is_accepted_with_the_probability_of_the_paper() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    n = 20000
    logits_p, logits_q = p.log().expand(n, 2, 3), q.log().expand(n, 1, 3)
    sampler, item = Sampler("sample", 7), torch.arange(n)
    for guess, chance in ((0, 1.0), (1, 1.0), (2, 0.2 / 0.6)):
        accepted, tokens = sampler.verify(logits_q, torch.full((n, 1), guess), logits_p, item)
        assert float(accepted.double().mean()) == pytest.approx(chance, abs=0.015)
        refused = tokens[accepted == 0, 0]
        assert guess != 2 or 2 not in refused.unique().tolist()
    share = float((refused == 0).double().mean())  # norm(max(0, p - q)) = (0.3, 0.1, 0) / 0.4
    assert share == pytest.approx(0.75, abs=0.02)


def test_a_draw_depends_on_the_sample_alone_not_on_the_batch() -> None:
    net, x = make(method="sample"), prompts()
    ex = Execution(STRATEGIES["cascading"]())
    with torch.inference_mode():
        whole = ex.run(net, x)
        parts = torch.cat([ex.run(net, x[i : i + 3], start=i, items=8) for i in (0, 3, 6)])
        assert torch.equal(whole, parts)
        assert not torch.equal(whole, Execution(STRATEGIES["cascading"]()).run(make(method="sample", seed=1), x))


def test_random_numbers_are_splitmix64_and_even() -> None:
    first = module._mix(torch.tensor([0]))
    assert int(first) % 2**64 == 0xE220A8397B1DCDAF  # the generator's first output for seed 0
    u = uniform(3, torch.arange(50000), 1, 2)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert float(scipy.stats.kstest(u.numpy(), "uniform").pvalue) > 1e-3
    others = [uniform(*a) for a in ((4, torch.arange(50000), 1, 2), (3, torch.arange(50000), 2, 1))]
    for v in (*others, u.roll(1)):
        assert abs(float(torch.corrcoef(torch.stack([u, v]))[0, 1])) < 0.02


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("gamma", [1, 4, 7])
def test_expected_tokens_are_the_sum_of_what_each_guess_adds(alpha: float, gamma: int) -> None:
    tokens = expected_tokens(alpha, gamma)
    assert tokens == pytest.approx(sum(alpha**i for i in range(gamma + 1)))
    assert expected_speedup(alpha, gamma, 0.0) == pytest.approx(tokens)
    if alpha < 1:
        form = (1 - alpha) * (gamma * 0.1 + gamma + 1) / (1 - alpha ** (gamma + 1))  # as the paper writes it
        assert expected_operations(alpha, gamma, 0.1) == pytest.approx(form)
    assert expected_operations(alpha, gamma, 0.1) >= 1 or alpha == 1


def test_tokens_per_iteration_follow_the_formula_where_guesses_are_accepted_alike() -> None:
    p, q, n = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6]), 20000
    alpha = float(torch.minimum(p, q).sum())
    sampler, item = Sampler("sample", 0), torch.arange(n)
    guess = torch.stack([module.draw(q.expand(n, 3), uniform(1, item, 9, j)) for j in range(3)], 1)
    accepted, _ = sampler.verify(q.log().expand(n, 3, 3), guess, p.log().expand(n, 4, 3), item)
    assert 1 + float(accepted.double().mean()) == pytest.approx(expected_tokens(alpha, 3), rel=0.02)


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_more_is_computed_than_by_the_target_alone_and_accounted_for_by_token(method: Any) -> None:
    net, x = make(max_new_tokens=3, method=method), prompts(3)
    with torch.inference_mode(), FlopCounter(strict=True) as alone:
        net(x)
    ex = Execution(STRATEGIES["per_sample"](), record=True)
    with torch.inference_mode(), FlopCounter(strict=True) as work:
        ex.run(net, x)
    assert ex.trace is not None and work.flops > alone.flops
    assert PartCosts(net, x).required(ex.trace).total == work.flops
    block, head, count = 12 * 16 * 16, 7 * 16, iterations(net, ex.trace)
    each = 2 * (block + head) + 3 * (3 * block + head)  # gamma of the draft, gamma + 1 of the target
    macs, rule = accounted_macs(net, ex.trace, (5,))
    assert macs == pytest.approx(4 * (block + 3 * block) + each * float(count.double().mean()))
    assert "not counted" in rule


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"gamma": 0}, "at least one"),
        ({"method": "beam"}, "'greedy' or 'sample'"),
        ({"draft": {**NET, "vocab": 8}}, "7 and 8"),
        ({"max_new_tokens": 17}, "no room"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speculative(**{"target": NET, "draft": NET, "gamma": 2, "max_new_tokens": 6, **args})


@pytest.mark.parametrize("length", [1, 13])
def test_a_prompt_that_does_not_fit_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="room for 2 to 12"):
        make()(prompts(2, length))
