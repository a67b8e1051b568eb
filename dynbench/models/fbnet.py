"""FBNetV2 and FBNetV3: static networks found by architecture search, strong baselines at their budgets.

Wan, Dai, Zhang, He, Tian, Xie, Wu, Yu, Xu, Chen, Vajda, Gonzalez, "FBNetV2: Differentiable Neural Architecture Search
for Spatial and Channel Dimensions", CVPR 2020 (arXiv 2004.05565); Dai, Wan, Zhang, Wu, He, Wei, Chen, Tian, Yu, Vajda,
Gonzalez, "FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining", CVPR 2021 (arXiv 2006.02049).

They do not depend on the input: no decision points. The searches are in `dynbench.models.dmasking` (FBNetV2) and
`dynbench.training.predictor` (the idea of FBNetV3).

The tables hold the facts of the authors' model definitions (facebookresearch/mobile-vision,
`fbnet_modeldef_cls_fbnetv2.py`, `_fbnetv3.py` and, from its history, `_dmasking.py`); all code here is ours. Three
different sets of networks are called "FBNetV2 L": those of the model definitions (`fbnetv2_l1`, `fbnetv2_l2`), larger
ones of which only the cost was published (1085 to 4672 million MACs), and the networks as first released, `dmasking_*`,
of which `dmasking_l3` is here: it has no counterpart among the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace
from dynbench.models.accounting import static_macs

PAPER = "Wan et al., FBNetV2, CVPR 2020; Dai et al., FBNetV3, CVPR 2021"
PROVENANCE = "tables of the authors' model definitions; blocks as those describe them; no weights"

DIVISOR = 8  # of all channel counts

# One row per block, or for REPEATS blocks of which only the first has the stride:
#   kind out[/stride] [eEXPANSION] [xREPEATS] [pPADDING]
# kind: convK, a convolution; kK, an inverted residual with a KxK depthwise convolution; skip; pool, the last block.
# se: squeeze-and-excitation; hs: hard-swish, else ReLU. p: padding of the depthwise convolution if it is not K // 2.

_F1_TO_F3 = """
conv3-hs   8/2
k5         8    e1
k5        24/2  e5.4566
k5        24    e4.7912
k5-se     32/2  e5.3501
k5-se     24    e4.5379
k5-hs     56/2  e5.7133
k3-hs     56    e4.1212
k3-se-hs  56    e5.1246
skip      80
k5-se-hs  80    e4.5070
k5-se-hs  80    e1.7712
k3-se-hs 144/2  e4.5685
k5-se-hs 144    e5.84
k5-se-hs 144    e6.8754
skip     224
"""

_L1_L2 = """
conv3-hs  16/2
k3-hs     16    e1
k5-hs     24/2  e5.4566
k5-hs     24    e1.7912
k3-hs     24    e1.7912
k5-hs     24    e1.7912
k5-se-hs  40/2  e5.3501
k5-se-hs  32    e3.5379
k5-se-hs  32    e4.5379 x2
k5-hs     64/2  e5.7133
k3-hs     64    e2.1212
skip      64
k3-hs     64    e3.1246
k3-hs    112    e5.0333
k5-se-hs 112    e2.507
k5-se-hs 112    e1.7712
k5-se-hs 112    e2.7712
k5-se-hs 112    e3.7712 x2
k3-se-hs 184/2  e5.5685
k5-se-hs 184    e2.84   x2
k5-se-hs 184    e4.8754 x2
skip     224
pool-hs 1984    e6
"""

_V3_A_B = """
conv3-hs  16/2
k3-hs     16    e1 x2
k5-hs     24/2  e4
k5-hs     24    e2 x3
k5-se-hs  40/2  e5
k5-se-hs  40    e3 x4
k5-hs     72/2  e5 p1
k3-hs     72    e3 x4
k3-se-hs 120    e5
k5-se-hs 120    e3 x5
k3-se-hs 184/2  e6 p0
k5-se-hs 184    e4 x5
k5-se-hs 224    e6
pool-hs 1984    e6
"""

# name: (resolution, rows)
TABLES: dict[str, tuple[int, str]] = {
    "fbnetv2_f0": (
        224,
        """
conv3-hs   8/2
k5-hs      8    e1
k5-hs     16/2  e4
k5-hs     16    e3
k5-se     24/2  e4
k5-se     24    e3
k5-se-hs  48/2  e4
k3-se-hs  48    e3
k5-se-hs  64    e3
k5-se-hs  64    e2
k3-se-hs 128/2  e3
k5-se-hs 160    e3
skip     192
pool-hs 1280    e4
""",
    ),
    "fbnetv2_f1": (128, _F1_TO_F3 + "pool-hs 1600 e6"),
    "fbnetv2_f2": (160, _F1_TO_F3 + "pool-hs 1600 e6"),
    "fbnetv2_f3": (192, _F1_TO_F3 + "pool-hs 1984 e6"),
    "fbnetv2_f4": (
        224,
        """
conv3-hs  16/2
k3-hs     16    e1
k5-hs     24/2  e5.4566
k5-hs     24    e1.7912 x2
k5-se     32/2  e5.3501
k5-se     32    e3.5379
k5-se     32    e4.5379 x2
k5-hs     64/2  e5.7133
k3-hs     64    e2.1212
skip      64
k3-hs    104    e5.0333
k5-se-hs 104    e2.507
k5-se-hs 104    e1.7712
k5-se-hs 112    e3.7712
k3-se-hs 184/2  e5.5685
k5-se-hs 184    e2.84
k5-se-hs 184    e4.8754
skip     224
pool-hs 1984    e6
""",
    ),
    "fbnetv2_l1": (224, _L1_L2),
    "fbnetv2_l2": (256, _L1_L2),
    "dmasking_l3": (
        288,
        """
conv3-hs  24/2
k3        24    e1
k5        32/2  e5.4566
k5        32    e1.7912
k3        32    e1.7912
k5        32    e1.7912
k5-se     48/2  e5.3501
k5-se     40    e3.5379
k5-se     40    e4.5379 x2
k5-hs     72/2  e5.7133
k3-hs     72    e2.1212
skip      72
k3-hs     72    e3.1246
k3-hs    120    e5.0333
k5-se-hs 120    e2.507
k5-se-hs 120    e1.7712
k5-se-hs 120    e2.7712
k5-se-hs 120    e3.7712 x3
k3-se-hs 192/2  e5.5685
k5-se-hs 192    e2.84   x2
k5-se-hs 192    e4.8754 x2
skip     240
pool-hs 1984    e6
""",
    ),
    "fbnetv3_a0": (
        224,
        """
conv3-hs  12/2
k3-hs     12    e1
k3-hs     24/2  e4
k3-hs     24    e2 x2
k3-se-hs  40/2  e4
k3-se-hs  40    e2 x2
k5-hs     72/2  e4
k3-hs     72    e3 x2
k3-se-hs 104    e4
k5-se-hs 104    e3 x3
k3-se-hs 176/2  e4
k3-se-hs 176    e4 x3
k3-se-hs 208    e5
pool-hs 1984    e5
""",
    ),
    "fbnetv3_a": (224, _V3_A_B),
    "fbnetv3_b": (248, _V3_A_B),
    "fbnetv3_c": (
        248,
        """
conv3-hs  16/2
k3-hs     16    e1 x2
k5-hs     24/2  e5
k3-hs     24    e3 x4
k5-se-hs  48/2  e5
k5-se-hs  48    e2 x4
k5-hs     88/2  e4 p1
k3-hs     88    e3 x4
k3-se-hs 120    e4
k5-se-hs 120    e3 x5
k5-se-hs 216/2  e5 p1
k5-se-hs 216    e5 x5
k5-se-hs 216    e6
pool-hs 1984    e6
""",
    ),
    "fbnetv3_d": (
        248,
        """
conv3-hs  24/2
k3-hs     16    e1 x2
k3-hs     24/2  e5
k3-hs     24    e2 x5
k5-se-hs  40/2  e4
k3-se-hs  40    e3 x4
k3-hs     72/2  e5
k3-hs     72    e3 x4
k3-se-hs 128    e5
k5-se-hs 128    e3 x6
k3-se-hs 208/2  e6
k5-se-hs 208    e5 x5
k5-se-hs 240    e6
pool-hs 1984    e6
""",
    ),
    "fbnetv3_e": (
        264,
        """
conv3-hs  24/2
k3-hs     16    e1 x3
k5-hs     24/2  e4
k5-hs     24    e2 x4
k5-se-hs  48/2  e4
k5-se-hs  48    e3 x4
k5-hs     80/2  e5 p1
k3-hs     80    e3 x4
k3-se-hs 128    e5
k5-se-hs 128    e3 x7
k3-se-hs 216/2  e6
k5-se-hs 216    e5 x5
k5-se-hs 240    e6
pool-hs 1984    e6
""",
    ),
    "fbnetv3_f": (
        272,
        """
conv3-hs  24/2
k3-hs     24    e1 x3
k5-hs     32/2  e4
k5-hs     32    e2 x4
k5-se-hs  56/2  e4
k5-se-hs  56    e3 x4
k5-hs     88/2  e5
k3-hs     88    e3 x4
k3-se-hs 144    e5
k5-se-hs 144    e3 x8
k3-se-hs 248/2  e6 p0
k5-se-hs 248    e5 x6
k5-se-hs 272    e6
pool-hs 1984    e6
""",
    ),
    "fbnetv3_g": (
        320,
        """
conv3-hs  32/2
k3-hs     24    e1 x3
k5-hs     40/2  e4
k5-hs     40    e2 x4
k5-se-hs  56/2  e4
k5-se-hs  56    e3 x4
k5-hs    104/2  e5
k3-hs    104    e3 x4
k3-se-hs 160    e5
k5-se-hs 160    e3 x8
k3-se-hs 264/2  e6
k5-se-hs 264    e5 x6
k5-se-hs 288    e6 x2
pool-hs 1984    e6
""",
    ),
}

_ROW = re.compile(
    r"(?P<kind>conv[13579]|k[13579]|skip|pool)(?P<se>-se)?(?P<hs>-hs)?\s+(?P<out>[1-9]\d*)(/(?P<stride>[12]))?"
    r"(\s+e(?P<e>\d+(\.\d+)?))?(\s+x(?P<x>[1-9]\d*))?(\s+p(?P<p>\d))?"
)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        kind: 'conv', 'k' (inverted residual), 'skip' or 'pool'.
        outputs: channels.
        kernel: of the convolution, in an inverted residual of the depthwise one; 1 elsewhere.
        stride: of the first block.
        expansion: inner channels of an inverted residual or of the pool, relative to its input.
        repeats: blocks.
        padding: of the convolution.
        excite: squeeze-and-excitation.
        hard_swish: else ReLU.
    """

    kind: str
    outputs: int
    kernel: int = 1
    stride: int = 1
    expansion: float = 1.0
    repeats: int = 1
    padding: int = 0
    excite: bool = False
    hard_swish: bool = False


def rows_of(table: str | Sequence[str]) -> list[Row]:
    """Parses a table.

    Args:
        table: rows, as lines of one text or as a list.

    Raises:
        ValueError: a row that cannot be read, or a table whose first and last rows are not a convolution and the pool.
    """
    lines = [line.strip() for line in (table.splitlines() if isinstance(table, str) else table) if line.strip()]
    rows = [_row(line) for line in lines]
    kinds = [row.kind for row in rows]
    if kinds[:1] != ["conv"] or kinds.count("pool") != 1 or kinds[-1] != "pool":
        raise ValueError("a table of an FBNet begins with a convolution and ends with its only pool")
    return rows


def _row(line: str) -> Row:
    found = _ROW.fullmatch(line)
    if found is None:
        raise ValueError(
            f"row {line!r} of an FBNet: give 'kind out[/stride] [eEXPANSION] [xREPEATS] [pPADDING]', such as "
            "'k5-se-hs 40/2 e5 x4'"
        )
    kind = found["kind"].rstrip("0123456789")
    kernel = int(found["kind"][len(kind) :] or 1)
    return Row(
        kind,
        int(found["out"]),
        kernel,
        int(found["stride"] or 1),
        float(found["e"] or 1),
        int(found["x"] or 1),
        kernel // 2 if found["p"] is None else int(found["p"]),
        found["se"] is not None,
        found["hs"] is not None,
    )


def rounded(channels: float) -> int:
    """Rounds to a multiple of 8; up if rounding down loses more than 5 %."""
    near = max(DIVISOR, math.floor(channels / DIVISOR + 0.5) * DIVISOR)
    return near + DIVISOR if near < 0.95 * channels else near


def activation(hard_swish: bool) -> nn.Module:
    """Hard-swish, or ReLU."""
    return nn.Hardswish(inplace=True) if hard_swish else nn.ReLU(inplace=True)


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias, and batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class GlobalPool(nn.Module):
    """Mean over the map."""

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> [n, C, 1, 1]."""
        return x.mean((2, 3), keepdim=True)


class SqueezeExcite(nn.Module):
    """x * hard_sigmoid(W2 act(W1 pool(x))).

    Args:
        channels: C.
        hidden: between W1 and W2.
        hard_swish: act; else ReLU.
    """

    def __init__(self, channels: int, hidden: int, hard_swish: bool) -> None:
        super().__init__()
        self.pool = GlobalPool()
        self.reduce, self.act = nn.Conv2d(channels, hidden, 1), activation(hard_swish)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> the same shape."""
        return x * F.hardsigmoid(self.expand(self.act(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """1x1 to mid, depthwise KxK, squeeze-and-excitation, 1x1 without activation; + x if the shape allows it.

    Args:
        inputs: channels of x.
        row: the other sizes.
        stride: of this block.
        less_excite: the hidden width of squeeze-and-excitation is mid / 4 / expansion (FBNetV3), not mid / 4.
    """

    def __init__(self, inputs: int, row: Row, stride: int, less_excite: bool) -> None:
        super().__init__()
        mid = rounded(inputs * row.expansion)
        layers: list[nn.Module] = []
        if mid != inputs:
            layers += [conv_norm(inputs, mid), activation(row.hard_swish)]
        layers += [conv_norm(mid, mid, row.kernel, stride, row.padding, groups=mid), activation(row.hard_swish)]
        if row.excite:
            hidden = rounded(int(mid * 0.25 / (row.expansion if less_excite else 1)))
            layers.append(SqueezeExcite(mid, hidden, row.hard_swish))
        self.layers = nn.Sequential(*layers, conv_norm(mid, row.outputs))
        self.residual = stride == 1 and inputs == row.outputs
        if self.residual:  # initially the identity
            *_, norm = self.layers.modules()
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs, H, W] -> y [n, outputs, H / stride, W / stride], or smaller with less padding."""
        y = self.layers(x)
        return x + y if self.residual else y


class Pool(nn.Module):
    """The last block: 1x1 to mid with batch norm, global average pool, 1x1 to the features without batch norm.

    Args:
        inputs: channels of x.
        row: the other sizes.
    """

    def __init__(self, inputs: int, row: Row) -> None:
        super().__init__()
        mid = rounded(inputs * row.expansion)
        self.widen, self.act = conv_norm(inputs, mid), activation(row.hard_swish)
        self.pool, self.features = GlobalPool(), nn.Conv2d(mid, row.outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, inputs, H, W] -> features [n, outputs, 1, 1]."""
        return self.act(self.features(self.pool(self.act(self.widen(x)))))


class FBNet(nn.Module):
    """The network of a table, and one linear layer.

    Args:
        rows: of the table.
        resolution: intended side of the images; others work.
        num_classes: outputs.
        less_excite: see `InvertedResidual`.
    """

    def __init__(self, rows: Sequence[Row], resolution: int, num_classes: int, less_excite: bool) -> None:
        super().__init__()
        self.resolution = resolution
        blocks: list[nn.Module] = []
        channels = 3
        for row in rows:
            for i in range(row.repeats):
                blocks.append(_block(channels, row, row.stride if i == 0 else 1, less_excite))
                channels = row.outputs
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(channels, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3, H, W]."""
        return 3, self.resolution, self.resolution

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, num_classes]."""
        return self.fc(self.blocks(x).flatten(1))


def accounted_macs(model: FBNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the authors' model files count: also one for each value that enters a global average pool."""
    pooled = [model.fc.in_features]  # the features are pooled again after the last block

    def note(_: nn.Module, x: tuple[Tensor, ...]) -> None:
        pooled.append(x[0][0].numel())

    pools = (m for m in model.modules() if isinstance(m, GlobalPool))
    hooks = [m.register_forward_pre_hook(note) for m in pools]
    try:
        macs = static_macs(model, shape)
    finally:
        for hook in hooks:
            hook.remove()
    return float(macs + sum(pooled)), "convolutions and linear layers, and one for each value that is pooled"


def _block(inputs: int, row: Row, stride: int, less_excite: bool) -> nn.Module:
    if row.kind == "k":
        return InvertedResidual(inputs, row, stride, less_excite)
    if row.kind == "pool":
        return Pool(inputs, row)
    if row.kind == "skip" and inputs == row.outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(conv_norm(inputs, row.outputs, row.kernel, stride, row.padding), activation(row.hard_swish))


def fbnet(
    name: str = "fbnetv2_f1", num_classes: int = 1000, resolution: int | None = None, rows: Sequence[str] | None = None
) -> FBNet:
    """An FBNet.

    Args:
        name: of the table; `fbnetv2_f1` to `_f4`, `_l1`, `_l2`, `fbnetv3_a` to `_g`, and some that were never published
            with weights (`fbnetv2_f0`, `fbnetv3_a0`) or were withdrawn (`dmasking_l3`).
        num_classes: outputs.
        resolution: intended side of the images; default: the table's.
        rows: another table in place of the named one, in the same format; other differences between V2 and V3 still
            follow `name`.

    Raises:
        ValueError: there is no such table, or a row cannot be parsed.
    """
    if name not in TABLES:
        raise ValueError(f"name={name!r}: there are FBNets {', '.join(TABLES)}")
    side, table = TABLES[name]
    return FBNet(rows_of(table if rows is None else rows), resolution or side, num_classes, name.startswith("fbnetv3"))
