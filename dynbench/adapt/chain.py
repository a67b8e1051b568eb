"""Cuts a network's forward pass into stages, after given modules.

The forward pass is traced (torch.fx), down to the modules that are named. Where it cannot be traced, as in models of
the package transformers, it is watched: from the first cut on it has to be a chain of modules, each of which takes what
the one before it returned, and what else they take must not depend on the chain.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from dynbench.adapt.calls import Call, Place, Signature, arguments, joined, main_output, map_leaves, only_call, watch
from dynbench.adapt.network import Inputs, StandsFor, module_named, replace, said, same, shared_copy, tried
from dynbench.dynamic import DecisionPoint, Shared
from dynbench.dynamic.items import tensors
from dynbench.errors import UserError


class Stages(NamedTuple):
    """A network cut into stages.

    Attributes:
        cuts: the modules after which it is cut, in the order in which they run.
        enter: `inputs -> state`; None: the inputs are the state.
        stages: `state -> state`, one more than cuts. The state after a cut is the tensor there, or a tuple that begins
            with it; after the last stage the network's answer, in the same way.
    """

    cuts: list[str]
    enter: nn.Module | None
    stages: list[nn.Module]


def cut(net: nn.Module, cuts: list[str], inputs: list[Inputs]) -> Stages:
    """Cuts a network after the modules named.

    Args:
        net: in evaluation mode; it must not be used any more afterwards.
        cuts: names of modules.
        inputs: of 2 items and of 3.

    Raises:
        UserError: a module is not there, is part of a decision point, is not called exactly once or last, or more than
            its output crosses the cut: the sentence names what does.
    """
    for name in cuts:
        module_named(net, name)
        for outside in _around(name):
            if isinstance(net.get_submodule(outside), DecisionPoint):
                raise UserError(
                    f"{name!r} lies inside the decision point {outside!r}: exits are made outside of others"
                )
    modules = {name: net.get_submodule(name) for name in cuts}
    answer, calls = watch(net, inputs[0], modules)
    for name in cuts:
        if _is(main_output(only_call(net, name, calls).out), answer):
            raise UserError(
                f"{name!r} makes the answer of {type(net).__name__}: beyond it there is nothing to leave out"
            )
    graph = _traced(net, cuts, len(inputs[0]))
    if graph is None:
        for name in sorted(_opened(cuts), key=lambda n: -n.count(".")):
            _unroll(net, name, cuts, inputs[0])
        graph = _traced(net, cuts, len(inputs[0]))
    if graph is not None:
        staged = _by_graph(net, graph, cuts, inputs)
        if all(_answers(staged, batch, tried(net, batch)) for batch in inputs):
            return staged
    return _by_watching(net, cuts, inputs)


def _answers(staged: Stages, inputs: Inputs, want: Any) -> bool:
    """Whether a graph in stages gives an answer; it may not, if it was traced along one of several ways."""
    state: Any = inputs[0] if len(inputs) == 1 else inputs
    try:
        with torch.no_grad():
            for stage in staged.stages:
                state = stage.forward(state)
    except Exception:  # noqa: BLE001  (whatever other inputs lead to)
        return False
    return same(state, want)


def _opened(cuts: list[str]) -> set[str]:
    """The modules in which cuts lie."""
    return {outside for name in cuts for outside in _around(name)}


def _around(name: str) -> list[str]:
    """The modules in which a module lies, but the network itself."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _is(a: Any, b: Any) -> bool:
    """Whether two values are the same tensor, or views of all of it in the same shape."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


# --- traced ---


def _traced(net: nn.Module, cuts: list[str], given: int) -> fx.Graph | None:
    """The graph of the forward pass, in which the named modules are whole; None: it cannot be traced."""
    opened, left_out = _opened(cuts), _left_out(net, given)

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return module_qualified_name not in opened

    try:
        Tracer().trace(shared_copy(net), left_out)  # a forward pass may keep what it is given
        graph = Tracer().trace(net, left_out)
    except Exception:  # noqa: BLE001  (a forward pass may do anything with a stand-in for a tensor)
        return None
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    return graph if all(targets.count(name) == 1 for name in cuts) else None


def _unroll(net: nn.Module, name: str, cuts: list[str], inputs: Inputs) -> None:
    """Where a module only calls its parts in turn, gives it a forward pass that can be traced."""
    outer = net.get_submodule(name)
    inside = [cut.removeprefix(f"{name}.") for cut in cuts if cut.startswith(f"{name}.")]
    parts = {part: outer.get_submodule(part) for part in _outermost(outer, inside)}
    _, calls = watch(net, inputs, {**parts, name: outer})
    (i,) = [j for j, call in enumerate(calls) if call.name == name] or [-1]
    given = [leaf for _, leaf in arguments(calls[i].args, calls[i].kwargs) if isinstance(leaf, Tensor)]
    wanted, links = calls[i].out, []
    while len(given) == 1 and isinstance(wanted, Tensor) and not _is(wanted, given[0]):
        i = _maker_of(wanted, calls, i)
        taken = [leaf for _, leaf in arguments(calls[i].args, calls[i].kwargs) if isinstance(leaf, Tensor)]
        if i < 0 or len(taken) != 1:
            return
        wanted, (args, kwargs) = taken[0], map_leaves(_at_x, (calls[i].args, calls[i].kwargs))
        links.append((parts[calls[i].name], (args, kwargs), not isinstance(calls[i].out, Tensor)))
    if links:
        object.__setattr__(outer, "forward", partial(_in_turn, links[::-1]))


def _at_x(leaf: Any) -> Any:
    return Place(None) if isinstance(leaf, Tensor) else leaf


def _in_turn(links: list[tuple[nn.Module, Any, bool]], x: Any, *_: Any, **__: Any) -> Any:
    for module, tree, several in links:
        args, kwargs = joined(tree, x, ())
        y = module(*args, **kwargs)
        x = y[0] if several else y
    return x


def _left_out(net: nn.Module, given: int) -> dict[str, Any]:
    """The arguments of the forward pass that are not given, with their defaults."""
    parameters = list(inspect.signature(net.forward).parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: p.default for p in plain[given:]}


def _by_graph(net: nn.Module, graph: fx.Graph, cuts: list[str], inputs: list[Inputs]) -> Stages:
    """Stages as parts of a graph.

    Raises:
        UserError: more than the output of a named module crosses the cut.
    """
    at = {node: node.target for node in graph.nodes if node.op == "call_module" and node.target in cuts}
    values = [_value(node) for node in at]
    stage = _stages(graph, values)
    given = [node for node in graph.nodes if node.op == "placeholder"]
    _check_crossing(net, graph, values, stage, inputs)
    staged: list[nn.Module] = []
    for k in range(len(values) + 1):
        takes = _inputs_needed(stage, given, k)
        enters = takes if k == 0 else [values[k - 1], *takes]
        leaves_by = None if k == len(values) else [values[k], *_inputs_needed(stage, given, k + 1)]
        staged.append(fx.GraphModule(net, _part(graph, stage, k, enters, leaves_by), "Stage"))
    return Stages([str(name) for name in at.values()], None, staged)


def _value(node: fx.Node) -> fx.Node:
    """What a module gives: its output, or the first of several where only that is used."""
    users = list(node.users)
    first = len(users) == 1 and users[0].target is operator.getitem and users[0].args[1] == 0
    return users[0] if first else node


def _stages(graph: fx.Graph, values: list[fx.Node]) -> dict[fx.Node, set[int]]:
    """The stages that compute each node: the earliest that uses it; each that does, if it follows from the inputs."""
    last, stage = len(values), {}
    anew = _made_of_inputs(graph)
    for node in reversed(graph.nodes):
        if node.op == "output":
            stage[node] = {last}
        elif node in values:
            stage[node] = {values.index(node)}
        elif used := [k for user in node.users if user in stage for k in stage[user]]:
            stage[node] = set(used) if node in anew else {min(used)}
    return stage


def _made_of_inputs(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that follow from the inputs without a module: sizes, masks, and the network's own tensors."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr") or (
            node.op in ("call_function", "call_method") and all(n in found for n in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _inputs_needed(stage: dict[fx.Node, set[int]], given: list[fx.Node], k: int) -> list[fx.Node]:
    """The network's inputs that stage k or a later one uses."""
    return [node for node in given if any(s >= k for s in stage.get(node, ())) or k == 0]


def _check_crossing(
    net: nn.Module, graph: fx.Graph, values: list[fx.Node], stage: dict[fx.Node, set[int]], inputs: list[Inputs]
) -> None:
    for node, own in stage.items():
        if node.op == "placeholder":
            continue
        for user in node.users:
            for k in stage.get(user, ()):
                if k in own or (node in values and k == values.index(node) + 1):
                    continue
                cut_at = values[min(own)]
                shape = _shape(net, graph, node, inputs[0])
                raise UserError(
                    f"the forward pass of {type(net).__name__} is not a chain at {_maker(cut_at)!r}: {shape} from "
                    f"{_maker(node)!r} is used beyond it as well"
                )


def _maker(node: fx.Node) -> str:
    """The module that makes a node's value, or the nearest one before it."""
    while node.op != "call_module" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return str(node.target)


def _shape(net: nn.Module, graph: fx.Graph, wanted: fx.Node, inputs: Inputs) -> str:
    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n is wanted:
                found.append(said(value))
            return value

    found: list[str] = []
    with torch.no_grad():
        Run(fx.GraphModule(net, graph), graph=graph).run(*inputs)
    return found[0]


def _part(
    graph: fx.Graph, stage: dict[fx.Node, set[int]], k: int, enters: list[fx.Node], leave: list[fx.Node] | None
) -> fx.Graph:
    """Stage k as a graph of one argument, the state: a value, or a tuple of several."""
    part = fx.Graph()
    state = part.placeholder("state")
    known: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(enters):
        known[node] = state if len(enters) == 1 else part.call_function(operator.getitem, (state, i))
    for node in graph.nodes:
        if node.op == "output":
            if leave is None:
                part.output(fx.map_arg(node.args[0], known.__getitem__))
        elif node not in known and k in stage.get(node, ()) and node.op != "placeholder":
            known[node] = part.node_copy(node, known.__getitem__)
    if leave is not None:
        out = [known[node] for node in leave]
        part.output(out[0] if len(out) == 1 else tuple(out))
    part.lint()
    return part


# --- watched ---


def _by_watching(net: nn.Module, cuts: list[str], inputs: list[Inputs]) -> Stages:
    """Stages as chains of modules; what comes before the first cut stays as it is.

    Raises:
        UserError: from the first cut on the forward pass is not a chain.
    """
    kind, modules = type(net).__name__, {name: net.get_submodule(name) for name in _outermost(net, cuts)}
    (answer, few), (_, many) = (watch(net, batch, modules) for batch in inputs)
    if len(list(tensors(answer))) > 1:
        raise UserError(
            f"{kind} answers with several tensors: give it a module around it that returns the one of interest"
        )
    if [call.name for call in few] != [call.name for call in many]:
        raise UserError(f"{kind} calls other modules for {len(inputs[0][0])} items than for {len(inputs[1][0])}")
    chain = _chain(kind, few, answer, cuts)
    order = [few[link.call].name for link in chain]
    if apart := [name for name in cuts if name not in order]:
        raise UserError(
            f"the forward pass of {kind} is not a chain: {apart[0]!r} is not between {order[0]!r} and the answer"
        )
    signatures = [Signature(few[i].name, few[i], many[i], x) for i, x, _ in chain]
    cuts = sorted(cuts, key=order.index)
    bounds = [0, *(order.index(name) + 1 for name in cuts), len(order)]
    parts = [(modules[name], link.token) for name, link in zip(order, chain, strict=True)]
    stages: list[nn.Module] = [_Links(parts[a:b], a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return Stages(
        cuts, _Enter(net, order, signatures, [few[link.call].out for link in chain]), [*stages[:-1], _Last(stages[-1])]
    )


def _outermost(net: nn.Module, cuts: list[str]) -> list[str]:
    """The modules that the forward pass consists of, down to the level of the cuts."""
    opened = {"", *_opened(cuts)}
    return [name for name, _ in net.named_modules() if name not in opened and name.rpartition(".")[0] in opened]


class _Link(NamedTuple):
    """A module of the chain.

    Attributes:
        call: its call in the forward pass.
        x: place of x among the leaves of its arguments; None: the first tensor.
        token: it takes only x[:, token]; None: x.
    """

    call: int
    x: int | None
    token: int | None


def _chain(kind: str, calls: list[Call], answer: Any, cuts: list[str]) -> list[_Link]:
    """The calls from the first cut to the answer, in order."""
    first = min(i for i, call in enumerate(calls) if call.name in cuts)
    what = f"the forward pass of {kind} is not a chain at {calls[first].name!r}"
    i = _maker_of(next(tensors(answer), None), calls, len(calls))
    if i < first:
        raise UserError(f"{what}: its answer is not what a module returned")
    found: list[_Link] = []
    while i > first:
        given = [leaf for _, leaf in arguments(calls[i].args, calls[i].kwargs)]
        makers = [_maker_of(leaf, calls, i) for leaf in given]
        before = max(makers)
        token = None
        if before < first:
            x, before, token = _token_of(given, calls, i)
            makers[x] = before
        if before < first:
            raise UserError(
                f"{what}: {said(given[x])}, which goes into {calls[i].name!r}, is not what a module beyond it returned"
            )
        for maker, leaf in zip(makers, given, strict=True):
            if first <= maker < before:
                raise UserError(f"{what}: {said(leaf)} from {calls[maker].name!r} goes into {calls[i].name!r} as well")
        found.append(_Link(i, makers.index(before), token))
        i = before
    found.append(_Link(first, None, None))
    path = _path_to(first, calls)
    for link in found[:-1]:
        for _, leaf in arguments(calls[link.call].args, calls[link.call].kwargs):
            maker = _maker_of(leaf, calls, first)
            if maker in path:
                raise UserError(
                    f"{what}: {said(leaf)} from {calls[maker].name!r} goes into {calls[link.call].name!r} as well"
                )
    order, links = {calls[link.call].name for link in found}, {link.call for link in found}
    for j, call in enumerate(calls):
        if call.name in order and j not in links:
            raise UserError(f"{what}: it calls {call.name!r} elsewhere too")
    return found[::-1]


def _path_to(call: int, calls: list[Call]) -> set[int]:
    """The calls that lead to one of them, each of which takes first what the one before it returned."""
    path: set[int] = set()
    while call >= 0:
        given = [leaf for _, leaf in arguments(calls[call].args, calls[call].kwargs) if isinstance(leaf, Tensor)]
        call = _maker_of(given[0], calls, call) if given else -1
        path.add(call)
    return path - {-1}


def _maker_of(value: Any, calls: list[Call], before: int) -> int:
    """The last call, before one of them, that returned a value; -1: none did."""
    return max((j for j in range(before) if _is(main_output(calls[j].out), value)), default=-1)


def _token_of(given: list[Any], calls: list[Call], before: int) -> tuple[int, int, int | None]:
    """An argument that is one token of what a call returned: (its place, the call or -1, the token)."""
    place = next((k for k, leaf in enumerate(given) if isinstance(leaf, Tensor)), 0)
    if not given or not isinstance(given[place], Tensor):
        return place, -1, None
    x = given[place]
    for j in reversed(range(before)):
        y = main_output(calls[j].out)
        if (
            y is not None
            and y.dim() == x.dim() + 1
            and y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        ):
            offset, step = x.storage_offset() - y.storage_offset(), max(y.stride(1), 1)
            token = offset // step
            if 0 <= token < y.shape[1] and offset % step == 0 and _is(y[:, token], x):
                return place, j, -1 if token == y.shape[1] - 1 else token
    return place, -1, None


class _Links(nn.Module):
    """Modules in turn: (x, the items' other tensors, the arguments of each module of the chain) -> the same."""

    def __init__(self, links: list[tuple[nn.Module, int | None]], first: int) -> None:
        super().__init__()
        self.links, self.first = nn.ModuleList(module for module, _ in links), first
        self.tokens = [token for _, token in links]

    def forward(self, state: Any) -> Any:
        x, items, trees = state
        for k, (module, token) in enumerate(zip(self.links, self.tokens, strict=True), self.first):
            args, kwargs = joined(trees.value[k], x if token is None else x[:, token], items)
            x = main_output(module(*args, **kwargs))
        return x, items, trees


class _Last(nn.Module):
    """The last modules, which make the answer: state -> answer."""

    def __init__(self, links: nn.Module) -> None:
        super().__init__()
        self.links = links

    def forward(self, state: Any) -> Any:
        return self.links(state)[0]


class _Reached(Exception):
    """The chain's last module is reached: what the network does after it does not matter."""


class _Recorder(StandsFor):
    """In the place of a module of the chain: keeps how it is called, and passes x on."""

    def __init__(self, module: nn.Module, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape
        object.__setattr__(self, "module", module)  # plainly set, it would be a child

    def _stood_for(self) -> Iterator[nn.Module]:
        yield self.module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.tape.write(args, kwargs)


class _Tape:
    """The calls of the chain's modules in one forward pass."""

    def __init__(self, signatures: list[Signature], tuples: list[int | None]) -> None:
        self.signatures, self.tuples = signatures, tuples
        self.trees: list[Any] = []
        self.items: list[Tensor] = []
        self.x: Tensor | None = None

    def clear(self) -> None:
        self.trees, self.items, self.x = [], [], None

    def write(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        k = len(self.trees)
        x, tree = self.signatures[k].split(args, kwargs, self.items)
        self.trees.append(tree)
        self.x = x if self.x is None else self.x
        if len(self.trees) == len(self.signatures):
            raise _Reached
        length = self.tuples[k]
        return x if length is None else (x, *[None] * (length - 1))


class _Enter(nn.Module):
    """The network as far as the chain: inputs -> the chain's state."""

    def __init__(self, net: nn.Module, order: list[str], signatures: list[Signature], outs: list[Any]) -> None:
        super().__init__()
        self.tape = _Tape(signatures, [None if isinstance(out, Tensor) else len(out) for out in outs])
        for name in dict.fromkeys(order):
            replace(net, name, _Recorder(net.get_submodule(name), self.tape))
        self.net = net

    def forward(self, *inputs: Tensor) -> Any:
        tape = self.tape
        tape.clear()
        with contextlib.suppress(_Reached):
            self.net.forward(*inputs)  # not called as a module: it is no region, its first modules are
        state = tape.x, tuple(tape.items), Shared(tuple(tape.trees))
        tape.clear()
        return state
