"""Inputs by name, a user's own, and the stream chosen from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.data import Dataset, load_inputs, stream
from dynbench.errors import UserError


def test_an_unknown_name_split_or_option_is_answered_with_what_is_accepted() -> None:
    with pytest.raises(UserError, match="cluttered_digits"):
        load_inputs("clutered_digits", "test")
    with pytest.raises(UserError, match="train, validation, test"):
        load_inputs("digits", "tset")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean clutter"):
        load_inputs("cluttered_digits", "test", cluter=3)
    with pytest.raises(UserError, match="limit is 1 or more"):
        load_inputs("digits", "test", limit=0)


def own(folder: Path, body: str) -> str:
    (folder / "own.py").write_text("import numpy as np\n" + body)
    return f"{folder / 'own.py'}:make"


def test_a_function_of_one_s_own_is_given_what_it_takes(tmp_path: Path) -> None:
    name = own(tmp_path, "def make(split, wide=1): return np.ones((4, wide)) * len(split), np.array([0, 1, 2, 1])")
    data = load_inputs(name, "test", limit=3, wide=5)
    assert data.inputs.dtype == np.float32 and data.inputs.shape == (3, 5) and (data.inputs == 4).all()
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2] and data.classes == 3


def test_inputs_without_labels_are_fine(tmp_path: Path) -> None:
    data = load_inputs(own(tmp_path, "def make(): return np.arange(6).reshape(2, 3)"), "test")
    assert data.labels is None and data.inputs.dtype == np.int64


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def make(): raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("def make(): return 'text'", "as arrays"),
        ("def make(): return np.ones((3, 2)), np.zeros(2)", "3 inputs and 2 labels"),
        ("def make(wide): return np.ones((3, wide))", "unknown option 'tall'"),
    ],
)
def test_a_function_that_fails_is_reported_in_a_sentence(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_inputs(own(tmp_path, body), "test", **({"tall": 1} if "wide" in body else {}))


@given(have=st.integers(1, 20), want=st.integers(1, 50), seed=st.integers(0, 5))
def test_a_stream_takes_every_item_equally_often_or_once_more(have: int, want: int, seed: int) -> None:
    data = Dataset(np.arange(have), np.arange(have) * 2, "numbers", have)
    chosen = stream(data, want, seed)
    counts = np.bincount(chosen.inputs, minlength=have)
    assert len(chosen) == want and counts.max() - counts.min() <= 1
    assert np.array_equal(chosen.labels, chosen.inputs * 2)
    assert chosen.content_hash == stream(data, want, seed).content_hash


def test_nothing_can_be_chosen_from_nothing() -> None:
    with pytest.raises(UserError, match="no items"):
        stream(Dataset(np.zeros((0, 3)), None, "nothing", 0), 4, 0)


def test_the_content_hash_tells_values_shapes_and_types_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    hashes = [Dataset(x, None, "", 1).content_hash for x in (zeros, zeros.T, zeros + 1, zeros.astype(np.float64))]
    assert len(set(hashes)) == 4
