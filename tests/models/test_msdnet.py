"""MSDNet: the grid, computing only what an exit needs, thresholds by budget, and the same answer everywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic.sources import edge
from dynbench.meters.cost import cost
from dynbench.meters.required import PartCosts
from dynbench.models.msdnet import (
    NEVER,
    SETTINGS,
    Grid,
    Layer,
    MSDNet,
    Setting,
    Stage,
    accounted_macs,
    bottlenecked,
    budgeted_thresholds,
    exit_fractions,
    exit_macs,
    msdnet,
    plain,
)
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

SMALL = {"blocks": 3, "base": 3, "step": 2, "channels": 4, "growth": 2, "num_classes": 5}


def images(n: int = 6, side: int = 16) -> Tensor:
    x = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))
    return x * torch.linspace(0.2, 3, n).view(-1, 1, 1, 1)


def make(lazy: bool = True, **flags: Any) -> MSDNet:
    """A network whose exits are sure of about half of the inputs."""
    torch.manual_seed(0)
    net = msdnet(lazy=lazy, **{**SMALL, **flags}).train()
    with torch.no_grad():
        net.every_exit(images(32))  # batch norms that are not trivial
        net.eval()
        for k, logits in enumerate(net.every_exit(images())[:-1]):
            net.policy.thresholds[k] = logits.softmax(1).amax(1).median() + 1e-6
    return net


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("lazy", [True, False])
def test_every_strategy_answers_alike(lazy: bool, strategy: str) -> None:
    net = make(lazy)
    assert decided_both_ways(run(net, images(), "per_sample")[1])
    assert_same_answer(net, images(), strategy)


def test_lazy_or_not_the_same_inputs_leave_with_the_same_answer() -> None:
    lazy, eager = make(True), make(False)
    eager.load_state_dict(lazy.state_dict())
    (a, one), (b, two) = run(lazy, images(), "cascading"), run(eager, images(), "cascading")
    assert one == two and torch.allclose(a, b, atol=1e-5)


flags = st.fixed_dictionaries(
    {
        "blocks": st.integers(1, 4),
        "mode": st.sampled_from(["even", "lin_grow"]),
        "base": st.integers(1, 4),
        "step": st.integers(1, 2),
        "prune": st.sampled_from(["max", "min"]),
        "reduction": st.sampled_from([0, 0.5, 0.75]),
        "growth_factors": st.sampled_from([(1,), (1, 2), (1, 2, 4), (2, 1, 1, 3)]),
    }
)


@settings(max_examples=10, deadline=None)
@given(flags)
def test_for_any_grid_computing_lazily_answers_alike_and_every_cell_is_computed_once(flags: dict[str, Any]) -> None:
    factors = flags["growth_factors"]
    setting = Setting(
        **{**flags, "growth_factors": (1,), "scales": 1, "bottleneck_factors": (1,), "prune": "max"},
        channels=4,
        growth=2,
        num_classes=3,
    )
    assume(flags["prune"] == "max" or setting.layers >= len(factors))
    flags = {**flags, "bottleneck_factors": factors, "channels": 4, "growth": 2, "num_classes": 3}
    torch.manual_seed(0)
    lazy, eager = msdnet(**flags).eval(), msdnet(lazy=False, **flags).eval()
    eager.load_state_dict(lazy.state_dict())
    x = images(2)
    with torch.inference_mode():
        both = list(zip(lazy.every_exit(x), eager.every_exit(x), strict=True))
        twins = lazy(x), eager(x), both[-1][1]
    for a, b in both:
        assert torch.allclose(a, b, atol=1e-5)
    assert all(torch.allclose(t, twins[2], atol=1e-5) for t in twins)
    for net in (lazy, eager):
        computed = [name for stage in net.stages for name, _ in stage.plan]
        assert len(computed) == len(set(computed))
    early = [sum(len(s.plan) for s in net.stages[:k]) for net in (lazy, eager) for k in range(len(net.stages) + 1)]
    assert all(a <= b for a, b in zip(early[: len(early) // 2], early[len(early) // 2 :], strict=True))


def test_a_stage_passes_on_what_is_read_and_nothing_else() -> None:
    net, state = make(), {"x": images(1)}
    reads = [{r for _, rs in stage.plan for r in rs} for stage in net.stages]
    for k, (stage, head) in enumerate(zip(net.stages, net.heads, strict=True)):
        with torch.inference_mode():
            state = stage(state)
        later = set().union(*reads[k + 1 :])
        assert set(state) <= later | {head.read} and head.read in state
    assert set(state) == {net.heads[-1].read}


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_at_the_first_exit_lazy_saves_the_finer_scales_of_the_last_layers() -> None:
    side = {0: 32, 1: 16}
    with torch.device("meta"):
        lazy, eager = msdnet(), msdnet(lazy=False)
    x = torch.zeros(1, 3, 32, 32, device="meta")

    def same(channels: int, added: int, factor: int, scale: int) -> int:
        inner = min(channels, factor * added)
        return side[scale] ** 2 * (channels * inner + 9 * inner * added)

    # layer 3 has 16 + 2 x 6 channels at scale 0, layer 4 has 16 + 3 x 6; twice as many at scale 1
    unread = same(28, 6, 1, 0) + same(34, 6, 1, 0) + same(68, 6, 2, 1)
    unread += 32**2 * 34 * 6 + 16**2 * 9 * 6 * 6  # h~ of layer 4: 1x1 at scale 0, 3x3 with stride 2
    less, more = cost(lazy, x)["exits"], cost(eager, x)["exits"]
    assert more[0] - less[0] == unread == 1_711_104
    assert all(a <= b for a, b in zip(less, more, strict=True))


def test_who_leaves_at_the_first_exit_requires_that_much_less() -> None:
    lazy, eager = make(True), make(False)
    x = images(4)
    trace = edge(run(lazy, x, "masking")[1], lazy, "none")  # all leave at the first exit
    work = {net.lazy: PartCosts(net, x).required(trace).total for net in (lazy, eager)}
    costs = {net.lazy: cost(net, x)["exits"][0] for net in (lazy, eager)}
    assert work == {is_lazy: 2 * 4 * macs for is_lazy, macs in costs.items()}
    assert costs[True] < 0.95 * costs[False]


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("cifar100_7", [160, 208, 140, 188, 236, 152, 200]),
        ("imagenet_4", [384, 384, 352, 304, 560]),
    ],
)
def test_classifiers_read_so_many_channels(name: str, widths: list[int]) -> None:
    with torch.device("meta"):
        assert [width for _, width in Grid(SETTINGS[name]).read] == widths


def test_settings_have_the_published_numbers_of_layers() -> None:
    assert {name: s.layers for name, s in SETTINGS.items()} == {
        "cifar100_7": 16,
        "cifar100_10": 22,
        "cifar100_5_lin_grow": 15,
        "cifar100_7_lin_grow": 28,
        "imagenet_4": 20,
        "imagenet_6": 30,
        "imagenet_7": 35,
    }
    assert SETTINGS["cifar100_7_lin_grow"].steps == [1, 2, 3, 4, 5, 6, 7]
    assert SETTINGS["cifar100_7"].steps == [4, 2, 2, 2, 2, 2, 2]


def test_scales_end_in_equal_parts_or_where_nobody_can_need_them() -> None:
    setting = SETTINGS["cifar100_7"]  # ceil(16 / 3) = 6
    assert [setting.finest(layer) for layer in range(1, 17)] == [0] * 6 + [1] * 6 + [2] * 4
    assert [layer for layer in range(1, 17) if setting.reduces(layer)] == [7, 13]
    late = replace(setting, prune="min")
    assert [late.finest(layer) for layer in range(1, 17)] == [0] * 14 + [1, 2]
    assert [layer for layer in range(1, 17) if late.reduces(layer)] == [5, 10]


def test_accounted_is_the_cost_of_all_layers_so_far_lazy_or_not() -> None:
    lazy, eager = make(True), make(False)
    x = images()
    trace = run(lazy, x, "per_sample")[1]
    costs = cost(eager, x)["exits"]
    assert exit_macs(lazy, tuple(x.shape[1:])) == exit_macs(eager, tuple(x.shape[1:])) == costs
    left = trace.entries["exit", (3,)].value.view(-1, 3)
    mean = sum(costs[next((k for k in (0, 1) if row[k]), 2)] for row in left) / len(left)
    assert accounted_macs(lazy, trace, tuple(x.shape[1:]))[0] == pytest.approx(mean)
    assert costs[0] < mean < costs[2]
    assert not any(m.training for m in lazy.modules())


def test_the_plain_network_has_no_cell_that_it_does_not_need() -> None:
    net, alone = make(prune="min"), plain(prune="min", **SMALL).eval()
    alone.load_state_dict(net.twin.state_dict())
    x = images()
    with torch.inference_mode():
        assert torch.allclose(alone(x), net.every_exit(x)[-1], atol=1e-5)
    reads = {r for _, rs in alone.last.stage.plan for r in rs} | {alone.last.head.read}
    assert {name for name, _ in alone.last.stage.plan} <= reads


# --- the layers ------------------------------------------------------------------------------------------------------


def test_a_cell_is_what_was_there_the_finer_scale_and_its_own() -> None:
    torch.manual_seed(0)
    cell = Layer(bottlenecked(6, 2, 2), bottlenecked(5, 2, 1, stride=2)).eval()
    x, finer = torch.randn(2, 6, 4, 4), torch.randn(2, 5, 8, 8)
    down, same = ([m for m in part.modules() if isinstance(m, nn.Conv2d)] for part in (cell.down, cell.same))
    assert [tuple(c.weight.shape) for c in (*down, *same)] == [(2, 5, 1, 1), (2, 2, 3, 3), (4, 6, 1, 1), (2, 4, 3, 3)]
    bn = 1 / math.sqrt(1 + 1e-5)  # batch norms as they begin
    a = F.relu(F.conv2d(F.relu(F.conv2d(finer, down[0].weight) * bn), down[1].weight, stride=2, padding=1) * bn)
    b = F.relu(F.conv2d(F.relu(F.conv2d(x, same[0].weight) * bn), same[1].weight, padding=1) * bn)
    assert torch.allclose(cell(x, finer), torch.cat([x, a, b], 1), atol=1e-5)


def test_without_bottleneck_there_is_one_convolution() -> None:
    assert sum(isinstance(m, nn.Conv2d) for m in bottlenecked(6, 2, 0)) == 1


def test_the_stem_of_imagenet_has_a_bias_and_maps_of_a_quarter() -> None:
    torch.manual_seed(0)
    grid = Grid(replace(SETTINGS["imagenet_4"], channels=2, growth=2, base=1, step=1))
    stems = [c for c in grid.cells if c.name.startswith("stem")]
    with torch.inference_mode():
        state = Stage(stems, grid.modules_by_cell, [c.name for c in stems]).eval()({"x": torch.randn(1, 3, 224, 224)})
    assert [tuple(v.shape[1:]) for v in state.values()] == [(2, 56, 56), (4, 28, 28), (8, 14, 14), (8, 7, 7)]
    assert grid.modules_by_cell["stem0"][0].bias is not None and grid.modules_by_cell["stem1"][0].bias is None


# --- who leaves ------------------------------------------------------------------------------------------------------


def sweep_as_written(logits: list[Tensor], fractions: list[float]) -> list[float]:
    """The protocol item by item, as in the authors' adaptive_inference.py."""
    n, gone, thresholds = len(logits[0]), set(), []
    for said, fraction in zip(logits[:-1], fractions, strict=False):
        confidence = said.softmax(1).amax(1).tolist()
        wanted, met, limit = math.floor(n * fraction), 0, NEVER
        for i in sorted(range(n), key=lambda i: -confidence[i]):
            if i not in gone:
                met += 1
                if met == wanted:
                    limit = confidence[i]
                    break
        thresholds.append(limit)
        gone |= {i for i in range(n) if confidence[i] >= limit}
    return thresholds


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(2, 5), st.floats(0.05, 1.95), st.integers(0, 100))
def test_budgeted_thresholds_are_those_of_the_protocol(n: int, exits: int, q: float, seed: int) -> None:
    logits = list(torch.randn(exits, n, 4, generator=torch.Generator().manual_seed(seed)) * 2)
    assert budgeted_thresholds(logits, exit_fractions(q, exits)) == pytest.approx(
        sweep_as_written(logits, exit_fractions(q, exits))
    )


def test_with_budgeted_thresholds_the_asked_shares_leave() -> None:
    logits = list(torch.randn(4, 1000, 10, generator=torch.Generator().manual_seed(0)))
    fractions = exit_fractions(1.5, 4)
    assert fractions == pytest.approx([1.5 / 12.1875 * 1.5**k for k in range(4)])
    there, thresholds = torch.ones(1000, dtype=torch.bool), budgeted_thresholds(logits, fractions)
    for said, fraction, threshold in zip(logits[:-1], fractions, thresholds, strict=False):
        leave = there & (said.softmax(1).amax(1) >= threshold)
        assert int(leave.sum()) == math.floor(1000 * fraction)
        there &= ~leave


def test_where_ties_left_too_few_all_of_them_leave() -> None:
    alike = torch.zeros(4, 2)
    assert budgeted_thresholds([alike, alike, alike], [0.25, 0.5, 0.25])[0] == pytest.approx(0.5)
    assert budgeted_thresholds([alike, alike, alike], [0.0, 0.5, 0.5]) == pytest.approx([NEVER, 0.5])


@pytest.mark.parametrize("exit_at", [0, 1, 2])
def test_anytime_everybody_leaves_at_one_exit(exit_at: int) -> None:
    net = make()
    anytime = msdnet(exit_at=exit_at, **SMALL).eval()
    anytime.load_state_dict({**net.state_dict(), "policy.thresholds": anytime.policy.thresholds})
    answer, _ = run(anytime, images(), "cascading")
    with torch.inference_mode():
        assert torch.allclose(answer, net.every_exit(images())[exit_at], atol=1e-5)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"setting": "cifar10"}, "setting='cifar10': published settings are cifar100_7, "),
        ({"block": 3}, "no flag 'block'; flags are blocks, mode, "),
        ({"mode": "odd"}, "mode='odd': an MSDNet has mode even or lin_grow"),
        ({"dataset": "mnist"}, "dataset='mnist'"),
        ({"blocks": 0}, "blocks=0: it is a whole number, 1 or more"),
        ({"base": "four"}, "base='four': it is a whole number"),
        ({"growth_factors": (1, 0, 2)}, "growth_factors=.*3 scales need one each, 1 or more"),
        ({"growth_factors": (1, 2)}, "bottleneck_factors=.*2 scales need one each"),
        ({"growth": 3, "growth_factors": (1, 1, 1)}, "growth=3: growth times growth factor is even"),
        ({"reduction": 2}, "reduction=2"),
        ({"thresholds": [0.5]}, "the 7 exits need one each, but for the last"),
        ({"exit_at": 7}, "exit_at=7: there are exits 0 to 6"),
        ({"exit_at": 1, "thresholds": 0.5}, "give one of them"),
        ({"blocks": 1, "base": 2, "prune": "min"}, "at most as many as layers"),
    ],
)
def test_bad_arguments_are_refused_by_name(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        msdnet(**args)


def test_budgets_need_one_fraction_per_exit() -> None:
    with pytest.raises(ValueError, match="2 fractions for 3 exits"):
        budgeted_thresholds([torch.zeros(2, 2)] * 3, [0.5, 0.5])
