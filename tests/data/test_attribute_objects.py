"""Attributes and objects: what is shown is what the label says, and unseen pairs stay unseen."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.data import load_inputs
from dynbench.data.attribute_objects import ATTRIBUTES, HUE, MEAN, OBJECTS, STD, is_unseen, pairs_of
from dynbench.errors import UserError

NAME = "attribute_objects"


def test_the_same_seed_gives_the_same_images_and_another_or_another_part_gives_others() -> None:
    one, same, other = (load_inputs(NAME, "test", limit=20, seed=s) for s in (1, 1, 2))
    part = load_inputs(NAME, "validation", limit=20, seed=1)
    assert one.content_hash == same.content_hash
    assert len({one.content_hash, other.content_hash, part.content_hash}) == 3


def test_a_third_of_the_pairs_is_unseen_two_of_each_attribute_and_of_each_object() -> None:
    table = is_unseen(*np.divmod(np.arange(36), 6)).reshape(6, 6)
    assert (table.sum(0) == 2).all() and (table.sum(1) == 2).all()
    assert sorted([*pairs_of("seen"), *pairs_of("unseen")]) == pairs_of("all").tolist() == list(range(36))
    assert np.flatnonzero(table).tolist() == pairs_of("unseen").tolist()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    split=st.sampled_from(["train", "validation", "test"]),
    pairs=st.sampled_from(["all", "seen", "unseen"]),
    size=st.integers(16, 40),
    seed=st.integers(0, 9),
)
def test_a_part_shows_the_pairs_it_is_said_to(split: Any, pairs: Any, size: int, seed: int) -> None:
    data = load_inputs(NAME, split, limit=300, seed=seed, size=size, pairs=pairs)
    assert data.labels is not None and data.inputs.shape == (300, 3, size, size) and data.inputs.dtype == np.float32
    shown = pairs_of("seen" if split == "train" else pairs)
    assert set(data.labels) <= set(shown) and len(set(data.labels)) > len(shown) / 2
    assert data.classes == 36 and np.isfinite(data.inputs).all()


def hues(data: Any) -> np.ndarray:
    """Of each image the hue of the pixel that stands out most, degrees."""
    image = data.inputs * STD + MEAN
    n, _, size, _ = image.shape
    flat = image.reshape(n, 3, -1)
    edge = np.median(np.concatenate([image[:, :, 0], image[:, :, -1], image[:, :, :, 0], image[:, :, :, -1]], 2), 2)
    place = np.abs(flat - edge[:, :, None]).sum(1).argmax(1)
    return np.array([colorsys.rgb_to_hsv(*flat[i, :, p])[0] * 360 for i, p in enumerate(place)])


@pytest.mark.parametrize(("palette", "shift"), [("named", 0), ("other", 30)])
def test_the_attribute_is_the_colour_and_the_other_palette_lies_half_way_between(palette: str, shift: int) -> None:
    data = load_inputs(NAME, "test", limit=300, noise=0.0, palette=palette)
    assert data.labels is not None
    apart = (hues(data) - (data.labels // len(OBJECTS) * 360 / len(ATTRIBUTES) + shift) + 180) % 360 - 180
    assert np.abs(apart).max() <= HUE + 0.5 and np.abs(apart).mean() > 3


def test_the_other_palette_shows_every_pair_also_in_the_training_part() -> None:
    data = load_inputs(NAME, "train", limit=600, size=16, palette="other")
    assert data.labels is not None and set(data.labels) == set(range(36))


def test_objects_differ_in_how_much_they_cover() -> None:
    data = load_inputs(NAME, "test", limit=600, noise=0.0)
    assert data.labels is not None
    image = data.inputs - np.median(data.inputs.reshape(600, 3, -1), 2)[:, :, None, None]  # the background is even
    covered = (np.abs(image).sum(1) > 0.2).mean((1, 2))
    mean = {name: covered[data.labels % 6 == o].mean() for o, name in enumerate(OBJECTS)}
    assert mean["bar"] < mean["triangle"] < mean["disc"] and mean["cross"] < mean["square"]
    assert all(0.02 < m < 0.4 for m in mean.values())


@pytest.mark.parametrize("options", [{"pairs": "some"}, {"palette": "grey"}, {"size": 8}, {"noise": 2.0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        load_inputs(NAME, "test", limit=4, **options)
