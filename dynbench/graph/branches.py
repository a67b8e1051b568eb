"""Lazy choices become `If` nodes: what only one side of a choice needs is moved into its branch, weights included."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dynbench.graph.symbolics import BLANK, LAZY

BLANK_OP = BLANK.split("::")[1]
LAZY_OP = LAZY.split("::")[1]
Infos = dict[str, ValueInfoProto]


@dataclass(eq=False)
class Scope:
    """A place for nodes: the graph itself, or a branch of an If in another scope."""

    parent: Scope | None = None
    depth: int = 0
    units: list[Unit] = field(default_factory=list)
    weights: dict[str, TensorProto] = field(default_factory=dict)

    def above(self) -> Iterator[Scope]:
        """This scope and those around it, from the inside out."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


@dataclass(eq=False)
class Unit:
    """A node, or all lazy choices of one group."""

    nodes: list[NodeProto]
    sides: tuple[Scope, Scope] | None = None

    @property
    def lazy(self) -> bool:
        """Whether it is a choice."""
        return self.nodes[0].op_type == LAZY_OP

    def reads(self) -> list[tuple[str, str]]:
        """(value, role) of everything it reads; the role is 'cond', 'yes' or 'no' in a choice, else ''."""
        if not self.lazy:
            return [(v, "") for v in read_by(self.nodes[0])]
        return [pair for n in self.nodes for pair in zip(n.input, ("cond", "yes", "no"), strict=True)]

    def writes(self) -> list[str]:
        """Names of what it makes."""
        return [v for n in self.nodes for v in n.output if v]


def read_by(node: NodeProto) -> list[str]:
    """Values of its own scope or one around it that a node reads, those of its branches included."""
    found = [v for v in node.input if v]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            g = attribute.g
            inside = {o for n in g.node for o in n.output} | {i.name for i in g.initializer} | {i.name for i in g.input}
            found += [v for n in g.node for v in read_by(n) if v not in inside]
            found += [o.name for o in g.output if o.name not in inside]
    return found


def into_branches(model: ModelProto) -> ModelProto:
    """The same model with every lazy choice as an If.

    Args:
        model: flat, as traced.

    Returns:
        A new model. A node lies in the innermost branch that holds all who need it, and is gone if nobody does; a
        weight lies where it is used, in each branch that uses it.
    """
    graph = _without_aliases(model.graph)
    root = Scope()
    outputs = [o.name for o in graph.output]
    placed, home, uses = _placed(_ordered(graph), root, outputs)
    if idle := _idle_guards(placed, home):
        return into_branches(_without(model, idle))
    weights = {i.name: i for i in graph.initializer}
    for unit in placed:
        home[unit].units.append(unit)
    _bring_weights(weights, home, uses)
    made_in = {v: scope for unit, scope in home.items() for v in unit.writes()}
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    infos = _with_item_sizes(graph)  # of choices and blanks: what cannot be inferred
    result.graph.node.extend(_nodes(root, made_in, _About(infos, opset_of(model))))
    result.graph.value_info.extend(_known_in(root, infos))
    result.graph.initializer.extend(root.weights.values())
    for opset in [o for o in result.opset_import if o.domain == "dynbench"]:
        result.opset_import.remove(opset)
    return result


def _without_aliases(graph: GraphProto) -> GraphProto:
    """A copy without Identity nodes, which the exporter puts where weights are equal; but for those that answer."""
    names: dict[str, str] = {}
    outputs = {o.name for o in graph.output}
    result = GraphProto()
    result.CopyFrom(graph)
    del result.node[:]
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in outputs:
            names[node.output[0]] = names.get(node.input[0], node.input[0])
        else:
            result.node.add().CopyFrom(node)
            result.node[-1].input[:] = [names.get(v, v) for v in node.input]
    return result


def _with_item_sizes(graph: GraphProto) -> Infos:
    """What is known of values: of choices and blanks also the sizes of an item, which the exporter may forget."""
    infos = {v.name: v for v in graph.value_info}
    for node in graph.node:
        for value in node.output if node.op_type in (LAZY_OP, BLANK_OP) else ():
            if value in infos:
                dims, rest = infos[value].type.tensor_type.shape.dim, _said(node)["rest"].ints
                for dim, size in zip(dims[1:], rest, strict=False):
                    dim.dim_value = size
    return infos


def _ordered(graph: GraphProto) -> list[Unit]:
    """The nodes as units, each after those it reads from."""
    units: list[Unit] = []
    groups: dict[int, Unit] = {}
    for node in graph.node:
        if node.op_type == LAZY_OP:
            group = _said(node)["group"].i
            if group in groups:
                groups[group].nodes.append(node)
                continue
            groups[group] = Unit([node])
            units.append(groups[group])
        else:
            units.append(Unit([node]))
    maker = {v: u for u in units for v in u.writes()}
    place = {u: i for i, u in enumerate(units)}
    waits = {u: {maker[v] for v, _ in u.reads() if v in maker} for u in units}
    then: dict[Unit, list[Unit]] = defaultdict(list)
    for unit, others in waits.items():
        for other in others:
            then[other].append(unit)
    missing = {u: len(others) for u, others in waits.items()}
    ready = [place[u] for u in units if missing[u] == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        unit = units[heapq.heappop(ready)]
        order.append(unit)
        for later in then[unit]:
            missing[later] -= 1
            if missing[later] == 0:
                heapq.heappush(ready, place[later])
    assert len(order) == len(units)
    return order


def _placed(
    order: list[Unit], root: Scope, outputs: list[str]
) -> tuple[list[Unit], dict[Unit, Scope], dict[str, list[tuple[Unit, Scope]]]]:
    """(the units that somebody needs, in order; where each goes; who uses each value, and in which scope)."""
    needed: dict[str, list[Scope]] = defaultdict(list)
    uses: dict[str, list[tuple[Unit, Scope]]] = defaultdict(list)
    for name in outputs:
        needed[name].append(root)
    home: dict[Unit, Scope] = {}
    for unit in reversed(order):
        wanted = [scope for v in unit.writes() for scope in needed[v]]
        if not wanted:
            continue
        home[unit] = scope = _innermost(wanted)
        if unit.lazy:
            unit.nodes = [n for n in unit.nodes if needed[n.output[0]]]
            unit.sides = (Scope(scope, scope.depth + 1), Scope(scope, scope.depth + 1))
        for value, role in unit.reads():
            assert unit.sides is not None or role == ""
            at = scope if role in ("", "cond") or unit.sides is None else unit.sides[role == "no"]
            needed[value].append(at)
            uses[value].append((unit, at))
    return [u for u in order if u in home], home, uses


def _innermost(scopes: list[Scope]) -> Scope:
    """The innermost scope around all of these."""
    common = scopes[0]
    for other in scopes[1:]:
        while common is not other:
            if common.depth >= other.depth:
                assert common.parent is not None
                common = common.parent
            else:
                assert other.parent is not None
                other = other.parent
    return common


def _bring_weights(
    weights: dict[str, TensorProto], home: dict[Unit, Scope], uses: dict[str, list[tuple[Unit, Scope]]]
) -> None:
    """Puts each weight where it is used: layouts are chosen, and branches left out, only for weights inside."""
    for name, weight in weights.items():
        scopes = list(dict.fromkeys(at for _, at in uses[name]))
        convolved = any(u.nodes[0].op_type.startswith("Conv") for u, _ in uses[name])
        if not convolved:
            scopes = [s for s in scopes if not any(o in scopes for o in s.above() if o is not s)]
        for copy, scope in enumerate(scopes):
            own = TensorProto()
            own.CopyFrom(weight)
            if convolved and copy:
                own.name = f"{name}@{copy}"
                for unit, at in uses[name]:
                    if at is scope and not unit.lazy:
                        unit.nodes[0].input[:] = [own.name if v == name else v for v in unit.nodes[0].input]
            scope.weights[own.name] = own


def _said(node: NodeProto) -> dict[str, onnx.AttributeProto]:
    return {a.name: a for a in node.attribute}


def _known_in(scope: Scope, infos: Infos) -> list[ValueInfoProto]:
    return [infos[v] for unit in scope.units for v in unit.writes() if v in infos]


# on no items these cost no more than an If, and fail nowhere
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Exp", "Log", "Erf", "Abs", "Cast"}
_ACTIVATIONS = {"Relu", "Gelu", "Sigmoid", "Tanh"}
_MOVES = {"Identity", "Constant", "Gather", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
_HARMLESS = _ELEMENTWISE | _ACTIVATIONS | _MOVES | {"MatMul", "Gemm", "ReduceMean", "ReduceSum"}
_FEW = 12  # nodes


def _idle_guards(placed: list[Unit], home: dict[Unit, Scope]) -> set[int]:
    """Groups of guards that spare nothing: few nodes, all of which do nothing for no items."""
    inside: dict[Scope, list[Unit]] = defaultdict(list)
    for unit in placed:
        inside[home[unit]].append(unit)
    found = set()
    for unit in placed:
        if unit.sides is not None and _said(unit.nodes[0])["guard"].i:
            body = inside[unit.sides[0]]
            if len(body) <= _FEW and all(u.nodes[0].op_type in _HARMLESS for u in body):
                found.add(_said(unit.nodes[0])["group"].i)
    return found


def _without(model: ModelProto, groups: set[int]) -> ModelProto:
    """The flat model without choices of these groups: `yes` it is."""
    result = ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        if node.op_type == LAZY_OP and _said(node)["group"].i in groups:
            node.CopyFrom(helper.make_node("Identity", [node.input[1]], [node.output[0]], name=node.name))
    return result


class _About(NamedTuple):
    """What is known of values, and the version of the operators."""

    infos: Infos
    opset: int


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators."""
    return int(next(o.version for o in model.opset_import if o.domain == ""))


def _nodes(scope: Scope, made_in: dict[str, Scope], about: _About) -> list[NodeProto]:
    nodes: list[NodeProto] = []
    for unit in scope.units:
        if unit.lazy:
            nodes.append(_if(unit, made_in, about))
        elif unit.nodes[0].op_type == BLANK_OP:
            nodes += _zeros(unit.nodes[0], about)
        else:
            nodes += unit.nodes
    return nodes


def _zeros(node: NodeProto, about: _About) -> list[NodeProto]:
    """Zero items, as many as the input has."""
    (out,), rest = node.output, list(_said(node)["rest"].ints)
    kind = about.infos[out].type.tensor_type.elem_type
    sizes = numpy_helper.from_array(np.array(rest, np.int64))
    zero = helper.make_tensor("zero", kind, [1], [0])
    count, item, shape = f"{out}/items", f"{out}/rest", f"{out}/shape"
    return [
        *_count(node, count, about.opset),
        helper.make_node("Constant", [], [item], name=f"{node.name}/Constant", value=sizes),
        helper.make_node("Concat", [count, item], [shape], name=f"{node.name}/Concat", axis=0),
        helper.make_node("ConstantOfShape", [shape], [out], name=node.name, value=zero),
    ]


def _count(node: NodeProto, count: str, opset: int) -> list[NodeProto]:
    """The number of items that the input has, as a shape of one size."""
    if opset >= 15:
        return [helper.make_node("Shape", node.input, [count], name=f"{node.name}/Shape", start=0, end=1)]
    every, at = f"{count}/every", f"{count}/at"
    zero = numpy_helper.from_array(np.array([0], np.int64))
    return [
        helper.make_node("Shape", node.input, [every], name=f"{node.name}/Shape"),
        helper.make_node("Constant", [], [at], name=f"{node.name}/First", value=zero),
        helper.make_node("Gather", [every, at], [count], name=f"{node.name}/Gather"),
    ]


def _if(unit: Unit, made_in: dict[str, Scope], about: _About) -> NodeProto:
    assert unit.sides is not None
    name = unit.nodes[0].name
    branches = {}
    for side, key, i in zip(unit.sides, ("then_branch", "else_branch"), (1, 2), strict=True):
        nodes, outputs = _nodes(side, made_in, about), []
        for node in unit.nodes:
            value = node.input[i]
            if made_in.get(value) is not side or value in outputs:
                alias = f"{node.output[0]}/{key}"
                nodes.append(helper.make_node("Identity", [value], [alias], name=alias))
                value = alias
            outputs.append(value)
        answers = [helper.make_empty_tensor_value_info(v) for v in outputs]
        branches[key] = helper.make_graph(
            nodes, f"{name}/{key}", [], answers, list(side.weights.values()), value_info=_known_in(side, about.infos)
        )
    return helper.make_node("If", [unit.nodes[0].input[0]], [n.output[0] for n in unit.nodes], name=name, **branches)
