"""Attributes and objects: one coloured shape per image; some pairs of colour and shape are not in the training split.

For compositional zero-shot learning: a model that has seen `red square` and `green disc` is tested on `red disc`.
Texture, position, size, rotation, shade, background and noise are drawn for each image, independently of the label.
"""

from __future__ import annotations

import colorsys
from typing import Literal

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError

ITEMS = {"train": 10000, "validation": 2000, "test": 2000}
ATTRIBUTES = ("red", "yellow", "green", "cyan", "blue", "magenta")  # hues 60 degrees apart
OBJECTS = ("disc", "square", "triangle", "cross", "ring", "bar")
TEXTURES = 3  # plain, striped, dotted
HUE = 15.0  # largest deviation of a colour from its hue, degrees
RADIUS = (0.22, 0.36)  # of the object, relative to the image
MEAN, STD = 0.2, 0.25
CHUNK = 2000  # images drawn at once, to bound memory


def is_unseen(attribute: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """Whether no training image shows this pair: two objects of each attribute, two attributes of each object."""
    unseen: np.ndarray = (attribute + thing) % 3 == 0
    return unseen


def pairs_of(which: Literal["all", "seen", "unseen"]) -> np.ndarray:
    """The labels `attribute * 6 + object`, ascending, of all pairs, or of those (not) in the training split."""
    label = np.arange(len(ATTRIBUTES) * len(OBJECTS))
    unseen = is_unseen(*np.divmod(label, len(OBJECTS)))
    return {"all": label, "seen": label[~unseen], "unseen": label[unseen]}[which]


def load(
    split: Literal["train", "validation", "test"],
    *,
    limit: int | None = None,
    seed: int = 0,
    size: int = 32,
    pairs: Literal["all", "seen", "unseen"] = "all",
    palette: Literal["named", "other"] = "named",
    noise: float = 0.05,
) -> Dataset:
    """Images [N, 3, size, size] and labels `attribute * 6 + object`, with equally likely pairs.

    Args:
        split: 'train', 'validation' or 'test'; 'train' has seen pairs only, whatever `pairs` is.
        limit: number of images; default 10000 for training, 2000 for the others.
        seed: of all random choices.
        size: side of an image, pixels.
        pairs: which pairs the validation and test splits contain.
        palette: 'named': the colours of `ATTRIBUTES`; 'other': six colours half-way between them, with all pairs in
            every split, to learn features that suit any colour and shape.
        noise: standard deviation; brightness is 0..1.

    Raises:
        UserError: an option out of range.
    """
    if pairs not in ("all", "seen", "unseen"):
        raise UserError(f"inputs 'attribute_objects': pairs={pairs!r}; accepted: all, seen, unseen")
    if palette not in ("named", "other"):
        raise UserError(f"inputs 'attribute_objects': palette={palette!r}; accepted: named, other")
    for name, value, low, high in (("size", size, 16, 1024), ("noise", noise, 0, 1)):
        if not low <= value <= high:
            raise UserError(f"inputs 'attribute_objects': {name}={value}; {name} lies between {low} and {high}")
    total = ITEMS[split] if limit is None else limit
    shown: Literal["all", "seen", "unseen"] = "all" if palette == "other" else "seen" if split == "train" else pairs
    rng, shift = np.random.default_rng([seed, *split.encode()]), 0.5 if palette == "other" else 0.0
    labels = rng.choice(pairs_of(shown), size=total)
    inputs = np.empty((total, 3, size, size), np.float32)
    for start in range(0, total, CHUNK):
        rows = slice(start, start + CHUNK)
        attribute, thing = np.divmod(labels[rows], len(OBJECTS))
        inputs[rows] = _images(rng, attribute + shift, thing, size, noise)
    colours = "other colours" if palette == "other" else "colours"
    what = (
        f"coloured shapes, {total} generated images of {size} x {size} of the {split} part, {shown} pairs of "
        f"{len(ATTRIBUTES)} {colours} and {len(OBJECTS)} shapes, noise {noise:g}, seed {seed}"
    )
    return Dataset(inputs, labels, what, len(ATTRIBUTES) * len(OBJECTS))


def _images(rng: np.random.Generator, attribute: np.ndarray, thing: np.ndarray, size: int, noise: float) -> np.ndarray:
    """attribute, object [n] -> normalised images [n, 3, size, size]."""
    n = len(thing)
    radius = (size * rng.uniform(*RADIUS, n)).astype(np.float32)  # pixels
    u, v = _own_coordinates(rng, radius, size)
    inside = np.clip(0.5 - _distance(thing, u, v) * radius[:, None, None], 0, 1)  # [n, size, size], soft at the edge
    shade = _texture(rng.integers(TEXTURES, size=n), u, v)
    image = rng.uniform(0, 0.35, (n, 3, 1, 1)).astype(np.float32) * np.ones((1, 1, size, size), np.float32)
    image += inside[:, None] * (_colours(rng, attribute)[:, :, None, None] * shade[:, None] - image)
    image += noise * rng.standard_normal(image.shape, dtype=np.float32)
    return (image - MEAN) / STD


def _own_coordinates(rng: np.random.Generator, radius: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u, v [n, size, size] of each pixel relative to an object of this radius [n], at a random pose."""
    n = len(radius)
    pixels = np.arange(size, dtype=np.float32) + 0.5
    centre = radius + rng.uniform(0, 1, (2, n)).astype(np.float32) * (size - 2 * radius)
    x = (pixels - centre[0][:, None])[:, None, :] / radius[:, None, None]
    y = (pixels - centre[1][:, None])[:, :, None] / radius[:, None, None]
    turn = rng.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
    return np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x


def _distance(thing: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Approximate signed distance to each object's edge, in radii, negative inside: [n, size, size]."""
    a, b, r = np.abs(u), np.abs(v), np.hypot(u, v)
    return np.choose(
        thing[:, None, None],
        [
            r - 0.9,  # disc
            np.maximum(a, b) - 0.72,  # square
            np.maximum(v, 0.866 * a - 0.5 * v) - 0.5,  # triangle
            np.minimum(np.maximum(a - 0.25, b - 0.95), np.maximum(b - 0.25, a - 0.95)),  # cross
            np.abs(r - 0.75) - 0.2,  # ring
            np.maximum(a - 0.95, b - 0.28),  # bar
        ],
    ).astype(np.float32)


def _texture(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness 0.55 to 1 [n, size, size]: plain, stripes or dots."""
    pattern = np.choose(texture[:, None, None], [np.ones_like(u), np.cos(9 * u), np.cos(9 * u) * np.cos(9 * v)])
    return (0.775 + 0.225 * pattern).astype(np.float32)


def _colours(rng: np.random.Generator, attribute: np.ndarray) -> np.ndarray:
    """Red, green and blue [n, 3] of an attribute, with random hue deviation, saturation and brightness."""
    n = len(attribute)
    hue = (attribute / len(ATTRIBUTES) + rng.uniform(-HUE, HUE, n) / 360) % 1
    saturation, value = rng.uniform(0.55, 1, n), rng.uniform(0.6, 1, n)
    return np.array([colorsys.hsv_to_rgb(*c) for c in zip(hue, saturation, value, strict=True)], np.float32)
