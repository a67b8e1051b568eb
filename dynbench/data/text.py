"""Text as bytes: windows of fixed length from a file, by default an excerpt that comes with dynbench."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError

EXCERPT = Path(__file__).with_name("excerpt.txt")
SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


def load(
    split: str, *, limit: int | None = None, seed: int = 0, context: int = 64, file: str | Path | None = None
) -> Dataset:
    """Windows that do not overlap: the first 80 % of the text for training, then 10 % for validation and 10 % for test.

    Args:
        split: 'train', 'validation' or 'test'.
        limit: maximum number of windows, from the first.
        seed: offset of the first training window, modulo the context.
        context: bytes per window.
        file: a text file; None: the excerpt.

    Raises:
        UserError: a context below 1, a file that cannot be read, or one too short for a window in every part.
    """
    if context < 1:
        raise UserError(f"inputs 'text': context={context}; context is 1 or more")
    path = EXCERPT if file is None else Path(file).expanduser()
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as e:
        raise UserError(f"inputs 'text': file {path} cannot be read: {e.strerror}") from e
    start, stop = (int(share * len(data)) for share in SHARES[split])
    start += seed % context if split == "train" else 0
    count = (stop - start - 1) // context  # the last window's last label is one byte further on
    if count < 1:
        raise UserError(f"inputs 'text': file {path} has {len(data)} bytes, too few for windows of {context}")
    at = start + context * np.arange(count)[:limit, None] + np.arange(context)
    name = "Shakespeare (public domain), the excerpt that comes with dynbench" if file is None else path.name
    what = f"bytes of {name}: {len(at)} windows of {context} of the {split} part"
    return Dataset(data[at].astype(np.int64), data[at + 1].astype(np.int64), what, 256, token="byte")
