"""Synthetic image features: not negative, many of them near 0, like a network's last ReLU after pooling.

For networks that take the output of a frozen one. They carry no information.
"""

from __future__ import annotations

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError

ITEMS = {"train": 10000, "validation": 2000, "test": 2000}


def load(split: str, *, limit: int | None = None, seed: int = 0, features: int = 2048) -> Dataset:
    """Inputs [N, features], without labels.

    Args:
        split: 'train', 'validation' or 'test'.
        limit: number of items; default 10000 for training, 2000 for the others.
        seed: of the features.
        features: number per image.

    Raises:
        UserError: no features.
    """
    if features < 1:
        raise UserError(f"inputs 'image_features': features={features}; features is 1 or more")
    total = ITEMS[split] if limit is None else limit
    rng = np.random.default_rng([seed, *split.encode()])
    inputs = rng.exponential(0.45, (total, features)).astype(np.float32)
    return Dataset(inputs, None, f"made-up features of {total} images, {features} each, {split} part, seed {seed}", 0)
