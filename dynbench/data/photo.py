"""Grey crops of one photograph: the astronaut Eileen Collins, 512 x 512 pixels (NASA, public domain), by scikit-image.

There is one face in it, about 110 pixels wide. All splits are crops of this one photograph: it is not
for training.
"""

from __future__ import annotations

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError

SIDE = 512  # of the photograph, pixels
ITEMS = 64  # unless a limit says otherwise


def load(
    split: str, *, limit: int | None = None, seed: int = 0, height: int = 72, width: int = 96, reduce: int = 1
) -> Dataset:
    """Crops at uniform random positions, inputs [N, 1, height, width] uint8, without labels.

    Args:
        split: 'train', 'validation' or 'test': different crops.
        limit: number of crops; None: 64.
        seed: of the positions.
        height: of a crop, pixels.
        width: of a crop, pixels.
        reduce: each pixel is the mean of reduce x reduce pixels of the photograph.

    Raises:
        UserError: scikit-image is not installed, or the crops do not fit into the photograph.
    """
    if reduce < 1:
        raise UserError(f"inputs 'photo': reduce={reduce}; reduce is 1 or more")
    most = SIDE // reduce
    for name, value in (("height", height), ("width", width)):
        if not 1 <= value <= most:
            raise UserError(f"inputs 'photo': {name}={value}; with reduce={reduce} {name} lies between 1 and {most}")
    photo = _reduced(_grey(), reduce)
    total = ITEMS if limit is None else limit
    rng = np.random.default_rng([seed, *split.encode()])
    top, left = rng.integers(most - height + 1, size=total), rng.integers(most - width + 1, size=total)
    rows, columns = top[:, None] + np.arange(height), left[:, None] + np.arange(width)
    inputs = photo[rows[:, None, :, None], columns[:, None, None, :]]
    smaller = f", reduced {reduce} times" if reduce > 1 else ""
    what = f"{total} grey crops of {width} x {height} pixels of scikit-image's astronaut{smaller}, {split}, seed {seed}"
    return Dataset(inputs, None, what, 0)


def _grey() -> np.ndarray:
    """The photograph [512, 512] uint8: luminance as in Rec. 601."""
    try:
        from skimage.data import astronaut
    except ImportError as e:
        raise UserError(
            "inputs 'photo' come with scikit-image, which is not installed: pip install 'dynbench[vision]'"
        ) from e
    grey: np.ndarray = np.rint(astronaut() @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return grey


def _reduced(photo: np.ndarray, by: int) -> np.ndarray:
    side = len(photo) // by
    means: np.ndarray = photo[: side * by, : side * by].reshape(side, by, side, by).mean((1, 3))
    return np.rint(means).astype(np.uint8)
