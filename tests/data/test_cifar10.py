"""CIFAR-10 in its three forms, with made-up images."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.data import Dataset, cifar10, load_inputs
from dynbench.errors import UserError

PER_FILE = 1002  # five files: 5010 images, of which 5000 are for validation


def pixels(inputs: np.ndarray) -> np.ndarray:
    """Normalised inputs back to bytes."""
    return np.rint((inputs * cifar10.STD[:, None, None] + cifar10.MEAN[:, None, None]) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 256, (6 * PER_FILE, cifar10.RECORD), dtype=np.uint8)
    made[: 5 * PER_FILE, 0] = np.arange(5 * PER_FILE) * 10 // (5 * PER_FILE)  # sorted by class, as some copies are
    made[5 * PER_FILE :, 0] = np.arange(PER_FILE) * 10 // PER_FILE
    return made


@pytest.fixture(scope="module")
def folder(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / cifar10.FOLDER
    folder.mkdir()
    for i, name in enumerate((*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)):
        records[i * PER_FILE : (i + 1) * PER_FILE].tofile(folder / name)
    return folder


def test_binary_files_are_read_as_they_are_and_split(folder: Path, records: np.ndarray) -> None:
    for place in (folder, folder.parent):
        train, validation, test = (
            load_inputs("cifar10", split, data_dir=place) for split in ("train", "validation", "test")
        )
        assert (len(train), len(validation), len(test)) == (10, 5000, PER_FILE)
        assert images_of(test) == sorted(r.tobytes() for r in records[5 * PER_FILE :])
        assert sorted(images_of(train) + images_of(validation)) == sorted(r.tobytes() for r in records[: 5 * PER_FILE])


def images_of(data: Dataset) -> list[bytes]:
    """Each as a record: its label, then its planes; sorted."""
    labels = data.labels[:, None].astype(np.uint8)
    return sorted(r.tobytes() for r in np.concatenate([labels, pixels(data.inputs).reshape(len(data), -1)], axis=1))


def test_every_class_is_held_out_evenly_though_files_are_sorted_by_class(folder: Path) -> None:
    counts = np.bincount(load_inputs("cifar10", "validation", data_dir=folder).labels, minlength=10)
    assert counts.min() > 490 and counts.max() <= PER_FILE / 2


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_limit_takes_all_classes_though_files_are_sorted_by_class(folder: Path, split: Any) -> None:
    assert len(set(load_inputs("cifar10", split, data_dir=folder, limit=200).labels)) == 10


def test_the_jpeg_form_is_decoded(tmp_path: Path) -> None:
    from PIL import Image

    grey = [60, 120, 180]
    coded = []
    for value in grey:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (value, value, value)).save(buffer, "JPEG")
        coded.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, coded)])
    np.savez(
        tmp_path / "cifar10.npz", test_jpeg=np.concatenate(coded), test_offsets=offsets, test_labels=np.array([3, 1, 2])
    )
    data = load_inputs("cifar10", "test", data_dir=tmp_path)
    assert sorted(data.labels) == [1, 2, 3] and len(load_inputs("cifar10", "test", data_dir=tmp_path, limit=2)) == 2
    expected = np.array([dict(zip([3, 1, 2], grey, strict=True))[label] for label in data.labels])
    assert np.abs(pixels(data.inputs)[:, 0, 0, 0].astype(int) - expected).max() <= 2
    assert "lossy" in data.description


def test_what_is_not_cifar10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no CIFAR-10"):
        load_inputs("cifar10", "test", data_dir=tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        load_inputs("cifar10", "test", data_dir=tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    (tmp_path / "cifar10.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"cifar10\.npz cannot be read"):
        load_inputs("cifar10", "test", data_dir=tmp_path)


def test_the_archive_is_fetched_once_checked_and_unpacked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, arcname=cifar10.FOLDER)
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "URL", archive.as_uri())
    with pytest.raises(UserError, match="not the published archive"):
        load_inputs("cifar10", "test")
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(load_inputs("cifar10", "test")) == PER_FILE
    archive.unlink()
    assert len(load_inputs("cifar10", "test")) == PER_FILE


def test_a_download_that_fails_says_how_to_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10, "URL", (tmp_path / "nothing").as_uri())
    with pytest.raises(UserError, match="--data"):
        load_inputs("cifar10", "test")
