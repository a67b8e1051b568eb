"""Which entries of a weights file are which of a model's, and what the sentence says where a file is something else."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from dynbench.errors import UserError
from dynbench.experiment.weights import load_weights, read_weights, renamed, weight_files


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


class Halves(nn.Module):
    """A buffer that lies within another one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.zeros(6, 2))
        self.register_buffer("part", self.get_buffer("whole")[3:])


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def drawn(module: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """A state dict of other values, without shared memory."""
    g = torch.Generator().manual_seed(seed)
    return {
        k: torch.rand(v.shape, generator=g) if v.is_floating_point() else torch.full_like(v, 5)
        for k, v in module.state_dict().items()
    }


def assert_holds(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items())


def test_tied_weights_written_by_save_model_load(tmp_path: Path) -> None:
    other = Tied()
    save_model(other, str(tmp_path / "w.safetensors"))
    assert len(read_weights(tmp_path / "w.safetensors")) == 1
    net = Tied()
    load_weights(net, tmp_path / "w.safetensors")
    assert torch.equal(net.head.weight, other.embed.weight) and net.head.weight is net.embed.weight


def test_a_tensor_within_another_one_comes_with_it(tmp_path: Path) -> None:
    save_file({"whole": torch.arange(12.0).view(6, 2)}, tmp_path / "w.safetensors")
    net = Halves()
    load_weights(net, tmp_path / "w.safetensors")
    assert net.get_buffer("part")[0, 0] == 6
    save_file({"part": torch.ones(3, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="lacks whole"):
        load_weights(Halves(), tmp_path / "w.safetensors")


def test_a_weight_that_only_equals_another_one_is_not_taken_for_it(tmp_path: Path) -> None:
    net = Tied()
    net.head.weight = nn.Parameter(net.embed.weight.detach().clone())
    save_file({"embed.weight": torch.zeros(7, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"lacks head\.weight \(7, 4\)"):
        load_weights(net, tmp_path / "w.safetensors")


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    save_file({"embed.weight": torch.zeros(7, 4), "head.weight": torch.ones(7, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"embed\.weight and head\.weight differ"):
        load_weights(Tied(), tmp_path / "w.safetensors")
    same = torch.full((7, 4), torch.nan)
    save_file({"embed.weight": same, "head.weight": same.clone()}, tmp_path / "w.safetensors")
    load_weights(Tied(), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        lambda k: f"module.{k}",
        lambda k: f"_orig_mod.{k}",
        lambda k: f"module._orig_mod.{k}",
        lambda k: f"model.{k}",
        lambda k: k.replace("0.", "0._orig_mod.", 1),
        lambda k: k.replace("2.", "2.module.", 1),
    ],
)
def test_what_wrappers_add_to_names_is_understood(tmp_path: Path, name: Callable[[str], str]) -> None:
    state = drawn(mlp())
    save_file({name(k): v for k, v in state.items()}, tmp_path / "w.safetensors")
    net = mlp()
    load_weights(net, tmp_path / "w.safetensors")
    assert_holds(net, state)


def test_a_model_in_a_wrapper_takes_names_without_it(tmp_path: Path) -> None:
    state = drawn(mlp())
    save_file(state, tmp_path / "w.safetensors")
    for wrapped in (nn.DataParallel(mlp()), torch.compile(mlp())):
        load_weights(wrapped, tmp_path / "w.safetensors")
        assert_holds(next(wrapped.children()), state)


@given(st.lists(st.sampled_from(["module", "_orig_mod", "a", "b", "0"]), min_size=1, max_size=4).map(".".join))
def test_a_name_of_the_model_s_own_is_never_renamed(name: str) -> None:
    value = torch.zeros(1)
    assert renamed({name: value}, [name, f"module.{name}", "other"]) == {name: value}


def test_names_that_only_wrappers_tell_apart_stay_as_they_are() -> None:
    state = {"a.module.w": torch.zeros(1), "a.w": torch.ones(1)}
    assert renamed(state, ["a.w"]) == {"a.w": state["a.w"], "a.module.w": state["a.module.w"]}
    assert set(renamed({"w": torch.zeros(1)}, ["module.w", "_orig_mod.w"])) == {"w"}


def test_counters_of_other_tools_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    state = drawn(mlp())
    counters = {"total_ops": torch.zeros(1), "0.total_params": torch.tensor(12.0), "n_averaged": torch.tensor(3)}
    save_file({**state, **counters}, tmp_path / "w.safetensors")
    net = mlp()
    load_weights(net, tmp_path / "w.safetensors")
    assert_holds(net, state)
    save_file({**state, "total_ops": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="has total_ops, which the model lacks"):
        load_weights(mlp(), tmp_path / "w.safetensors")


def test_a_buffer_that_the_model_computes_is_left_out_where_it_is_the_same(tmp_path: Path) -> None:
    def positions() -> nn.Module:
        net = nn.Linear(2, 2)
        net.register_buffer("ids", torch.arange(4), persistent=False)
        return net

    state = {**drawn(nn.Linear(2, 2)), "ids": torch.arange(4)}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(positions(), tmp_path / "w.safetensors")
    save_file({**state, "ids": torch.arange(4) + 1}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="has ids with other values"):
        load_weights(positions(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_take_the_type_of_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"weight": torch.ones(2, 2, dtype=dtype), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    net = nn.Linear(2, 2, dtype=torch.bfloat16)
    load_weights(net, tmp_path / "w.safetensors")
    assert net.weight.dtype == torch.bfloat16 and bool((net.weight == 1).all())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.complex64])
def test_numbers_of_another_kind_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"weight": torch.ones(2, 2, dtype=dtype), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=rf"weight holds .* numbers \({dtype}\), the model wants floating-point"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_lazy_layers_take_the_shapes_of_the_file(tmp_path: Path) -> None:
    state = drawn(nn.Linear(3, 2))
    save_file(state, tmp_path / "w.safetensors")
    net = nn.LazyLinear(2)
    load_weights(net, tmp_path / "w.safetensors")
    assert_holds(net, state)
    save_file({"weight": state["weight"]}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="lacks bias, which"):
        load_weights(nn.LazyLinear(2), tmp_path / "w.safetensors")


def test_names_of_the_older_weight_norm_load_into_the_newer(tmp_path: Path) -> None:
    old = nn.utils.weight_norm(nn.Linear(3, 2))
    save_file({k: v.clone() for k, v in old.state_dict().items()}, tmp_path / "w.safetensors")
    new = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    load_weights(new, tmp_path / "w.safetensors")
    x = torch.rand(4, 3)
    assert torch.allclose(new(x), old(x))


def test_a_model_whose_weights_are_no_tensors_says_where_to_load_them(tmp_path: Path) -> None:
    save_file(drawn(nn.Linear(3, 2)), tmp_path / "w.safetensors")
    net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})
    with pytest.raises(UserError, match="in the function that makes the model"):
        load_weights(net, tmp_path / "w.safetensors")


def sharded(folder: Path, state: dict[str, Tensor]) -> Path:
    names = list(state)
    shards = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, mine in shards.items():
        save_file({n: state[n] for n in mine}, folder / file)
    index = folder / "model.safetensors.index.json"
    table = {n: file for file, mine in shards.items() for n in mine}
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}), encoding="utf-8")
    return index


def test_an_index_stands_for_its_shards(tmp_path: Path) -> None:
    state = drawn(mlp())
    index = sharded(tmp_path, state)
    net = mlp()
    load_weights(net, index)
    assert_holds(net, state)
    assert [f.name for f in weight_files(index)] == ["model.safetensors.index.json", "a.safetensors", "b.safetensors"]
    assert weight_files(tmp_path / "a.safetensors") == [tmp_path / "a.safetensors"]
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"names 'b\.safetensors'; there is no such file"):
        load_weights(mlp(), index)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/hostname", "sub/a.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        save_file({"weight": torch.zeros(1)}, place / "a.safetensors")
    (folder / "i.json").write_text(json.dumps({"weight_map": {"weight": name}}), encoding="utf-8")
    with pytest.raises(UserError, match="no such file beside it"):
        read_weights(folder / "i.json")


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return content.getvalue()


def torch_saved(**how: bool) -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, content, **how)
    return content.getvalue()


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, weight=np.zeros(1))
    return content.getvalue()


def scripted() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), content)
    return content.getvalue()


CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip of torch.save": (torch_saved, "PyTorch file; `dynbench convert"),
    "pickle of torch.save": (lambda: torch_saved(_use_new_zipfile_serialization=False), "`dynbench convert"),
    "pickle": (lambda: pickle.dumps({"weight": [0]}), "`dynbench convert"),
    "zip cut short": (lambda: torch_saved()[:300], "`dynbench convert"),
    "TorchScript": (scripted, "TorchScript archive"),
    "LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
    "page": (lambda: b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page"),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file"),
    "npz": (npz, "a NumPy archive"),
    "npy": (lambda: b"\x93NUMPY\x01\x00", "a NumPy archive"),
    "another zip": (lambda: zipped("readme.txt"), "a zip archive without weights"),
    "gzip": (lambda: b"\x1f\x8b\x08\x00" + bytes(20), "compressed; unpack it"),
    "empty": (lambda: b"", "it is empty"),
    "text": (lambda: b"not a tensor", "neither a safetensors nor a PyTorch file"),
    "JSON": (lambda: b'{"layers": 3}', "no table 'weight_map'"),
    "JSON of something else": (lambda: b'{"weight_map": [1]}', "no table 'weight_map'"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path: Path, what: str) -> None:
    make, words = CONTENTS[what]
    (tmp_path / "w.safetensors").write_bytes(make())
    with pytest.raises(UserError) as refused:
        read_weights(tmp_path / "w.safetensors")
    assert words in str(refused.value) and "\n" not in str(refused.value)


@given(st.data())
def test_a_file_cut_short_anywhere_is_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("cut") / "w.safetensors"
    save_file(drawn(mlp()), file)
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError, match="cut short|empty|neither a safetensors"):
        read_weights(file)


@given(st.binary(max_size=200))
def test_any_content_is_refused_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / "w.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError):
        read_weights(file)


def test_reading_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (tmp_path / "ran").write_text, ("x",)

    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        read_weights(tmp_path / "w.safetensors")
    assert not (tmp_path / "ran").exists()
