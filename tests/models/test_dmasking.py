"""DMaskingNAS: masks, subsampling, effective shapes, and the widths that were found run by every strategy."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Execution, Trace, Width, points
from dynbench.meters.required import PartCosts
from dynbench.models.accounting import static_macs
from dynbench.models.dmasking import (
    IMAGE,
    Architecture,
    Bottleneck,
    DMasking,
    Found,
    Plain,
    Space,
    Supernet,
    accounted_macs,
    build,
    dmasking,
    macs,
    params,
    plain,
    spread,
    subsample,
)
from dynbench.strategies import STRATEGIES, Masking
from tests.models.same_answer import assert_same_answer, forced, run

OPTIONS = ((4, 8, 12), (8, 16, 20))
SPACE = Space((16, 24, 32), ((4, 8), (4, 8), (8, 16)), OPTIONS, 2)
SMALL: dict[str, Any] = {"resolution": 16, "channels": (4, 8, 8), "options": OPTIONS}
MINE = (8, 4, 16, 20)
SHAPE = (3, IMAGE, IMAGE)


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with statistics and weights of their own, so that their order in a block shows."""
    torch.manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            for t, low, high in ((m.weight, 0.5, 1.5), (m.bias, -0.5, 0.5)):
                nn.init.uniform_(t, low, high)
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return net.eval()


def make(widths: tuple[int, ...] | None = MINE) -> nn.Module:
    return stirred(dmasking(**SMALL, widths=widths))


def images(n: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(seed))


def one_hot(space: Space, a: Architecture) -> dict[str, Tensor]:
    return {
        name: F.one_hot(torch.tensor(k), len(options)).float()
        for (name, options), k in zip(space.questions(), space.picked(a), strict=True)
    }


# --- what is searched -------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40))
def test_what_was_spread_is_found_again_by_subsampling_and_the_rest_is_zero(small: int, extra: int) -> None:
    y = torch.rand(1, 2, small, small) + 1
    wide = spread(y, small + extra)
    assert torch.equal(subsample(wide, small), y)
    assert int((wide != 0).sum()) == y.numel()


def test_subsampling_takes_the_nearest_pixel_above_and_to_the_left() -> None:
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    assert subsample(x, 4)[0, 0, 0].tolist() == [0, 2, 4, 6] and subsample(x, 6)[0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6]
    assert subsample(x, 8) is x


@pytest.mark.parametrize("seed", range(4))
def test_with_one_option_each_the_supernet_is_the_network_of_those_options(seed: int) -> None:
    a = SPACE.random(random.Random(seed))
    mother = stirred(Supernet(SPACE), seed)
    assert isinstance(mother, Supernet)
    net = build(SPACE, a).eval()
    _inherit(net, mother, a)
    x = images(3)
    said, cost = mother(x, one_hot(SPACE, a))
    assert torch.allclose(said, net(x), atol=2e-5)
    assert float(cost) == macs(SPACE, a) == static_macs(net, SHAPE)
    assert params(SPACE, a) == sum(p.numel() for p in net.parameters())


def _inherit(net: Plain, mother: Supernet, a: Architecture) -> None:
    """The first channels of every layer."""
    own, all_of = net.state_dict(), mother.state_dict()
    for name, value in own.items():
        part = all_of[name]
        for dim, size in enumerate(value.shape):
            part = part.narrow(dim, 0, size)
        value.copy_(part)


def test_of_mixed_options_masks_add_up_by_their_weights() -> None:
    space = Space((32,), ((4,), (4,)), ((4, 8),), 1)
    mother = stirred(Supernet(space))
    assert isinstance(mother, Supernet)
    g = {name: torch.ones(len(o)) for name, o in space.questions()}
    g["width1_0"] = torch.tensor([0.3, 0.7])
    x = images(2)
    (block,) = mother.blocks
    assert isinstance(block, Bottleneck)
    h = block.inner(mother.stem(x)) * torch.tensor([1.0] * 4 + [0.7] * 4)[:, None, None]
    said, cost = mother(x, g)
    assert torch.allclose(said, mother.fc(block.outer(h).mean((2, 3))), atol=1e-5)
    width = 0.3 * 4 + 0.7 * 8  # 1x1, depthwise, 1x1 on 16 x 16
    assert float(cost) == pytest.approx(27 * 4 * 256 + (4 * width + 9 * width + width * 4) * 256 + 4 * 10)


def test_the_effective_shape_is_carried_from_layer_to_layer_and_has_a_gradient() -> None:
    mother = Supernet(SPACE)
    g = {name: p.detach().requires_grad_() for name, p in mother.chances().items()}
    _, cost = mother(images(2), g)
    cost.backward()
    a, slightly = SPACE.largest, 1e-3
    for name, p in g.items():
        assert p.grad is not None and bool((p.grad.diff() > 0).all()), name  # a larger option costs more
    with torch.no_grad():
        more = {k: v.clone() for k, v in g.items()}
        more["channels1"][-1] += slightly
        _, after = mother(images(2), more)
    grad = g["channels1"].grad
    assert grad is not None
    assert float(after - cost.detach()) == pytest.approx(slightly * float(grad[-1]), rel=0.02)
    assert a.channels == (8, 8, 16)


def test_weights_of_options_are_gumbel_softmax_and_cold_ones_are_nearly_one_hot() -> None:
    torch.manual_seed(3)
    mother = Supernet(SPACE)
    with torch.no_grad():
        mother.alpha["resolution"].copy_(torch.tensor([0.0, 0.2, 0.0]))
    mother.temperature = 0.05
    draws = torch.stack([mother.sample()["resolution"] for _ in range(400)])
    assert torch.allclose(draws.sum(1), torch.ones(400), atol=1e-5)
    assert float((draws.amax(1) > 0.95).float().mean()) > 0.8
    assert torch.allclose(draws.mean(0), mother.chances()["resolution"], atol=0.1)
    assert mother.sample()["resolution"].requires_grad and not mother.sample(learning=False)["resolution"].requires_grad


def test_what_is_found_is_the_likeliest_option_of_each_question() -> None:
    mother, a = Supernet(SPACE), SPACE.random(random.Random(7))
    with torch.no_grad():
        for name, g in one_hot(SPACE, a).items():
            mother.alpha[name].copy_(g)
    assert mother.found() == a


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"widths": ((4, 4), (8,))}, "ascending"),
        ({"channels": ((4,), (4,))}, "one list for the stem and for each stage"),
        ({"resolutions": (20, 64)}, "resolution 64"),
        ({"resolutions": (18,)}, "resolution 18"),
        ({"blocks": 0}, "at least one stage and one block"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space(**{"resolutions": (16,), "channels": ((4,), (4,), (8,)), "widths": OPTIONS, "blocks": 1, **args})


# --- what is found, run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("strategy", ["masking", "compaction", "batch_union", "specialised", "cascading"])
def test_every_strategy_answers_as_per_sample(strategy: str, n: int) -> None:
    assert_same_answer(make(), images(n), strategy)


@pytest.mark.parametrize("strategy", ["masking", "compaction", "batch_union", "specialised", "per_sample"])
def test_the_widths_that_were_found_answer_as_the_network_of_just_these_channels(strategy: str) -> None:
    net, x = make(), images()
    alone = sliced(net, MINE)
    got, trace = run(net, x, strategy)
    assert torch.allclose(got, alone(x), atol=1e-5)
    assert [int(e.value[0].sum()) for e in trace.entries.values()] == list(MINE)
    assert all(bool((e.value == e.value[:1]).all()) for e in trace.entries.values())


def sliced(net: nn.Module, widths: tuple[int, ...]) -> Plain:
    """`plain` with the first channels of the masked network's blocks."""
    alone = plain(SMALL["resolution"], SMALL["channels"], widths).eval()
    state = {name.replace(".layer.", "."): value for name, value in net.state_dict().items()}
    for name, value in alone.state_dict().items():
        part = state[name]
        for dim, size in enumerate(value.shape):
            part = part.narrow(dim, 0, size)
        value.copy_(part)
    return alone


def test_outside_any_execution_a_block_has_its_full_width() -> None:
    net, x = make(), images()
    assert torch.allclose(net(x), sliced(net, (12, 12, 20, 20))(x), atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 20), st.sampled_from((1, 2)), st.integers(0, 2**20))
def test_a_block_sliced_by_any_mask_is_the_block_masked(kept: int, stride: int, seed: int) -> None:
    torch.manual_seed(seed)
    block = stirred(Bottleneck(5, 20, 7, stride), seed)
    assert isinstance(block, Bottleneck)
    x, mask = torch.randn(3, 5, 9, 9), torch.rand(20).argsort() < kept
    inner = torch.rand(3, kept) < 0.5
    kept = torch.zeros(3, 20, dtype=torch.bool)
    kept[:, mask] = inner
    with torch.no_grad():
        assert torch.allclose(block.special(mask)(x), block(x, mask.expand(3, -1)), atol=1e-4)
        assert torch.allclose(block.special(mask)(x, inner), block(x, kept), atol=1e-4)


def test_nothing_leaks_from_a_channel_that_is_masked() -> None:
    net = make()
    point = points(net)["stage1_block0"]
    assert isinstance(point, Width)
    with torch.no_grad():
        assert isinstance(point.layer, Bottleneck)
        point.layer.depth_norm.bias[MINE[0] :] = float("inf")
    assert bool(torch.isfinite(run(net, images(), "masking")[0]).all())


def test_the_gate_does_not_look_at_the_input_and_what_it_found_is_part_of_the_weights() -> None:
    gate = Found((4, 8, 12))
    assert (gate(torch.zeros(2, 3)) > 0).sum(1).tolist() == [4, 4]
    net, other = make(), make(None)
    gates = [p.choose for p in points(other).values() if isinstance(p, Width)]
    assert [int((gate(torch.ones(1, 1)) > 0).sum()) for gate in gates] == [4, 4, 8, 8]
    other.load_state_dict(net.state_dict())
    x = images()
    assert torch.equal(run(other, x, "masking")[0], run(net, x, "masking")[0])


def test_required_work_is_what_per_sample_executes_and_that_of_the_network_found() -> None:
    net, x = make(), images(4)
    alone = static_macs(plain(SMALL["resolution"], SMALL["channels"], MINE), SHAPE)
    _, trace = run(net, x, "per_sample")
    required = PartCosts(net, x).required(trace)
    assert required.region == required.total == 2 * alone * 4
    for kind, forced_trace in forced(net, x):
        assert PartCosts(net, x).required(forced_trace).total == _executed(net, x, forced_trace), kind


def test_accounted_is_the_network_of_the_widths_that_were_decided() -> None:
    net, x = make(), images(4)
    assert isinstance(net, DMasking)
    _, trace = run(net, x, "per_sample")
    alone = plain(SMALL["resolution"], SMALL["channels"], MINE)
    macs_, rule = accounted_macs(net, trace, SHAPE)
    assert macs_ == static_macs(alone, SHAPE) == accounted_macs(alone, Trace(), SHAPE)[0] and "just these" in rule
    for _, forced_trace in forced(net, x):
        executed = _executed(net, x, forced_trace) / 2 / len(x)
        assert accounted_macs(net, forced_trace, SHAPE)[0] == pytest.approx(executed)


def _executed(net: nn.Module, x: Tensor, trace: Trace) -> float:
    from dynbench.counting.flops import FlopCounter

    with torch.inference_mode(), FlopCounter() as counter:
        Execution(STRATEGIES["per_sample"](), replay=trace).run(net, x)
    return float(sum(counter.by_part.values()))


def test_masking_trains_it() -> None:
    net = make().train()
    Execution(Masking()).run(net, images()).sum().backward()
    block = net.get_submodule("blocks.3.layer")
    assert isinstance(block, Bottleneck) and block.project.weight.grad is not None
    assert float(block.project.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"widths": (8, 4, 16)}, "give 4 whole numbers"),
        ({"widths": (8, 4, 16, 17)}, "stage2_block1: width 17 is none of 8, 16, 20"),
        ({"options": ((8, 4), (8,))}, "ascending"),
        ({"resolution": 30}, "resolution 30"),
    ],
)
def test_a_network_there_is_not_is_refused_with_a_reason(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dmasking(**{**SMALL, **args})
    if set(args) == {"widths"} and len(args["widths"]) == 3:
        with pytest.raises(ValueError, match=message):
            plain(16, (4, 8, 8), args["widths"])
