"""MSDNet: a grid of scales and layers; classifiers read the coarsest scale, and an input may leave at each of them.

Huang, Chen, Li, Wu, van der Maaten, Weinberger, "Multi-Scale Dense Networks for Resource Efficient Image
Classification", ICLR 2018 (arXiv 1703.09844). Details are those of kalviny/MSDNet-PyTorch, settings also those of
gaohuang/MSDNet (Lua).

On the published costs:

- In the authors' code no input leaves early: the logits of all exits are computed first, and which inputs would have
  left is determined afterwards (adaptive_inference.py). No code path stops early, and no time is measured.
- Their counter (op_counter.py) adds to the multiply-adds one operation for each value that a ReLU or an average pooling
  reads, and for each bias of a classifier. For 'cifar100_7_lin_grow' on 32 x 32 images it gives 6.860, 14.350, 27.291,
  48.449, 76.433, 108.851 and 137.281 million; here only multiply-adds are counted, 0.5 to 1 % fewer.
- The cost of an exit is that of all layers so far, at every scale. A classifier needs only a part of them: the coarsest
  scale of the layer it reads, the two coarsest of the layer before, and so on. With `lazy=True` the other cells are
  computed later, for the inputs that stay; answers are the same, and inputs that leave cost less than published.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynbench.dynamic import Exits, Trace
from dynbench.models.accounting import mean_over_exits, static_macs
from dynbench.models.idk import Policy
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification, ICLR 2018"
PROVENANCE = "authors' code for the layers; leaving early, and computing only what an exit needs, are made real here"

State = dict[str, Tensor]  # cell -> its output [n, C, H, W]; "x": the input
NEVER = 2.0  # a threshold above every confidence: no exit


@dataclass(frozen=True)
class Setting:
    """The flags of the authors' code.

    Attributes:
        blocks: number of blocks, and of classifiers.
        mode: 'even': `base` layers in the first block, then `step` in each; 'lin_grow': `base`, then step * i + 1 in
            block i.
        base: layers of the first block.
        step: see `mode`.
        channels: of the finest scale after the first layer, before its growth factor.
        growth: channels that a layer adds, before the scale's growth factor.
        growth_factors: one per scale, from fine to coarse.
        bottleneck_factors: one per scale: a 1x1 convolution has at most this many times the channels of the convolution
            it feeds; 0: no 1x1 convolution.
        scales: S.
        reduction: share of the channels that a transition keeps; 0: no transitions.
        prune: 'max': S equal parts, each with one scale less than the part before, and a transition between parts;
            'min': fine scales end where no classifier can need them, with transitions at one and two thirds.
        dataset: 'cifar' or 'imagenet': stem and classifiers.
        num_classes: outputs.
    """

    blocks: int = 7
    mode: Literal["even", "lin_grow"] = "even"
    base: int = 4
    step: int = 2
    channels: int = 16
    growth: int = 6
    growth_factors: tuple[int, ...] = (1, 2, 4)
    bottleneck_factors: tuple[int, ...] = (1, 2, 4)
    scales: int = 3
    reduction: float = 0.5
    prune: Literal["max", "min"] = "max"
    dataset: Literal["cifar", "imagenet"] = "cifar"
    num_classes: int = 100

    def __post_init__(self) -> None:
        for name, accepted in (
            ("mode", ("even", "lin_grow")),
            ("prune", ("max", "min")),
            ("dataset", ("cifar", "imagenet")),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r}: an MSDNet has {name} {' or '.join(accepted)}")
        for name in ("blocks", "base", "step", "channels", "growth", "scales", "num_classes"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: it is a whole number, 1 or more")
        for name, least in (("growth_factors", 1), ("bottleneck_factors", 0)):
            factors = getattr(self, name)
            if len(factors) != self.scales or any(f < least for f in factors):
                raise ValueError(f"{name}={list(factors)}: {self.scales} scales need one each, {least} or more")
        if not 0 <= self.reduction <= 1:
            raise ValueError(f"reduction={self.reduction}: a transition keeps a share of the channels, 0 to 1")
        if any(self.growth * factor % 2 for factor in self.growth_factors[1:]):
            raise ValueError(
                f"growth={self.growth}: growth times growth factor is even at every scale but the finest, as half of "
                "it comes from the finer scale"
            )
        if self.layers < self.scales and self.prune == "min":
            raise ValueError(f"scales={self.scales}: with prune='min' there are at most as many as layers")

    @property
    def steps(self) -> list[int]:
        """Layers of each block."""
        rest = range(1, self.blocks)
        return [self.base, *(self.step if self.mode == "even" else self.step * i + 1 for i in rest)]

    @property
    def layers(self) -> int:
        """L, of all blocks."""
        return sum(self.steps)

    def finest(self, layer: int) -> int:
        """The finest scale, 0 to S - 1, that layer 1 to L has."""
        if self.prune == "min":
            return self.scales - min(self.scales, self.layers - layer + 1)
        return (layer - 1) // math.ceil(self.layers / self.scales)

    def reduces(self, layer: int) -> bool:
        """Whether a transition follows layer 1 to L."""
        if self.reduction == 0:
            return False
        if self.prune == "min":
            return layer in (self.layers // 3, 2 * self.layers // 3)
        return layer > 1 and self.finest(layer) > self.finest(layer - 1)


_IMAGENET = Setting(5, "even", 4, 4, 32, 16, (1, 2, 4, 4), (1, 2, 4, 4), scales=4, dataset="imagenet", num_classes=1000)
SETTINGS = {
    "cifar100_7": Setting(),  # anytime (PyTorch)
    "cifar100_5_lin_grow": Setting(5, "lin_grow", 1, 1),  # budgeted batch (PyTorch)
    "cifar100_10": Setting(10),  # anytime (Lua)
    "cifar100_7_lin_grow": Setting(7, "lin_grow", 1, 1),  # budgeted batch (Lua)
    "imagenet_4": _IMAGENET,
    "imagenet_6": replace(_IMAGENET, base=6, step=6),
    "imagenet_7": replace(_IMAGENET, base=7, step=7),
}


def basic(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def bottlenecked(inputs: int, outputs: int, factor: int, stride: int = 1) -> nn.Sequential:
    """1x1 to min(inputs, factor * outputs) channels, then 3x3, each with batch norm and ReLU; factor 0: only 3x3."""
    if factor == 0:
        return basic(inputs, outputs, 3, stride)
    inner = min(inputs, factor * outputs)
    return nn.Sequential(*basic(inputs, inner, 1), *basic(inner, outputs, 3, stride))


class Layer(nn.Module):
    """A cell of layer l > 0 at scale s: [x_s, h~(x_{s-1}), h(x_s)], h~ with stride 2.

    Args:
        same: h.
        down: h~; None at the finest scale.
    """

    def __init__(self, same: nn.Module, down: nn.Module | None) -> None:
        super().__init__()
        self.same, self.down = same, down

    def forward(self, x: Tensor, finer: Tensor | None = None) -> Tensor:
        """x_s [n, C, H, W] and x_{s-1} [n, C', 2H, 2W] -> [n, C + growth, H, W]."""
        added = [self.same(x)] if self.down is None else [self.down(finer), self.same(x)]
        return torch.cat([x, *added], 1)


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: its name, the names of the cells that it reads, and its block."""

    name: str
    reads: tuple[str, ...]
    block: int


class Grid(nn.Module):
    """All cells, each after those that it reads, and for every block the cell that its classifier reads.

    Args:
        setting: the flags.

    Attributes:
        cells: in order of computation.
        read: for each classifier, the name of the cell that it reads and its number of channels.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        s = self.setting = setting
        self.cells: list[Cell] = []
        self.modules_by_cell = nn.ModuleDict()
        self.read: list[tuple[str, int]] = []
        at = ["x"] * s.scales  # the latest cell of each scale
        for scale in range(s.scales):
            at[scale] = self._add(f"stem{scale}", (at[scale - 1] if scale else "x",), 0, self._stem(scale))
        width, layer = s.channels, 0  # channels, before the growth factor
        for block, count in enumerate(s.steps):
            for _ in range(count):
                layer += 1
                before = list(at)
                for scale in range(s.finest(layer), s.scales):
                    has_finer = scale > (s.finest(layer - 1) if layer > 1 else 0)
                    reads = (before[scale], before[scale - 1]) if has_finer else (before[scale],)
                    at[scale] = self._add(f"layer{layer}_{scale}", reads, block, self._layer(width, scale, has_finer))
                width += s.growth
                if s.reduces(layer):
                    kept = math.floor(s.reduction * width)
                    for scale in range(s.finest(layer), s.scales):
                        factor = s.growth_factors[scale]
                        transition = basic(width * factor, kept * factor, 1)
                        at[scale] = self._add(f"transition{layer}_{scale}", (at[scale],), block, transition)
                    width = kept
            self.read.append((at[-1], width * s.growth_factors[-1]))

    def _add(self, name: str, reads: tuple[str, ...], block: int, module: nn.Module) -> str:
        self.cells.append(Cell(name, reads, block))
        self.modules_by_cell[name] = module
        return name

    def _stem(self, scale: int) -> nn.Module:
        s = self.setting
        width = s.channels * s.growth_factors[scale]
        if scale > 0:
            return basic(s.channels * s.growth_factors[scale - 1], width, 3, 2)
        if s.dataset == "cifar":
            return basic(3, width)
        conv = nn.Conv2d(3, width, 7, 2, padding=3)  # with a bias, as in the authors' code
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))

    def _layer(self, width: int, scale: int, has_finer: bool) -> Layer:
        s = self.setting
        factors, narrow = s.growth_factors, s.bottleneck_factors
        added = s.growth * factors[scale]
        if not has_finer:
            return Layer(bottlenecked(width * factors[scale], added, narrow[scale]), None)
        return Layer(
            bottlenecked(width * factors[scale], added // 2, narrow[scale]),
            bottlenecked(width * factors[scale - 1], added // 2, narrow[scale - 1], stride=2),
        )

    def needed(self, name: str) -> set[str]:
        """The cells that a cell depends on, itself included."""
        wanted = {name}
        for cell in reversed(self.cells):
            if cell.name in wanted:
                wanted.update(cell.reads)
        return wanted - {"x"}

    def plan(self, lazy: bool) -> list[list[Cell]]:
        """The cells of each stage: those of its block; if lazy, those its classifier needs and none computed."""
        if not lazy:
            return [[c for c in self.cells if c.block == block] for block in range(self.setting.blocks)]
        computed: set[str] = set()
        stages = []
        for name, _ in self.read:
            needed = self.needed(name) - computed
            stages.append([c for c in self.cells if c.name in needed])
            computed |= needed
        return stages

    def stages(self, plan: Sequence[Sequence[Cell]]) -> list[Stage]:
        """The stages of a plan. Each passes on only what a classifier or a later stage reads."""
        made = []
        for k, cells in enumerate(plan):
            later = {name for part in plan[k + 1 :] for c in part for name in c.reads}
            made.append(Stage(cells, self.modules_by_cell, later | {self.read[k][0]}))
        return made


class Stage(nn.Module):
    """Computes cells, and drops the outputs that are not read any more.

    Args:
        cells: in order of computation.
        modules: by name of cell.
        keep: names of the cells that are read afterwards.
    """

    def __init__(self, cells: Sequence[Cell], modules: nn.ModuleDict, keep: Iterable[str]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(modules[c.name] for c in cells)
        self.plan = [(c.name, c.reads) for c in cells]
        self.keep = frozenset(keep)

    def forward(self, state: State) -> State:
        """The outputs of earlier stages -> the outputs that are read afterwards."""
        known = dict(state)
        for (name, reads), cell in zip(self.plan, self.cells, strict=True):
            known[name] = cell(*(known[r] for r in reads))
        return {name: value for name, value in known.items() if name in self.keep}


class Head(nn.Module):
    """A classifier on the coarsest scale: two 3x3 convolutions of stride 2, pooling, a linear layer.

    The authors pool the 2x2 map that remains for images of their sizes; here a map of any size is averaged.

    Args:
        read: name of the cell that it reads.
        channels: of that cell.
        hidden: width of the convolutions.
        num_classes: outputs.
    """

    def __init__(self, read: str, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.read, self.channels = read, channels
        self.convs = nn.Sequential(basic(channels, hidden, 3, 2), basic(hidden, hidden, 3, 2))
        self.linear = nn.Linear(hidden, num_classes)

    def forward(self, state: State) -> Tensor:
        """The outputs of a stage -> logits [n, C]."""
        logits: Tensor = self.linear(self.convs(state[self.read]).mean((2, 3)))
        return logits


class Last(nn.Module):
    """The cells that the last classifier needs, and that classifier."""

    def __init__(self, stage: Stage, head: Head) -> None:
        super().__init__()
        self.stage, self.head = stage, head

    def forward(self, state: State) -> Tensor:
        """{"x": image} -> logits [n, C]."""
        logits: Tensor = self.head(self.stage(state))
        return logits


class Plain(nn.Module):
    """The static twin: the last classifier alone, and only the cells it needs.

    Args:
        last: cells and classifier.
        shape: of one input.
    """

    def __init__(self, last: Last, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.last, self.shape = last, shape

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, C]."""
        logits: Tensor = self.last({"x": x})
        return logits


class MSDNet(nn.Module):
    """The network: an input leaves at the first classifier whose largest softmax probability reaches its threshold.

    Args:
        setting: the flags.
        policy: which inputs leave at an exit.
        lazy: compute only what the next classifier needs, the rest later for the inputs that stay; else whole blocks.
    """

    def __init__(self, setting: Setting, policy: Policy, lazy: bool) -> None:
        super().__init__()
        self.setting, self.policy, self.lazy = setting, policy, lazy
        self.shape = (3, 32, 32) if setting.dataset == "cifar" else (3, 224, 224)
        self.grid = Grid(setting)
        self.heads = module_list(
            Head(name, width, 128 if setting.dataset == "cifar" else width, setting.num_classes)
            for name, width in self.grid.read
        )
        init_as_authors(self)
        last, head = self.grid.read[-1][0], self.heads[-1]
        wanted = self.grid.needed(last)
        stage = Stage([c for c in self.grid.cells if c.name in wanted], self.grid.modules_by_cell, [last])
        self.twin = Plain(Last(stage, head), self.shape)
        self.stages = module_list(self.grid.stages(self.grid.plan(lazy)))
        self.exits = Exits("exit", self.stages, self.heads, policy, static=self.twin.last)
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> logits [n, C] of the exit that answered."""
        logits: Tensor = self.exits({"x": x})
        return logits

    def every_exit(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [n, 3, H, W] -> logits [n, C] of each exit, for joint training."""
        state, answers = {"x": x}, []
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            answers.append(head(state))
        return tuple(answers)


def init_as_authors(net: nn.Module) -> None:
    """Convolutions from N(0, sqrt(2 / n)), n = k k c_out; biases of linear layers 0."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.weight, 0, math.sqrt(2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
        elif isinstance(m, nn.Linear):
            nn.init.zeros_(m.bias)


def msdnet(
    setting: str = "cifar100_7",
    *,
    lazy: bool = True,
    thresholds: float | Sequence[float] | None = None,
    exit_at: int | None = None,
    **flags: Any,
) -> MSDNet:
    """An MSDNet.

    Thresholds are part of the weights (`policy.thresholds`): those chosen on held-out data are saved with them.

    Args:
        setting: a published one, of `SETTINGS`.
        lazy: see `MSDNet`; the weights' names are the same either way.
        thresholds: of the confidence, one for all exits or one per exit but the last; default: 0.9.
        exit_at: anytime prediction instead: all inputs leave at this exit, counted from 0.
        **flags: changes to the setting: attributes of `Setting`, such as `blocks=3`. The number of `scales` follows the
            growth factors where only these are given.

    Raises:
        ValueError: an unknown setting or flag, flags that fit no network, a wrong number of thresholds, or no such
            exit.
    """
    made = _setting(setting, flags)
    asked = made.blocks - 1
    if exit_at is not None:
        if thresholds is not None:
            raise ValueError("thresholds and exit_at: give one of them")
        if not 0 <= exit_at < made.blocks:
            raise ValueError(f"exit_at={exit_at}: there are exits 0 to {asked}")
        thresholds = anytime_thresholds(exit_at, made.blocks)
    elif thresholds is None or isinstance(thresholds, (int, float)):
        thresholds = [0.9 if thresholds is None else thresholds] * asked
    if len(thresholds) != asked:
        raise ValueError(f"thresholds={list(thresholds)}: the {made.blocks} exits need one each, but for the last")
    return MSDNet(made, Policy("probability", thresholds, made.num_classes), lazy)


def plain(setting: str = "cifar100_7", **flags: Any) -> Plain:
    """The baseline of an MSDNet: its last classifier alone, and only the cells that it needs.

    Args:
        setting: see `msdnet`.
        **flags: see `msdnet`.

    Raises:
        ValueError: see `msdnet`.
    """
    return msdnet(setting, **flags).twin


def _setting(name: str, flags: dict[str, Any]) -> Setting:
    if name not in SETTINGS:
        raise ValueError(f"setting={name!r}: published settings are {', '.join(SETTINGS)}")
    known = [f.name for f in fields(Setting)]
    for flag in flags:
        if flag not in known:
            raise ValueError(f"an MSDNet has no flag {flag!r}; flags are {', '.join(known)}")
    changed: dict[str, Any] = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in flags.items()}
    if "growth_factors" in changed and "scales" not in changed:
        changed["scales"] = len(changed["growth_factors"])
    return replace(SETTINGS[name], **changed)


def anytime_thresholds(exit_at: int, exits: int) -> list[float]:
    """Thresholds with which all inputs leave at one exit, for anytime prediction: one per exit but the last."""
    return [0.0 if k == exit_at else NEVER for k in range(exits - 1)]


def exit_fractions(q: float, exits: int) -> list[float]:
    """Budgeted batch: the share to leave at exit k = 1 .. n is proportional to q^k (adaptive_inference.py)."""
    powers = [q**k for k in range(1, exits + 1)]
    return [p / sum(powers) for p in powers]


def budgeted_thresholds(logits: Sequence[Tensor], fractions: Sequence[float]) -> list[float]:
    """Budgeted batch: thresholds with which given shares of held-out inputs leave at each exit.

    At exit k the threshold is the confidence of the floor(n * fraction)-th most confident input among those that
    remain. If fewer remain (after ties) all of them leave, whereas in the authors' code none does.

    Args:
        logits: [n, C] of each exit, on the same held-out inputs.
        fractions: of all inputs, one per exit.

    Returns:
        One threshold per exit but the last; 2, which no confidence reaches, where none is to leave.

    Raises:
        ValueError: not one fraction per exit.
    """
    if len(fractions) != len(logits):
        raise ValueError(f"{len(fractions)} fractions for {len(logits)} exits")
    n = logits[0].shape[0]
    there = torch.ones(n, dtype=torch.bool, device=logits[0].device)
    thresholds = []
    for z, fraction in zip(logits[:-1], fractions, strict=False):
        confidence = z.softmax(-1).amax(-1)
        left = confidence[there].sort(descending=True).values
        leaving = min(math.floor(n * fraction + 1e-9), len(left))
        thresholds.append(float(left[leaving - 1]) if leaving else NEVER)
        there = there & (confidence < thresholds[-1])
    return thresholds


def accounted_macs(model: MSDNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the authors count: at exit k all cells of the blocks so far and all classifiers so far, lazy or not."""
    rule = "share of inputs that leave at an exit times all layers and classifiers so far, at every scale"
    return mean_over_exits(trace, "exit", exit_macs(model, shape)), rule


def exit_macs(model: MSDNet, shape: tuple[int, ...]) -> list[int]:
    """MACs of an input that leaves at each exit as the authors count them: block by block, earlier classifiers too."""
    stages = model.grid.stages(model.grid.plan(lazy=False))
    return [static_macs(_UpTo(stages[: k + 1], model.heads[: k + 1]), shape) for k in range(len(stages))]


class _UpTo(nn.Module):
    """The network up to an exit, with all classifiers so far."""

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        state, answers = {"x": x}, []
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            answers.append(head(state))
        return answers
