"""Streams, weights and models are built or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dynbench.errors import UserError
from dynbench.experiment.build import stream_items
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import ModelRef


def test_a_stream_is_a_whole_number_of_batches_at_every_batch_size() -> None:
    assert stream_items([1]) == 64
    assert stream_items([1, 8, 32]) == 64
    assert stream_items([1, 128]) == 128
    assert stream_items([1, 48]) == 96
    assert stream_items([1, 2], least=3) == 4 and stream_items([1], least=2) == 2
    with pytest.raises(UserError, match="share factors"):
        stream_items([127, 128])


def model_file(folder: Path, body: str) -> ModelRef:
    (folder / "m.py").write_text(f"import torch\ndef make(width=3):\n    {body}\n", encoding="utf-8")
    return ModelRef(model="m.py:make", model_args={"width": 4})


def test_a_model_function_that_raises_is_one_sentence(tmp_path: Path) -> None:
    ref = model_file(tmp_path, "raise ValueError('width must be odd')")
    with pytest.raises(UserError, match=r"m\.py:make\(width=4\) raised ValueError: width must be odd"):
        build_model(ref, tmp_path)


def test_a_function_that_gives_no_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"returned int, not a torch\.nn\.Module"):
        build_model(model_file(tmp_path, "return width"), tmp_path)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(4)}, r"weight has shape \(2, 2\), the model wants \(4, 4\)"),
        ({"weight": torch.zeros(4, 4)}, "lacks bias"),
        ({"weight": torch.zeros(4, 4), "bias": torch.zeros(4), "more": torch.zeros(1)}, "has more, which"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, state: dict[str, torch.Tensor], words: str) -> None:
    save_file(state, tmp_path / "w.safetensors")
    ref = model_file(tmp_path, "return torch.nn.Linear(width, width)")
    with pytest.raises(UserError, match=words):
        build_model(ref.model_copy(update={"weights": "w.safetensors"}), tmp_path)


def test_a_weights_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not a tensor")
    ref = model_file(tmp_path, "return torch.nn.Linear(width, width)")
    with pytest.raises(UserError, match="cannot be read"):
        build_model(ref.model_copy(update={"weights": "w.safetensors"}), tmp_path)


def test_weights_stored_in_half_precision_load_into_the_model_s_own(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(4, 4).half(), "bias": torch.ones(4).half()}, tmp_path / "w.safetensors")
    ref = model_file(tmp_path, "return torch.nn.Linear(width, width)")
    net = build_model(ref.model_copy(update={"weights": "w.safetensors"}), tmp_path)
    assert net.weight.dtype == torch.float32 and float(net.weight.detach().sum()) == 16.0


def test_weights_from_no_file_are_the_same_every_time_and_nobody_else_s_randomness_is_touched(tmp_path: Path) -> None:
    ref = model_file(tmp_path, "return torch.nn.Linear(width, 2)")
    before = torch.get_rng_state()
    one = build_model(ref, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    other = build_model(ref, tmp_path)
    assert torch.equal(one.get_parameter("weight"), other.get_parameter("weight"))
