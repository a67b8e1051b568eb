"""Other labelled images, with the class an expert would name as an additional channel.

For cascades whose last stage is a human. The expert's answer is the label, except for a given share of errors, which
are a function of (seed, item) only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError


def load(
    split: Literal["train", "validation", "test"],
    *,
    of: str = "cluttered_digits",
    error_rate: float = 0.0,
    limit: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
    **options: Any,
) -> Dataset:
    """Images [N, 3, H, W] of other inputs -> [N, 4, H, W]: the last channel is the class the expert names.

    Args:
        split: 'train', 'validation' or 'test'.
        of: the other inputs, by name.
        error_rate: share of items for which the expert names a wrong class, 0 to 1.
        limit: maximum number of items.
        seed: of the inputs, and of the expert's errors.
        data_dir: folder of a data set that does not come with dynbench.
        **options: of the other inputs.

    Raises:
        UserError: a rate out of range, or inputs that are not labelled images.
    """
    from dynbench.data import load_inputs

    if not 0 <= error_rate <= 1:
        raise UserError(f"inputs 'with_expert': error_rate={error_rate}; it lies between 0 and 1")
    data = load_inputs(of, split, data_dir=data_dir, limit=limit, seed=seed, **options)
    if data.labels is None or data.labels.ndim != 1 or data.inputs.ndim != 4:
        raise UserError(f"inputs 'with_expert': of={of!r} are no labelled images, so an expert has nothing to name")
    named = answers(data.labels, data.classes, error_rate, [seed, *split.encode()])
    plane = np.broadcast_to(named[:, None, None, None], (len(data), 1, *data.inputs.shape[2:]))
    inputs = np.concatenate([data.inputs, plane.astype(np.float32)], axis=1)
    what = f"{data.description}; with the answers of an expert who is wrong in {100 * error_rate:g} % of all cases"
    return Dataset(inputs, data.labels, what, data.classes)


def answers(labels: np.ndarray, classes: int, error_rate: float, seed: list[int]) -> np.ndarray:
    """The classes [N] that the expert names, from labels [N]; an item's does not depend on N."""
    errs, how = np.random.default_rng([*seed, 1]).random((len(labels), 2)).T
    other = (labels + 1 + (how * (classes - 1)).astype(np.int64)) % classes
    named: np.ndarray = np.where(errs < error_rate, other, labels)
    return named
