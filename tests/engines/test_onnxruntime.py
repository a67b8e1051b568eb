"""The engine onnxruntime: answers as eager, what is a session and what is not, and what is refused by name."""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Shared, Skip
from dynbench.dynamic.items import map_items, tensors
from dynbench.dynamic.regions import Region
from dynbench.engines import ENGINES, CannotPrepare, OnnxRuntime, prepared
from dynbench.engines import providers as provider_module
from dynbench.engines.exported import PROOF_ROWS, Sessions
from dynbench.engines.onnxruntime import _options
from dynbench.engines.providers import CPU, CUDA, Bound, in_turn, providers, why_not_on
from dynbench.experiment import Options, load_spec, run_experiment
from dynbench.experiment.memory import ProbeRequest, cell_peak_bytes
from dynbench.store.run import Run
from dynbench.store.schema import Arm
from dynbench.strategies import STRATEGIES, Compaction, Masking
from tests.networks import accepted, make

TINY = Path(__file__).parents[1] / "experiment" / "tiny"
REFUSED = {  # network -> why
    "generated": "'tasks': the model calls it other than as its own submodule",
    "programs_of_parts": "region 'parts' .* parameters of a module that is not among its own",
}


def through(net: nn.Module, *args: Any) -> nn.Module:
    return prepared(net, OnnxRuntime(), lambda m: Execution(Masking()).run(m, *args))


def sessions(net: nn.Module) -> dict[str, Sessions]:
    found = {name: m.__dict__.get("forward") for name, m in net.named_modules()}
    return {name: call for name, call in found.items() if isinstance(call, Sessions)}


def close(got: Any, expected: Any) -> None:
    for a, b in zip(tensors(got), tensors(expected), strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-6)


def prepare(module: nn.Module, *args: Any, name: str = "a.region") -> Callable[..., Any]:
    with torch.inference_mode():
        return OnnxRuntime().prepare(Region(name, module.eval(), False, args, [4]))


@pytest.mark.parametrize(
    "name, strategy", accepted(["masking", "compaction", "cascading", "per_sample"], without=REFUSED)
)
@torch.inference_mode()
def test_networks_answer_as_eager_does(name: str, strategy: str) -> None:
    net, args = make(name)
    own = through(net, *args)
    assert sessions(own) or name in ("lockstep", "fixed_loop")  # of single linear layers, and behind a closure
    close(Execution(STRATEGIES[strategy]()).run(own, *args), Execution(STRATEGIES[strategy]()).run(net, *args))


@pytest.mark.parametrize("name", REFUSED)
@torch.inference_mode()
def test_networks_that_cannot_be_prepared_are_refused_by_name(name: str) -> None:
    net, args = make(name)
    with pytest.raises(CannotPrepare, match=REFUSED[name]):
        through(net, *args)


@torch.inference_mode()
def test_a_static_network_is_one_session_that_takes_any_batch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    own = through(net, torch.randn(2, 3, 8, 8))
    assert list(sessions(own)) == [""]
    for n in (1, 2, 7, 32, 0):
        x = torch.randn(n, 3, 8, 8)
        assert torch.allclose(own(x), net(x), atol=1e-6)
    x = torch.randn(5, 3, 8, 8).to(memory_format=torch.channels_last)
    assert torch.allclose(own(x), net(x), atol=1e-6)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(6, 10), nn.Linear(10, 1)

    def forward(self, x: Tensor, carry: tuple[Tensor, Tensor] | None) -> Any:
        h, c = self.cell(x, carry)
        return self.out(h).squeeze(1), {"state": (h, c), "same": x, "nothing": None}


def test_a_gate_with_a_carry_keeps_the_structure_of_its_answer_and_passes_on_what_it_was_given() -> None:
    gate = Lstm()
    x, zero = torch.randn(4, 6), torch.zeros(4, 10)
    call = prepare(gate, x, (zero, zero))
    assert isinstance(call, Sessions)
    with torch.inference_mode():
        x, carry = torch.randn(3, 6), (torch.randn(3, 10), torch.randn(3, 10))
        (scores, out), (expected, wanted) = call(x, carry), gate(x, carry)
        close([scores, *out["state"]], [expected, *wanted["state"]])
        assert out["same"] is x and out["nothing"] is None and isinstance(out["state"], tuple)
        close(call(x, None)[0], gate(x, None)[0])  # another signature: a session of its own
    assert len(call.answers) == 2


class Pooled(nn.Module):
    def forward(self, x: Tensor, power: int = 1) -> Tensor:
        return (x**power).mean(1).relu()


def test_each_shape_of_an_item_gets_a_session_and_a_constant_is_part_of_it() -> None:
    call = prepare(Pooled(), torch.randn(4, 5, 3))
    assert isinstance(call, Sessions)
    with torch.inference_mode():
        for shape in ((2, 5, 3), (6, 9, 3), (1, 9, 3)):
            x = torch.randn(shape)
            close(call(x), Pooled()(x))
            close(call(x, power=2), Pooled()(x, power=2))
    assert len(call.answers) == 4


def test_the_module_is_called_as_written_where_arguments_are_not_items() -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor, table: Any) -> Tensor:
            return x.relu() + (table.value if isinstance(table, Shared) else table)

    module, x, table = Reads(), torch.randn(4, 3), torch.randn(3)
    assert prepare(module, x, Shared(table)) is module
    call = prepare(module, x, x)
    close(call(x, Shared(table)), x.relu() + table)
    close(call(x, torch.randn(1, 3) * 0), x.relu())  # another number of items


def test_single_layers_are_sessions_only_where_that_is_faster() -> None:
    for layer, x in ((nn.Linear(3, 3), torch.randn(4, 3)), (nn.ReLU(), torch.randn(4, 3))):
        assert prepare(layer, x) is layer
    for layer in (nn.Conv2d(3, 3, 3), nn.MaxPool2d(2)):
        assert isinstance(prepare(layer, torch.randn(4, 3, 8, 8)), Sessions)
    assert isinstance(prepare(nn.Linear(3, 3), torch.randn(4, 3), name=""), Sessions)  # a network of its own


class Baked(nn.Module):
    """Right for as many items as it was traced with."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(int(x.shape[0]), dtype=x.dtype)[:, None]


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    "module, why",
    [
        (Baked(), "region 'a.region' does not run with 4 items: operator Add fails"),
        (Bessel(), "region 'a.region' .* operator aten::special_bessel_j0 is not available in opset 17"),
        (Random(), "region 'a.region' answers otherwise with 4 items"),
        (nn.Sequential(nn.Linear(3, 3).bfloat16()), "torch.bfloat16"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_a_region_that_cannot_be_right_is_refused_with_its_name_and_the_operator(
    module: nn.Module, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    x = torch.randn(4, 3).to(next((p.dtype for p in module.parameters()), torch.float32))
    with pytest.raises(CannotPrepare, match=why) as refused:
        prepare(module, x)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")  # neither the exporter's graph nor ONNX Runtime's log


class Rewritten(nn.Module):
    """Functions that the exporter does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.RMSNorm(3), nn.RMSNorm((5, 3), eps=0.1, elementwise_affine=False)

    def forward(self, x: Tensor) -> Any:
        marked = torch.zeros_like(x, dtype=torch.bool).scatter(1, x.argmax(1, keepdim=True), True)
        return torch.special.entr(x), self.other(self.norm(x)), marked


def test_functions_that_the_exporter_does_not_know_are_written_otherwise() -> None:
    module = Rewritten()
    call = prepare(module, torch.rand(4, 5, 3))
    assert isinstance(call, Sessions)
    with torch.inference_mode():
        x = torch.rand(2, 5, 3) - 0.1
        x[0, 0, 0] = 0.0
        close(call(x), module(x))


class Shares(nn.Module):
    """A layer with two layers in it, which other modules of a network hold too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.out = inner, nn.Linear(4, 1)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.out(self.inner(x)).squeeze(1), carry


class SharesRegions(nn.Module):
    """The shared layers are a region of their own, and a part of each gate."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.skips = nn.ModuleList(
            Skip(f"skip{i}", Shares(self.inner), nn.Sequential(nn.Linear(4, 4), nn.ReLU())) for i in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for skip in self.skips:
            x, _ = skip(x)
        return x


@pytest.mark.parametrize("strategy", ["masking", "compaction"])
@torch.inference_mode()
def test_layers_that_are_a_region_and_a_part_of_others_are_traced_as_written(strategy: str) -> None:
    net, x = SharesRegions().eval(), torch.randn(6, 4)
    own = through(net, x)
    assert set(sessions(own)) >= {"inner", "skips.0.gate", "skips.1.gate"}
    for n in (6, 1):
        got = Execution(STRATEGIES[strategy]()).run(own, x[:n])
        close(got, Execution(STRATEGIES[strategy]()).run(net, x[:n]))
    out = own.skips[0].gate(torch.zeros(2, 4), None)[0]  # type: ignore[union-attr, operator]
    assert not torch.equal(out, own.skips[0].gate(torch.ones(2, 4), None)[0])  # type: ignore[union-attr, operator]


class Cancels(nn.Module):
    """A small difference of large numbers, of which float32 keeps few digits."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.tanh(self.up(x))).squeeze(1) + 1e3
        return y - y.detach().round()


def test_an_answer_may_round_as_much_as_the_module_itself() -> None:
    torch.manual_seed(0)
    assert isinstance(prepare(Cancels(), torch.randn(4, 64)), Sessions)


class OnlyForTwo(nn.Module):
    """Traced with other numbers of items than 2, it forgets what it does for 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 2 else x * 3


def test_other_batch_sizes_than_that_of_the_example_are_compared() -> None:
    assert 2 in PROOF_ROWS
    with pytest.raises(CannotPrepare, match="otherwise with 2 items"):
        prepare(OnlyForTwo(), torch.randn(4, 3))


@torch.inference_mode()
def test_regions_in_half_precision_answer_within_its_rounding() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).half().eval()
    x = torch.randn(4, 8).half()
    got = through(net, x)(x)
    assert got.dtype == torch.float16 and torch.allclose(got, net(x), atol=5e-3)


@torch.inference_mode()
def test_the_network_is_left_as_it_is() -> None:
    net = Skip("skip", Lstmless(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    x = torch.randn(6, 4)
    expected = Execution(Compaction()).run(net, x)
    own = through(net, x)
    assert sessions(own) and not sessions(net)
    close(Execution(Compaction()).run(own, x), expected)


class Lstmless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.linear(x).squeeze(1), carry


def test_a_session_uses_as_many_threads_as_torch() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert _options(ort).intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)


def test_it_is_refused_where_it_or_its_provider_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINES["onnxruntime"]
    assert engine.refuses("cpu") is None
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    assert engine.refuses("cuda:0") == (
        "the installed onnxruntime has no CUDAExecutionProvider: pip uninstall onnxruntime, then "
        "pip install onnxruntime-gpu, which takes its place"
    )
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    assert engine.refuses("cuda:0") is None and engine.facts()["providers"] == [CPU, CUDA]
    assert engine.refuses("xpu") == "ONNX Runtime is used on cpu and cuda devices only, not on xpu"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert engine.refuses("cpu") == "onnxruntime is not installed: pip install onnxruntime"


def test_facts_name_versions_providers_and_opset() -> None:
    facts = ENGINES["onnxruntime"].facts()
    assert CPU in facts["providers"] and facts["opset"] == 17 and facts["onnxruntime"]  # type: ignore[operator]


def test_the_version_is_that_of_whichever_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "onnxruntime":
            raise PackageNotFoundError(package)
        return f"{package} 1.0"

    monkeypatch.setattr(provider_module, "version", version)
    assert ENGINES["onnxruntime"].facts()["onnxruntime"] == "onnxruntime-gpu 1.0"


def session(module: nn.Module, x: Tensor) -> Any:
    file = io.BytesIO()
    axes = {name: {0: "items"} for name in ("x", "y", "positive")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), file, dynamo=False, input_names=["x"], output_names=["y", "positive"], dynamic_axes=axes
        )
    return ort.InferenceSession(file.getvalue(), providers=[CPU])


class Signs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_bound_tensors_of_any_dtype_layout_and_number_of_items(dtype: torch.dtype) -> None:
    x = (10 * torch.randn(6, 4)).to(dtype)
    call = Bound(session(Signs(), x), torch.device("cpu"))
    for given in (x, x[1:3], x[:, ::2].repeat(1, 2), x.T.contiguous().T, x[:0]):
        y, positive = call({"x": given}, ["y", "positive"])
        assert y.dtype == dtype and torch.equal(y, given * 2) and torch.equal(positive, given > 0)
    (positive,) = call({"x": x}, ["positive"])
    y, _ = call({"x": x + 1}, ["y", "positive"])
    assert torch.equal(positive, x > 0) and torch.equal(y, 2 * (x + 1))  # each answer has memory of its own


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name, self.cuda_stream = log, name, 4711

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def test_on_a_gpu_a_session_works_on_a_stream_in_turn_with_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: FakeStream(log, f"torch {index}"))
    monkeypatch.setattr(provider_module, "_stream", lambda index: FakeStream(log, f"onnxruntime {index}"))
    with in_turn("cuda", 1):
        log.append("run")
    assert log == ["onnxruntime 1 waits for torch 1", "run", "torch 1 waits for onnxruntime 1"]
    (name, options), rest = providers(torch.device("cuda:1"))
    assert (name, rest) == (CUDA, CPU) and providers(torch.device("cpu")) == [CPU]
    assert options["device_id"] == "1" and options["user_compute_stream"] == "4711"


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_where_torch_allows_it_everywhere(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "_stream", lambda index: FakeStream([], ""))
    matmul = SimpleNamespace(allow_tf32=allowed)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert providers(torch.device("cuda:0"))[0][1]["use_tf32"] == str(int(allowed))


def test_a_session_that_fell_back_to_the_cpu_is_found() -> None:
    class OnCpu:
        def get_providers(self) -> list[str]:
            return [CPU]

    assert why_not_on(OnCpu(), torch.device("cpu")) is None
    assert why_not_on(OnCpu(), torch.device("cuda:0")) == (
        "runs on CPUExecutionProvider instead of CUDAExecutionProvider, because libraries of CUDA or cuDNN that it "
        "needs cannot be loaded"
    )


@pytest.mark.cuda
@pytest.mark.parametrize("name, strategy", accepted(["masking", "compaction", "cascading"], without=REFUSED))
@torch.inference_mode()
def test_networks_on_a_gpu_answer_as_eager_does(name: str, strategy: str) -> None:
    if why := ENGINES["onnxruntime"].refuses("cuda:0"):
        pytest.skip(why)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    net, args = make(name)
    net, args = net.cuda(), map_items(lambda t: t.cuda(), args)
    own = through(net, *args)
    expected = Execution(STRATEGIES[strategy]()).run(net, *args)
    for a, b in zip(tensors(Execution(STRATEGIES[strategy]()).run(own, *args)), tensors(expected), strict=True):
        assert a.device == b.device and torch.allclose(a, b, atol=1e-4)


def test_importing_the_engines_does_not_load_onnxruntime() -> None:
    code = "import sys, dynbench.engines; sys.exit(bool({'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_measured_beside_eager_in_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in TINY.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    options = Options(
        threads=1,
        time_limit_s=0.2,
        precision=0.9,
        decisions=["learned"],
        batch_sizes=[4],
        engines=["eager", "onnxruntime"],
        strategies=["compaction", "cascading"],
    )
    run_experiment(["tiny.toml"], options, tmp_path / "run", command=[])
    run = Run.open(tmp_path / "run")
    own = {c.arm.key: c for c in run.cells if c.arm.engine == "onnxruntime"}
    assert {"compaction, onnxruntime", "cascading, onnxruntime", "baseline:plain, onnxruntime"} <= set(own)
    assert {c.status for c in run.cells} == {"ok"} and len({c.group_id for c in run.cells}) == 1


WIDE = """

def wide():
    return nn.Sequential(nn.Linear(8, 5_000_000), nn.ReLU(), nn.Linear(5_000_000, 4))
"""


def test_what_a_session_needs_at_most_is_seen_though_it_ran_before(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text((TINY / "net.py").read_text(encoding="utf-8") + WIDE, encoding="utf-8")
    text = (TINY / "tiny.toml").read_text(encoding="utf-8").replace("net.py:plain", "net.py:wide")
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    spec = load_spec(str(tmp_path / "tiny.toml"))
    options = Options(engines=["eager", "onnxruntime"])
    arm = Arm(kind="baseline", baseline="plain", engine="onnxruntime")
    peak = cell_peak_bytes(ProbeRequest(spec, options, arm, torch.randn(4, 8), None, start=0, items=4))
    activations = 4 * 5_000_000 * 4
    assert isinstance(peak, float) and 0.9 * activations < peak < 3 * activations
