"""ACT and the Universal Transformer: the halting rule, what halted positions show, the answer under every strategy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Loop, Trace
from dynbench.meters.cost import cost
from dynbench.meters.required import PartCosts
from dynbench.models.universal import (
    ACT,
    Memory,
    Ponder,
    UniversalTransformer,
    accounted_macs,
    act_rnn,
    ponder_steps,
    signals,
    universal_transformer,
)
from dynbench.strategies import STRATEGIES
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run

SMALL: dict[str, Any] = {"steps": 5, "width": 16, "context": 9, "vocab": 11}


def make(name: str = "transformer", **args: Any) -> Any:
    torch.manual_seed(0)
    net = act_rnn(**{**SMALL, **args}) if name == "rnn" else universal_transformer(**{**SMALL, **args})
    unit = net.rule if name == "rnn" else net.ponder.inner.rule
    if isinstance(unit, ACT):  # some halt at once, some late, some never
        nn.init.normal_(unit.probability.weight, std=1.0 if name == "transformer" else 6.0)
        nn.init.constant_(unit.probability.bias, -1.0)
    return net.eval()


def tokens(n: int = 4, length: int = 9) -> Tensor:
    return torch.randint(0, 11, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize(("name", "args"), [("transformer", {}), ("transformer", {"causal": False}), ("rnn", {})])
def test_every_strategy_answers_alike(name: str, args: dict[str, Any], strategy: str) -> None:
    net, x = make(name, **args), tokens()
    _, trace = run(net, x, "per_sample")
    assert decided_both_ways(trace) and len(ponder_steps(net, trace).unique()) > 2
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("strategy", [s for s in DYNAMIC if s != "cascading"])
def test_without_halting_the_network_is_static(strategy: str) -> None:
    net, x = make(halting="none"), tokens()
    with torch.no_grad():
        assert torch.allclose(run(net, x, strategy)[0], net(x), atol=1e-5)
    assert STRATEGIES["cascading"]().refuses(net) is not None


def by_hand(net: UniversalTransformer, row: Tensor, halts: list[int] | None = None) -> tuple[Tensor, list[int], Tensor]:
    """One sample, position by position: (logits [T, vocab], steps each position takes, rho [T]).

    A position halts at the step its probabilities say, or where `halts` says.
    """
    block = net.ponder.inner
    assert isinstance(block, Ponder)
    d, heads, length, most = net.token.embedding_dim, block.heads, len(row), block.loop.max_steps
    signal = signals(most, net.context, d)
    s = [math.sqrt(d) * net.token.weight[t] for t in row]
    seen = [s[i] + signal[0, i] for i in range(length)]  # what position i shows to others
    probabilities: list[list[Tensor]] = [[] for _ in row]
    states: list[list[Tensor]] = [[] for _ in row]
    steps = [0] * length
    for k in range(most):
        new, show = list(s), list(seen)
        for i in range(length):
            if steps[i]:
                continue  # its state, and what it shows, are copied forward
            x = s[i] + signal[k, i]
            others = seen[: i + 1] if block.causal else seen
            pre, same = block.norm == "pre", nn.Identity()
            before, after = (block.norm1, same) if pre else (same, block.norm1)
            before2, after2 = (block.norm2, same) if pre else (same, block.norm2)
            keys, values = block.key_value(before(torch.stack(others))).chunk(2, -1)
            q, parts = block.query(before(x)), []
            for h in range(heads):
                mine = slice(h * d // heads, (h + 1) * d // heads)
                weight = (keys[:, mine] @ q[mine] / math.sqrt(d / heads)).softmax(0)
                parts.append(weight @ values[:, mine])
            a = after(x + block.out(torch.cat(parts)))
            new[i] = after2(a + block.transition(before2(a)))
            states[i].append(new[i])
            if isinstance(block.rule, ACT):
                probabilities[i].append(torch.sigmoid(block.rule.probability(new[i]))[0])
            if k + 1 < most:
                show[i] = new[i] + signal[k + 1, i]
            enough = bool(probabilities[i]) and float(sum(probabilities[i])) >= 0.99
            if k + 1 == most or (enough if halts is None else halts[i] == k + 1):
                steps[i] = k + 1
        s, seen = new, show
    means, rho = [], []
    for i in range(length):
        p = torch.tensor([float(v) for v in probabilities[i][:-1]])
        p = torch.cat([p, 1 - p.sum().view(1)])
        means.append(sum(w * state for w, state in zip(p, states[i], strict=True)))
        rho.append(steps[i] + p[-1])
    return net.head(net.norm(torch.stack(means))), steps, torch.stack(rho)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_positions_ponder_as_written_down_by_hand(norm: str, causal: bool) -> None:
    net, x = make(causal=causal, norm=norm), tokens(3)
    answer, trace = run(net, x, "compaction")
    steps = ponder_steps(net, trace).view(3, 9)
    with torch.no_grad():
        for i in range(3):
            want, halted, _ = by_hand(net, x[i])
            assert steps[i].tolist() == halted
            assert torch.allclose(answer[i], want, atol=1e-5)


class Cost(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        cost: Tensor = self.net.pondered(x)[1]
        return cost


@pytest.mark.parametrize("strategy", ["masking", "compaction", "cascading", "per_sample"])
def test_a_position_that_is_made_to_halt_gives_its_remainder_to_its_last_state(strategy: str) -> None:
    net, x = make(bias=-3.0), tokens(2)
    # no item halts before the limit by itself, and none ponders more than 1
    nn.init.constant_(net.ponder.inner.rule.probability.bias, -8.0)
    _, trace = run(net, x, "masking")
    at = [[1, 2, 5, 3, 1, 4, 2, 2, 5], [3, 3, 3, 1, 1, 1, 5, 5, 2]]
    with torch.inference_mode():
        value = trace.entries["ponder", (9, 5)].value.view(2, 9, 5)
        for i in range(2):
            for j in range(9):
                if at[i][j] < 5:
                    value[i, j, at[i][j] - 1] = True
    answer = run(net, x, strategy, trace)[0]
    costs = run(Cost(net), x, strategy, trace)[0]
    with torch.no_grad():
        for i in range(2):
            want, steps, rho = by_hand(net, x[i], at[i])
            assert steps == at[i]
            assert torch.allclose(answer[i], want, atol=1e-5)
            assert torch.allclose(costs[i], rho, atol=1e-5)


@given(
    h=st.lists(st.floats(0.01, 0.999), min_size=1, max_size=8),
    stop=st.integers(1, 8),
    values=st.lists(st.floats(-5, 5), min_size=8, max_size=8),
)
def test_the_answer_is_a_mean_of_the_states_wherever_an_item_stops(
    h: list[float], stop: int, values: list[float]
) -> None:
    stop = min(stop, len(h))
    act = ACT(1)
    state = act.start(torch.full((1, 1), 7.0), None)
    spent, mean = 0.0, 0.0
    for n in range(stop):
        state = act.move(state, torch.full((1, 1), values[n]))._replace(h=torch.tensor([h[n]]))
        halts = bool(act(None, state, n))
        assert halts == (spent + h[n] >= 0.99) or abs(spent + h[n] - 0.99) < 1e-6
        if n + 1 < stop:
            p = min(h[n], 1 - spent)  # who is made to go on spends no more than is left
            spent, mean = spent + p, mean + p * values[n]
    y, rho = act.answer(state, stop - 1)
    assert float(y) == pytest.approx(mean + (1 - spent) * values[stop - 1], abs=1e-4)
    assert float(rho) == pytest.approx(stop + 1 - spent, abs=1e-5)
    assert min(values[:stop]) - 1e-4 <= float(y) <= max(values[:stop]) + 1e-4


def test_a_halted_position_is_seen_as_it_was_when_it_halted() -> None:
    net, x = make(causal=False), tokens(1)
    _, trace = run(net, x, "masking")
    with torch.inference_mode():
        value = trace.entries["ponder", (9, 5)].value.view(9, 5)
        value.zero_()
        value[0, 1] = True  # position 0 takes two steps
    early = run(net, x, "compaction", trace)[0]
    with torch.inference_mode():
        value[0, 1] = False
    late = run(net, x, "compaction", trace)[0]
    assert not torch.allclose(early[0, 1:], late[0, 1:], atol=1e-4)


def test_a_later_token_changes_no_earlier_answer() -> None:
    net, x = make(), tokens(1)
    other = x.clone()
    other[0, 5] = (x[0, 5] + 1) % 11
    a, b = (run(net, t, "compaction")[0] for t in (x, other))
    assert torch.allclose(a[:, :5], b[:, :5], atol=1e-5) and not torch.allclose(a[:, 5:], b[:, 5:], atol=1e-3)


def test_shorter_sequences_are_accepted() -> None:
    for name in ("transformer", "rnn"):
        net, x = make(name), tokens(2)
        short = run(net, x[:, :4], "compaction")[0]
        assert torch.allclose(short, run(net, x, "compaction")[0][:, :4], atol=1e-5)


@given(data=st.data(), n=st.integers(1, 4), length=st.integers(1, 6), causal=st.booleans())
def test_attention_of_some_positions_equals_theirs_among_all(
    data: st.DataObject, n: int, length: int, causal: bool
) -> None:
    slots = data.draw(st.lists(st.integers(0, n * length - 1), min_size=1, unique=True).map(sorted))
    torch.manual_seed(len(slots))
    memory = Memory(torch.randn(n, length, 16), 2, causal)
    q = torch.randn(n * length, 8)
    everyone = memory.attend(torch.arange(n * length), q)
    some = torch.tensor(slots)
    assert torch.allclose(memory.attend(some, q[some]), everyone[some], atol=1e-6)


def test_the_work_of_compaction_falls_with_every_halt_and_is_what_is_required_but_for_padding() -> None:
    net, x = make(), tokens()
    _, trace = run(net, x, "masking")

    def executed(strategy: str, trace: Trace) -> int:
        with torch.inference_mode(), FlopCounter(strict=True) as work:
            Execution(STRATEGIES[strategy](), replay=trace).run(net, x)
        assert isinstance(work.flops, int)
        return work.flops

    costs = PartCosts(net, x)
    for kind, forced_trace in forced(net, x):
        required = costs.required(forced_trace).total
        assert executed("per_sample", forced_trace) == required
        padding = executed("cascading", forced_trace) - required
        assert padding == 0 if kind in ("all", "none", "one") else padding > 0
    assert executed("compaction", trace) < executed("masking", trace)


def test_ponder_cost_falls_when_the_probability_of_halting_rises() -> None:
    net, x = make().train(), tokens()
    unit = net.ponder.inner.rule.probability
    Execution(STRATEGIES["masking"]()).run(Cost(net), x).mean().backward()
    assert float(unit.bias.grad) < 0


def test_training_reaches_every_weight_through_all_steps() -> None:
    net, x = make().train(), tokens()
    said = Execution(STRATEGIES["masking"]()).run(net, x)
    F.cross_entropy(said.flatten(0, 1), x.flatten()).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())


def test_position_and_time_signals_are_the_sum_of_two_waves() -> None:
    p = signals(3, 5, 6)
    assert p.shape == (3, 5, 6)
    for t, i, j in [(0, 0, 0), (2, 4, 1), (1, 3, 2)]:
        rate = 10000 ** (-2 * j / 6)
        assert float(p[t, i, 2 * j]) == pytest.approx(math.sin((i + 1) * rate) + math.sin((t + 1) * rate), abs=1e-5)
        assert float(p[t, i, 2 * j + 1]) == pytest.approx(math.cos((i + 1) * rate) + math.cos((t + 1) * rate), abs=1e-5)


def test_the_pondering_rnn_is_the_recurrence_written_down_by_hand() -> None:
    net, x = make("rnn"), tokens(3)
    answer, trace = run(net, x, "compaction")
    steps = ponder_steps(net, trace).view(3, 9)
    with torch.no_grad():
        for i in range(3):
            s = torch.zeros(16)
            for t in range(9):
                states, p = [], []
                for n in range(5):
                    flagged = torch.cat([net.token.weight[x[i, t]], torch.tensor([float(n == 0)])])
                    s = torch.tanh(net.input(flagged) + net.recurrent.weight @ s)
                    states.append(s)
                    p.append(float(torch.sigmoid(net.rule.probability(s))))
                    if sum(p) >= 0.99:
                        break
                assert int(steps[i, t]) == len(p)
                p[-1] = 1 - sum(p[:-1])
                s = sum(w * state for w, state in zip(p, states, strict=True))
                assert torch.allclose(answer[i, t], net.head(s), atol=1e-5)


@pytest.mark.parametrize(("width", "ff_multiple", "steps"), [(16, 4, 5), (24, 1.5, 3)])
def test_macs_have_their_closed_form(width: int, ff_multiple: float, steps: int) -> None:
    net = make(width=width, ff_multiple=ff_multiple, steps=steps)
    table, t = cost(net, torch.zeros(1, 9, dtype=torch.long)), 9
    linear = width * width * (2 + 2 * ff_multiple)  # query, output, transition
    step = linear + 2 * t * width + width  # attention and the halting unit
    keys = 2 * width**2
    assert table["macs"] == t * (steps * (step + keys) + width * 11)  # keys for the first step, none after the last
    assert table["decision_points"][0]["region_macs"] == steps * step + (steps - 1) * keys
    macs, rule = accounted_macs(
        net, run(net, tokens(), "masking", dict(forced(net, tokens()))["all"])[1], (net.context,)
    )
    assert macs == t * (width * 11 + steps * (linear + keys)) and "ponder steps" in rule


def test_accounted_macs_follow_the_mean_number_of_steps() -> None:
    for name in ("transformer", "rnn"):
        net, x = make(name), tokens()
        trace = run(net, x, "compaction")[1]
        traces = dict(forced(net, x))
        least, most = (accounted_macs(net, traces[kind], (net.context,))[0] for kind in ("none", "all"))
        share = (float(ponder_steps(net, trace).double().mean()) - 1) / 4
        assert accounted_macs(net, trace, (net.context,))[0] == pytest.approx(least + share * (most - least))


@pytest.mark.parametrize(
    ("make_it", "args", "message"),
    [
        (universal_transformer, {"heads": 3}, "heads=3"),
        (universal_transformer, {"halting": "never"}, "halting='never'"),
        (universal_transformer, {"norm": "both"}, "norm='both'"),
        (universal_transformer, {"steps": 0}, "steps=0"),
        (universal_transformer, {"epsilon": 0.0}, "epsilon=0.0"),
        (act_rnn, {"width": 0}, "width=0"),
        (act_rnn, {"epsilon": 1.0}, "epsilon=1.0"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_reason(make_it: Any, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it(**args)


def test_the_halting_unit_is_stored_once() -> None:
    for name in ("transformer", "rnn"):
        net = make(name)
        assert len([key for key in net.state_dict() if "probability.weight" in key]) == 1
        make(name).load_state_dict(net.state_dict())


def test_the_loop_is_declared_to_couple_the_positions_of_a_sample() -> None:
    loop = make().ponder.inner.loop
    assert isinstance(loop, Loop) and loop.widest_scope == "sample"
