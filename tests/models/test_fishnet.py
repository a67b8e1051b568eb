"""FiShNet: a task is an ordinary network of width K, whoever executes it and however many tasks there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Trace
from dynbench.meters.cost import cost
from dynbench.meters.required import PartCosts
from dynbench.models.accounting import static_macs
from dynbench.models.fishnet import (
    FiShNet,
    accounted_macs,
    cost_by_tasks,
    fishnet,
    fishnet_apart,
    fishnet_one_trunk,
    folded,
)
from dynbench.strategies import STRATEGIES
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

CLASSES = [4, 2, 3]
SMALL: dict[str, Any] = {"tasks": CLASSES, "widths": [4, 6, 5], "strides": [1, 2, 1], "bank": 2.0}


def make(**args: Any) -> FiShNet:
    torch.manual_seed(0)
    net = fishnet(**{**SMALL, **args}).eval()
    with torch.no_grad():
        for bank in net.banks:
            bank.scores.normal_()
            bank.mean.normal_()
            bank.variance.uniform_(0.5, 2)
            bank.weight.uniform_(0.5, 1.5)
            bank.bias.normal_()
        net.biases.normal_()
    return net


def requests(tasks: list[int], size: int = 12) -> Tensor:
    x = torch.randn(len(tasks), 4, size, size, generator=torch.Generator().manual_seed(1))
    x[:, 3] = 0
    x[range(len(tasks)), 3, 0, tasks] = 1
    return x


ALL = [0, 2, 1, 0, 2]


def by_hand(net: FiShNet, image: Tensor, task: int) -> Tensor:
    """Filter by filter: each selected one convolves with the selected ones below, and is normalised for the task."""
    x, below = image[None], list(range(3))
    for bank in net.banks:
        mine = sorted(bank.scores[task].argsort(descending=True)[: bank.chosen].tolist())
        maps = []
        for f in mine:
            y = F.conv2d(x, bank.conv.weight[f : f + 1, below], stride=bank.stride, padding=1)
            y = (y - bank.mean[task, f]) / (bank.variance[task, f] + 1e-5).sqrt() * bank.weight[task, f]
            maps.append(torch.relu(y + bank.bias[task, f]))
        x, below = torch.cat(maps, 1), mine
    classes = net.classes[task]
    z = net.heads[task][:classes, below] @ x.mean((2, 3))[0] + net.biases[task, :classes]
    return z.softmax(0)


@torch.inference_mode()
def test_an_image_is_answered_by_the_selected_filters_of_its_task() -> None:
    net, x = make(), requests(ALL)
    want = torch.zeros(5, 3, 4)
    for i, task in enumerate(ALL):
        want[i, task, : CLASSES[task]] = by_hand(net, x[i, :3], task)
    for y in (net(x), run(net, x, "compaction")[0], folded(net)(x)):
        assert torch.allclose(y.unflatten(1, (3, 4)), want, atol=1e-5)
    selections = [bank.selection(torch.arange(3)) for bank in net.banks]
    assert all(len(s.unique(dim=0)) == 3 for s in selections)  # no two tasks select alike


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("asked", [ALL, [1, 1, 1], [2]])
def test_strategies_answer_alike(asked: list[int], strategy: str) -> None:
    net, x = make(), requests(asked)
    assert decided_both_ways(run(net, x, "per_sample")[1]) == (len(set(asked)) > 1)
    assert_same_answer(net, x, strategy)
    if STRATEGIES[strategy]().refuses(net):
        assert strategy in ("cascading", "batch_union")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    tasks=st.lists(st.integers(2, 4), min_size=1, max_size=4),
    bank=st.floats(1, 3),
    layers=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
@torch.inference_mode()
def test_any_network_folds_into_ordinary_ones(tasks: list[int], bank: float, layers: Any, seed: int) -> None:
    widths, strides = zip(*layers, strict=True)
    net = make(tasks=tasks, widths=widths, strides=strides, bank=bank)
    asked = torch.randint(len(tasks), (4,), generator=torch.Generator().manual_seed(seed)).tolist()
    x = requests(asked, 8)
    want = folded(net)(x)
    for strategy in ("dense", "masking", "compaction", "specialised", "per_sample"):
        assert torch.allclose(run(net, x, strategy)[0], want, atol=1e-5), strategy


def test_a_folded_task_is_a_network_that_no_longer_knows_the_bank() -> None:
    net, x = make(), requests([1, 1])
    plain = net.fold(1)
    with torch.no_grad():
        before, answer = plain(x[:, :3]), net(x)
        for p in net.parameters():
            p.zero_()
        assert torch.equal(plain(x[:, :3]), before)
    assert torch.allclose(before.softmax(1), answer[:, 4:6], atol=1e-5)
    assert [tuple(c.weight.shape[:2]) for c in plain.convs] == [(4, 3), (6, 4), (5, 6)]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="0 to 2"):
        net.fold(3)


def test_a_task_costs_what_a_network_of_its_width_costs_from_1_to_32_tasks() -> None:
    args = {k: v for k, v in SMALL.items() if k != "tasks"}
    wide = static_macs(fishnet_apart(1, args["widths"], args["strides"]).nets[0], (3, 12, 12))
    rows = cost_by_tasks((1, 2, 8, 32), (4, 12, 12), **args)
    assert {r["macs"] for r in rows} == {wide}
    assert len({r["shared_params"] for r in rows}) == 1
    own = [(r["params"] - r["shared_params"]) / r["tasks"] for r in rows]
    assert len(set(own)) == 1 and own[0] == 3 * 2 * 15 + 10 * 10 + 10  # scores, batch norm, head
    assert [r["apart_params"] // r["tasks"] for r in rows] == [rows[0]["apart_params"]] * 4
    for count in (1, 32):
        (point,) = cost(make(tasks=count), requests([0]))["decision_points"]
        assert point["region_macs"] == wide and point["gate_macs"] == 0


def test_required_work_is_what_item_by_item_execution_does_and_what_we_say_the_paper_counts() -> None:
    net, x = make(), requests(ALL)
    trace = run(net, x, "per_sample")[1]
    required = PartCosts(net, x).required(trace)
    for strategy in ("per_sample", "compaction", "specialised"):
        counter = FlopCounter()
        with counter, torch.inference_mode():
            Execution(STRATEGIES[strategy](), profile=counter).run(net, x)
        assert counter.flops == required.region == required.total, strategy
    macs, rule = accounted_macs(net, trace, (4, 12, 12))
    assert 2 * 5 * macs == required.region  # of task 0; every head has as many rows as that of most answers
    assert "task that is asked" in rule


def test_a_kept_copy_is_made_once_per_task() -> None:
    net, x = make(), requests(ALL)
    network, made = net.point.layer, []
    original = network.gathered
    network.gathered = lambda params: made.append(int(params[0])) or original(params)  # type: ignore[assignment, func-returns-value, operator]
    for strategy, expected in (("specialised", [0, 1, 2]), ("compaction", [0, 1, 2] * 2), ("masking", [])):
        made.clear()
        ex = Execution(STRATEGIES[strategy]())
        with torch.inference_mode():
            for _ in range(2):
                ex.run(net, x)
        assert made == expected


def test_the_answer_is_that_of_the_decision_used() -> None:
    net, x = make(), requests([0, 0])
    trace = run(net, requests([2, 1]), "compaction")[1]
    y = run(net, x, "compaction", Trace(trace.entries, 2, trace.stream_hash, trace.covers))[0].unflatten(1, (3, 4))
    assert torch.allclose(y.sum(2), torch.tensor([[0.0, 0, 1], [0, 1, 0]]), atol=1e-6)
    assert float(y[0, 2, 3]) == 0 == float(y[1, 1, 2:].sum())  # answers that the task does not have


def test_training_uses_exactly_the_selection_and_teaches_it() -> None:
    net, x = make(), requests([1, 1, 1])
    with torch.no_grad():
        assert torch.allclose(net.learn(x[:, :3], 1).softmax(1), net(x)[:, 4:6], atol=1e-5)
    net.train()
    z = net.learn(x[:, :3], 1)
    F.cross_entropy(z, torch.tensor([0, 1, 1])).backward()
    for bank in net.banks:
        assert bank.scores.grad is not None
        assert int((bank.scores.grad[1] != 0).sum()) > bank.chosen  # also of filters that are not selected
        assert float(bank.scores.grad[[0, 2]].abs().sum()) == 0  # of other tasks nothing is learned
        unselected = torch.ones(len(bank.scores[1]), dtype=torch.bool)
        unselected[bank.selection(torch.tensor([1]))[0]] = False
        assert bank.conv.weight.grad is not None and float(bank.conv.weight.grad[unselected].abs().sum()) == 0


def test_each_task_has_statistics_of_its_own() -> None:
    net = make().train()
    before = [bank.mean.clone() for bank in net.banks]
    net.learn(requests([0, 0])[:, :3], 2)
    for bank, was in zip(net.banks, before, strict=True):
        assert torch.equal(bank.mean[:2], was[:2]) and not torch.equal(bank.mean[2], was[2])


@torch.inference_mode()
def test_baselines_answer_the_task_that_is_asked() -> None:
    x = requests(ALL)
    args = {k: v for k, v in SMALL.items() if k != "bank"}
    torch.manual_seed(0)
    apart, trunk = fishnet_apart(**args).eval(), fishnet_one_trunk(**args).eval()
    learned = trunk.learn(x[:, :3])
    for net in (apart, trunk):
        y = net(x).unflatten(1, (3, 4))
        for i, task in enumerate(ALL):
            z = apart.nets[task](x[i : i + 1, :3])[0] if net is apart else learned[task][i]
            want = torch.zeros(3, 4)
            want[task, : CLASSES[task]] = z.softmax(0)
            assert torch.allclose(y[i], want, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tasks": 0}, "1 task or more"),
        ({"tasks": [3, 1]}, "2 answers or more"),
        ({"strides": [1, 2]}, "one of each per layer"),
        ({"widths": [4, 0, 5]}, "1 or more"),
        ({"bank": 0.5}, "bank=0.5"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fishnet(**{**SMALL, **args})


def test_images_too_small_to_say_which_task_is_asked_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot name one of"):
        make(tasks=70)(torch.zeros(1, 4, 8, 8))
