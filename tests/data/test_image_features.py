"""Made-up features of images."""

from __future__ import annotations

import numpy as np
import pytest

from dynbench.data import load_inputs
from dynbench.errors import UserError


def test_features_are_seeded_not_negative_and_of_the_given_number() -> None:
    one, same, other = (load_inputs("image_features", "test", limit=5, seed=s, features=64) for s in (0, 0, 1))
    assert one.inputs.shape == (5, 64) and one.inputs.dtype == np.float32 and one.labels is None
    assert one.content_hash == same.content_hash != other.content_hash
    assert one.inputs.min() >= 0 and 0 < one.inputs.mean() < 1
    assert load_inputs("image_features", "test", limit=1).inputs.shape == (1, 2048)


def test_no_features_are_refused() -> None:
    with pytest.raises(UserError, match="features=0"):
        load_inputs("image_features", "test", features=0)
