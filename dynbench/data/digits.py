"""Scikit-learn's handwritten digits: 1797 real images of 8 x 8 pixels, offline (UCI Optical Recognition, Alpaydin)."""

from __future__ import annotations

import functools

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError

MEAN, STD = 0.5, 0.25
SHARES = {"train": (0, 1197), "validation": (1197, 1497), "test": (1497, 1797)}


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits in the order of the splits: images [1797, 8, 8] in 0..16, labels [1797]. Not to be changed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.random.default_rng(0).permutation(len(digits.target))
    return digits.images[rows], digits.target[rows]


def sources(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: images [n, 8, 8] float32 in 0..1, labels [n] int64. No digit is in two splits."""
    images, labels = _digits()
    part = slice(*SHARES[split])
    return (images[part] / 16).astype(np.float32), labels[part].astype(np.int64)


def place(images: np.ndarray, side: np.ndarray, left: np.ndarray, top: np.ndarray, size: int) -> np.ndarray:
    """Scales each image bilinearly and places it on an empty square.

    Args:
        images: [n, h, h].
        side: [n] side of the scaled image, pixels.
        left: [n] its left edge on the square, pixels.
        top: [n] its upper edge.
        size: side of the square.

    Returns:
        [n, size, size] float32.
    """
    h = images.shape[-1]
    centres = np.arange(size, dtype=np.float32) + 0.5

    def weights(edge: np.ndarray) -> np.ndarray:  # tents: [n, size, h], linear interpolation along one axis
        at = (centres - edge[:, None]) * (h / side)[:, None] - 0.5
        return np.maximum(0, 1 - np.abs(at[..., None] - np.arange(h, dtype=np.float32))).astype(np.float32)

    return weights(top) @ images @ weights(left).transpose(0, 2, 1)


def load(split: str, *, limit: int | None = None, size: int = 32) -> Dataset:
    """The plain digits, scaled to `size` x `size` pixels, three equal channels.

    Raises:
        UserError: a size below 8.
    """
    if size < 8:
        raise UserError(f"inputs 'digits': size={size}; the digits have 8 x 8 pixels, size is 8 or more")
    images, labels = sources(split)
    images, labels = images[:limit], labels[:limit]
    edge = np.zeros(len(images), np.float32)
    scaled = place(images, edge + size, edge, edge, size)
    inputs = np.repeat(((scaled - MEAN) / STD)[:, None], 3, axis=1)
    what = f"handwritten digits (scikit-learn, real), {len(inputs)} of the {split} part, scaled to {size} x {size}"
    return Dataset(inputs, labels, what, 10)
