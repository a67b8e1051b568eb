"""Scenes of one or two small digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.data import load_inputs
from dynbench.data.digit_scenes import RULES
from dynbench.errors import UserError


def test_the_same_seed_gives_the_same_scenes_and_another_gives_others() -> None:
    one, same, other = (load_inputs("digit_scenes", "test", limit=20, seed=s) for s in (1, 1, 2))
    assert one.content_hash == same.content_hash != other.content_hash


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    digits=st.integers(1, 2),
    size=st.integers(24, 80),
    seed=st.integers(0, 9),
    split=st.sampled_from(["train", "validation", "test"]),
)
def test_digits_lie_in_their_boxes_inside_the_scene_and_apart(digits: int, size: int, seed: int, split: Any) -> None:
    options = {"digits": digits, "size": size, "clutter": 0, "noise": 0.0, "guidance": True}
    data = load_inputs("digit_scenes", split, limit=20, seed=seed, **options)
    assert data.labels is not None and data.inputs.shape == (20, 1, size, size) and data.inputs.dtype == np.float32
    boxes = data.labels[:, 1:].reshape(20, digits, 4)
    assert (boxes >= 0).all() and (boxes <= size).all()
    for scene, regions in zip(data.inputs[:, 0], boxes, strict=True):
        for x0, y0, x1, y1 in regions:
            assert scene[y0:y1, x0:x1].max() > 1
        if digits == 2:
            (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = regions
            overlap = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
            assert min(overlap) <= 1  # boxes are rounded outwards
        outside = scene.copy()
        for x0, y0, x1, y1 in regions:
            soft = (x1 - x0) // 16 + 1  # half a pixel of the 8 x 8 digit: interpolation fades out there
            outside[max(y0 - soft, 0) : y1 + soft, max(x0 - soft, 0) : x1 + soft] = 0
        assert outside.max() == 0 and outside.min() == 0


def test_a_pair_s_label_follows_its_rule() -> None:
    labels = {
        rule: load_inputs("digit_scenes", "test", limit=400, digits=2, rule=rule)
        for rule in ("sum", "sum_mod_10", "larger")
    }
    sums, larger = labels["sum"].labels, labels["larger"].labels
    assert sums is not None and larger is not None
    assert np.array_equal(labels["sum_mod_10"].labels, sums % 10)
    assert ((larger <= sums) & (sums <= 2 * larger)).all()
    assert {rule: data.classes for rule, data in labels.items()} == {r: RULES[r] for r in labels}


def test_half_of_the_pairs_are_equal_under_the_rule_equal() -> None:
    data = load_inputs("digit_scenes", "train", limit=1000, digits=2, rule="equal")
    assert data.labels is not None and data.classes == 2
    assert 0.48 < data.labels.mean() < 0.62  # one in ten of the others happens to be


def test_guidance_adds_boxes_and_changes_nothing_else() -> None:
    plain, guided = (load_inputs("digit_scenes", "test", limit=30, digits=2, guidance=g) for g in (False, True))
    assert plain.labels is not None and guided.labels is not None
    assert np.array_equal(plain.inputs, guided.inputs) and np.array_equal(plain.labels, guided.labels[:, 0])
    assert guided.labels.shape == (30, 9)


def test_clutter_and_noise_are_added() -> None:
    def spread(**options: Any) -> float:
        return float(load_inputs("digit_scenes", "test", limit=50, **options).inputs.std())

    bare = spread(clutter=0, noise=0.0)
    assert bare < spread(clutter=8, noise=0.0) and bare < spread(clutter=0, noise=0.2)


@pytest.mark.parametrize(
    "option", [{"size": 10}, {"clutter": -1}, {"noise": 2.0}, {"digits": 3}, {"digits": 2, "rule": "product"}]
)
def test_an_option_out_of_range_is_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=list(option)[-1]):
        load_inputs("digit_scenes", "test", **option)
