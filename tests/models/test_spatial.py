"""Spatially dynamic convolution: a computed patch has the value it has in the plain ResNet, halo and edges included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import BasicBlock, Bottleneck, resnet
from dynbench.models.spatial import (
    MaskUnit,
    SpatialResNet,
    accounted_macs,
    asked_macs,
    decisions,
    dilated,
    pixel_masks,
    spatial_resnet,
)
from dynbench.strategies import Compaction, Masking, PerSample
from tests.models.same_answer import assert_same_answer, decided_both_ways, forced, run


def make(depth: int = 8, granularity: Any = 4, dataset: str = "cifar", size: int = 16) -> SpatialResNet:
    """With statistics in the batch norms (relu of a batch norm of 0 is not 0), and half of all patches chosen."""
    torch.manual_seed(0)
    net = spatial_resnet(depth, granularity, dataset=dataset).train()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)

    def centre(point: Any, scores: Tensor) -> Tensor:
        middle = scores.sort().values[(len(scores) - 1) // 2] + 1e-3
        point.gate.conv.bias -= middle
        return scores > middle

    with torch.no_grad():
        for _ in range(3):
            Execution(Masking()).run(net, images(4, size))
        Execution(Masking(), choose=centre).run(net.eval(), images(2, size))
    return net


def images(n: int = 2, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample", "cascading"])
@pytest.mark.parametrize(("granularity", "size"), [(1, 4), ([4, 3, 1], 8), (16, 8)])
def test_every_strategy_answers_alike(granularity: Any, size: int, strategy: str) -> None:
    net, x = make(granularity=granularity, size=size), images(2, size)
    assert decided_both_ways(run(net, x, "masking")[1])
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("granularity", [2, 16])
def test_an_image_alone_is_answered_as_in_a_batch(granularity: int) -> None:
    net, x = make(granularity=granularity), images(3)
    whole, _ = run(net, x, "masking")
    for i in range(3):
        assert torch.allclose(run(net, x[i : i + 1], "compaction")[0], whole[i : i + 1], rtol=1e-4, atol=1e-4)


def as_the_authors_run_it(net: SpatialResNet, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The published code's way: every pixel of every block, then the mask, spread over patches; logits and masks."""
    x = F.relu(net.bn1(net.conv1(x)))
    found = {}
    for (name, side), b in zip(net.sides.items(), net.blocks(), strict=True):
        assert isinstance(b, (BasicBlock, Bottleneck))
        shortcut = x if b.downsample is None else b.downsample(x)
        h, w = shortcut.shape[2:]
        side, unit = min(side, max(h, w)), net.get_submodule(f"{name}_mask")
        assert isinstance(unit, MaskUnit)
        pooled = F.adaptive_avg_pool2d(x, tuple(k // side for k in x.shape[2:])) if side > 1 else x
        scores = F.conv2d(pooled, unit.conv.weight, unit.conv.bias, unit.conv.stride, padding=1)
        scores = (
            scores + F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), unit.fc.weight, unit.fc.bias)[:, :, None, None]
        )
        mask = F.interpolate((scores > 0).float(), size=(h, w))
        y = F.relu(b.bn1(b.conv1(x)))
        y = b.bn2(b.conv2(y)) if isinstance(b, BasicBlock) else b.bn3(b.conv3(F.relu(b.bn2(b.conv2(y)))))
        x, found[name] = F.relu(shortcut + mask * y), mask
    return net.fc(x.mean((2, 3))), found


@pytest.mark.parametrize("granularity", [1, 2, 4, 16])
def test_it_computes_what_the_authors_code_computes(granularity: int) -> None:
    net, x = make(granularity=granularity), images()
    with torch.no_grad():
        want, masks = as_the_authors_run_it(net, x)
    for strategy in ("masking", "compaction"):
        y, trace = run(net, x, strategy)
        assert torch.allclose(y, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        ours = pixel_masks(net, decisions(trace), (3, 16, 16))
        assert all(torch.equal(ours[name], mask) for name, mask in masks.items())
    assert any(0 < float(m.mean()) < 1 for m in masks.values())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    side=st.integers(1, 11),
    height=st.integers(5, 14),
    width=st.integers(5, 14),
    group=st.integers(0, 2),
    bottleneck=st.booleans(),
)
@torch.inference_mode()
def test_a_patch_computed_from_its_window_has_its_value_on_the_whole_map(
    side: int, height: int, width: int, group: int, bottleneck: bool
) -> None:
    net = BOTTLENECKS if bottleneck else BASIC
    name = f"group{group + 1}_layer0"  # groups after the first: stride 2
    block, patches = net.get_submodule(name), net.patches[list(net.sides).index(name)]
    assert isinstance(block, (BasicBlock, Bottleneck))
    channels = (block.conv1.weight.shape)[1]
    x = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(side))
    base = x if block.downsample is None else block.downsample(x)
    patches.side = side
    want = block(x)
    every_other = forced_masks(patches, base, x)
    for mask, got in every_other:
        assert torch.allclose(F.relu(got), torch.where(mask, want, F.relu(base)), atol=2e-5)


def forced_masks(patches: nn.Module, base: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The answer of compaction with every second patch computed, and with the others; which pixels those are."""
    found = []
    for odd in (False, True):
        seen: list[Tensor] = []

        def choose(point: Any, scores: Tensor, odd: bool = odd, seen: list[Tensor] = seen) -> Tensor:
            seen.append(torch.arange(scores.shape[0]) % 2 == int(odd))
            return seen[-1]

        y = Execution(Compaction(), choose=choose).run(_Pair(patches), base, x)
        height, width = base.shape[2:]
        side = min(int(patches.side), max(height, width))  # type: ignore[arg-type]
        mask = seen[0].view(len(x), 1, -(-height // side), -(-width // side))
        mask = mask.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]
        found.append((mask, y))
    return found


class _Pair(nn.Module):
    def __init__(self, patches: nn.Module) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, base: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.patches(base, x)
        return y


BASIC, BOTTLENECKS = make(), make(50, 4, "imagenet", 32)


def test_bottlenecks_answer_alike_with_patches_that_do_not_divide_the_map() -> None:
    net = BOTTLENECKS
    x = images(2, 36)
    y, trace = run(net, x, "masking")
    z, again = run(net, x, "compaction")
    assert decided_both_ways(trace) and trace == again
    assert torch.allclose(y, z, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


def test_without_masks_it_is_the_plain_resnet() -> None:
    net, x = make(granularity=2), images()
    plain, state = resnet(8).eval(), net.state_dict()
    assert not any(name.startswith("patches") for name in state)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    with torch.inference_mode():
        want = plain(x)
        assert torch.allclose(net(x), want, rtol=1e-4, atol=1e-5)
    everything = dict(forced(net, x))["all"]
    assert torch.allclose(run(net, x, "compaction", everything)[0], want, rtol=1e-4, atol=1e-5)


def executed(net: SpatialResNet, x: Tensor, strategy: Any, kind: str) -> int:
    trace = next(trace for name, trace in forced(net, x) if name == kind)
    counter = FlopCounter()
    with torch.inference_mode(), counter:
        Execution(strategy, replay=trace, profile=counter).run(net, x)
    assert isinstance(counter.flops, int)
    return counter.flops


@pytest.mark.parametrize("side", [3, 4, 16])
def test_a_patch_alone_costs_its_halo_too_and_all_together_what_the_map_costs(side: int) -> None:
    net, x = make(granularity=side), images(1)
    none = executed(net, x, PerSample(), "none")
    alone, together = (executed(net, x, strategy, "all") - none for strategy in (PerSample(), Compaction()))
    with_halo, dense = 0, 0
    for block, size in zip(net.blocks(), (16, 8, 4), strict=True):
        assert isinstance(block, BasicBlock)
        s = min(side, size)
        patches = -(-size // s)  # in a row; the last may reach beyond the edge
        first, second = (size, size) if s == size else (patches * (s + 2), patches * s)  # pixels in a row, in all
        with_halo += 2 * (block.conv1.weight.numel() * first**2 + block.conv2.weight.numel() * second**2)
        dense += 2 * (block.conv1.weight.numel() + block.conv2.weight.numel()) * size * size
    assert (alone, together) == (with_halo, dense)
    assert none == 2 * static_macs(net, (3, 16, 16)) - dense + gates(net, side)


def gates(net: SpatialResNet, side: int) -> int:
    """FLOPs of the mask units, for one image of 16 x 16."""
    total = 0
    for (name, _), size in zip(net.sides.items(), (16, 8, 4), strict=True):
        unit = net.get_submodule(f"{name}_mask")
        assert isinstance(unit, MaskUnit)
        total += 2 * (unit.conv.weight.numel() * (-(-size // min(side, size))) ** 2 + unit.fc.weight.numel())
    return total


def test_dilation_is_where_a_convolution_looks() -> None:
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 1, 2] = 1
    for stride in (1, 2):
        wide = dilated(mask, stride)
        x = torch.zeros(1, 1, 4 * stride, 4 * stride, requires_grad=True)
        y = F.conv2d(x, torch.ones(1, 1, 3, 3), stride=stride, padding=1)
        (y * mask).sum().backward()
        assert x.grad is not None and torch.equal(wide, x.grad)


def test_accounting_counts_positions_the_first_convolution_on_the_dilated_mask() -> None:
    net, x = make(granularity=1), images(2)
    dense = static_macs(net, (3, 16, 16)) - net.fc.weight.numel()
    unit = gates(net, 1) // 2 - sum(net.get_submodule(f"{n}_mask").fc.weight.numel() for n in net.sides)  # type: ignore[union-attr, operator]
    traces = dict(forced(net, x))
    everything, rule = accounted_macs(net, traces["all"], (3, 16, 16))
    assert everything == dense + unit and "dilated" in rule
    branches = sum(d for _, d in asked_macs(net, pixel_masks(net, decisions(traces["all"]), (3, 16, 16))))
    assert accounted_macs(net, traces["none"], (3, 16, 16))[0] == dense + unit - branches
    only = {name: torch.zeros(2 * size * size) for name, size in zip(net.sides, (16, 8, 4), strict=True)}
    only["group1_layer0"][5 * 16 + 5] = 1  # one pixel of the first image, away from the edge
    asked = asked_macs(net, pixel_masks(net, only, (3, 16, 16)))
    kernel = 16 * 16 * 9
    assert [float(a) for a, _ in asked] == [(9 * kernel + kernel) / 2, 0, 0]


def test_masks_learn_through_hard_decisions() -> None:
    torch.manual_seed(0)
    net = spatial_resnet(8, 4).train()
    y = Execution(Masking()).run(net, images(4))
    F.cross_entropy(y, torch.arange(4)).backward()
    units = [p for n, p in net.named_parameters() if "_mask." in n]
    assert units and all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in units)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"granularity": 0}, "side of a patch"),
        ({"granularity": [4, 4]}, "3 groups"),
        ({"granularity": [4, 4, 2.5]}, "side of a patch"),
        ({"depth": 21}, "6n\\+2"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spatial_resnet(**args)
