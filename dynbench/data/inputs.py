"""How a function says what a model takes: several inputs, labels, sequences of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynbench.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """What a function of inputs returns where a pair of arrays would leave open what they are.

        Inputs(x, labels=y)                                   model(x)
        Inputs((ids, mask), labels=y)                         model(ids, mask)
        Inputs({"input_ids": ids, "attention_mask": mask})    model(input_ids=ids, attention_mask=mask)
        Inputs(({"x": x, "edges": edges},))                   model({"x": x, "edges": edges})

    Attributes:
        x: the model's one input, an array; or its arguments by position, a tuple; or by name, a dict. Arguments are
            arrays, or tuples and dicts of arrays; a list is an array. Of each array the first dimension is the item.
        labels: an array, or a tuple or dict of arrays for a metric of one's own; None: unlabelled.
    """

    x: Any
    labels: Any = None


def pad(sequences: Sequence[Any], value: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of different lengths as one array, and the mask of what is not padding.

    Args:
        sequences: n lists, arrays or tensors, [length] or [length, ...]; only the length differs.
        value: of the padding.

    Returns:
        Padded sequences [n, longest, ...] and the mask [n, longest] bool, True where a sequence goes on.

    Raises:
        UserError: no sequences, or they differ in more than their length.
    """
    parts = [as_array(s) for s in sequences]
    known = [part for part in parts if part.size] or parts  # an empty list has neither type nor width
    if not parts or len({part.shape[1:] if part.ndim else None for part in known} | {None}) != 2:
        raise UserError("pad takes sequences of numbers, [length] or [length, ...], that differ in their length only")
    longest = max(len(part) for part in parts)
    padded = np.full((len(parts), longest, *known[0].shape[1:]), value, np.result_type(*(p.dtype for p in known)))
    mask = np.zeros((len(parts), longest), bool)
    for row, going_on, part in zip(padded, mask, parts, strict=True):
        if part.size:
            row[: len(part)] = part
            going_on[: len(part)] = True
    return padded, mask


def as_array(value: Any) -> np.ndarray:
    """An array, a tensor (of any type, on any device, with gradient) or nested lists of numbers as an array.

    Raises:
        ValueError: it is none of these; the message says why.
    """
    if isinstance(value, list) and value and not isinstance(value[0], (int, float, list)):
        parts = [as_array(part) for part in value]
        if len({part.shape for part in parts}) > 1:
            raise ValueError("its items have different shapes")
        return np.stack(parts)
    if hasattr(value, "detach"):
        return _of_tensor(value)
    try:
        array = np.asarray(value)
    except ValueError as e:
        raise ValueError("its items have different lengths") from e
    if array.dtype.kind not in "fiubc":
        raise ValueError(f"{type(value).__name__} is no array of numbers")
    return array


def _of_tensor(tensor: Any) -> np.ndarray:
    if tensor.is_nested:
        raise ValueError("its items have different shapes")
    if tensor.is_sparse or tensor.is_quantized or str(tensor.layout) != "torch.strided":
        raise ValueError(f"a tensor of layout {tensor.layout} and type {tensor.dtype} is no plain array")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_floating_point() and tensor.element_size() < 4:  # numpy has no bfloat16
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy()
    return array
