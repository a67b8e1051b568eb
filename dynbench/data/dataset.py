"""The data set type that all inputs are delivered in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """Inputs in the form that a model takes, labels and a description.

    Attributes:
        inputs: images [N, 3, H, W] float32, normalised; or tokens [N, T] int64; or whatever else the model takes as its
            one input. Several inputs are a tuple (arguments by position) or a dict (arguments by name) of arrays, or of
            tuples and dicts of arrays; of each array the first dimension is the item.
        labels: classes [N] int64, the next tokens [N, T] int64, or others, of each array the first dimension the item;
            None: unlabelled.
        description: one sentence.
        classes: number of classes, or of tokens; 0: unknown.
        content_hash: 16 hex digits of the SHA-256 of inputs and labels.
        token: what an item's parts are called, where each has a label: 'byte', 'token'.
        pair: a function returned a pair of arrays: inputs and labels, unless the model takes two inputs.
    """

    inputs: Any
    labels: Any
    description: str
    classes: int
    content_hash: str = field(default="")
    token: str = "token"
    pair: bool = False

    def __post_init__(self) -> None:
        if not self.content_hash:
            object.__setattr__(self, "content_hash", content_hash(self.inputs, self.labels))

    def __len__(self) -> int:
        return len(next(arrays(self.inputs)))

    def __getitem__(self, rows: slice | np.ndarray) -> Dataset:
        """The data set of these items."""
        inputs, labels = (map_arrays(lambda a: a[rows], part) for part in (self.inputs, self.labels))
        return replace(self, inputs=inputs, labels=labels, content_hash="")

    def save(self, file: BinaryIO) -> None:
        """Writes it as an .npz file."""
        parts: dict[str, Any] = {f"array_{i}": a for i, a in enumerate(arrays((self.inputs, self.labels)))}
        about = {
            "inputs": _form(self.inputs),
            "labels": _form(self.labels),
            "about": [self.description, self.classes, self.token, self.pair],
        }
        np.savez(file, about=np.array(json.dumps(about)), **parts)

    @classmethod
    def load(cls, file: Any) -> Dataset:
        """Reads what `save` wrote."""
        with np.load(file, allow_pickle=False) as kept:
            said = json.loads(str(kept["about"]))
            parts = iter([kept[f"array_{i}"] for i in range(len(kept.files) - 1)])
        inputs, labels = _formed(said["inputs"], parts), _formed(said["labels"], parts)
        description, classes, token, pair = said["about"]
        return cls(inputs, labels, description, classes, token=token, pair=pair)


def arrays(parts: Any) -> Iterator[np.ndarray]:
    """The arrays of inputs or labels, in order."""
    if isinstance(parts, dict):
        parts = parts.values()
    if isinstance(parts, np.ndarray):
        yield parts
    elif parts is not None:
        for part in parts:
            yield from arrays(part)


def map_arrays(f: Callable[[Any], Any], parts: Any) -> Any:
    """The same tuples and dicts with `f` of everything inside that is neither; None stays."""
    if isinstance(parts, dict):
        return {name: map_arrays(f, part) for name, part in parts.items()}
    if isinstance(parts, tuple):
        return tuple(map_arrays(f, part) for part in parts)
    return None if parts is None else f(parts)


def content_hash(*parts: Any) -> str:
    """16 hex digits of the SHA-256 of arrays' dtypes, shapes and bytes, and of how they are nested."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, (tuple, dict)):
            digest.update(json.dumps(_form(part)).encode())
        for array in arrays(part):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _form(parts: Any) -> Any:
    """How arrays are nested, for JSON: a dict is an object, a tuple a list, an array true, nothing null."""
    if isinstance(parts, dict):
        return {name: _form(part) for name, part in parts.items()}
    if isinstance(parts, tuple):
        return [_form(part) for part in parts]
    return None if parts is None else True


def _formed(form: Any, parts: Iterator[np.ndarray]) -> Any:
    """The next arrays in the form that `_form` described."""
    if isinstance(form, dict):
        return {name: _formed(part, parts) for name, part in form.items()}
    if isinstance(form, list):
        return tuple(_formed(part, parts) for part in form)
    return None if form is None else next(parts)
