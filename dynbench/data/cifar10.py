"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in 10 classes (Krizhevsky 2009).

Read from one of three forms: the official binary files `data_batch_*.bin` and `test_batch.bin`; a `cifar10.npz` with
the images as JPEG bytes; or, where no folder is given, the official archive, downloaded once into the cache.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError
from dynbench.paths import cache_dir
from dynbench.scratch import scratch

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside the archive
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
RECORD = 1 + 3 * 32 * 32  # a label, then the planes red, green, blue
VALIDATION = 5000  # official training images that are held out
MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
STD = np.array([0.2470, 0.2435, 0.2616], np.float32)
Rows = Callable[[int], np.ndarray]  # number of images -> indices of those to use


def load(split: str, *, data_dir: Path | None = None, limit: int | None = None) -> Dataset:
    """Images of a split: 45,000 to train, 5,000 for validation (a fixed choice of the training set), 10,000 to test.

    Args:
        split: 'train', 'validation' or 'test'.
        data_dir: folder of the files; None: the cache, into which they are downloaded if needed.
        limit: maximum number of images, a fixed choice.

    Raises:
        UserError: the folder contains none of the three forms, a file is damaged, or the download fails.
    """
    folder, half = download() if data_dir is None else data_dir, "test" if split == "test" else "train"
    images, labels, form = _read(folder, half, partial(_rows, split, limit))
    inputs = (images.astype(np.float32) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    return Dataset(inputs, labels, f"CIFAR-10, {len(inputs)} images of the {split} part, {form}", 10)


def _rows(split: str, limit: int | None, count: int) -> np.ndarray:
    """Indices of a split among the `count` images of a half. Shuffled, because some copies are sorted by class."""
    shuffled = np.random.default_rng(0).permutation(count)
    parts = {"train": shuffled[VALIDATION:], "validation": shuffled[:VALIDATION], "test": shuffled}
    return parts[split][:limit]


def _read(folder: Path, half: str, rows: Rows) -> tuple[np.ndarray, np.ndarray, str]:
    """Images [n, 3, 32, 32] uint8, labels [n] int64, and the form of the files."""
    for place in (folder, folder / FOLDER):
        files = [place / name for name in (TEST_FILES if half == "test" else TRAIN_FILES)]
        if all(f.is_file() for f in files):
            return (*_read_binary(files, rows), "official binary files")
    archive = folder / "cifar10.npz"
    if archive.is_file():
        return (*_read_npz(archive, half, rows), "JPEG re-encoded, lossy")
    raise UserError(f"{folder} holds no CIFAR-10: neither {TRAIN_FILES[0]} ..., {FOLDER}/ nor cifar10.npz")


def _read_binary(files: list[Path], rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    blocks = []
    for file in files:
        raw = np.fromfile(file, np.uint8)
        if not len(raw) or len(raw) % RECORD:
            raise UserError(f"{file} is damaged: {len(raw)} bytes are no whole number of {RECORD}-byte records")
        blocks.append(raw.reshape(-1, RECORD))
    records = np.concatenate(blocks)
    records = records[rows(len(records))]
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _read_npz(file: Path, half: str, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image, UnidentifiedImageError

    try:
        with np.load(file, allow_pickle=False) as z:
            data, offsets, labels = (z[f"{half}_{what}"] for what in ("jpeg", "offsets", "labels"))
        chosen = rows(len(labels))
        images = np.empty((len(chosen), 32, 32, 3), np.uint8)
        for n, i in enumerate(chosen):
            image = Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes()))
            images[n] = np.asarray(image.convert("RGB"))
    except (KeyError, ValueError, OSError, UnidentifiedImageError) as e:
        raise UserError(f"{file} cannot be read as CIFAR-10 in JPEG form: {e}") from e
    return images.transpose(0, 3, 1, 2), labels[chosen].astype(np.int64)


def download() -> Path:
    """The folder of the official files in the cache; downloads, checks and unpacks them the first time.

    Raises:
        UserError: the archive cannot be downloaded, or is not the published one.
    """
    cache = cache_dir()
    folder = cache / FOLDER
    if all((folder / name).is_file() for name in (*TRAIN_FILES, *TEST_FILES)):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with scratch("download", cache) as aside:
            archive = aside / "cifar-10-binary.tar.gz"
            _fetch(archive)
            _unpack(archive, aside / FOLDER)
            folder.mkdir(exist_ok=True)
            for file in (aside / FOLDER).iterdir():
                os.replace(file, folder / file.name)
    except (OSError, tarfile.TarError) as e:
        raise UserError(f"CIFAR-10 cannot be fetched from {URL}: {e}; name a folder that has it with --data") from e
    return folder


def _fetch(archive: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(URL, timeout=60) as source, archive.open("wb") as sink:
        while block := source.read(1 << 20):
            digest.update(block)
            sink.write(block)
    if digest.hexdigest() != MD5:
        raise UserError(f"{URL} is not the published archive: MD5 {digest.hexdigest()}, published is {MD5}")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpacks only the expected files, under their own names: no path in the archive is used for writing."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for name in (*TRAIN_FILES, *TEST_FILES):
            member = tar.extractfile(f"{FOLDER}/{name}")
            if member is None:
                raise tarfile.TarError(f"{name} is not a file")
            (folder / name).write_bytes(member.read())
