"""Other ways to write the same down that are faster, on the portable graph: the same up to rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from dynbench.graph.levels import Item, Level, used_in, without_dead, written_back

_FAR = 75.0  # exp(-75) is 3e-33: nothing beside 1, and still an ordinary number when it is divided by a thousand
_MASKED = -1e4  # from there on down a score stands for minus infinity
REDUCED_BY_INPUT = 18  # the opset since when the axes of ReduceMax are an input


def simplified(model: ModelProto) -> ModelProto:
    """The same model with fewer or faster nodes: poolings of whole maps, steps of LSTM cells."""
    root = Level.read(model.graph)
    weights = _Values(root).weights
    for level in root.below():
        level.items = [new for item in level.items for new in _pooled(item, weights)]
    graph = _Values(root)
    graph.undo_squeezes()
    graph.fold_linear_into_lstm()
    graph.raise_masked_scores(model)
    _Values(root).shape_once()
    without_dead(root)
    return written_back(model, root)


def of_one_item(model: ModelProto) -> ModelProto:
    """The same model, for a single item, where nothing but branches depends on what is decided: with fewer nodes."""
    root = Level.read(model.graph)
    _Values(root).compare_steps()
    without_dead(root)
    return written_back(model, root)


def _pooled(item: Item, weights: dict[str, np.ndarray]) -> list[Item]:
    """Means over a map become global average poolings, which are made in the layout of convolutions."""
    node: NodeProto = item.node
    if node.op_type != "ReduceMean":
        return [item]
    said = {a.name: a for a in node.attribute}
    axes = list(said["axes"].ints) if "axes" in said else None
    if len(node.input) == 2 and node.input[1] in weights:  # as of opset 18
        axes = weights[node.input[1]].tolist()
    if axes not in ([2, 3], [-2, -1]):
        return [item]
    keep = "keepdims" not in said or said["keepdims"].i == 1
    if keep:
        return [Item(helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name))]
    pooled = f"{node.output[0]}/pooled"
    return [
        Item(helper.make_node("GlobalAveragePool", node.input[:1], [pooled], name=node.name)),
        Item(helper.make_node("Flatten", [pooled], node.output, name=f"{node.name}/Flatten", axis=1)),
    ]


def _is_layer(gemm: NodeProto) -> bool:
    """Whether a Gemm is x W^T + b, without factors."""
    said = {a.name: onnx.helper.get_attribute_value(a) for a in gemm.attribute}
    factors = said.pop("alpha", 1.0), said.pop("beta", 1.0)
    return factors == (1.0, 1.0) and said.get("transB") == 1 and not said.get("transA")


class _Values:
    """Who makes and who reads each value.

    Args:
        root: of all levels.
    """

    def __init__(self, root: Level) -> None:
        self.root = root
        self.maker: dict[str, tuple[Level, Item]] = {}
        self.weights: dict[str, np.ndarray] = {}
        for level in root.below():
            self.weights |= {k: numpy_helper.to_array(w) for k, w in level.weights.items()}
            for item in level.items:
                for value in item.node.output:
                    self.maker[value] = (level, item)
                if item.node.op_type == "Constant" and item.node.attribute[0].name == "value":
                    self.weights[item.node.output[0]] = numpy_helper.to_array(item.node.attribute[0].t)
        self.uses: Counter[str] = used_in(root)

    def made_by(self, value: str, kind: str) -> NodeProto | None:
        """The node that makes a value, if it is of this kind."""
        node = self.maker[value][1].node if value in self.maker else None
        return node if node is not None and node.op_type == kind else None

    def each(self, kind: str, change: Callable[[Level, NodeProto], None]) -> None:
        """Calls `change` for each node of a kind."""
        for level in self.root.below():
            for item in list(level.items):
                if item.node.op_type == kind:
                    change(level, item.node)

    def undo_squeezes(self) -> None:
        """What is squeezed and unsqueezed again at the same place stays as it was."""
        names: dict[str, str] = {}

        def undo(_: Level, node: NodeProto) -> None:
            before = self.made_by(node.input[0], "Squeeze")
            if before is not None and len(before.input) == 2 and self._same(before.input[1], node.input[1]):
                names[node.output[0]] = before.input[0]

        self.each("Unsqueeze", undo)
        for level in self.root.below():
            for item in level.items:
                item.node.input[:] = [names.get(v, v) for v in item.node.input]

    def _same(self, a: str, b: str) -> bool:
        return a in self.weights and b in self.weights and np.array_equal(self.weights[a], self.weights[b])

    def shape_once(self) -> None:
        """Pooled maps become the input of an LSTM's step by one Reshape, not by Flatten and Unsqueeze."""

        def reshape(level: Level, node: NodeProto) -> None:
            wide = self.made_by(node.input[0], "Unsqueeze")
            flat = None if wide is None else self.made_by(wide.input[0], "Flatten")
            pooled = None if flat is None else self.made_by(flat.input[0], "GlobalAveragePool")
            if wide is None or flat is None or pooled is None or node.input[1] not in self.weights:
                return
            shape, value = f"{wide.name}/shape", f"{wide.name}/shaped"
            width = self.weights[node.input[1]].shape[2]
            level.weights[shape] = numpy_helper.from_array(np.array([1, -1, width], np.int64), shape)
            at = next(i for i, item in enumerate(level.items) if item.node is node)
            level.items.insert(at, Item(helper.make_node("Reshape", [flat.input[0], shape], [value], name=value)))
            node.input[0] = value

        self.each("LSTM", reshape)

    def compare_steps(self) -> None:
        """What an LSTM's step says in one number, compared with a constant, is compared in the step's own shape.

        W h + b > c becomes W h > c - b, without a Squeeze before and behind: a branch takes one truth of any shape.
        """
        asked = Counter(item.node.input[0] for level in self.root.below() for item in level.items if item.branches)

        def compare(level: Level, node: NodeProto) -> None:
            flat = self.made_by(node.input[0], "Squeeze")
            linear = None if flat is None else self.made_by(flat.input[0], "Gemm")
            step = None if linear is None else self.made_by(linear.input[0], "Squeeze")
            if linear is None or step is None or self.made_by(step.input[0], "LSTM") is None:
                return
            weight, bias, limit = (self.weights.get(v) for v in (*linear.input[1:], node.input[1]))
            branches_alone = self.uses[node.output[0]] == asked[node.output[0]]
            if not _is_layer(linear) or weight is None or bias is None or limit is None or not branches_alone:
                return
            if weight.shape[0] != 1 or bias.size != 1 or limit.size != 1:
                return
            name = f"{linear.name}{node.name}/step"  # of the gate that says it
            level.weights[f"{name}/weight"] = numpy_helper.from_array(weight.T.copy(), f"{name}/weight")
            rest = (limit.astype(np.float64).reshape(()) - bias.astype(np.float64).reshape(())).astype(weight.dtype)
            level.weights[f"{name}/limit"] = numpy_helper.from_array(rest, f"{name}/limit")
            at = next(i for i, item in enumerate(level.items) if item.node is node)
            product = helper.make_node("MatMul", [step.input[0], f"{name}/weight"], [name], name=name)
            level.items.insert(at, Item(product))
            node.input[:] = [name, f"{name}/limit"]

        self.each("Greater", compare)

    def raise_masked_scores(self, model: ModelProto) -> None:
        """Scores of which a mask makes minus infinity are at least the largest of their row less `_FAR`.

        exp of them is then a small number, not one so small that a processor needs a hundred cycles for it: a softmax
        of which half is masked takes six times as long. A row that is masked as a whole stays one without a number.
        """
        version = next(o.version for o in model.opset_import if o.domain == "")

        def raised(level: Level, node: NodeProto) -> None:
            if not self._masked(node.input[0]) or {a.name: a.i for a in node.attribute}.get("axis", -1) != -1:
                return
            scores, name = node.input[0], f"{node.name}/raised"
            most, low, far, axes = (f"{name}/{part}" for part in ("most", "low", "far", "axes"))
            level.weights[far] = numpy_helper.from_array(np.array(-_FAR, np.float32), far)
            top = helper.make_node("ReduceMax", [scores], [most], name=f"{name}/ReduceMax", keepdims=1)
            if version < REDUCED_BY_INPUT:
                top.attribute.append(helper.make_attribute("axes", [-1]))
            else:
                top.input.append(axes)
                level.weights[axes] = numpy_helper.from_array(np.array([-1], np.int64), axes)
            at = next(i for i, item in enumerate(level.items) if item.node is node)
            level.items[at:at] = [
                Item(top),
                Item(helper.make_node("Add", [most, far], [low], name=f"{name}/Add")),
                Item(helper.make_node("Max", [scores, low], [name], name=f"{name}/Max")),
            ]
            node.input[0] = name

        self.each("Softmax", raised)

    def _masked(self, value: str) -> bool:
        """Whether a value is masked scores: added to, or filled with, numbers far below zero."""
        added = self.made_by(value, "Add")
        masks = [value] if added is None else list(added.input)
        fills = [v for m in masks if (chosen := self.made_by(m, "Where")) is not None for v in chosen.input[1:]]
        known = [self.weights[v] for v in (*fills, *masks) if v in self.weights]
        return any(w.dtype == np.float32 and w.size and w.min() <= _MASKED for w in known)

    def fold_linear_into_lstm(self) -> None:
        """A linear layer that only the input of a step reads becomes part of the step's own: W (E x + e) + w."""

        def fold(level: Level, node: NodeProto) -> None:
            wide = self.made_by(node.input[0], "Unsqueeze")
            linear = None if wide is None else self.made_by(wide.input[0], "Gemm")
            if wide is None or linear is None or self.uses[wide.input[0]] > 1 or self.uses[node.input[0]] > 1:
                return
            read = [self.weights.get(v) for v in (*linear.input[1:], *node.input[1:4:2])]
            if not _is_layer(linear) or len(read) != 4 or any(w is None for w in read):
                return
            inner, offset, outer, bias = (np.asarray(w, np.float64) for w in read)
            half = bias.shape[1] // 2
            shifted = np.concatenate([bias[:, :half] + outer[0] @ offset, bias[:, half:]], 1)
            for at, value in ((1, outer @ inner), (3, shifted)):
                name = f"{node.name}/{'folded' if at == 1 else 'bias'}"
                level.weights[name] = numpy_helper.from_array(value.astype(np.float32), name)
                node.input[at] = name
            wide.input[0] = linear.input[0]

        self.each("LSTM", fold)
