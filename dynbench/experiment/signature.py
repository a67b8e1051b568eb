"""Whether a model takes what a workload gives it, read from the parameters of its `forward`."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from dynbench.data import Dataset
from dynbench.dynamic.items import Arguments
from dynbench.errors import UserError

_ONE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_pair(model: nn.Module, dataset: Dataset, name: str) -> None:
    """A pair of arrays is inputs and labels, unless the second may be an input, too: then it has to be said.

    Args:
        model: that takes the inputs.
        dataset: its `pair` says whether they came as a pair.
        name: of the inputs.

    Raises:
        UserError: both readings are possible.
    """
    if not dataset.pair:
        return
    taken = _inputs_taken(model)
    if taken is None and dataset.labels.ndim == 1:
        return
    if taken is None or len(taken) > 1:
        several = "several inputs" if taken is None else f"inputs ({', '.join(taken)})"
        raise UserError(
            f"inputs {name} returned a pair of arrays, and the model takes {several}: return dynbench.Inputs((a, b)) "
            "if both are inputs, dynbench.Inputs(a, labels=b) if the second is labels"
        )


def check_call(model: nn.Module, x: Tensor | Arguments, reference: str) -> None:
    """Raises where a model cannot be called with a batch.

    Args:
        model: to be called.
        x: the batch.
        reference: of the model, for the message.

    Raises:
        UserError: the number or the names of the inputs are not those of the model's `forward`.
    """
    signature = _signature(model)
    if signature is None:
        return
    given = x if isinstance(x, Arguments) else Arguments(x)
    try:
        given.call(signature.bind)
    except TypeError as e:
        inputs = ", ".join([*("an array" for _ in given.by_position), *(f"{name}=" for name in given.by_name)])
        raise UserError(
            f"{reference} takes ({', '.join(signature.parameters)}) and is given ({inputs}): {e}; dynbench.Inputs says "
            "what a model takes: a tuple is its arguments by position, a dict its arguments by name"
        ) from e


def _inputs_taken(model: nn.Module) -> list[str] | None:
    """The parameters that may be an input: those without a default, or None by default. None: it is not known."""
    signature = _signature(model)
    if signature is None or any(p.kind in _ANY for p in signature.parameters.values()):
        return None
    empty: Any = inspect.Parameter.empty
    return [n for n, p in signature.parameters.items() if p.kind in _ONE and (p.default is empty or p.default is None)]


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # not written in Python
        return None
