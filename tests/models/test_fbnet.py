"""FBNetV2 and V3: what the tables cost, to the last digit, and what the blocks compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace
from dynbench.models.fbnet import TABLES, InvertedResidual, SqueezeExcite, accounted_macs, fbnet, rounded, rows_of

# model_info_fbnet_v2.json and model_info_fbnet_v3.json of mobile-vision; dmasking_l3: a comment in its definition
PUBLISHED = {
    "fbnetv2_f1": (56_410_560, 5_999_408),
    "fbnetv2_f2": (85_441_392, 5_999_408),
    "fbnetv2_f3": (121_824_000, 6_899_504),
    "fbnetv2_f4": (238_351_984, 6_994_824),
    "fbnetv2_l1": (326_023_008, 8_496_520),
    "fbnetv2_l2": (423_912_768, 8_496_520),
    "dmasking_l3": (750_681_952, 9_402_096),
    "fbnetv3_a": (356_598_280, 8_542_224),
    "fbnetv3_b": (461_550_136, 8_542_224),
    "fbnetv3_c": (556_969_904, 9_907_136),
    "fbnetv3_d": (644_420_352, 10_237_552),
    "fbnetv3_e": (762_046_336, 10_699_464),
    "fbnetv3_f": (1_181_644_520, 13_803_072),
    "fbnetv3_g": (2_129_656_384, 16_513_648),
}
TINY = ["conv3-hs 8/2", "k3-hs 8 e1", "k5-se 16/2 e3", "skip 16", "skip 24", "k3-hs 24 e2.5 x2", "pool-hs 32 e2"]


def test_every_published_network_has_a_table_and_the_others_are_known() -> None:
    assert set(TABLES) - set(PUBLISHED) == {"fbnetv2_f0", "fbnetv3_a0"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_and_weights_are_the_published_ones_to_the_last_digit(name: str) -> None:
    with torch.device("meta"):
        net = fbnet(name)
    weights = sum(m.weight.numel() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert weights == PUBLISHED[name][1]
    macs, rule = accounted_macs(net, Trace(), net.input_shape(()))
    assert macs == PUBLISHED[name][0] and "pooled" in rule


@pytest.mark.parametrize(("channels", "wanted"), [(1, 8), (11.9, 16), (12, 16), (19.9, 24), (20, 24), (84, 88)])
def test_channels_are_rounded_to_eights_and_lose_at_most_5_percent(channels: float, wanted: int) -> None:
    assert rounded(channels) == wanted


def test_a_table_of_one_s_own_is_built_row_by_row() -> None:
    torch.manual_seed(0)
    net = fbnet(rows=TINY, resolution=32, num_classes=5).eval()
    assert net.input_shape((3, 9, 9)) == (3, 32, 32)
    kinds = [type(b).__name__ for b in net.blocks]
    assert kinds == [
        "Sequential",
        *["InvertedResidual"] * 2,
        "Identity",
        "Sequential",
        *["InvertedResidual"] * 2,
        "Pool",
    ]
    x = torch.randn(3, 3, 32, 32)
    shapes = []
    for block in net.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[0] == shapes[1] == (8, 16, 16) and shapes[2] == shapes[3] == (16, 8, 8)
    assert shapes[4] == shapes[5] == shapes[6] == (24, 8, 8) and shapes[7] == (32, 1, 1)


def fold(conv_norm: nn.Module, x: Tensor, **more: Any) -> Tensor:
    """A convolution and batch norm in evaluation mode, by their definitions."""
    conv, norm = conv_norm[0], conv_norm[1]  # type: ignore[index]
    y = F.conv2d(x, conv.weight, None, **more)
    s = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    return (y - norm.running_mean[:, None, None]) * s + norm.bias[:, None, None]


@pytest.mark.parametrize(("less", "hidden"), [(False, 16), (True, 8)])
def test_an_inverted_residual_is_expand_depthwise_excite_project_add(less: bool, hidden: int) -> None:
    torch.manual_seed(1)
    (row,) = [r for r in rows_of(["conv3 8", "k5-se-hs 16 e4", "pool 8"]) if r.kind == "k"]
    block = InvertedResidual(16, row, 1, less)
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            nn.init.normal_(m.weight)
            nn.init.normal_(m.running_mean)
    block.eval()
    expand, _, depth, _, excite, project = block.layers
    assert isinstance(excite, SqueezeExcite) and excite.reduce.out_channels == hidden
    x = torch.randn(2, 16, 9, 9)
    h = F.hardswish(fold(expand, x))
    h = F.hardswish(fold(depth, h, padding=2, groups=64))
    s = excite.expand(F.hardswish(excite.reduce(h.mean((2, 3), keepdim=True))))
    h = h * (F.relu6(s + 3) / 6)
    assert torch.allclose(block(x), x + fold(project, h), atol=1e-5)


def test_a_block_that_leaves_out_padding_has_smaller_maps() -> None:
    (row,) = [r for r in rows_of(["conv3 8", "k5 24/2 e2 p1", "pool 8"]) if r.kind == "k"]
    assert InvertedResidual(16, row, 2, False)(torch.randn(1, 16, 28, 28)).shape == (1, 24, 13, 13)


def test_a_residual_block_begins_as_the_identity() -> None:
    (row,) = [r for r in rows_of(["conv3 8", "k3 16 e2", "pool 8"]) if r.kind == "k"]
    x = torch.randn(1, 16, 5, 5)
    assert torch.equal(InvertedResidual(16, row, 1, False)(x), x)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"name": "fbnetv2_l3"}, "there are FBNets fbnetv2_f0, fbnetv2_f1"),
        ({"rows": ["conv3 8/2", "k4 8", "pool 8"]}, "row 'k4 8'"),
        ({"rows": ["k3 8", "pool 8"]}, "begins with a convolution"),
        ({"rows": ["conv3 8", "pool 8", "k3 8"]}, "ends with its only pool"),
        ({"rows": ["conv3 8", "k3 8"]}, "ends with its only pool"),
    ],
)
def test_a_network_there_is_not_is_refused_with_a_reason(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fbnet(**args)
