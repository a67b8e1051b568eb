"""What goes wrong in a model, in one sentence: errors of its own code, and what its parts return and no point can take.

Nothing here is on the way of a model that works. An error of a model's own code is explained when it has happened, from
the frames that it passed; what parts return is checked in one pass beforehand (`dynbench.strategies.checking`).
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic.items import map_items, tensors
from dynbench.dynamic.point import DecisionPoint, Wanted
from dynbench.dynamic.trace import TraceError
from dynbench.errors import DynbenchError, UserError


class ModelError(UserError, RuntimeError):
    """A model, or a part of one, that fails, or returns what its decision point cannot take; the message says which."""


# --- errors of a model's own code ------------------------------------------------------------------------------------

_LIBRARIES = (*torch.__path__, str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<")


def explained(error: BaseException, model: nn.Module) -> ModelError | None:
    """An error that a model's own code raised, as one sentence.

    Args:
        error: as it was caught around a call of the model.
        model: that was called.

    Returns:
        The point, module and line it came from, its type and its first line; None: it says enough already, or is about
        memory, which another batch size may need less of.
    """
    if isinstance(error, (DynbenchError, TraceError, MemoryError, torch.OutOfMemoryError)):
        return None
    if "can't allocate memory" in str(error):
        return None
    where = _where(error, model)
    if (given := _no_places(error)) is not None:
        return ModelError(f"{where} takes whole numbers (int64) and was given {told(given, dtype=True)}")
    return ModelError(f"{where} raised {in_a_line(error)}")


def in_a_line(error: BaseException) -> str:
    """The type of an error, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return type(error).__name__ + (f": {lines[0]}" if lines else "")


def _no_places(error: BaseException) -> Tensor | None:
    """What an embedding was given, where that cannot be places in its table: real numbers, or yes and no."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        given = frame.f_locals.get("input")
        if isinstance(frame.f_locals.get("self"), nn.Embedding | nn.EmbeddingBag) and isinstance(given, Tensor):
            return None if given.dtype in (torch.int32, torch.int64) else given
    return None


def _where(error: BaseException, model: nn.Module) -> str:
    """The innermost point, the innermost module inside it, and the innermost line of a file of the user's own."""
    names = {id(module): name for name, module in model.named_modules()}
    point, module, line = "", f"the model ({type(model).__name__})", ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        owner, file = frame.f_locals.get("self"), frame.f_code.co_filename
        if isinstance(owner, DecisionPoint):
            point, module = named(owner), ""
        elif isinstance(owner, nn.Module) and names.get(id(owner)):
            module = f"{names[id(owner)]} ({type(owner).__name__})"
        if not file.startswith(_LIBRARIES):
            line = f"{Path(file).name} line {number}"
    return ", ".join(filter(None, (point, module, line)))


# --- what a part returns ---------------------------------------------------------------------------------------------


def named(point: DecisionPoint) -> str:
    """A point in a sentence: "Skip 'block0'"."""
    return f"{type(point).__name__} {point.name!r}"


def told(got: Any, *, dtype: bool = False) -> str:
    """What came, in a sentence: '[12, 1]', '[12] float32', 'a Python bool', 'a tuple of [12] and None'."""
    if isinstance(got, Tensor):
        return f"{list(got.shape)}" + (f" {str(got.dtype).removeprefix('torch.')}" if dtype else "")
    if got is None:
        return "None"
    if isinstance(got, (tuple, list)) and 0 < len(got) <= 4:
        return f"a {type(got).__name__} of " + " and ".join(told(part) for part in got)
    if type(got).__module__ == "builtins":
        return f"a Python {type(got).__name__}"
    return f"an object of type {type(got).__name__}"


def check_tensor(point: DecisionPoint, wanted: Wanted, got: Any, device: torch.device) -> None:
    """Whether a part of a point gave a tensor that the point can take, on the device of its items.

    Raises:
        ModelError: it did not; the message names the point, what came, and what was wanted.
    """
    if not isinstance(got, Tensor) or not wanted.fits(got):
        dtype = isinstance(got, Tensor) and (wanted.kind != "real" or not wanted.is_kind(got))
        raise ModelError(f"{named(point)}: {wanted.who} {told(got, dtype=dtype)}; wanted {wanted}")
    if got.device != device:
        raise ModelError(f"{named(point)}: {wanted.who} on {got.device}; wanted {device}, where its items are")


def check_no_nan(point: DecisionPoint, wanted: Wanted, scores: Tensor, live: Tensor | None) -> None:
    """Whether no item that counts has a score that is not a number: nothing can be decided from one.

    Raises:
        ModelError: some have.
    """
    if not scores.is_floating_point():
        return
    bad = scores.isnan().flatten(1).any(1) if scores.dim() > 1 else scores.isnan()
    bad = bad if live is None else bad & live
    if count := int(bad.sum()):
        raise ModelError(f"{named(point)}: {wanted.who} that are NaN, for {count} of {len(bad)} items; wanted numbers")


def check_range(point: DecisionPoint, who: str, numbers: Tensor, least: int, size: int) -> None:
    """Whether numbers of experts, codes or parts are `least` to `size` - 1.

    Raises:
        ModelError: one is not.
    """
    if numbers.numel() == 0:
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low < least or high >= size:
        wrong = low if low < least else high
        raise ModelError(f"{named(point)}: {who} {wrong}; wanted {least} to {size - 1}")


def check_items(point: DecisionPoint, who: str, state: Any, n: int, device: torch.device) -> None:
    """Whether a state has tensors, each with n items first, on the device of the items.

    Raises:
        ModelError: it has not.
    """
    try:
        map_items(lambda t: t, state)
    except TypeError as e:
        raise ModelError(f"{named(point)}: {who} {told(state)}: {e}") from e
    parts = list(tensors(state))
    if not parts:
        raise ModelError(f"{named(point)}: {who} {told(state)}; wanted a tensor [{n}, ...], or several")
    for part in parts:
        if part.dim() == 0 or part.shape[0] != n:
            raise ModelError(f"{named(point)}: {who} {told(part)}; wanted [{n}, ...]: the first dimension is the item")
        if part.device != device:
            raise ModelError(f"{named(point)}: {who} on {part.device}; wanted {device}, where its items are")


def check_alike(point: DecisionPoint, who: str, state: Any, like: Any, whose: str) -> None:
    """Whether two states have the same tensors: as many, of the same shapes and types.

    Args:
        point: whose parts gave them.
        who: gave the first: 'the body gave'.
        state: the first.
        like: the second.
        whose: the second is, after 'wanted [12, 8]': 'as expert 0 gave'.

    Raises:
        ModelError: they differ.
    """
    ours, theirs = list(tensors(state)), list(tensors(like))
    if len(ours) != len(theirs):
        raise ModelError(f"{named(point)}: {who} {len(ours)} tensors; wanted {len(theirs)}, {whose}")
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            dtype = a.dtype != b.dtype
            raise ModelError(f"{named(point)}: {who} {told(a, dtype=dtype)}; wanted {told(b, dtype=dtype)}, {whose}")


def asked_twice(point: DecisionPoint) -> ModelError:
    """The error of a point that was asked more than once for an item in one forward pass."""
    return ModelError(
        f"{named(point)} was asked more than once for the same item in one forward pass, and a decision has one "
        "address: put it in a Loop, whose steps are part of the address, or make a point with a name of its own for "
        "each place (points may share their modules)"
    )
