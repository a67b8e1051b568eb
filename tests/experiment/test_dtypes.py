"""A network is measured in the types that it is built with; a cast is for who asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic.items import first
from dynbench.experiment import Options, load_spec
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.dtypes import cast, dtype_name, input_dtype
from dynbench.experiment.plan import groups
from dynbench.experiment.run import _is_same_request

MIXED = """
import torch
from torch import nn

from dynbench.dynamic import Route


def items(split, seed=0):
    return torch.randn(64, 8, dtype=torch.float64).numpy(), None


class Router(nn.Linear):
    def forward(self, x):
        return super().forward(x.float())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        experts = [nn.Linear(8, 8).bfloat16() for _ in range(4)]
        self.moe = Route("moe", Router(8, 4), experts, 2, lambda s, c: s.gather(1, c).softmax(1).to(torch.bfloat16))

    def forward(self, x):
        return self.moe(x.to(self.moe.experts[0].weight.dtype))


def static():
    return nn.Linear(8, 8).double()
"""


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MIXED, encoding="utf-8")
    file = tmp_path / "w.toml"
    file.write_text(
        'schema = 1\nname = "w"\ntitle = "W"\nmodel = "net.py:Net"\ninputs = { name = "net.py:items" }\n'
        'run = { batch_sizes = [4], strategies = ["masking", "compaction"] }\n'
        '[[baselines]]\nname = "static"\nprimary = true\nmodel = "net.py:static"\n',
        encoding="utf-8",
    )
    return file


def prepared(file: Path, **options: Any) -> Prepared:
    return prepare(load_spec(str(file)), Options(**options))


def test_a_network_of_several_types_is_measured_as_it_is_built(mixed: Path) -> None:
    p = prepared(mixed)
    assert p.dtype_name == "bfloat16+float32"
    assert first(p.inputs).dtype == torch.float32  # what its first parameter wants
    assert {q.dtype for q in p.baselines["static"].parameters()} == {torch.float32}  # it takes the same inputs
    (group,) = groups(p)
    assert group["group_id"] == "w/learned/cpu/b4/bfloat16+float32/t1"
    assert {c["dtype"] for c in group["cells"]} == {"bfloat16+float32"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_type_that_is_asked_for_is_that_of_all_networks_and_inputs(mixed: Path, dtype: str) -> None:
    mixed.write_text(mixed.read_text(encoding="utf-8").replace("net.py:Net", "net.py:static"), encoding="utf-8")
    p = prepared(mixed, dtype=dtype)
    assert p.dtype_name == dtype and first(p.inputs).dtype == getattr(torch, dtype)
    assert {q.dtype for q in p.baselines["static"].parameters()} == {getattr(torch, dtype)}


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8)


def test_a_cast_keeps_complex_numbers_complex_and_integers_integers() -> None:
    net = Spectral()
    assert (dtype_name(net), input_dtype(net)) == ("float32", torch.float32)
    cast(net, torch.float64)
    assert (net.weight.dtype, net.steps.dtype) == (torch.complex128, torch.int64)
    assert (dtype_name(net), input_dtype(net)) == ("float64", torch.float64)


def test_types_are_named_where_there_are_no_plain_weights() -> None:
    assert (dtype_name(nn.ReLU()), input_dtype(nn.ReLU())) == ("float32", torch.float32)
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).eval())
    assert dtype_name(quantised) == "float32+int8"


def test_a_run_of_an_earlier_version_goes_on_where_a_newer_one_asks_for_the_same(mixed: Path) -> None:
    spec, options = load_spec(str(mixed)), Options()
    asked = {
        "options": options.model_dump(mode="json"),
        "workloads": {"w": spec.model_dump(mode="json", by_alias=True)},
    }
    assert _is_same_request(asked, asked)
    older = {"options": {**asked["options"], "dtype": "float32"}, "workloads": {"w": dict(asked["workloads"]["w"])}}
    del older["options"]["target"], older["workloads"]["w"]["opaque"]
    assert _is_same_request(older, asked)
    assert not _is_same_request({**older, "options": {**older["options"], "dtype": "float64"}}, asked)
    assert not _is_same_request({**older, "options": {**older["options"], "seed": 1}}, asked)
    assert not _is_same_request({**older, "workloads": {}}, asked)
    assert not _is_same_request({}, asked)
