"""A network as a chain of layers: which tensors cross the cut between two layers, and how long each layer takes.

The static twin of the network is traced with torch.fx and one input. What crosses a cut is every value that is computed
before it and needed after it: in a residual network one tensor between two blocks and two tensors within a block; in a
network that processes a crop of its input, the whole input until the crop has been taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from dynbench.dynamic import DecisionPoint, outside
from dynbench.errors import UserError
from dynbench.meters.device import MeasuredDevice

_FIXED = ("placeholder", "get_attr", "output")


@dataclass(frozen=True)
class Layer:
    """One layer of a chain.

    Attributes:
        name: of its first module in the network; without a module, of its first operation.
        kind: its operations, such as 'Conv2d + BatchNorm2d + ReLU'.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Crossing:
    """The tensors that cross a cut.

    Attributes:
        names: of the tensors, in order.
        shapes: of each tensor, without the sample dimension.
        pixels: whether each tensor is the image or a part of it; its values then cross as 8-bit pixels.
        bytes: of all tensors together, for one input.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    pixels: tuple[bool, ...]
    bytes: int


class Chain:
    """A network cut into layers.

    Args:
        model: in evaluation mode; maps one tensor to one tensor.
        example: one input [1, ...].

    Attributes:
        layers: in order.
        crossings: one more than layers; crossings[p] crosses the cut after p layers. The first is the input, the last
            is the output.

    Raises:
        UserError: the network is not a fixed sequence of operations.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        try:
            with outside(), torch.no_grad():
                tracer = _Tracer(example)
                traced = tracer.trace(_OneInput(model))
                self._root = fx.GraphModule(tracer.root, traced)
                self._graph = self._root.graph
                self._graph.eliminate_dead_code()  # such as the initial state of gates, which are not run here
                self._root.recompile()
                output, expected = self._root(example.clone()), model(example.clone())
                self._values = {n: tracer.value(n) for n in self._graph.nodes if n.op != "output"}
        except Exception as e:
            lines = str(e).strip().splitlines()
            raise UserError(
                f"{type(model).__name__} cannot be cut into layers: its static twin is not a fixed sequence of "
                f"operations ({type(e).__name__}{': ' + lines[0] if lines else ''})"
            ) from e
        if not isinstance(output, Tensor):
            raise UserError(
                f"{type(model).__name__} cannot be cut into layers: it returns {type(output).__name__}, not a tensor"
            )
        if not torch.allclose(output, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise UserError(
                f"{type(model).__name__} cannot be cut into layers: the traced operations give a different output"
            )
        self._nodes = [n for n in self._graph.nodes if n.op not in _FIXED]
        self._pixels = self._pixel_nodes()
        self._bounds = self._cuts()
        self.layers = [self._layer(self._nodes[a:b]) for a, b in pairwise(self._bounds)]
        self.crossings = [self._crossing(b) for b in self._bounds]

    def half(self, first: int, last: int) -> fx.GraphModule:
        """Layers `first` to `last` (exclusive) as one module: the tensors of crossings[first] -> of crossings[last]."""
        a, b = self._bounds[first], self._bounds[last]
        graph, made = fx.Graph(), {}
        for node in self._alive(a):
            made[node] = graph.placeholder(node.name)
        for node in self._graph.nodes:
            if node.op == "get_attr":
                made[node] = graph.node_copy(node)
        for node in self._nodes[a:b]:
            made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(tuple(made[n] for n in self._alive(b)))
        return fx.GraphModule(self._root, graph)

    def _alive(self, bound: int) -> list[fx.Node]:
        """The nodes computed before `bound` and used after it; get_attr nodes are available on both sides."""
        before = [n for n in self._graph.nodes if n.op == "placeholder"] + self._nodes[:bound]
        after = set(self._nodes[bound:]) | {n for n in self._graph.nodes if n.op == "output"}
        return [n for n in before if any(user in after for user in n.users)]

    def _cuts(self) -> list[int]:
        """The positions of cuts: only tensors cross them, and none separates a layer from its activation or norm."""
        between = range(1, len(self._nodes))
        inner = [b for b in between if not self._joined(b) and all(_is_tensor(self._values[n]) for n in self._alive(b))]
        return [0, *inner, len(self._nodes)]

    def _joined(self, bound: int) -> bool:
        """Whether node `bound` is in the layer of the one before: batch norm, activation, change of shape or dtype."""
        node, before = self._nodes[bound], self._nodes[bound - 1]
        if before in self._pixels:
            return False
        tensors = [n for n in node.all_input_nodes if n.op != "get_attr" and _is_tensor(self._values[n])]
        module = self._module(node) if node.op == "call_module" else None
        if module is not None and (_gives_pixels(module) or any(p.dim() > 1 for p in module.parameters())):
            return False
        if tensors != [before] or not _is_tensor(self._values[node]):
            return False
        return self._values[node].numel() == self._values[before].numel()

    def _layer(self, nodes: list[fx.Node]) -> Layer:
        kinds = [self._kind(n) for n in nodes]
        named = next((str(n.target) for n in nodes if n.op == "call_module"), nodes[0].name)
        return Layer(named.removeprefix("model."), " + ".join(kinds))

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self._module(node)).__name__
        return str(getattr(node.target, "__name__", node.target))

    def _pixel_nodes(self) -> set[fx.Node]:
        """The input, if it is an image, and the outputs of modules with `pixels = True` that have its channels."""
        images = [n for n in self._graph.nodes if n.op == "placeholder" and _is_image(self._values[n])]
        if not images:
            return set()
        channels = self._values[images[0]].shape[1]
        parts = [n for n in self._nodes if n.op == "call_module" and _gives_pixels(self._module(n))]
        return {*images, *(n for n in parts if _is_image(self._values[n]) and self._values[n].shape[1] == channels)}

    def _module(self, node: fx.Node) -> nn.Module:
        return self._root.get_submodule(str(node.target))

    def _crossing(self, bound: int) -> Crossing:
        nodes = self._alive(bound)
        size = sum(
            self._values[n].numel() * (1 if n in self._pixels else self._values[n].element_size()) for n in nodes
        )
        return Crossing(
            tuple(n.name for n in nodes),
            tuple(tuple(self._values[n].shape[1:]) for n in nodes),
            tuple(n in self._pixels for n in nodes),
            size,
        )


def layer_times_ms(
    chain: Chain, x: Tensor, device: MeasuredDevice, rounds: int = 30, warm_up: int = 5
) -> tuple[list[float], float]:
    """Times each layer separately, and the whole network; every round times all of them in order.

    Args:
        chain: its network is on the device.
        x: one input, on the device.
        device: whose clock is used.
        rounds: number of timed rounds.
        warm_up: number of untimed rounds before them.

    Returns:
        Median milliseconds of each layer, and of the whole network. The layers add up to slightly more than the
        network, because each has the overhead of a call.
    """
    halves: list[fx.GraphModule] = [chain.half(k, k + 1) for k in range(len(chain.layers))]
    whole = chain.half(0, len(chain.layers))
    spent: list[list[int]] = [[] for _ in range(len(halves) + 1)]
    with torch.inference_mode():
        for n in range(warm_up + rounds):
            values: tuple[Any, ...] = (x,)
            for k, call in enumerate([*halves, whole]):
                values = (x,) if k == len(halves) else values
                device.synchronize()
                start = device.clock_ns()
                values = call(*values)
                device.synchronize()
                if n >= warm_up:
                    spent[k].append(device.clock_ns() - start)
    *layers, total = [float(torch.tensor(ns, dtype=torch.float64).median()) / 1e6 for ns in spent]
    return layers, total


def _gives_pixels(module: nn.Module) -> bool:
    """The hook `pixels` of a submodule; see `dynbench.hooks`."""
    return bool(getattr(module, "pixels", False))


def _is_image(value: Any) -> bool:
    return _is_tensor(value) and value.is_floating_point() and value.dim() == 4 and value.shape[1] in (1, 3)


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor)


class _OneInput(nn.Module):
    """Calls a network with one tensor; its other arguments keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Proxy(fx.Proxy):
    """Represents a value during tracing; shape, dtype and device are those of the example's value."""

    @property
    def shape(self) -> torch.Size:
        return self._value.shape

    @property
    def ndim(self) -> int:
        return self._value.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self._value.dtype

    @property
    def device(self) -> torch.device:
        return self._value.device

    @property
    def _value(self) -> Any:
        tracer = self.tracer
        assert isinstance(tracer, _Tracer)
        return tracer.value(self.node)

    def size(self, dim: int | None = None) -> Any:
        return self._value.size() if dim is None else self._value.size(dim)

    def dim(self) -> int:
        return int(self._value.dim())

    def numel(self) -> int:
        return int(self._value.numel())

    def is_floating_point(self) -> bool:
        return bool(self._value.is_floating_point())

    def __len__(self) -> int:
        return len(self._value)


class _Tracer(fx.Tracer):
    """Traces with an example: shapes are numbers, so tracing fails only where control flow depends on tensor values."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example, self.values, self._computing = example, {}, False  # type: ignore[var-annotated]

    def value(self, node: fx.Node) -> Any:
        """The value of a node for the example."""
        if node not in self.values:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.value)
            self._computing = True
            try:
                self.values[node] = self._compute(node, args, kwargs)
            finally:
                self._computing = False
        return self.values[node]

    def _compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "placeholder":
            return self._example
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        where, _, name = str(node.target).rpartition(".")
        return getattr(self.root.get_submodule(where), name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        made = super().create_proxy(*args, **kwargs)
        if made.node.op != "output":
            self.value(made.node)
        return made

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A module without children is one layer."""
        if isinstance(m, DecisionPoint):
            return False
        return super().is_leaf_module(m, module_qualified_name) or not any(True for _ in m.children())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.value(obj.node)
        return super().to_bool(obj) if isinstance(value, Tensor) else bool(value)
