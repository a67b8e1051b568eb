"""Inputs by name, a user's own, and the stream chosen from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dynbench
from dynbench.data import Dataset, Inputs, load_inputs, pad, stream
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


def test_labels_keep_what_they_say(tmp_path: Path) -> None:
    data = load_inputs(own(tmp_path, "def make(): return np.ones((2, 4)), np.array([0.7, 0.2])"), "test")
    assert data.labels.tolist() == pytest.approx([0.7, 0.2]) and data.classes == 0


HEAD = "import dynbench, torch\nids, mask, y = np.ones((6, 5), int), np.ones((6, 5), bool), np.arange(6)\n"


@pytest.mark.parametrize(
    ("returns", "inputs", "labels"),
    [
        ("dynbench.Inputs(ids)", "array", False),
        ("dynbench.Inputs((ids, mask))", "(2)", False),
        ("dynbench.Inputs((ids, mask), labels=y)", "(2)", True),
        ("dynbench.Inputs({'ids': ids, 'mask': mask}, y)", "{ids, mask}", True),
        ("dynbench.Inputs(({'ids': ids, 'mask': (mask, y)},), None)", "(1)", False),
        ("((ids, mask), y)", "(2)", True),
        ("({'ids': ids, 'mask': mask}, y)", "{ids, mask}", True),
        ("{'ids': ids, 'mask': mask}", "{ids, mask}", False),
        ("ids, None", "array", False),
        ("(ids,)", "array", False),
        ("[list(row) for row in ids]", "array", False),
        ("[torch.ones(3) for _ in range(6)]", "array", False),
    ],
)
def test_what_a_model_takes_can_be_said(tmp_path: Path, returns: str, inputs: str, labels: bool) -> None:
    data = load_inputs(own(tmp_path, f"{HEAD}def make(): return {returns}"), "test", limit=4)
    match data.inputs:
        case dict(found):
            assert f"{{{', '.join(found)}}}" == inputs
        case tuple(found):
            assert f"({len(found)})" == inputs
        case found:
            assert inputs == "array" and isinstance(found, np.ndarray)
    assert len(data) == 4 and (data.labels is not None) == labels and not data.pair


def test_a_pair_of_arrays_is_remembered_as_one(tmp_path: Path) -> None:
    assert load_inputs(own(tmp_path, f"{HEAD}def make(): return ids, mask"), "test").pair


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ("ids, mask, y", r"returned 3 parts.*dynbench\.Inputs\(\(a, b\), labels=y\)"),
        ("((ids, mask), mask)", "may be labels or an input"),
        ("({'ids': ids}, {'a': y})", "may be labels or an input"),
        ("{'ids': ids, 'labels': y}", "'labels' among the inputs"),
        ("[[1], [2, 3]]", r"different lengths; dynbench\.pad"),
        ("[torch.ones(1), torch.ones(2)]", r"different shapes; dynbench\.pad"),
        ("['a', 'b']", "as arrays"),
        ("[{'ids': ids[0]}]", "dict is no array"),
        ("3.0", "a single number"),
        ("dynbench.Inputs(())", "no array of inputs"),
        ("dynbench.Inputs((ids, mask[:3]))", "arrays of 6, 3 items"),
        ("dynbench.Inputs({1: ids})", "no names"),
        ("torch.eye(3).to_sparse()", "is no plain array"),
        ("(row for row in ids)", "generator is no array"),
    ],
)
def test_what_is_open_to_doubt_is_refused_in_a_sentence(tmp_path: Path, returns: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_inputs(own(tmp_path, f"{HEAD}def make(): return {returns}"), "test")


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        ("torch.ones(6, 2, dtype=torch.bfloat16)", np.float32),
        ("torch.ones(6, 2, dtype=torch.float64)", np.float32),
        ("torch.nn.Linear(3, 2)(torch.ones(6, 3))", np.float32),
        ("torch.ones(6, 2) > 0", np.bool_),
        ("torch.ones(6, 2, dtype=torch.uint8)", np.int64),
        ("torch.ones(6, 2, dtype=torch.complex64).conj()", np.complex64),
    ],
)
def test_tensors_of_any_type_are_taken(tmp_path: Path, tensor: str, dtype: type) -> None:
    data = load_inputs(own(tmp_path, f"import torch\ndef make(): return {tensor}"), "test")
    assert data.inputs.dtype == dtype and data.inputs.shape == (6, 2)


SENTENCES = """import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
class Sentences(Dataset):
    def __len__(self): return 12
    def __getitem__(self, i):
        if i < 0: raise IndexError("no such sentence")
        return torch.full((5,), i), i % 2
class Stream(IterableDataset):
    def __iter__(self): return iter(Sentences()[i] for i in range(12))
class Keyed(Sentences):
    def __getitem__(self, i): return {"ids": torch.full((5,), i), "mask": torch.ones(5, dtype=torch.bool)}, i % 2
class Ragged(Sentences):
    def __getitem__(self, i): return torch.ones(i + 1), 0
class Broken(Sentences):
    def __getitem__(self, i): raise OSError("disk is gone")
"""


@pytest.mark.parametrize("source", ["Sentences()", "Stream()", "DataLoader(Sentences(), batch_size=5)"])
def test_a_torch_data_set_or_loader_is_read(tmp_path: Path, source: str) -> None:
    data = load_inputs(own(tmp_path, f"{SENTENCES}def make(): return {source}"), "test")
    assert data.inputs[:, 0].tolist() == list(range(12)) and data.labels.tolist() == [0, 1] * 6 and data.pair


def test_of_a_large_data_set_a_choice_is_read(tmp_path: Path) -> None:
    name = own(tmp_path, f"{SENTENCES}def make(): return Sentences()")
    data = load_inputs(name, "test", limit=7, seed=3)
    chosen = data.inputs[:, 0].tolist()
    assert len(set(chosen)) == 7 and chosen == sorted(chosen) and "7 of 12 items" in data.description
    assert load_inputs(name, "test", limit=7, seed=4).inputs[:, 0].tolist() != chosen


def test_several_inputs_and_none_labelled_come_from_data_sets_as_well(tmp_path: Path) -> None:
    data = load_inputs(own(tmp_path, f"{SENTENCES}def make(): return DataLoader(Keyed(), batch_size=5)"), "test")
    assert set(data.inputs) == {"ids", "mask"} and data.inputs["mask"].dtype == np.bool_ and len(data) == 12
    other = tmp_path / "other"
    other.mkdir()
    alone = load_inputs(own(other, f"{SENTENCES}def make(): return TensorDataset(torch.ones(4, 2))"), "test")
    assert alone.inputs.shape == (4, 2) and alone.labels is None


@pytest.mark.parametrize(("source", "says"), [("Ragged()", r"dynbench\.pad"), ("Broken()", "OSError: disk is gone")])
def test_a_data_set_that_cannot_be_read_is_one_sentence(tmp_path: Path, source: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_inputs(own(tmp_path, f"{SENTENCES}def make(): return {source}"), "test")


def test_sequences_are_padded_with_the_mask_of_what_they_were() -> None:
    padded, mask = pad([[1, 2, 3], [], [4]], value=9)
    assert padded.tolist() == [[1, 2, 3], [9, 9, 9], [4, 9, 9]] and padded.dtype == np.int64
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    wide, _ = pad([np.ones((2, 4), np.float32), np.ones((1, 4), np.float32)])
    assert wide.shape == (2, 2, 4) and wide.dtype == np.float32 and wide[1, 1].sum() == 0
    for wrong in ([], [1, 2], [np.ones((2, 4)), np.ones((2, 3))]):
        with pytest.raises(UserError, match="differ in their length only"):
            pad(wrong)


@pytest.mark.parametrize("inputs", [np.ones((3, 2)), (np.ones((3, 2)), {"m": np.zeros(3, bool)}), {"x": np.ones(3)}])
@pytest.mark.parametrize("labels", [None, np.arange(3), {"a": np.arange(3)}])
def test_a_data_set_survives_its_file(tmp_path: Path, inputs: object, labels: object) -> None:
    data = Dataset(inputs, labels, "three things", 3, token="byte")
    with (tmp_path / "kept.npz").open("wb") as file:
        data.save(file)
    again = Dataset.load(tmp_path / "kept.npz")
    assert again.content_hash == data.content_hash and again.description == data.description
    assert type(again.inputs) is type(inputs) and again.token == "byte" and again.classes == 3


def test_how_inputs_are_nested_is_part_of_the_hash() -> None:
    a, b = np.ones((2, 3)), np.zeros((2, 3))
    forms = [(a, b), {"a": a, "b": b}, {"b": a, "a": b}, ((a,), b), {"ids": a, "b": b}]
    assert len({Dataset(form, None, "", 0).content_hash for form in forms}) == len(forms)


def test_both_helpers_are_names_of_the_package() -> None:
    assert dynbench.Inputs is Inputs and dynbench.pad is pad


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
