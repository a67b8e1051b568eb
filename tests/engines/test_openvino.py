"""The engine openvino: answers as eager, threads and precision, and what is refused by name."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.dynamic.items import tensors
from dynbench.dynamic.regions import Region
from dynbench.engines import ENGINES, CannotPrepare, MicroBatches, OpenVino, prepared
from dynbench.engines import openvino as engine
from dynbench.engines.exported import Sessions
from dynbench.strategies import STRATEGIES, Masking
from tests.networks import make

needs_openvino = pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing()))
ROOT = Path(__file__).parents[2]
NETWORKS = ("pyramid", "widths", "picking")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).eval()


def prepare(module: nn.Module, *args: Any) -> Callable[..., Any]:
    with torch.inference_mode():
        return OpenVino().prepare(Region("a.region", module.eval(), False, args, [4]))


@needs_openvino
@torch.inference_mode()
def test_a_static_network_is_one_model_that_takes_any_batch() -> None:
    net = small()
    own = prepared(net, OpenVino(), lambda m: m(torch.randn(2, 3, 8, 8)))
    assert isinstance(own.__dict__["forward"], Sessions)
    for n in (1, 2, 7, 32, 0):
        x = torch.randn(n, 3, 8, 8)
        assert own(x).shape == (n, 5) and torch.allclose(own(x), net(x), atol=1e-6)
    x = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last)
    assert torch.allclose(own(x), net(x), atol=1e-6)


@needs_openvino
@torch.inference_mode()
def test_an_answer_stays_as_it_is_when_the_next_one_is_computed() -> None:
    net = small()
    own = prepared(net, OpenVino(), lambda m: m(torch.randn(2, 3, 8, 8)))
    x, y = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    first, kept = own(x), net(x)
    own(y)
    assert torch.allclose(first, kept, atol=1e-6)


@needs_openvino
@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_networks_answer_as_eager_does(name: str) -> None:
    net, args = make(name)
    own = prepared(net, OpenVino(), lambda m: Execution(Masking()).run(m, *args))
    for strategy in ("compaction", "cascading"):
        if STRATEGIES[strategy]().refuses(net) is None:
            got = Execution(STRATEGIES[strategy]()).run(own, *args)
            expected = Execution(STRATEGIES[strategy]()).run(net, *args)
            for a, b in zip(tensors(got), tensors(expected), strict=True):
                assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-5)


@needs_openvino
@torch.inference_mode()
def test_the_engine_prepares_what_is_called_with_micro_batches() -> None:
    net, sizes = small(), []
    own = prepared(MicroBatches(net, 4), OpenVino(), lambda m: m(torch.randn(2, 3, 8, 8)))
    inner = own.model.__dict__["forward"]  # type: ignore[union-attr]
    assert isinstance(inner, Sessions)
    own.model.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))  # type: ignore[union-attr]
    x = torch.randn(10, 3, 8, 8)
    assert torch.allclose(own(x), net(x), atol=1e-6) and sizes == [4, 4, 2]


@needs_openvino
def test_it_computes_in_float32_with_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    seen: list[tuple[Any, Any]] = []
    compile_model = openvino.Core.compile_model

    def watch(self: Any, model: Any, device: str, settings: Any) -> Any:
        seen.append((compile_model(self, model, device, settings), settings))
        return seen[-1][0]

    monkeypatch.setattr(openvino.Core, "compile_model", watch)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            prepare(nn.Sequential(nn.Linear(64, 8), nn.ReLU()), torch.randn(4, 64))
            compiled, settings = seen[-1]  # it takes no more threads than the process has cores
            assert settings["INFERENCE_NUM_THREADS"] == threads
            assert compiled.get_property("INFERENCE_NUM_THREADS") <= threads
            assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    finally:
        torch.set_num_threads(before)


@needs_openvino
@torch.inference_mode()
def test_a_network_of_bfloat16_is_computed_in_bfloat16_or_refused() -> None:
    net = small().to(torch.bfloat16)
    stream = torch.randn(32, 3, 8, 8, dtype=torch.bfloat16)
    if not engine.computes_bfloat16():  # of the processor
        with pytest.raises(CannotPrepare, match="torch.bfloat16, which OpenVINO does not compute with on the CPU"):
            prepared(net, OpenVino(), lambda m: m(stream[:2]))
        return
    own = prepared(net, OpenVino(), lambda m: m(stream[:2]))
    assert isinstance(own.__dict__["forward"], Sessions)
    first = own(stream[:3])
    for n in (1, 7, 32, 0):
        got, right = own(stream[:n]), net(stream[:n])
        assert got.dtype == torch.bfloat16 and torch.allclose(got.float(), right.float(), atol=0.02, rtol=0.02)
    assert torch.allclose(first.float(), net(stream[:3]).float(), atol=0.02, rtol=0.02)


@needs_openvino
def test_bfloat16_is_refused_where_it_would_be_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "computes_bfloat16", lambda: False)
    with pytest.raises(CannotPrepare, match="torch.bfloat16, which OpenVINO does not compute with on the CPU"):
        prepare(nn.Sequential(nn.Linear(3, 3).to(torch.bfloat16), nn.ReLU()), torch.randn(4, 3, dtype=torch.bfloat16))


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class OnlyForTwo(nn.Module):
    """Traced with other numbers of items than 2, it forgets what it does for 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 2 else x * 3


@needs_openvino
@pytest.mark.parametrize(
    "module, why",
    [
        (Bessel(), "operator aten::special_bessel_j0 is not available in opset 17"),
        (OnlyForTwo(), "answers otherwise with 2 items"),
        (nn.Sequential(nn.Linear(3, 3).double()), "torch.float64, which OpenVINO does not compute with on the CPU"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_a_region_that_cannot_be_right_is_refused_by_its_name(module: nn.Module, why: str) -> None:
    x = torch.randn(4, 3).to(next((p.dtype for p in module.parameters()), torch.float32))
    with pytest.raises(CannotPrepare, match=f"engine 'openvino': region 'a.region' .*{why}") as refused:
        prepare(module, x)
    assert "\n" not in str(refused.value)


def test_it_is_refused_where_it_is_not_installed_and_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert ENGINES["openvino"].refuses("cpu") is None
    assert ENGINES["openvino"].refuses("cuda:0") == "engine 'openvino' runs on the CPU only, not on cuda:0"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ENGINES["openvino"].refuses("cpu") == "openvino is not installed: pip install 'dynbench[openvino]'"
    assert ENGINES["openvino"].facts() == {"openvino": "not installed"}


@needs_openvino
def test_facts_name_versions_threads_and_precision() -> None:
    facts = ENGINES["openvino"].facts()
    assert facts["openvino"] and facts["opset"] == 17 and facts["inference_precision_hint"] == "f32"
    assert facts["inference_num_threads"] == torch.get_num_threads()


SIGNALLED = """
import faulthandler, gc, os, signal
import torch
from tests.engines.test_openvino import prepare, small

faulthandler.enable()  # as pytest does: gives the thread a stack for signals
kept = [prepare(small(), torch.randn(4, 3, 8, 8)) for _ in range(3)]
while kept:
    del kept[0]
    gc.collect()
signal.signal(signal.SIGALRM, lambda *_: print("told"))
os.kill(os.getpid(), signal.SIGALRM)
"""


@needs_openvino
def test_a_signal_can_still_be_told_when_models_have_gone_in_the_order_they_came() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
