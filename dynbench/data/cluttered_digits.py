"""Cluttered digits: scenes composed from real handwritten digits, some easy, some hard.

Each scene contains one whole digit, the label, over pieces of other digits and noise. The difficulty d in 0..1 is drawn
per scene: the greater it is, the smaller and paler is the digit, the more pieces there are, and the stronger is the
noise. The scenes of train, validation and test are made from disjoint source digits.
"""

from __future__ import annotations

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.data.digits import MEAN, STD, place, sources
from dynbench.errors import UserError

ITEMS = {"train": 10000, "validation": 2000, "test": 2000}
CHUNK = 2000  # scenes made at once, to bound memory
LARGEST, SMALLEST = 0.95, 0.45  # side of the digit relative to the scene, at difficulty 0 and 1
PIECE = 4  # a piece is a 4 x 4 window of an 8 x 8 digit


def load(
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    size: int = 32,
    clutter: int = 4,
    noise: float = 0.1,
    difficulty: float = 1.0,
) -> Dataset:
    """Scenes of a split.

    Args:
        split: 'train', 'validation' or 'test'.
        limit: number of scenes; default 10000 for training, 2000 for the others.
        seed: of all random choices.
        size: side of a scene, pixels.
        clutter: greatest number of pieces of other digits in a scene.
        noise: greatest standard deviation of the noise; brightness is 0..1.
        difficulty: greatest difficulty; each scene's is uniform between 0 and this.

    Raises:
        UserError: an option out of range.
    """
    for name, value, low, high in (
        ("size", size, 16, 1024),
        ("clutter", clutter, 0, 100),
        ("noise", noise, 0, 1),
        ("difficulty", difficulty, 0, 1),
    ):
        if not low <= value <= high:
            raise UserError(f"inputs 'cluttered_digits': {name}={value}; {name} lies between {low} and {high}")
    total = ITEMS[split] if limit is None else limit
    digits, classes = sources(split)
    rng = np.random.default_rng([seed, *split.encode()])
    inputs = np.empty((total, 3, size, size), np.float32)
    labels = np.empty(total, np.int64)
    for start in range(0, total, CHUNK):
        rows = slice(start, min(start + CHUNK, total))
        n = rows.stop - start
        chosen = rng.integers(len(digits), size=n)
        d = rng.uniform(0, difficulty, n).astype(np.float32)
        inputs[rows] = _scenes(rng, digits, chosen, d, size, clutter, noise)
        labels[rows] = classes[chosen]
    what = (
        f"cluttered digits, {total} scenes of {size} x {size} composed from scikit-learn's handwritten digits of the "
        f"{split} part, with up to {clutter} pieces of other digits, noise up to {noise:g}, difficulty up to "
        f"{difficulty:g}, seed {seed}"
    )
    return Dataset(inputs, labels, what, 10)


def _scenes(
    rng: np.random.Generator,
    digits: np.ndarray,
    chosen: np.ndarray,
    d: np.ndarray,
    size: int,
    clutter: int,
    noise: float,
) -> np.ndarray:
    """digits [m, 8, 8], chosen [n], difficulties d [n] -> normalised scenes [n, 3, size, size]."""
    n = len(d)
    scene = np.broadcast_to(_colour(rng, n, 0.0, 0.3), (n, 3, size, size)).copy()
    for piece in range(clutter):
        present = d * clutter > piece + rng.uniform(0, 1, n)
        window = _windows(rng, digits[rng.integers(len(digits), size=n)])
        side = size * rng.uniform(0.5, 1.0, n).astype(np.float32)
        paint: np.ndarray = place(window, side, *_corner(rng, side, size), size) * present[:, None, None].astype(
            np.float32
        )
        _paint(scene, paint, _colour(rng, n, 0.3, 1.0))
    edge = size * (LARGEST + (SMALLEST - LARGEST) * d)
    contrast = 1 - 0.4 * d[:, None, None]
    paint = place(digits[chosen], edge, *_corner(rng, edge, size), size) * contrast
    _paint(scene, paint, _colour(rng, n, 0.6, 1.0))
    scene += rng.standard_normal(scene.shape, dtype=np.float32) * (noise * d)[:, None, None, None]
    return (scene - MEAN) / STD


def _windows(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Clears all of each image [n, 8, 8] but a random PIECE x PIECE window."""
    rows, h = np.arange(images.shape[-1]), images.shape[-1]
    y, x = rng.integers(0, h - PIECE + 1, size=(2, len(images), 1))
    inside_y, inside_x = (rows >= y) & (rows < y + PIECE), (rows >= x) & (rows < x + PIECE)
    return images * (inside_y[:, :, None] & inside_x[:, None, :])


def _corner(rng: np.random.Generator, side: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random left and top edge [n] of a square of this side inside the scene."""
    at = rng.uniform(0, 1, (2, len(side))).astype(np.float32) * (size - side)
    return at[0], at[1]


def _colour(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, (n, 3, 1, 1)).astype(np.float32)


def _paint(scene: np.ndarray, paint: np.ndarray, colour: np.ndarray) -> None:
    """Blends `colour` [n, 3, 1, 1] into the scene where there is paint [n, size, size] in 0..1."""
    scene += paint[:, None] * (colour - scene)
