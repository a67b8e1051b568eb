"""`dynbench convert`: the state dict of a PyTorch file, found or asked for, and never run."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dynbench.errors import UserError
from dynbench.experiment.weights import read_weights
from tests.cli import call

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def converted(folder: Path, saved: Any, *args: str, **how: Any) -> dict[str, Tensor]:
    torch.save(saved, folder / "w.pt", **how)
    done = call("convert", folder / "w.pt", *args)
    assert done.exit_code == 0, done.output
    return load_file(folder / "w.safetensors")


def refused(*args: object) -> str:
    done = call("convert", *args)
    assert done.exit_code == 2 and "Traceback" not in done.output
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    return lines[-1]


def same(found: dict[str, Tensor], state: dict[str, Tensor] = STATE) -> bool:
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        OrderedDict(STATE),
        {"epoch": 3, "state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        {"model": STATE, "optim_state": {"m": torch.zeros(2)}, "lr_scheduler": {"last": torch.zeros(1)}},
        {"model_state_dict": {k: nn.Parameter(v) for k, v in STATE.items()}},
        {"checkpoint": {"net": STATE, "step": 5}},
        {**STATE, "epoch": 3},
    ],
)
def test_the_state_dict_is_found_where_there_is_one(tmp_path: Path, saved: Any) -> None:
    assert same(converted(tmp_path, saved))


def test_a_file_of_older_versions_is_read(tmp_path: Path) -> None:
    assert same(converted(tmp_path, STATE, _use_new_zipfile_serialization=False))


def test_of_several_state_dicts_one_is_asked_for(tmp_path: Path) -> None:
    torch.save({"model": STATE, "ema": {"shadow": {"weight": torch.zeros(1)}}}, tmp_path / "w.pt")
    sentence = refused(tmp_path / "w.pt")
    assert "'model' (of 2)" in sentence and "'ema.shadow' (of 1)" in sentence and "--key" in sentence
    assert not (tmp_path / "w.safetensors").exists()
    done = call("convert", tmp_path / "w.pt", "--key", "ema.shadow")
    assert done.exit_code == 0 and "from 'ema.shadow'" in done.output
    assert same(load_file(tmp_path / "w.safetensors"), {"weight": torch.zeros(1)})
    assert "did you mean model?" in refused(tmp_path / "w.pt", "--key", "mdel", "--force")


def test_shared_and_strided_tensors_are_written_apart(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    state = {"a": base, "b": base, "t": base.T, "row": base[1]}
    found = converted(tmp_path, state)
    assert same(found, state)


def test_what_is_no_tensor_is_left_out_and_named(tmp_path: Path) -> None:
    torch.save({**STATE, "_extra_state": {"scale": 1}}, tmp_path / "w.pt")
    done = call("convert", tmp_path / "w.pt")
    assert done.exit_code == 0 and "left out" in done.output and "_extra_state (dict)" in done.output


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_text("mine", encoding="utf-8")
    assert "--force" in refused(tmp_path / "w.pt")
    assert (tmp_path / "w.safetensors").read_text(encoding="utf-8") == "mine"
    assert call("convert", tmp_path / "w.pt", "--force").exit_code == 0
    assert same(load_file(tmp_path / "w.safetensors"))
    assert call("convert", tmp_path / "w.pt", "--out", tmp_path / "other.safetensors").exit_code == 0
    assert same(load_file(tmp_path / "other.safetensors"))


def test_the_file_that_is_read_is_never_replaced(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.safetensors")  # misnamed, as people do
    assert "--out" in refused(tmp_path / "w.safetensors", "--force")


def test_shards_of_pytorch_files_become_one_file(tmp_path: Path) -> None:
    for name, value in STATE.items():
        torch.save({name: value}, tmp_path / f"{name}.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {n: f"{n}.bin" for n in STATE}}), encoding="utf-8")
    assert call("convert", index, "--out", tmp_path / "all.safetensors").exit_code == 0
    assert same(load_file(tmp_path / "all.safetensors"))


class Runs:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.run, (["touch", str(self.file)],)


def test_nothing_in_the_file_is_run(tmp_path: Path) -> None:
    for saved in ({"state_dict": STATE, "args": Runs(tmp_path / "ran")}, nn.Linear(2, 2)):
        torch.save(saved, tmp_path / "w.pt")
        sentence = refused(tmp_path / "w.pt")
        assert "Python objects" in sentence and "if you trust the file" in sentence
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "w.pt")
    assert "argparse.Namespace" in refused(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"epoch": 3, "best": 0.5}, "a table of epoch, best"),
        ([torch.zeros(1)], "it is list"),
        (torch.zeros(1), "it is Tensor"),
        ({"weight": torch.zeros(2).to_sparse()}, "weight is a tensor of kind torch.sparse_coo"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, saved: Any, words: str) -> None:
    torch.save(saved, tmp_path / "w.pt")
    assert words in refused(tmp_path / "w.pt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused(tmp_path / "cut.pt")
    (tmp_path / "lfs.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refused(tmp_path / "lfs.pt")
    assert "does not exist" in refused(tmp_path / "nowhere.pt")
    assert call("convert", tmp_path / "w.pt").exit_code == 0
    assert "safetensors file already" in refused(tmp_path / "w.safetensors")


def test_an_index_that_names_itself_or_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "w.index.json"
    index.write_text('{"weight_map": {"weight": "w.index.json"}}', encoding="utf-8")
    assert "is an index as well" in refused(index)
    index.write_text('{"weight_map": {"weight": "w.pt"}}', encoding="utf-8")
    torch.save([torch.ones(2)], tmp_path / "w.pt")
    assert "w.pt holds no state dict, a table of tensors by name: it is list" in refused(index)


@pytest.mark.parametrize("header", [b"{" + b'"a":[' * 50_000, b'{"a": [1]}', b'{"a": {"data_offsets": "x"}}'])
def test_weights_with_a_header_that_is_none_are_refused_in_a_sentence(header: bytes, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(file)
