"""Names in an exported graph: those of the model's modules, and stable ones for what comes out."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch
from onnx import ModelProto, helper
from torch import nn

from dynbench.dynamic import points

_ROOT = "."  # scope of the network itself; no module inside it can be called so
_AROUND = "/graph"  # of what is computed around the network


@contextlib.contextmanager
def named_scopes(model: nn.Module) -> Iterator[None]:
    """To be used while tracing: operators get the full name of the module that they are called in.

    Decision points are called like plain functions, without a scope; a hook makes them modules again.
    """
    scopes = torch.jit._trace._trace_module_map
    if scopes is not None:
        for name, module in model.named_modules():
            scopes[module] = torch._C._jit_onnx_create_full_scope_name(torch.typename(type(module)), name or _ROOT)
    hooks = [point.register_forward_pre_hook(lambda *_: None) for point in points(model).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Names:
    """New names for a flat graph: `/layer1/0/conv1/Conv` for the convolution of the module `layer1.0.conv1`.

    Args:
        model: as exported with `named_scopes`, of a module that has the network as its `model`.
        inputs: names that stay.
    """

    def __init__(self, model: ModelProto, inputs: list[str]) -> None:
        self.model, self.inputs = model, set(inputs)
        self.exported = [o.name for o in model.graph.output]
        self.outputs: dict[int, str] = {}

    def output(self, index: int, name: str) -> str:
        """Names an output."""
        self.outputs[index] = name
        return name

    def applied(self) -> ModelProto:
        """The model with its new names."""
        graph = self.model.graph
        taken = self.inputs | set(self.outputs.values())
        names = {w.name: short for w in graph.initializer if (short := w.name.removeprefix("model.")) not in taken}
        made: set[str] = set()
        counts: Counter[str] = Counter()
        for node in graph.node:
            made |= {value for value in node.output if value}
            exported, node.name = node.name, _in_module(node.name, counts)
            names |= {
                v: node.name + v.removeprefix(exported) for v in node.output if exported and v.startswith(exported)
            }
        copies: list[tuple[str, str]] = []
        for index, name in self.outputs.items():
            value = self.exported[index]
            if value in made:
                made.remove(value)
                names[value] = name
            else:  # an input, a weight, or the same as another output
                copies.append((value, name))
        for node in graph.node:
            node.input[:] = [names.get(v, v) for v in node.input]
            node.output[:] = [names.get(v, v) for v in node.output]
        for item in (*graph.initializer, *graph.value_info):
            item.name = names.get(item.name, item.name)
        for value, name in copies:
            graph.node.append(helper.make_node("Identity", [names.get(value, value)], [name], name=name))
        for index, name in self.outputs.items():
            graph.output[index].name = name
        return self.model


def _in_module(name: str, counts: Counter[str]) -> str:
    """`/a/a.b/Conv_3` -> `/a/b/Conv`; a second one of that name is `/a/b/Conv_1`."""
    if not name.startswith("/"):
        return name
    *scopes, operator = name[1:].split("/")
    kind = operator.partition("_")[0]
    place = _AROUND if not scopes else "" if scopes[-1] == _ROOT else "/" + scopes[-1].replace(".", "/")
    plain = f"{place}/{kind}"
    counts[plain] += 1
    return plain if counts[plain] == 1 else f"{plain}_{counts[plain] - 1}"
