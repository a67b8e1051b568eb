"""IDK cascades: the rules, the choice of thresholds, and the same answer under every strategy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.models.accounting import static_macs
from dynbench.models.idk import (
    CERTAINTY,
    IDKCascade,
    Policy,
    accounted_macs,
    cascaded,
    choose_thresholds,
    declared_costs,
    entropy,
    expected_objective,
    idk_cascade,
    reach_rates,
    unaided,
)
from dynbench.models.resnet import resnet
from dynbench.models.skipnet import skipnet
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run

THRESHOLDS = {"probability": (0.6, 0.5), "entropy": (0.9, 1.1), "learned": (0.5, 0.5)}


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 16, 16) * torch.linspace(0.1, 4, n).view(-1, 1, 1, 1)


def make(rule: Any, hidden: int = 0) -> IDKCascade:
    torch.manual_seed(0)
    net = idk_cascade((8, 14, 20), rule, THRESHOLDS[rule], hidden=hidden).eval()
    for classifier in net.classifiers:
        nn.init.normal_(classifier.fc.weight, std=0.15)
    for classifier, idk in zip(net.classifiers, net.policy.idk, strict=False):
        last = idk[-1] if hidden else idk
        with torch.no_grad():  # so that it knows about half of them
            last.weight.mul_(20)
            last.bias.sub_(idk(classifier(images()).softmax(-1)).median())
    return net


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize(("rule", "hidden"), [("probability", 0), ("entropy", 0), ("learned", 0), ("learned", 8)])
def test_every_strategy_answers_alike(rule: str, hidden: int, strategy: str) -> None:
    net, x = make(rule, hidden), images()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


def test_any_classifiers_make_a_cascade_dynamic_ones_too() -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    net = IDKCascade([linear, skipnet(14), resnet(8)], Policy("entropy", (1.0, 1.0), 10)).eval()
    for strategy in DYNAMIC:
        assert_same_answer(net, images(), strategy)


def test_the_static_twin_is_the_last_classifier_alone() -> None:
    net, x = make("entropy"), images()
    ran: list[int] = []
    for k, classifier in enumerate(net.classifiers):
        classifier.register_forward_hook(lambda *_, k=k: ran.append(k))
    with torch.inference_mode():
        assert torch.equal(net(x), net.classifiers[2](x))
    assert ran == [2, 2]


def test_the_answer_is_that_of_the_first_classifier_that_knows() -> None:
    net, x = make("probability"), images()
    with torch.inference_mode():
        logits = [classifier(x) for classifier in net.classifiers]
    p = [z.softmax(-1).amax(-1) for z in logits]
    first = torch.where(p[0] >= 0.6, 0, torch.where(p[1] >= 0.5, 1, 2))
    want = torch.stack(logits, 1)[torch.arange(len(x)), first]
    assert len(first.unique()) > 1
    assert torch.allclose(run(net, x, "cascading")[0], want, atol=1e-5)


def test_rules_are_their_definitions() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]])
    logits = p.log()
    assert Policy("probability", (0.5,), 3)(logits, (logits, None), 0).tolist() == [True, False]
    h = -(p * p.log()).sum(1)
    assert torch.allclose(entropy(p), h)
    assert Policy("entropy", (0.9,), 3)(logits, (logits, None), 0).tolist() == [True, False]
    learned = Policy("learned", (0.5,), 3)
    with torch.no_grad():
        learned.idk[0].weight.copy_(torch.tensor([[-10.0, 0.0, 0.0]]))
        learned.idk[0].bias.fill_(5.0)
    assert learned(logits, (logits, None), 0).tolist() == [True, False]  # IDK where sigmoid(5 - 10 p_0) > 0.5


def test_entropy_of_certainty_is_zero_and_of_ignorance_log_c() -> None:
    sure, ignorant = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.full((1, 4), 0.25)
    assert float(entropy(sure)) == 0 and float(entropy(ignorant)) == pytest.approx(math.log(4))


def confident(labels: Tensor, p: float, right: bool = True) -> Tensor:
    """Logits of a classifier that gives probability p to the label, or to the class after it."""
    target = labels if right else (labels + 1) % 4
    probabilities = torch.full((len(labels), 4), (1 - p) / 3).scatter_(1, target.unsqueeze(1), p)
    return probabilities.log()


def known_case() -> tuple[list[Tensor], Tensor]:
    """The fast model is sure and right on 60 of 100, less so on 20, wrong on the rest; the accurate one is right."""
    labels = torch.arange(100) % 4
    fast = torch.cat(
        [confident(labels[:60], 0.95), confident(labels[60:80], 0.7), confident(labels[80:], 0.5, right=False)]
    )
    return [fast, confident(labels, 0.99)], labels


@pytest.mark.parametrize("rule", ["probability", "entropy"])
def test_thresholds_chosen_on_a_known_case(rule: Any) -> None:
    logits, labels = known_case()
    policy = Policy(rule, (0.0,), 4)
    lossless = choose_thresholds(logits, labels, [1, 10], policy, epsilon=0.0, grid=101)
    assert lossless.accuracy == lossless.last_accuracy == 1.0
    assert lossless.idk_rates == pytest.approx((0.2,)) and lossless.cost == pytest.approx(1 + 0.2 * 10)
    if rule == "probability":
        assert 0.5 < lossless.thresholds[0] <= 0.7
    generous = choose_thresholds(logits, labels, [1, 10], policy, epsilon=0.2, grid=101)
    assert generous.accuracy == pytest.approx(0.8) and generous.idk_rates == (0.0,) and generous.cost == 1


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rule=st.sampled_from(["probability", "entropy", "learned"]), seed=st.integers(0, 99), epsilon=st.floats(0, 0.3))
def test_chosen_thresholds_do_in_the_cascade_what_was_promised(rule: Any, seed: int, epsilon: float) -> None:
    torch.manual_seed(seed)
    labels, costs = torch.randint(0, 4, (60,)), [1.0, 3.0, 9.0]
    logits = [torch.randn(60, 4) + k * F.one_hot(labels, 4) for k in (1, 2, 3)]
    policy = Policy(rule, (0.5, 0.5), 4)
    chosen = choose_thresholds(logits, labels, costs, policy, epsilon, grid=9)
    assert chosen.accuracy >= (1 - epsilon) * chosen.last_accuracy - 1e-9
    policy.thresholds.copy_(torch.tensor(chosen.thresholds))
    answered, idk, cost = torch.zeros_like(logits[0]), torch.ones(60, dtype=torch.bool), 0.0
    for k, z in enumerate(logits):
        cost += costs[k] * float(idk.double().mean())
        answered[idk] = z[idk]
        if k < 2:
            idk = idk & ~policy(z, (z, None), k)
            assert float(idk.double().mean()) == pytest.approx(chosen.idk_rates[k])
    assert cost == pytest.approx(chosen.cost)
    assert float((answered.argmax(1) == labels).double().mean()) == pytest.approx(chosen.accuracy)


def test_choosing_wants_a_cost_for_every_classifier() -> None:
    logits, labels = known_case()
    with pytest.raises(ValueError, match="1 costs for 2 classifiers"):
        choose_thresholds(logits, labels, [1], Policy("entropy", (0.0,), 4))


def test_the_expected_objective_of_hard_decisions_is_the_objective() -> None:
    torch.manual_seed(0)
    labels, costs, weight = torch.tensor([0, 1, 2, 3]), [0.1, 0.4, 1.0], 0.7
    logits = [torch.randn(4, 4) for _ in range(3)]
    h = [torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])]
    level = [0, 1, 2, 0]  # who answers
    loss = [float(F.cross_entropy(logits[k][i : i + 1], labels[i : i + 1])) for i, k in enumerate(level)]
    paid = [sum(costs[: k + 1]) for k in level]
    want = sum(a + weight * c for a, c in zip(loss, paid, strict=True)) / 4
    assert float(expected_objective(logits, h, labels, costs, weight)) == pytest.approx(want, rel=1e-6)


def test_a_higher_price_pushes_towards_answering_early() -> None:
    logits, labels = known_case()
    for weight, sign in ((0.0, -1), (100.0, 1)):  # without a price the accurate model is always preferred here
        h = torch.full((100,), 0.5, requires_grad=True)
        expected_objective(logits, [h], labels, [0.1, 1.0], weight).backward()
        assert h.grad is not None and bool((h.grad.sign() == sign).all())


def test_accounting_adds_the_cost_of_every_classifier_met() -> None:
    net, x = make("entropy"), images()
    c = [static_macs(m, (3, 32, 32)) for m in net.classifiers]
    traces = dict(forced(net, x))
    assert accounted_macs(net, traces["none"], (3, 32, 32))[0] == c[0]
    assert accounted_macs(net, traces["all"], (3, 32, 32))[0] == sum(c)
    knows = run(net, x, "per_sample")[1].entries["cascade", (3,)].value.view(-1, 3)
    idk = [float((~knows[:, 0]).double().mean()), float((~knows[:, 0] & ~knows[:, 1]).double().mean())]
    macs, _ = accounted_macs(net, run(net, x, "masking")[1], (3, 32, 32))
    assert macs == pytest.approx(c[0] + idk[0] * c[1] + idk[1] * c[2])


def test_weights_of_the_parts_load_on_their_own() -> None:
    net, other = make("learned", 8), make("learned", 8)
    plain = resnet(14)
    assert {name.partition(".")[0] for name in net.state_dict()} == {"classifiers", "policy"}
    other.get_submodule("classifiers.1").load_state_dict(plain.state_dict())
    other.get_submodule("policy").load_state_dict(Policy("learned", (0.1, 0.2), 10, hidden=8).state_dict())
    assert torch.equal(other.state_dict()["classifiers.1.fc.weight"], plain.fc.weight)
    assert torch.equal(other.cascade.halt.thresholds, torch.tensor([0.1, 0.2]))


EXPERT = {"latency_s": 4.0, "cost": 0.5, "unit": "EUR", "name": "radiologist"}


def with_expert(n: int = 8) -> tuple[IDKCascade, Tensor]:
    """Two classifiers, then an expert who names class i mod 10; each lets about half of the inputs pass."""
    torch.manual_seed(0)
    net = idk_cascade((8, 14), "probability", expert=EXPERT).eval()
    for classifier in net.classifiers:
        nn.init.normal_(classifier.fc.weight, std=0.15)
    x = torch.cat([images(n), (torch.arange(n) % 10).view(n, 1, 1, 1).expand(n, 1, 16, 16)], 1)
    with torch.no_grad():
        sure = [c(x[:, :3]).softmax(-1).amax(-1) for c in net.classifiers]
        net.policy.thresholds.copy_(
            torch.stack([sure[0].median(), sure[1][sure[0] < sure[0].median()].median()]) + 1e-4
        )
    return net, x


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_with_an_expert_every_strategy_answers_alike(strategy: str) -> None:
    net, x = with_expert()
    assert set(net_levels(net, x).tolist()) == {0, 1, 2}
    assert_same_answer(net, x, strategy)


def net_levels(net: IDKCascade, x: Tensor) -> Tensor:
    knows = run(net, x, "per_sample")[1].entries["cascade", (3,)].value.view(-1, 3).clone()
    knows[:, -1] = True
    return knows.long().argmax(1)


def test_an_expert_answers_with_what_came_with_the_input_and_computes_nothing() -> None:
    net, x = with_expert()
    level = net_levels(net, x)
    answer = run(net, x, "cascading")[0]
    expert = F.one_hot(torch.arange(8) % 10, 10).float() * CERTAINTY
    assert torch.equal(answer[level == 2], expert[level == 2])
    with torch.inference_mode():
        assert torch.allclose(answer[level == 0], net.classifiers[0](x[:, :3])[level == 0], atol=1e-5)
    all_ask = dict(forced(net, x))["all"]
    macs, _ = accounted_macs(net, all_ask, (4, 16, 16))
    assert macs == sum(static_macs(c, (3, 16, 16)) for c in net.classifiers)


def test_what_an_expert_takes_is_declared_by_the_share_of_the_inputs_that_reach_it() -> None:
    net, x = with_expert()
    trace = run(net, x, "masking")[1]
    met = reach_rates(net, trace)
    level = net_levels(net, x)
    assert met == pytest.approx([1, float((level > 0).double().mean()), float((level > 1).double().mean())])
    (row,) = declared_costs(net, trace)
    assert row == {"what": "radiologist", "share": met[2], "latency_s": 4.0, "cost": 0.5, "unit": "EUR"}
    assert declared_costs(make("entropy"), run(make("entropy"), images(), "masking")[1]) == []


def test_the_static_twin_and_the_baseline_do_without_the_expert() -> None:
    net, x = with_expert()
    alone = unaided(14).eval()
    alone.classifier.load_state_dict(net.classifiers[1].state_dict())
    assert net.input_shape((3, 32, 32)) == alone.input_shape((3, 32, 32)) == (4, 32, 32)
    with torch.inference_mode():
        want = net.classifiers[1](x[:, :3])
        assert torch.allclose(net(x), want, atol=1e-6) and torch.allclose(alone(x), want, atol=1e-6)


def test_one_classifier_and_an_expert_make_a_cascade() -> None:
    net = idk_cascade((8,), expert={"latency_s": 1, "cost": 0})
    assert len(net.policy.thresholds) == 1 and len(net.cascade.stages) == 2


def test_a_cascade_worked_out_from_what_its_levels_say_is_the_cascade_that_runs() -> None:
    net, x = make("entropy"), images(12)
    labels = torch.arange(12) % 10
    with torch.inference_mode():
        said = [c(x) for c in net.classifiers]
    answer, trace = run(net, x, "masking")
    right, met = cascaded(net.policy, said, labels)
    assert met == pytest.approx(reach_rates(net, trace)) and 0 < met[2] < 1
    assert right == pytest.approx(float((answer.argmax(-1) == labels).double().mean()))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depths": (), "expert": EXPERT}, "at least two levels"),
        ({"expert": {"latency": 1}}, "declare latency_s and cost"),
        ({"expert": {"latency_s": -1, "cost": 0}}, "latency_s=-1; it is a number of 0 or more"),
        ({"expert": EXPERT, "thresholds": (0.5, 0.5)}, "4 levels need one each, but for the last"),
        ({"rule": "margin"}, "rule='margin'.*'probability', 'entropy', 'learned'"),
        ({"depths": (38,)}, "at least two levels"),
        ({"thresholds": (0.5,)}, "3 levels need one each, but for the last"),
    ],
)
def test_a_cascade_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        idk_cascade(**args)


def test_inputs_without_an_expert_s_plane_are_refused() -> None:
    with pytest.raises(ValueError, match="no plane with an expert's answer"):
        unaided(8)(torch.zeros(1, 1, 16, 16))
