"""Greedy decoding: the cache, early exits by three measures, propagation of states, and the same text everywhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Exits, Loop, Trace, points
from dynbench.meters.required import PartCosts
from dynbench.models.decoder import (
    Confidence,
    Decoder,
    accounted_macs,
    decoder,
    depth_weights,
    exit_loss,
    layer_states,
    layers_run,
)
from dynbench.strategies import STRATEGIES
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run

SMALL: dict[str, Any] = {"layers": 3, "width": 16, "heads": 2, "context": 12, "vocab": 11, "max_new_tokens": 6}
# where an untrained decoder's tokens leave after the first, the second and the last layer
MEASURES = {"softmax": 0.2, "saturation": 0.9, "classifier": 0.5, None: 0.9}


def make(measure: Any = "softmax", **args: Any) -> Decoder:
    torch.manual_seed(0)
    net = decoder(**{**SMALL, "measure": measure, "threshold": MEASURES[measure], "tau": 4.0, **args}).eval()
    for p in net.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    return net


def prompts(n: int = 6, length: int = 5) -> Tensor:
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("measure", MEASURES)
def test_every_strategy_writes_the_same_text(measure: Any, strategy: str) -> None:
    net = make(measure, stop=5)
    assert decided_both_ways(run(net, prompts(), "per_sample")[1])
    assert_same_answer(net, prompts(), strategy)


def test_a_cache_changes_nothing_but_the_time() -> None:
    net = make(None)
    text = prompts()
    with torch.inference_mode():
        for _ in range(6):  # all over again for every token
            text = torch.cat([text, net.net(text)[:, -1:].argmax(-1)], 1)
        assert torch.equal(net(prompts()), text[:, 5:])
    assert len(text[:, 5:].unique()) > 3


def test_a_prompt_of_one_token_needs_no_prefill() -> None:
    net, start = make(None), prompts(4, 1)
    with torch.inference_mode():
        first = net.net(start)[:, -1].argmax(-1)
        assert torch.equal(net(start)[:, 0], first)


class ByHand:
    """One text, one token at a time, with lists of keys and values: CALM as the paper describes it."""

    def __init__(self, net: Decoder) -> None:
        self.net, self.blocks = net.net, list(net.net.blocks)
        self.kv: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.blocks]

    def layer(self, k: int, d: Tensor) -> Tensor:
        block: Any = self.blocks[k]
        w_q, w_k, w_v = block.attention.qkv.weight.chunk(3)
        z = block.norm1(d)
        self.kv[k].append((w_k @ z, w_v @ z))
        heads, size = block.attention.heads, len(z) // block.attention.heads
        out = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            q = (w_q @ z)[part]
            weights = torch.stack([q @ key[part] for key, _ in self.kv[k]]).div(math.sqrt(size)).softmax(0)
            out.append(sum(w * value[part] for w, (_, value) in zip(weights, self.kv[k], strict=True)))
        d = d + block.attention.out(torch.cat(out))
        return d + block.feed_forward(block.norm2(d))

    def token(self, token: int, at: int, limit: float | None) -> tuple[int, int]:
        """(the next token, layers run); without a limit: all."""
        d = self.net.token.weight[token] + self.net.position.weight[at]
        for k in range(len(self.blocks)):
            d = self.layer(k, d)
            p = self.net.head(self.net.norm(d)).softmax(0).sort().values
            if limit is not None and p[-1] - p[-2] >= limit:
                break
        for j in range(k + 1, len(self.blocks)):  # the state goes up, each layer projects it on its own
            block: Any = self.blocks[j]
            _, w_k, w_v = block.attention.qkv.weight.chunk(3)
            self.kv[j].append((w_k @ block.norm1(d), w_v @ block.norm1(d)))
        return int(self.net.head(self.net.norm(d)).argmax()), k + 1


@torch.no_grad()
@pytest.mark.parametrize("strategy", DYNAMIC)
def test_text_depths_and_cache_are_those_of_the_paper_by_hand(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = make("softmax"), prompts()
    pools = []
    fresh = net.cached.cache
    monkeypatch.setattr(net.cached, "cache", lambda *size: pools.append(fresh(*size)) or pools[-1])
    text, trace = run(net, x, strategy)
    memory = torch.cat([pool.memory.value for pool in pools])  # [n, L, 2, T, d]; per_sample has a pool per text
    _, depth = layers_run(net, trace)
    assert depth.unique().tolist() == [1, 2, 3]
    for i in range(len(x)):
        hand, prompt = ByHand(net), x[i].tolist()
        for at, token in enumerate(prompt[:-1]):
            hand.token(token, at, None)
        token = prompt[-1]
        for t in range(6):
            limit = min(max(0.9 * 0.2 + 0.1 * math.exp(-4 * t / 6), 0), 1)
            token, layers = hand.token(token, len(prompt) - 1 + t, limit)
            assert (token, layers) == (int(text[i, t]), int(depth[i, t]))
        kept = torch.stack([torch.stack([torch.stack(kv) for kv in layer], 1) for layer in hand.kv])  # [L, 2, t, d]
        assert torch.allclose(memory[i, :, :, : kept.shape[2]], kept, atol=1e-4)


def test_keys_and_values_are_projected_anew_not_copied() -> None:
    net = make("softmax")
    first, above = net.cached.layers[0], net.cached.layers[1]
    x, caches = torch.randn(2, 1, 16), [net.cached.cache(2, 3) for _ in range(2)]
    with torch.no_grad():
        for layer, cache in zip((first, above), caches, strict=True):
            layer.fill(x, cache, 1)  # type: ignore[operator]
        own = F.linear(above.block.norm1(x), above.block.attention.qkv.weight[16:])  # type: ignore[union-attr]
    assert torch.allclose(caches[1].read(1)[:, :, 1].flatten(1), own.squeeze(1), atol=1e-6)
    assert not torch.allclose(caches[1].read(1)[:, :, 1], caches[0].read(0)[:, :, 1], atol=1e-2)
    assert not caches[1].read(1)[:, :, [0, 2]].any()


def test_nobody_leaving_is_the_static_twin_and_all_leaving_at_once_is_the_first_layer() -> None:
    net, x = make("softmax"), prompts()
    edges = dict(forced(net, x))
    with torch.inference_mode():
        whole = net(x)
    stay, _ = run(net, x, "compaction", edges["all"])
    assert torch.equal(stay, whole)
    for strategy in DYNAMIC:
        leave, trace = run(make("softmax", threshold=0.0, tau=1000.0), x, strategy)
        written, depth = layers_run(net, trace)
        assert written.all() and bool((depth[:, 1:] == 1).all())  # lambda'(0, 0) = 0.1, then 0
    assert not torch.equal(leave, whole)


def test_everybody_stopping_at_once_takes_one_step() -> None:
    net = make(None)
    with torch.inference_mode():
        first = net(prompts())[:, 0]
    stop = int(first.mode().values)
    x = prompts()[first == stop]
    net = make(None, stop=stop)
    for strategy in DYNAMIC:
        steps: list[int] = []
        net.decode.step.register_forward_hook(lambda *_, steps=steps: steps.append(1))  # type: ignore[union-attr]
        text, _ = run(net, x, strategy)
        assert text[:, 0].eq(stop).all() and text[:, 1:].eq(-1).all()
        assert len(steps) == {"masking": 6, "per_sample": len(x)}.get(strategy, 1)


def test_a_text_ends_with_the_stop_token_and_others_go_on() -> None:
    net = make(None)
    with torch.inference_mode():
        whole = net(prompts())
    text, trace = run(make(None, stop=5), prompts(), "cascading")
    lengths = []
    for mine, all_of_it in zip(text.tolist(), whole.tolist(), strict=True):
        end = all_of_it.index(5) + 1 if 5 in all_of_it else 6
        assert mine == all_of_it[:end] + [-1] * (6 - end)
        lengths.append(end)
    assert min(lengths) == 1 and max(lengths) > 1
    assert layers_run(net, trace)[0].sum(1).tolist() == lengths


def test_the_threshold_falls_along_the_text_and_stays_within_0_and_1() -> None:
    policy = Confidence("softmax", 4, threshold=0.7, tau=4.0, length=10)
    limits = [float(policy.limit(t)) for t in range(10)]
    assert limits[0] == pytest.approx(0.73) and limits == sorted(limits, reverse=True)
    assert limits[5] == pytest.approx(0.63 + 0.1 * math.exp(-2))
    assert float(Confidence("softmax", 4, 1.0, 0.0, 10).limit(9)) == 1


def test_three_measures_of_confidence() -> None:
    net = {measure: make(measure) for measure in ("softmax", "saturation", "classifier")}
    seen: dict[str, list[tuple[Tensor, ...]]] = {measure: [] for measure in net}
    for measure, model in net.items():
        assert model.policy is not None
        model.policy.register_forward_hook(
            lambda _, args, leaves, m=measure: seen[m].append((*args[0], args[1].x, args[1].before, leaves))
        )
        run(model, prompts(), "masking")
    for step, (logits, x, depth, _, _, leaves) in enumerate(seen["softmax"]):
        best = logits.softmax(-1).sort(descending=True).values
        t = step // 2
        assert torch.equal(leaves, best[:, 0] - best[:, 1] >= 0.18 + 0.1 * math.exp(-4 * t / 6))
        assert torch.allclose(logits, net["softmax"].cached.logits(x)) and depth.unique().tolist() == [step % 2]
    for step, (logits, x, _, same, before, leaves) in enumerate(seen["saturation"]):
        assert logits is None and torch.equal(x, same)
        cosine = (x * before).sum(1) / x.norm(dim=1) / before.norm(dim=1)
        asked = step % 2 == 1  # the first layer has none below
        assert torch.equal(leaves, (cosine >= 0.81 + 0.1 * math.exp(-4 * (step // 2) / 6)) & asked)
    classifier = net["classifier"].policy.classifier  # type: ignore[union-attr]
    assert classifier is not None
    for step, (logits, x, _, _, _, leaves) in enumerate(seen["classifier"]):
        assert logits is None
        with torch.no_grad():
            c = torch.sigmoid(x @ classifier.weight[0] + classifier.bias)
        assert torch.equal(leaves, c >= 0.45 + 0.1 * math.exp(-4 * (step // 2) / 6))
    assert all(len({bool(v) for row in rows for v in row[-1]}) == 2 for rows in seen.values())


def test_every_layer_has_its_share_of_the_loss() -> None:
    assert depth_weights(3) == [1 / 6, 2 / 6, 3 / 6] and sum(depth_weights(7)) == pytest.approx(1)
    net, x = make(None).net, prompts(4, 9)
    states = layer_states(net, x[:, :-1])
    assert torch.allclose(net.head(net.norm(states[-1])), net(x[:, :-1]), atol=1e-6)
    want = 0.0
    for w, state in zip((1 / 6, 2 / 6, 3 / 6), states, strict=True):
        p = net.head(net.norm(state)).softmax(-1).gather(2, x[:, 1:, None])
        want += w * float(-p.log().mean().detach())
    assert float(exit_loss(net, x[:, :-1], x[:, 1:]).detach()) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_required_work_is_what_one_at_a_time_executes_and_accounted_work_leaves_attention_out(measure: Any) -> None:
    net, x = make(measure, stop=5, max_new_tokens=3), prompts(3)
    ex = Execution(STRATEGIES["per_sample"](), record=True)
    with torch.inference_mode(), FlopCounter(strict=True) as work:
        ex.run(net, x)
    assert ex.trace is not None
    assert PartCosts(net, x).required(ex.trace).total == work.flops
    written, depth = layers_run(net, ex.trace)
    pairs = len(x) * 3 * 4**2 + int((depth * written * torch.arange(5, 8)).sum())  # S = 5: 5 + t keys at step t
    macs, rule = accounted_macs(net, ex.trace, (5,))
    assert 2 * (macs * len(x) + 2 * 16 * pairs) == work.flops and "not counted" in rule


def test_leaving_early_executes_less_and_the_softmax_costs_an_output_layer_each_time() -> None:
    x, flops = prompts(4), {}
    for measure in ("softmax", "classifier"):
        net = make(measure, max_new_tokens=3)
        for kind, trace in forced(net, x):
            with torch.inference_mode(), FlopCounter(strict=True) as work:
                Execution(STRATEGIES["cascading"](), replay=trace).run(net, x)
            flops[measure, kind] = work.flops
    for measure in ("softmax", "classifier"):
        assert flops[measure, "none"] < flops[measure, "one"] < flops[measure, "random"] < flops[measure, "all"]
    asked = 4 * 3 * 2  # items, steps, layers but the last: an output layer there, a classifier here
    assert flops["softmax", "all"] - flops["classifier", "all"] == 2 * asked * (11 * 16 - 16)


def test_points_are_where_the_paper_has_them() -> None:
    named = points(make("softmax"))
    assert list(named) == ["decode", "exit", "layer1", "layer2"]
    assert isinstance(named["decode"], Loop) and isinstance(named["exit"], Exits)
    assert list(points(make(None))) == ["decode"]


def test_one_set_of_weights_serves_with_and_without_exits() -> None:
    early, plain = make("softmax"), make(None)
    plain.net.load_state_dict(early.net.state_dict())
    assert set(early.state_dict()) - set(plain.state_dict()) == {"policy.threshold"}
    with torch.inference_mode():
        assert torch.equal(early(prompts()), plain(prompts()))


def test_total_traces_give_depths_too() -> None:
    net, x = make("softmax", stop=5), prompts()
    edges: dict[str, Trace] = dict(forced(net, x))
    for kind, most in (("all", 3), ("none", 1)):
        written, depth = layers_run(net, edges[kind])
        assert depth.unique().tolist() == [most]
        assert written.sum(1).unique().tolist() == [6 if kind == "all" else 1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"measure": "entropy"}, "'softmax', 'saturation', 'classifier'"),
        ({"layers": 1}, "two layers"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"max_new_tokens": 12}, "from 1 to 11"),
        ({"stop": 11}, "0 to 10"),
        ({"heads": 3}, "heads=3"),
    ],
)
def test_a_decoder_there_is_not_is_refused_with_the_reason(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(**{**SMALL, "measure": "softmax", **args})


def test_a_prompt_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="context of 12"):
        make(None)(prompts(2, 7))
