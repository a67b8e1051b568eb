"""An ONNX graph as nested levels that can be edited: the graph itself, and the two branches of every If in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper


@dataclass(eq=False)
class Item:
    """A node; of an If also its branches."""

    node: NodeProto
    branches: tuple[Level, Level] | None = None


@dataclass(eq=False)
class Level:
    """A graph or a branch.

    Attributes:
        parent: the level around it.
        items: its nodes, in order.
        weights: its initializers.
        outputs: names of what it answers.
    """

    name: str
    parent: Level | None
    items: list[Item] = field(default_factory=list)
    weights: dict[str, TensorProto] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    infos: list[ValueInfoProto] = field(default_factory=list)  # what cannot be inferred

    @classmethod
    def read(cls, graph: GraphProto, parent: Level | None = None) -> Level:
        """A graph's levels; what is changed in them leaves the graph as it was."""
        level = cls(graph.name, parent)
        level.weights = {i.name: i for i in graph.initializer}
        level.outputs, level.infos = [o.name for o in graph.output], list(graph.value_info)
        for node in graph.node:
            own = NodeProto()
            own.CopyFrom(node)
            item = Item(own)
            if node.op_type == "If":
                sides = {a.name: a.g for a in node.attribute}
                item.branches = (cls.read(sides["then_branch"], level), cls.read(sides["else_branch"], level))
                del own.attribute[:]
            level.items.append(item)
        return level

    def below(self) -> Iterator[Level]:
        """This level and all inside it."""
        yield self
        for item in self.items:
            for branch in item.branches or ():
                yield from branch.below()

    def nodes(self) -> list[NodeProto]:
        """Its nodes, branches written back."""
        done = []
        for item in self.items:
            node = item.node
            if item.branches is not None:
                node = NodeProto()
                node.CopyFrom(item.node)
                for key, branch in zip(("then_branch", "else_branch"), item.branches, strict=True):
                    node.attribute.append(helper.make_attribute(key, branch.graph()))
            done.append(node)
        return done

    def graph(self) -> GraphProto:
        """The branch as a graph."""
        answers = [helper.make_empty_tensor_value_info(o) for o in self.outputs]
        weights = list(self.weights.values())
        return helper.make_graph(self.nodes(), self.name, [], answers, weights, value_info=self.known())

    def known(self) -> list[ValueInfoProto]:
        """Types of values that are still made here."""
        here = {o for item in self.items for o in item.node.output}
        return [v for v in self.infos if v.name in here]

    def insert_after(self, item: Item, *new: NodeProto) -> None:
        """Puts nodes behind an item."""
        at = self.items.index(item) + 1
        self.items[at:at] = [Item(n) for n in new]


def written_back(model: ModelProto, root: Level) -> ModelProto:
    """A copy of the model with the nodes and weights of these levels."""
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    result.graph.node.extend(root.nodes())
    result.graph.initializer.extend(root.weights.values())
    result.graph.value_info.extend(root.known())
    return result


def make_unique(root: Level) -> None:
    """Gives values of different levels different names; an optimiser numbers each level's anew."""
    taken = {o for item in root.items for o in item.node.output} | set(root.weights)
    for count, level in enumerate(root.below()):
        if level is root:
            continue
        names = {o: o for item in level.items for o in item.node.output if o} | {w: w for w in level.weights}
        names = {v: f"{v}#{count}" for v in names if v in taken}
        level.infos = []  # an optimised graph needs none
        taken |= {o for item in level.items for o in item.node.output} | set(level.weights)
        if names:
            _rename(level, names)
            taken |= set(names.values())


def _rename(level: Level, names: dict[str, str]) -> None:
    """Of values that this level makes; also where levels inside it read them."""
    for name in [w for w in level.weights if w in names]:
        weight = TensorProto()
        weight.CopyFrom(level.weights.pop(name))
        weight.name = names[name]
        level.weights[weight.name] = weight
    for item in level.items:
        item.node.output[:] = [names.get(v, v) for v in item.node.output]
    _rename_reads(level, names)


def _rename_reads(level: Level, names: dict[str, str]) -> None:
    level.outputs = [names.get(v, v) for v in level.outputs]
    for item in level.items:
        item.node.input[:] = [names.get(v, v) for v in item.node.input]
        for branch in item.branches or ():
            own = {o for inner in branch.items for o in inner.node.output} | set(branch.weights)
            _rename_reads(branch, {k: v for k, v in names.items() if k not in own})


def used_in(root: Level) -> Counter[str]:
    """How often each value is read, anywhere, or answered."""
    counts: Counter[str] = Counter()
    for level in root.below():
        counts.update(level.outputs)
        for item in level.items:
            counts.update(v for v in item.node.input if v)
    return counts


def without_dead(root: Level) -> None:
    """Takes away what nobody reads: nodes, outputs of an If, weights; as often as there is something."""
    while True:
        counts, changed = used_in(root), False
        for level in list(root.below()):
            kept = []
            for item in level.items:
                outputs = [o for o in item.node.output if o]
                if not any(counts[o] for o in outputs):
                    changed = True
                    continue
                if item.branches is not None and not all(counts[o] for o in outputs):
                    _narrow(item, [bool(counts[o]) for o in item.node.output])
                    changed = True
                kept.append(item)
            level.items = kept
            level.weights = {k: w for k, w in level.weights.items() if counts[k]}
        if not changed:
            return


def _narrow(item: Item, keep: list[bool]) -> None:
    item.node.output[:] = [o for o, k in zip(item.node.output, keep, strict=True) if k]
    for branch in item.branches or ():
        branch.outputs = [o for o, k in zip(branch.outputs, keep, strict=True) if k]
