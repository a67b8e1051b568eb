"""A model as people build it, made ready to be looked into, copied and counted; its answers stay what they are.

Wrappers in which decision points cannot be seen are opened, what a model makes in its first pass is made, and values
that it computed from its weights lose the graph that they carry, with which nothing can copy them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynbench.dynamic import DecisionPoint, Execution
from dynbench.errors import UserError
from dynbench.strategies import Masking, Strategy

SEED = 0  # of weights that are drawn in the first pass

_COMPILED = (
    "It was compiled as a whole by torch.compile, where decision points cannot be told apart: it is measured as it was "
    "before; --engine compile compiles what lies between the points."
)
_PARALLEL = "It was wrapped in {kind}: the network inside is measured, on one device."


def open_wrappers(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A model without the wrappers around its decision points, and sentences that say which these were.

    Modules without a decision point stay in theirs: they are called as they are.
    """
    notes: dict[str, None] = {}
    model = _opened(model, notes)
    for parent in list(model.modules()):
        if getattr(parent, "_compiled_call_impl", None) is not None and _decides(parent):  # by Module.compile
            parent._compiled_call_impl = None
            notes[_COMPILED] = None
        for name, child in list(parent.named_children()):
            if (inner := _opened(child, notes)) is not child:
                setattr(parent, name, inner)
    return model, list(notes)


def _opened(module: nn.Module, notes: dict[str, None]) -> nn.Module:
    while (inner := _inside(module)) is not None and _decides(inner):
        compiled = hasattr(module, "_orig_mod")
        notes[_COMPILED if compiled else _PARALLEL.format(kind=type(module).__name__)] = None
        module = inner
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None: it is none. torch.compile's class is known by name: importing it takes seconds."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    inner = getattr(module, "_orig_mod", None) if type(module).__name__ == "OptimizedModule" else None
    return inner if isinstance(inner, nn.Module) else None


def _decides(module: nn.Module) -> bool:
    return any(isinstance(m, DecisionPoint) for m in module.modules())


def is_unfinished(model: nn.Module) -> bool:
    """Whether a model has weights without a shape, which its first pass gives them (lazy layers)."""
    return any(map(is_lazy, model.parameters())) or any(map(is_lazy, model.buffers()))


def first_pass(model: nn.Module, example: Any, strategy: Strategy | None = None) -> None:
    """Calls a model once, so that what it makes then is there before it is copied, counted or hashed.

    What is drawn comes from the same seed every time.

    Args:
        model: on its device, with its weights.
        example: inputs, batch first.
        strategy: default: masking, which reaches everything.

    Raises:
        UserError: the pass fails, and weights have no shape yet. Otherwise the passes that count say what is wrong.
    """
    try:
        # not in inference mode: parameters that are made there can never be converted
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(SEED)
            Execution(strategy or Masking()).run(model, example)
    except Exception as e:
        if is_unfinished(model):
            raise UserError(f"the first pass over {type(model).__name__} raised {type(e).__name__}: {e}") from e
    model.eval()
    detach_computed(model)


def detach_computed(model: nn.Module) -> None:
    """Takes the graph from tensors that modules keep as plain attributes, such as the weight of `weight_norm`."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()
