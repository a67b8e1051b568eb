"""Scenes composed from real digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynbench.data import load_inputs
from dynbench.data.digits import place, sources
from dynbench.errors import UserError

SPLITS = ("train", "validation", "test")


def test_no_digit_is_in_two_splits() -> None:
    parts = {split: {image.tobytes() for image in sources(split)[0]} for split in SPLITS}
    assert sum(len(sources(split)[1]) for split in SPLITS) == 1797
    assert not parts["train"] & parts["test"] and not parts["train"] & parts["validation"]
    assert not parts["validation"] & parts["test"]


def test_the_same_seed_gives_the_same_scenes_and_another_gives_others() -> None:
    one, same, other = (load_inputs("cluttered_digits", "test", limit=20, seed=s) for s in (1, 1, 2))
    assert one.content_hash == same.content_hash != other.content_hash


def test_scenes_have_three_channels_of_the_size_asked_for_and_all_classes() -> None:
    data = load_inputs("cluttered_digits", "train", limit=300, size=48)
    assert data.inputs.shape == (300, 3, 48, 48) and data.inputs.dtype == np.float32
    assert set(data.labels) == set(range(10)) and data.classes == 10


def test_the_easiest_scene_is_one_colour_on_another() -> None:
    scenes = load_inputs("cluttered_digits", "test", limit=8, difficulty=0.0).inputs
    for scene in scenes:
        colours = scene.reshape(3, -1)
        assert np.linalg.matrix_rank(colours - colours[:, :1], tol=1e-3) == 1


def test_harder_scenes_differ_more_from_pixel_to_pixel() -> None:
    def roughness(difficulty: float) -> float:
        data = load_inputs("cluttered_digits", "test", limit=100, difficulty=difficulty)
        return float(np.abs(np.diff(data.inputs, axis=-1)).mean())

    assert roughness(0.0) < roughness(0.5) < roughness(1.0)


def test_an_image_placed_at_its_own_size_is_itself() -> None:
    image = np.random.default_rng(0).uniform(size=(2, 8, 8)).astype(np.float32)
    zero = np.zeros(2, np.float32)
    assert np.allclose(place(image, zero + 8, zero, zero, 8), image)
    shifted = place(image, zero + 8, zero + 3, zero + 1, 16)
    assert np.allclose(shifted[:, 1:9, 3:11], image)


@pytest.mark.parametrize("option", [{"size": 4}, {"clutter": -1}, {"noise": 2.0}, {"difficulty": 1.5}])
def test_an_option_out_of_range_is_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        load_inputs("cluttered_digits", "test", **option)


def test_plain_digits_are_the_source_images_scaled() -> None:
    data = load_inputs("digits", "test", limit=5, size=8)
    assert np.allclose(data.inputs[:, 0] * 0.25 + 0.5, sources("test")[0][:5])
