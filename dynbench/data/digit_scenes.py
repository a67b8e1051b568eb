"""Digit scenes: one or two small, real handwritten digits at random positions in a large scene, with distractors.

One digit is its own label. Of two, the label needs both: their sum, the larger one, or whether they are equal. The
scenes of train, validation and test are made from disjoint source digits.
"""

from __future__ import annotations

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.data.digits import STD, place, sources
from dynbench.errors import UserError

ITEMS = {"train": 10000, "validation": 2000, "test": 2000}
CHUNK = 2000  # scenes made at once, to bound memory
SMALLEST, LARGEST = 0.28, 0.36  # side of a digit relative to the scene
PIECE = 3  # a piece is a 3 x 3 window of an 8 x 8 digit
RULES = {"sum": 19, "sum_mod_10": 10, "larger": 10, "equal": 2}  # rule for the label -> number of classes


def load(
    split: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    size: int = 60,
    digits: int = 1,
    rule: str = "larger",
    clutter: int = 4,
    noise: float = 0.1,
    guidance: bool = False,
) -> Dataset:
    """Scenes of a split, one channel.

    Args:
        split: 'train', 'validation' or 'test'.
        limit: number of scenes; default 10000 for training, 2000 for the others.
        seed: of all random choices.
        size: side of a scene, pixels.
        digits: whole digits in a scene, 1 or 2.
        rule: the label of two digits: 'sum', 'sum_mod_10', 'larger' (the larger one), or 'equal' (0 or 1, each
            in about half of the scenes).
        clutter: pieces of other digits in a scene.
        noise: standard deviation of the noise; brightness is 0..1.
        guidance: labels are rows [N, 1 + 4 digits]: the class and, for each digit, left, top, right and bottom in
            pixels, right and bottom exclusive.

    Raises:
        UserError: an option out of range.
    """
    for name, value, low, high in (
        ("size", size, 24, 1024),
        ("digits", digits, 1, 2),
        ("clutter", clutter, 0, 100),
        ("noise", noise, 0, 1),
    ):
        if not low <= value <= high:
            raise UserError(f"inputs 'digit_scenes': {name}={value}; {name} lies between {low} and {high}")
    if rule not in RULES:
        raise UserError(f"inputs 'digit_scenes': rule={rule!r}; accepted: {', '.join(RULES)}")
    total = ITEMS[split] if limit is None else limit
    images, classes = sources(split)
    rng = np.random.default_rng([seed, *split.encode()])
    inputs = np.empty((total, 1, size, size), np.float32)
    labels = np.empty((total, 1 + 4 * digits), np.int64)
    for start in range(0, total, CHUNK):
        rows = slice(start, min(start + CHUNK, total))
        n = rows.stop - start
        chosen = rng.integers(len(images), size=(digits, n))
        if digits == 2 and rule == "equal":
            chosen[1] = np.where(rng.uniform(size=n) < 0.5, _alike(rng, classes, chosen[0]), chosen[1])
        inputs[rows, 0], labels[rows, 1:] = _scenes(rng, images, chosen, size, clutter, noise)
        labels[rows, 0] = _label(rule, *classes[chosen])
    which = f"one of scikit-learn's handwritten digits of the {split} part"
    if digits == 2:
        which = f"two of scikit-learn's handwritten digits of the {split} part, labelled by rule {rule!r}"
    what = (
        f"digit scenes, {total} of {size} x {size}, each with {which}, {clutter} pieces of others, noise {noise:g}, "
        f"seed {seed}"
    )
    return Dataset(inputs, labels if guidance else labels[:, 0].copy(), what, 10 if digits == 1 else RULES[rule])


def _label(rule: str, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    if b is None:
        return a
    if rule == "larger":
        return np.maximum(a, b)
    if rule == "equal":
        return (a == b).astype(np.int64)
    return (a + b) % 10 if rule == "sum_mod_10" else a + b


def _alike(rng: np.random.Generator, classes: np.ndarray, a: np.ndarray) -> np.ndarray:
    """For each digit a [n] a random digit of the same class."""
    order = np.argsort(classes, kind="stable")
    counts = np.bincount(classes, minlength=10)
    first = np.cumsum(counts) - counts
    of = classes[a]
    return order[first[of] + rng.integers(1 << 30, size=len(a)) % counts[of]]


def _scenes(
    rng: np.random.Generator, images: np.ndarray, chosen: np.ndarray, size: int, clutter: int, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """images [m, 8, 8], chosen [digits, n] -> scenes [n, size, size], background 0, boxes [n, 4 digits]."""
    digits, n = chosen.shape
    scene = np.zeros((n, size, size), np.float32)
    edge = np.full(n, SMALLEST * size, np.float32)
    for _ in range(clutter):
        piece = _pieces(rng, images[rng.integers(len(images), size=n)])
        left, top = rng.uniform(-edge / 4, size - 3 * edge / 4, (2, n)).astype(np.float32)
        np.maximum(scene, place(piece, edge, left, top, size), out=scene)
    sides = rng.uniform(SMALLEST, LARGEST, (digits, n)).astype(np.float32) * size
    if digits == 2:
        corners = _apart(rng, sides[0], sides[1], size)
    else:
        corners = (rng.uniform(0, 1, (1, 2, n)) * (size - sides)).astype(np.float32)
    boxes = []
    for which, side, (left, top) in zip(chosen, sides, corners, strict=True):
        np.maximum(scene, place(images[which], side, left, top, size), out=scene)
        boxes += [np.floor(left), np.floor(top), np.ceil(left + side), np.ceil(top + side)]
    scene += rng.standard_normal(scene.shape, dtype=np.float32) * np.float32(noise)
    return scene / np.float32(STD), np.stack(boxes, 1).astype(np.int64)


def _pieces(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Clears all of each image [n, 8, 8] but a random PIECE x PIECE window."""
    at = np.arange(8)
    y, x = rng.integers(0, 8 - PIECE + 1, size=(2, len(images), 1))
    rows, columns = (at >= y) & (at < y + PIECE), (at >= x) & (at < x + PIECE)
    return images * (rows[:, :, None] & columns[:, None, :])


def _apart(rng: np.random.Generator, a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """Corners (left, top) [2, 2, n] of squares of side a and b [n] that do not overlap, inside the scene.

    Along one axis, drawn per scene, the squares are disjoint; along the other axis their positions are independent.
    """
    free = rng.uniform(0, 1, (4, len(a))).astype(np.float32)
    axis, swap = rng.integers(0, 2, (2, len(a)))
    room = size - a - b
    near, far = np.minimum(free[0], free[1]) * room, np.maximum(free[0], free[1]) * room
    along = np.stack([np.where(swap, far + b, near), np.where(swap, near, far + a)])
    across = free[2:] * np.stack([size - a, size - b])
    return np.stack([np.where(axis, across, along), np.where(axis, along, across)], 1)
