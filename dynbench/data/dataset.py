"""The data set type that all inputs are delivered in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Dataset:
    """Inputs in the form that a model takes, labels and a description.

    Attributes:
        inputs: images [N, 3, H, W] float32, normalised; or tokens [N, T] int64.
        labels: classes [N] int64, or the next tokens [N, T] int64; None: unlabelled.
        description: one sentence.
        classes: number of classes, or of tokens.
        content_hash: 16 hex digits of the SHA-256 of inputs and labels.
    """

    inputs: np.ndarray
    labels: np.ndarray | None
    description: str
    classes: int
    content_hash: str = field(default="")

    def __post_init__(self) -> None:
        if not self.content_hash:
            object.__setattr__(self, "content_hash", content_hash(self.inputs, self.labels))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice | np.ndarray) -> Dataset:
        """The data set of these items."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, inputs=self.inputs[rows], labels=labels, content_hash="")


def content_hash(*arrays: np.ndarray | None) -> str:
    """16 hex digits of the SHA-256 of the arrays' dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
