"""What the cost model is made of, from walks of real networks: what decisions call, and what lies between regions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynbench import devices
from dynbench.analysis.cost_model import outside_us, products_us
from dynbench.analysis.pooling import pooled
from dynbench.experiment import Options
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.scaling import WatchedWalks, _counted, _outermost, scaling_of
from dynbench.experiment.spec import load_spec
from dynbench.experiment.walks import Walks, decided_group
from dynbench.meters.graph_record import BETWEEN
from dynbench.store.scaling import Network, Part
from dynbench.store.walks import Walked

TINY = Path(__file__).parent / "tiny"


@torch.inference_mode()
def walked(p: Prepared) -> Walked:
    """The first group that the fit sees, two rounds of it."""
    group = decided_group(p)
    assert group is not None
    walks = Walks(p, *group, [], devices.device("cpu"))
    for _ in range(2):
        walks.before("an arm", 0, 1)
    return walks.found(p.spec.name, "a group", {})


@pytest.fixture(scope="module")
def slimmable() -> tuple[Prepared, Walked]:
    p = prepare(load_spec("slimmable_digits"), Options(batch_sizes=[1, 4]))
    return p, walked(p)


def test_an_arm_that_computes_what_was_decided_is_told_from_one_that_computes_all() -> None:
    p = prepare(load_spec(str(TINY / "tiny.toml")), Options(batch_sizes=[1, 4]))
    found = scaling_of(p, [walked(p)])
    decided = {u.arm.strategy: u.decided for u in found.usages if u.arm.without is None}
    assert decided == {
        "dense": False, "masking": False, "compaction": True, "cascading": True, "per_sample": True
    }  # fmt: skip
    assert found.fixed == ["stem"] and found.between_decided is None
    ours = {network.decided for network in found.networks if network.baseline is None}
    assert ours == {False, True}
    names = [{part.name for part in n.parts} - {BETWEEN} for n in found.networks if n.baseline is None]
    assert names[0] == names[1]  # a body that no decision calls has the time of all items


def test_sliced_weights_are_products_between_regions_and_only_where_they_were_decided(
    slimmable: tuple[Prepared, Walked],
) -> None:
    found = scaling_of(slimmable[0], [slimmable[1]])
    flops = {(u.arm.strategy, u.batch_size): u.flops for u in found.usages if u.arm.without is None}
    assert flops["masking", 4] == flops["dense", 4] == 0 < flops["compaction", 4]
    assert all(u.products > 0 for u in found.usages if u.flops)


def test_what_a_flop_takes_fills_what_walks_with_decisions_take_between_regions(
    slimmable: tuple[Prepared, Walked],
) -> None:
    p, one = slimmable
    found, common = scaling_of(p, [one]), pooled([one])
    with torch.inference_mode():
        walks = WatchedWalks.of(p, common)
    decided = next(n for n in common.networks if n.decided)
    part = next(part for part in decided.parts if part.name == BETWEEN)
    filled = 0
    for n, us in zip(part.sizes, part.us, strict=True):
        watched = walks.decided[n]
        calls = sum(sizes.total() for sizes in watched.calls.values())
        rest = sum(outside_us(_counted(watched), calls, found.constants, between=found.between_decided).values())
        if us > rest:
            products = products_us(watched.outside.flops, watched.outside.operators, found.rate)
            assert rest + products == pytest.approx(us, rel=1e-6)
            filled += 1
    assert filled


def part(name: str, us: float) -> Part:
    return Part(name=name, sizes=[1], us=[us], low_us=[us], high_us=[us])


def test_a_region_inside_another_is_no_part_of_the_host_and_a_part_of_the_other_in_a_graph() -> None:
    parts = [part("stage", 30.0), part("network", 29.0), part("head", 1.0), part(BETWEEN, 5.0)]
    host = _outermost(Network(parts=parts), {"network": "stage"})
    assert [p.name for p in host] == ["stage", "head"]  # what lies between was taken with both
    graph = Network(engine="onnxruntime", control="graph", parts=parts[1:])
    assert {p.name: p.us for p in _outermost(graph, {"network": "stage"})} == {
        "stage": [29.0], "head": [1.0], BETWEEN: [5.0]
    }  # fmt: skip
