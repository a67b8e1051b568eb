"""The hooks of a model: what it may tell the harness about itself. Every one is optional; `of` is their only reader.

A model is any `torch.nn.Module`. Two places may say more: the Python file in which its class is defined (`ModelFile`),
and the model object itself (`ModelObject`). The two protocols below describe the hooks; nothing has to inherit from
them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from dynbench.dynamic import Trace
from dynbench.errors import UserError

Shape = tuple[int, ...]
IMAGE: Shape = (3, 32, 32)  # the input of a model that does not say its own


class DeclaredCost(TypedDict):
    """One row of `declared_costs`: something outside this machine that the model asks, such as a human expert."""

    what: str  # who or what is asked
    share: float  # of the stream's items that reach it
    latency_s: float  # seconds a query takes
    cost: float  # of a query, in `unit`
    unit: str


class ModelFile(Protocol):
    """What the file that defines a model's class may define at its top level."""

    PAPER: str
    """The paper that the model is from, as a report cites it."""

    PROVENANCE: str
    """What the code follows (the paper, the authors' code) and what is reconstructed; default: 'own model'."""

    def accounted_macs(self, model: nn.Module, trace: Trace, shape: Shape) -> tuple[float, str]:
        """The multiply-accumulates per sample as the paper counts them.

        Args:
            model: a model of this file.
            trace: decisions of a stream.
            shape: of one input, without the sample dimension.

        Returns:
            (MACs per sample, averaged over the trace's items; the paper's counting rule in words).
        """

    def declared_costs(self, model: nn.Module, trace: Trace) -> list[DeclaredCost]:
        """The costs outside this machine that the workload declares; they are not measured.

        Args:
            model: a model of this file.
            trace: decisions of a stream.

        Returns:
            A row for each party that is asked; none: [].
        """


class ModelObject(Protocol):
    """What a model object may have."""

    weights_file: Path
    """A file of weights trained by others that the model itself has read: named and hashed in the report."""

    outside_torch: str
    """The library that computes in torch's place ('OpenCV'): its FLOPs and bytes are reported as unavailable."""

    def input_shape(self, default: Shape) -> Shape:
        """The shape of one input, without the sample dimension.

        Args:
            default: (3, 32, 32), for a model that takes inputs of any size.
        """


# A submodule whose output is pixels again (a crop, a resize) may set `pixels = True`: `dynbench partition` then sends
# its output as bytes. See `dynbench.meters.chain`.


@dataclass(frozen=True, eq=False)
class ModelHooks:
    """The hooks of one model, checked.

    Attributes:
        model: the model itself.
        paper, provenance: see `ModelFile`; None: its file does not say.
        weights_file, outside_torch: see `ModelObject`; None: it does not say.
    """

    model: nn.Module
    paper: str | None
    provenance: str | None
    weights_file: Path | None
    outside_torch: str | None

    def accounted_macs(self, trace: Trace, shape: Shape) -> tuple[float, str] | None:
        """The MACs per sample as the paper counts them, and its rule in words; None: the file does not say.

        Args:
            trace: decisions of a stream.
            shape: of one input, without the sample dimension.

        Raises:
            UserError: the hook is not a function, raises, or returns something else.
        """
        hook = _function(self._file, "accounted_macs")
        if hook is None:
            return None
        match found := _call(self._file, "accounted_macs", hook, self.model, trace, shape):
            case (Real() as macs, str() as rule):
                return float(macs), rule
        raise UserError(f"{_where(self._file)}: accounted_macs returned {found!r}, not (MACs per sample, rule)")

    def declared_costs(self, trace: Trace) -> list[DeclaredCost]:
        """The costs outside this machine that the workload declares; without the hook none.

        Raises:
            UserError: the hook is not a function, raises, or returns something else.
        """
        hook = _function(self._file, "declared_costs")
        if hook is None:
            return []
        rows: list[DeclaredCost] = _call(self._file, "declared_costs", hook, self.model, trace)
        keys = DeclaredCost.__required_keys__
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() == keys for row in rows):
            wanted = ", ".join(DeclaredCost.__annotations__)
            raise UserError(f"{_where(self._file)}: declared_costs returned {rows!r}, not a list of rows of {wanted}")
        return rows

    def input_shape(self, default: Shape = IMAGE) -> Shape:
        """The shape of one input, without the sample dimension; without the hook `default`.

        Raises:
            UserError: the hook is not a method, raises, or returns something else.
        """
        hook = _function(self.model, "input_shape")
        if hook is None:
            return default
        shape = _call(self.model, "input_shape", hook, default)
        if not isinstance(shape, (tuple, list)) or not all(isinstance(size, int) and size > 0 for size in shape):
            raise UserError(f"{_where(self.model)}: input_shape returned {shape!r}, not a tuple of positive integers")
        return tuple(shape)

    def example(self, shape: Shape | None = None) -> Tensor:
        """One input of zeros [1, *shape], on torch's default device; `shape` None: as the model says.

        A model with an embedding is given tokens (long), any other floating-point numbers.
        """
        tokens = any(isinstance(module, nn.Embedding) for module in self.model.modules())
        return torch.zeros(1, *(shape or self.input_shape()), dtype=torch.long if tokens else torch.float32)

    @property
    def _file(self) -> Any:
        return _file_of(type(self.model))


def of(model: nn.Module) -> ModelHooks:
    """Reads the hooks of a model.

    Raises:
        UserError: a hook is of another type than its protocol says.
    """
    paper, provenance = origin(type(model))
    weights = _value(model, "weights_file", (str, Path))
    return ModelHooks(
        model, paper, provenance, None if weights is None else Path(weights), _value(model, "outside_torch", (str,))
    )


def origin(builder: Callable[..., Any]) -> tuple[str | None, str | None]:
    """PAPER and PROVENANCE of the file in which a model's class, or the function that builds it, is defined.

    Raises:
        UserError: one of them is not a string.
    """
    file = _file_of(builder)
    return _value(file, "PAPER", (str,)), _value(file, "PROVENANCE", (str,))


def _file_of(part: Any) -> Any:
    return sys.modules.get(part.__module__)


def _value(owner: Any, name: str, types: tuple[type, ...]) -> Any:
    value = getattr(owner, name, None)
    if value is not None and not isinstance(value, types):
        wanted = " or ".join(t.__name__ for t in types)
        raise UserError(f"{_where(owner)}: {name} is {type(value).__name__}, it must be {wanted}")
    return value


def _function(owner: Any, name: str) -> Callable[..., Any] | None:
    hook = getattr(owner, name, None)
    if hook is not None and not callable(hook):
        raise UserError(f"{_where(owner)}: {name} is {type(hook).__name__}, it must be a function")
    return hook


def _call(owner: Any, name: str, hook: Callable[..., Any], *args: Any) -> Any:
    try:
        return hook(*args)
    except Exception as e:
        raise UserError(f"{_where(owner)}: {name} raised {type(e).__name__}: {e}") from e


def _where(owner: Any) -> str:
    """A file's path, or the class of a model."""
    return str(getattr(owner, "__file__", None) or type(owner).__name__)
