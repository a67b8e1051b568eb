"""Blocked layouts across the borders of branches.

On x86 ONNX Runtime computes convolutions on blocks of channels (NCHWc) and puts a `ReorderInput` before and a
`ReorderOutput` behind every stretch of them. A branch is such a stretch of its own, and a sum with a value from outside
is then no longer part of a convolution. Here the optimiser is shown values that enter a branch as if they had been made
there (a pooling over one pixel, taken out again), and pairs of reorders that undo each other across borders and
gathers go. The result is for the machine it was made on; where no blocked layout is used nothing changes.
"""

from __future__ import annotations

import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper

from dynbench.graph.levels import Item, Level, make_unique, without_dead, written_back
from dynbench.scratch import scratch

NCHWC = "com.microsoft.nchwc"
_MARK = "dynbench/mark"
_BLOCK = 16  # channels of the largest block; maps of a multiple of it are not padded in any block
_MOVES = {"Gather": (0,), "ScatterND": (0, 2), "Identity": (0,)}  # on whole items: which inputs are maps


def for_this_machine(model: ModelProto) -> ModelProto:
    """The model as ONNX Runtime optimises it here, with layouts kept across branches; to be loaded as it is."""
    marked = Level.read(model.graph)
    for level in list(marked.below()):
        _mark(level)
    optimised = _optimised(written_back(model, marked))
    root = Level.read(optimised.graph)
    make_unique(root)
    _unmark(root)
    _Reorders(root).cancel()
    without_dead(root)
    return written_back(optimised, root)


def _mark(level: Level) -> None:
    """Puts a pooling over one pixel before what convolutions of a level read from elsewhere or from a gather."""
    made = {o: item.node for item in level.items for o in item.node.output}
    marks: dict[str, str] = {}
    for item in level.items:
        if item.node.op_type == "Conv":
            value = item.node.input[0]
            maker = made.get(value)
            if (maker is None and level.parent is not None) or (maker is not None and maker.op_type in _MOVES):
                marks.setdefault(value, f"{value}/{_MARK}/{id(level)}")
    waiting, items = dict(marks), []
    inputs = {v for v in marks if v not in made}

    def mark(value: str) -> Item:
        pool = helper.make_node("MaxPool", [value], [waiting.pop(value)], name=marks[value], kernel_shape=[1, 1])
        return Item(pool)

    for value in inputs:
        items.append(mark(value))
    for item in level.items:
        _rename_inputs(item, {v: m for v, m in marks.items() if v not in waiting})
        items.append(item)
        for value in item.node.output:
            if value in waiting:
                items.append(mark(value))
    level.items = items


def _rename_inputs(item: Item, names: dict[str, str]) -> None:
    if any(v in names for v in item.node.input):
        item.node.input[:] = [names.get(v, v) for v in item.node.input]


def _optimised(model: ModelProto) -> ModelProto:
    """What ONNX Runtime makes of it."""
    with scratch("graph") as folder:
        file = folder / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(file)


def _unmark(root: Level) -> None:
    names: dict[str, str] = {}
    for level in root.below():
        kept = []
        for item in level.items:
            if item.node.op_type == "MaxPool" and _MARK in item.node.name:
                names[item.node.output[0]] = item.node.input[0]
            else:
                kept.append(item)
        level.items = kept
    for level in root.below():
        for item in level.items:
            item.node.input[:] = [_final(v, names) for v in item.node.input]
        level.outputs = [_final(v, names) for v in level.outputs]


def _final(value: str, names: dict[str, str]) -> str:
    while value in names:
        value = names[value]
    return value


class _Reorders:
    """Finds, for a value in the plain layout, the same value in blocks.

    Args:
        root: of all levels.
    """

    def __init__(self, root: Level) -> None:
        self.root = root
        self.maker: dict[str, tuple[Level, Item]] = {}
        self.weights: dict[str, onnx.TensorProto] = {}
        for level in root.below():
            self.weights |= level.weights
            for item in level.items:
                for value in item.node.output:
                    self.maker[value] = (level, item)
        self.known: dict[str, tuple[str, int] | None] = {}

    def cancel(self) -> None:
        """Every ReorderInput of a value that is known in blocks goes."""
        names: dict[str, str] = {}
        for level in list(self.root.below()):
            for item in list(level.items):
                if item.node.op_type == "GlobalAveragePool" and item.node.domain != NCHWC:
                    self._pool(level, item)
                if item.node.op_type == "ReorderInput" and (found := self.blocked(item.node.input[0])) is not None:
                    names[item.node.output[0]] = found[0]
        for level in self.root.below():
            for item in level.items:
                item.node.input[:] = [_final(v, names) for v in item.node.input]
            level.outputs = [_final(v, names) for v in level.outputs]

    def blocked(self, value: str) -> tuple[str, int] | None:
        """(the value in blocks, its channels), made anew if need be; None: there is none to be had for nothing."""
        if value not in self.known:
            self.known[value] = None  # no loops in a graph, but in a search
            self.known[value] = self._find(value)
        return self.known[value]

    def _pool(self, level: Level, item: Item) -> None:
        """A pooling over whole maps is made in blocks, too; what comes out is small."""
        node = item.node
        if (found := self.blocked(node.input[0])) is not None and found[1] % _BLOCK == 0:
            node.input[0], node.domain = found[0], NCHWC  # of one pixel, so that the layouts are the same

    def _find(self, value: str) -> tuple[str, int] | None:
        if value not in self.maker:
            return None
        level, item = self.maker[value]
        kind = item.node.op_type
        if kind == "ReorderOutput":
            flags = {a.name: a.i for a in item.node.attribute}
            return None if flags.get("channels_last") else (item.node.input[0], flags["channels"])
        if kind in _MOVES and (kind != "Gather" or _axis(item.node) == 0):
            return self._moved(level, item, value)
        return self._branched(level, item, value) if item.branches is not None else None

    def _moved(self, level: Level, item: Item, value: str) -> tuple[str, int] | None:
        """Whole items are moved alike in either layout."""
        node = item.node
        found = {i: self.blocked(node.input[i]) for i in _MOVES[node.op_type]}
        channels = self._agreed([(node.input[i], f) for i, f in found.items()])
        if channels is None:
            return None
        for i, f in found.items():
            if f is not None:
                node.input[i] = f[0]
        return self._now_in_blocks(level, item, value, channels)

    def _now_in_blocks(self, level: Level, item: Item, value: str, channels: int) -> tuple[str, int]:
        """The item's output `value` is in blocks from now on; who wants it plain reorders it."""
        new = f"{value}/blocks"
        item.node.output[:] = [new if o == value else o for o in item.node.output]
        back = helper.make_node(
            "ReorderOutput", [new], [value], name=f"{value}/ReorderOutput", domain=NCHWC, channels=channels
        )
        level.insert_after(item, back)
        self.maker[new] = (level, item)
        self.maker[value] = (level, level.items[level.items.index(item) + 1])
        return new, channels

    def _agreed(self, values: list[tuple[str, tuple[str, int] | None]]) -> int | None:
        """Channels of values that are all known in blocks, or the same in blocks; None: they are not."""
        channels = {found[1] for _, found in values if found is not None}
        if len(channels) != 1:
            return None
        (count,) = channels
        plain = [value for value, found in values if found is None]
        if plain and (count % _BLOCK or not all(map(self._bare, plain))):
            return None
        return count

    def _bare(self, value: str) -> bool:
        """Whether a value of whole blocks is the same in any layout: zeros, or no items at all."""
        if value in self.weights:
            return 0 in self.weights[value].dims
        if value not in self.maker:
            return False
        node: NodeProto = self.maker[value][1].node
        if node.op_type == "ConstantOfShape":
            return not node.attribute or not any(node.attribute[0].t.float_data) and _all_zero(node)
        return node.op_type == "Constant" and 0 in node.attribute[0].t.dims

    def _branched(self, level: Level, item: Item, value: str) -> tuple[str, int] | None:
        """Of an If: where one side has it in blocks, and the other too, or for nothing."""
        assert item.branches is not None
        at = list(item.node.output).index(value)
        sides = [branch.outputs[at] for branch in item.branches]
        found = [self.blocked(v) for v in sides]
        channels = self._agreed(list(zip(sides, found, strict=True)))
        if channels is None:
            return None
        for branch, f in zip(item.branches, found, strict=True):
            if f is not None:
                branch.outputs[at] = self._inside(branch, f[0], f"{value}/{branch.name}/blocks")
        return self._now_in_blocks(level, item, value, channels)

    def _inside(self, branch: Level, value: str, alias: str) -> str:
        """A value as an output of a branch: of one from outside, a copy."""
        if value in self.maker and self.maker[value][0] is branch and value not in branch.outputs:
            return value
        branch.items.append(Item(helper.make_node("Identity", [value], [alias], name=alias)))
        self.maker[alias] = (branch, branch.items[-1])
        return alias


def _axis(node: NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def _all_zero(node: NodeProto) -> bool:
    return not onnx.numpy_helper.to_array(node.attribute[0].t).any()
