"""Required work equals what running item by item executes, whatever is nested in what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Exits, Skip, Trace, Width
from dynbench.dynamic.sources import edge
from dynbench.meters.required import PartCosts
from dynbench.strategies import Cascading, Compaction, Masking, PerSample
from dynbench.unavailable import Unavailable
from tests.networks import NETWORKS, Generated, Unweighed, make


def executed(strategy: Any, net: nn.Module, args: Any, replay: Trace | None = None) -> tuple[int, Trace]:
    ex = Execution(strategy, replay=replay, record=True)
    with torch.inference_mode(), FlopCounter(strict=True) as work:
        ex.run(net, *args)
    assert ex.trace is not None and isinstance(work.flops, int)
    return work.flops, ex.trace


@pytest.mark.parametrize("name", NETWORKS)
def test_required_total_is_what_per_sample_executes(name: str) -> None:
    net, args = make(name)
    flops, trace = executed(PerSample(), net, args)
    assert PartCosts(net, *args).required(trace).total == flops


@pytest.mark.parametrize("kind", ["none", "all", "one", "random"])
@pytest.mark.parametrize("name", NETWORKS)
def test_entries_of_a_total_trace_that_nobody_would_ask_do_not_count(name: str, kind: str) -> None:
    net, args = make(name)
    total = edge(executed(Masking(), net, args)[1], net, kind)
    flops, recorded = executed(PerSample(), net, args, replay=total)
    costs = PartCosts(net, *args)
    assert costs.required(total).total == costs.required(recorded).total == flops
    assert costs.path_depths(total)[0].tolist() == costs.path_depths(recorded)[0].tolist()


def test_masking_executes_more_than_is_required_and_compaction_the_same() -> None:
    net, args = make("moe_exits")
    required, trace = executed(PerSample(), net, args)
    assert executed(Masking(), net, args, trace)[0] > required
    assert executed(Compaction(), net, args, trace)[0] == required
    assert executed(Cascading(), net, args, trace)[0] == required


class Tiny(nn.Module):
    """Stem 4 -> 4; two stages 4 -> 4 with heads 4 -> 3; in each a Skip with a gate 4 -> 1 and a body 4 -> 8 -> 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        stages = [Stage(k) for k in range(2)]
        heads = [nn.Linear(4, 3) for _ in range(2)]
        self.exits = Exits("exit", stages, heads, lambda answer, state, k: state[:, 0] > 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.exits(self.stem(x))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, carry: Any) -> tuple[torch.Tensor, Any]:
        return self.linear(x).squeeze(1), carry


class Stage(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.skip = Skip(f"skip{k}", Gate(), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(self.mix(x))[0]


def traced(net: nn.Module, x: torch.Tensor, kind: str) -> Trace:
    return edge(executed(Masking(), net, (x,))[1], net, kind)


def test_required_parts_have_their_closed_form() -> None:
    net, x = Tiny().eval(), torch.randn(5, 4)
    stem, mix, gate, body, head = 2 * 16, 2 * 16, 2 * 4, 2 * 64, 2 * 12
    costs = PartCosts(net, x)
    everything = costs.required(traced(net, x, "all"))
    assert everything.region == 5 * (stem + 2 * (mix + body))
    assert everything.total == everything.region + 5 * 2 * (gate + head)
    nothing = costs.required(traced(net, x, "none"))
    assert nothing.region == 5 * (stem + mix)
    assert nothing.total == nothing.region + 5 * (gate + head)


def test_path_depth_counts_bodies_run_by_each_item() -> None:
    net, x = Tiny().eval(), torch.randn(3, 4)
    costs = PartCosts(net, x)
    assert costs.path_depths(traced(net, x, "one"))[0].tolist() == [2, 0, 0]
    assert costs.path_depths(traced(net, x, "all"))[1] == "bodies run of 2"


def test_path_depth_without_skips_counts_stages_then_experts() -> None:
    net, args = make("fixed_loop")
    trace = executed(PerSample(), net, args)[1]
    depths, label = PartCosts(net, *args).path_depths(trace)
    assert depths.tolist() == [3] * 4 and label == "stages run of 3"
    net, args = make("one_expert")
    depths, label = PartCosts(net, *args).path_depths(executed(PerSample(), net, args)[1])
    assert depths.tolist() == [1] * 8 and label == "experts visited of 4"


def test_a_net_without_points_requires_all_its_work_for_every_item() -> None:
    costs = PartCosts(nn.Linear(4, 3), torch.randn(5, 4))
    trace = Trace(items=7)
    assert costs.required(trace).region == costs.required(trace).total == 7 * 2 * 12
    assert costs.path_depths(trace)[0].tolist() == [0] * 7


def test_a_layer_costs_what_its_channels_do_and_what_is_made_for_a_code_is_made_once() -> None:
    class Sum(nn.Module):
        def forward(self, code: Tensor) -> Tensor:
            return code[:, None].float() @ torch.ones(1, 8)  # 16 FLOPs for each code

    net = Generated().eval()
    for layer in net.layers:
        layer.generate = Sum()
    x, tasks = torch.randn(5, 8), torch.tensor([0, 2, 2, 0, 2])
    trace = executed(PerSample(), net, (x, tasks))[1]
    required, alone = PartCosts(net, x, tasks).required(trace), 5 * 2 * 2 * 64
    assert (required.region, required.total) == (alone, alone + 2 * 2 * 16)
    free, x = Width("w", nn.Linear(6, 10), Unweighed(6, 10)).eval(), torch.randn(4, 6)
    trace = executed(PerSample(), free, (x,))[1]
    channels = int(trace.entries["w", ()].value.sum())
    required = PartCosts(free, x).required(trace)
    assert 0 < channels < 40 and required.region == channels * 2 * 6 * 2
    assert PartCosts(free, x).path_depths(trace)[1] == "channels used of 10"
    assert PartCosts(free, x).path_depths(trace)[0].sum() == channels


def test_required_work_is_unavailable_where_a_body_couples_the_items_of_a_sample() -> None:
    net, x = Skip("tokens", Gate(), nn.Linear(4, 4), scope="sample").eval(), torch.randn(5, 4)
    required = PartCosts(net, x).required(executed(Masking(), net, (x,))[1])
    assert isinstance(required.region, Unavailable) and "couples the items of a sample" in required.region.unavailable


def test_probing_leaves_the_mode_of_the_model() -> None:
    net = Tiny().train()
    net.stem.eval()
    PartCosts(net, torch.randn(2, 4))
    assert net.training and net.exits.training and not net.stem.training
