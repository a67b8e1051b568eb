"""The engine cuda_graph: sizes, buffers and refusals, with a stand-in for the recording; on a GPU with graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Execution, Loop, Shared
from dynbench.dynamic.items import map_items, tensors
from dynbench.dynamic.regions import Region
from dynbench.engines import ENGINES, CannotPrepare, CudaGraph, prepared
from dynbench.engines.calls import numbered
from dynbench.engines.cuda_graph import Latest, _Graphs, _OnGpu, bucket, buckets, computes_alone
from dynbench.strategies import STRATEGIES, Masking
from tests.networks import accepted, make

REFUSED = {"generated": "'tasks': the model calls it other than as its own submodule"}


class Recorder:
    """Stands in for a GPU: what was recorded is computed anew from the buffers, into the same tensors.

    Attributes:
        sizes: for how many items it has recorded, in order.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, call: Callable[[list[Tensor]], Any], buffers: list[Tensor]) -> tuple[Callable[[], None], Any]:
        self.sizes.append(buffers[0].shape[0])
        with torch.inference_mode(False), torch.no_grad():
            answer = call(buffers)

        def replay() -> None:
            for old, new in zip(tensors(answer), list(tensors(call(buffers))), strict=True):
                old.copy_(new)

        return replay, answer


def region(module: nn.Module, *args: Any, sizes: tuple[int, ...] = (8,)) -> Region:
    return Region("a.region", module.eval(), False, args, list(sizes))


def prepare(module: nn.Module, *args: Any, sizes: tuple[int, ...] = (8,), **more: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    with torch.inference_mode():
        return CudaGraph(recorder, **more).prepare(region(module, *args, sizes=sizes)), recorder


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_bucket_has_room_is_at_most_twice_as_large_and_one_of_the_sizes_recorded_ahead(n: int, most: int) -> None:
    size = bucket(n, most)
    assert n <= size < 2 * n or n == size == 1
    if n <= most:
        assert size in buckets(most)
    assert len(buckets(most)) <= most.bit_length() + 1 and max(buckets(most)) == most


def test_sizes_are_powers_of_two_up_to_the_largest_batch() -> None:
    assert buckets(8) == [1, 2, 4, 8]
    assert buckets(48) == [1, 2, 4, 8, 16, 32, 48]
    assert [bucket(n, 48) for n in (1, 3, 33, 48, 49)] == [1, 4, 48, 48, 64]


def test_what_was_not_used_for_longest_goes_first() -> None:
    kept: Latest[str] = Latest(2)
    made = []

    def get(key: str) -> None:
        kept.get(key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]

    for key in "abacab":
        get(key)
    assert made == ["a", "b", "c", "b"] and len(kept) == 2


@torch.inference_mode()
def test_all_sizes_are_recorded_when_a_region_is_prepared_and_none_later() -> None:
    net = mlp()
    call, recorder = prepare(net, torch.randn(6, 4), sizes=(6,))
    assert isinstance(call, _Graphs) and recorder.sizes == [1, 2, 4, 6]
    for n in (6, 1, 3, 5, 2, 4):
        x = torch.randn(n, 4)
        assert torch.allclose(call(x), net(x), atol=1e-6)
    assert recorder.sizes == [1, 2, 4, 6]
    x = torch.randn(9, 4)  # more than were ever seen
    assert torch.allclose(call(x), net(x), atol=1e-6) and recorder.sizes == [1, 2, 4, 6, 16]


@torch.inference_mode()
def test_an_answer_is_not_overwritten_by_the_next_call() -> None:
    net = mlp()
    call, _ = prepare(net, torch.randn(4, 4))
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    first, second = call(x), call(y)
    assert torch.allclose(first, net(x), atol=1e-6) and torch.allclose(second, net(y), atol=1e-6)
    first.zero_()  # as a strategy does that writes into what a region returned
    assert torch.allclose(call(x), net(x), atol=1e-6)


class Mean(nn.Module):
    """An item's answer depends on those beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() / x.amax(0).clamp(min=1)


class OnlyCounts(nn.Module):
    """Mixes integers, of which none is NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] == x).sum((1, 2))


@pytest.mark.parametrize("module", [Mean(), Largest(), OnlyCounts(), nn.BatchNorm1d(3).train()], ids=lambda m: str(m))
def test_items_that_are_mixed_are_found(module: nn.Module) -> None:
    x = torch.randn(5, 3)
    x = x.mul(9).long() if isinstance(module, OnlyCounts) else x
    with torch.no_grad():
        assert not computes_alone(module, numbered(((x,), {})), [x])


@pytest.mark.parametrize(
    "module, x",
    [
        (mlp(), torch.randn(1, 4)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval(), torch.randn(3, 3, 6, 6)),
        (nn.Embedding(5, 3), torch.tensor([[0, 4]])),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 5, 8)),
    ],
    ids=["mlp", "block", "embedding", "attention"],
)
def test_items_that_are_computed_alone_are_found(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert computes_alone(module, numbered(((x,), {})), [x])


@torch.inference_mode()
def test_a_region_that_mixes_items_is_recorded_for_each_number_of_them() -> None:
    call, recorder = prepare(Mean(), torch.randn(8, 3), sizes=(8, 5), graphs=2)
    assert recorder.sizes == [8, 5]
    for n in (8, 3, 5, 3):  # 3 takes the place of 5, and 5 that of 8
        x = torch.randn(n, 3)
        assert torch.allclose(call(x), x - x.mean(0), atol=1e-6)
    assert recorder.sizes == [8, 5, 3, 5]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(6, 10)

    def forward(self, x: Tensor, carry: Any, scale: float = 1.0) -> Any:
        h, c = self.cell(x, carry)
        return scale * h[:, 0], {"state": (h, c), "same": x, "nothing": None}


@torch.inference_mode()
def test_a_carry_keeps_its_structure_and_what_is_passed_on_is_the_caller_s() -> None:
    gate = Recurrent()
    x, zero = torch.randn(4, 6), torch.zeros(4, 10)
    call, recorder = prepare(gate, x, (zero, zero), sizes=(4,))
    x, carry = torch.randn(3, 6), (torch.randn(3, 10), torch.randn(3, 10))
    (score, out), (right, wanted) = call(x, carry), gate(x, carry)
    assert torch.allclose(score, right, atol=1e-6) and out["same"] is x and out["nothing"] is None
    for a, b in zip(out["state"], wanted["state"], strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert recorder.sizes == [1, 2, 4]
    for scale in (2.0, 3.0):  # another constant, another graph
        assert torch.allclose(call(x, carry, scale=scale)[0], scale * right, atol=1e-6)
    assert recorder.sizes == [1, 2, 4, 4, 4]


@torch.inference_mode()
def test_images_keep_their_layout() -> None:
    seen = []

    class Layout(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
            return x.relu() + 1

    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    call, _ = prepare(Layout(), x, sizes=(4,))
    seen.clear()
    got = call(x[:3])
    assert seen == [True] and got.is_contiguous(memory_format=torch.channels_last)


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu_() + 1


class Scalar(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.relu(), x.sum()


def test_what_cannot_be_copied_in_and_out_stays_as_written() -> None:
    x = torch.rand(4, 3)
    for module, args in ((Writes(), (x,)), (Scalar(), (x,)), (Recurrent(), (x, Shared(x)))):
        assert prepare(module, *args)[0] is module
    for layer in (nn.Linear(3, 3), nn.ReLU()):  # nothing to launch together
        call, recorder = prepare(layer, x)
        assert call is layer and recorder.sizes == []
    call, recorder = prepare(mlp(), torch.randn(4, 4))
    sizes = list(recorder.sizes)
    y = torch.randn(3, 4, requires_grad=True)
    call(y).sum().backward()
    assert y.grad is not None and recorder.sizes == sizes


class Waits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_a_region_that_cannot_be_recorded_is_refused_with_its_name_and_why() -> None:
    def cannot(call: Any, buffers: list[Tensor]) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nlong story")

    why = (
        "engine 'cuda_graph': region 'a.region' cannot be recorded for 1 items: "
        "CUDA error: operation not permitted when stream is capturing"
    )
    with pytest.raises(CannotPrepare) as refused:
        CudaGraph(cannot).prepare(region(mlp(), torch.randn(4, 4)))
    assert str(refused.value) == why


def test_memory_that_runs_out_is_not_the_region_s_fault() -> None:
    def cannot(call: Any, buffers: list[Tensor]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraph(cannot).prepare(region(mlp(), torch.randn(4, 4)))


def test_a_graph_that_answers_otherwise_is_refused() -> None:
    def constant(call: Any, buffers: list[Tensor]) -> Any:
        return lambda: None, call(buffers)

    with pytest.raises(CannotPrepare, match=r"'a.region' answers otherwise with 2 items, by \d"), torch.no_grad():
        CudaGraph(constant).prepare(region(mlp(), torch.randn(4, 4)))
    with pytest.raises(CannotPrepare, match="answers otherwise with 8 items"):
        prepare(Random(), torch.randn(8, 4))


class TwiceAround(nn.Module):
    """A loop whose answers come from one module, called again while earlier answers are still needed."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(), nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.loop = Loop("loop", self.step, lambda a, s, k: a[:, 0] > 0.1, 4)

    def step(self, x: Tensor, k: int) -> Tensor:
        return self.head(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(x)


@pytest.mark.parametrize("strategy", ["masking", "compaction", "cascading"])
@torch.inference_mode()
def test_answers_of_items_that_left_a_loop_stay(strategy: str) -> None:
    torch.manual_seed(1)
    net, x = TwiceAround().eval(), torch.randn(9, 4)
    expected = Execution(STRATEGIES[strategy]()).run(net, x)
    recorder = Recorder()
    own = prepared(net, CudaGraph(recorder), lambda m: Execution(Masking()).run(m, x))
    assert recorder.sizes
    assert torch.allclose(Execution(STRATEGIES[strategy]()).run(own, x), expected, atol=1e-6)


@pytest.mark.parametrize("name, strategy", accepted(["compaction", "cascading"], without=REFUSED))
@torch.inference_mode()
def test_networks_answer_as_eager_does(name: str, strategy: str) -> None:
    net, args = make(name)
    own = prepared(net, CudaGraph(Recorder()), lambda m: Execution(Masking()).run(m, *args))
    expected = Execution(STRATEGIES[strategy]()).run(net, *args)
    for a, b in zip(tensors(Execution(STRATEGIES[strategy]()).run(own, *args)), tensors(expected), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def replay(self) -> None:
        self.log.append("replay")


def test_recording_warms_up_beside_and_shares_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    @contextmanager
    def stream(stream: FakeStream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield
        log.append(f"off {stream.name}")

    @contextmanager
    def graph(graph: FakeGraph, pool: str, capture_error_mode: str) -> Iterator[None]:
        log.append(f"record into {pool}, errors {capture_error_mode}")
        yield
        log.append("recorded")

    pools = iter(["pool 0", "pool 1"])
    monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream(log, "side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: FakeStream(log, "main"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(log))

    record = _OnGpu()
    for _ in range(2):
        replay, answer = record(lambda tensors: log.append("call") or tensors, [torch.ones(1)])  # type: ignore[func-returns-value]
        replay()
        assert torch.equal(answer[0], torch.ones(1))
    once = ["side waits for main", "on side", "call", "call", "call", "off side", "main waits for side"]
    once += ["record into pool 0, errors thread_local", "call", "recorded", "replay"]
    assert log == once * 2


def test_it_is_refused_without_a_gpu(no_gpu: None) -> None:
    engine = ENGINES["cuda_graph"]
    assert engine.refuses("cpu") == "CUDA graphs are recorded on cuda devices only, not on cpu"
    assert engine.refuses("cuda:0") == "torch finds no CUDA device here"
    assert engine.facts()["graphs_per_region"] == 32


def on_gpu(net: nn.Module, args: Any) -> tuple[nn.Module, Any]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return net.cuda(), map_items(lambda t: t.cuda(), args)


@pytest.mark.cuda
@pytest.mark.parametrize("name, strategy", accepted(["compaction", "cascading", "masking"], without=REFUSED))
@torch.inference_mode()
def test_graphs_on_a_gpu_answer_as_eager_does(name: str, strategy: str) -> None:
    net, args = on_gpu(*make(name))
    own = prepared(net, CudaGraph(), lambda m: Execution(Masking()).run(m, *args))
    expected = Execution(STRATEGIES[strategy]()).run(net, *args)
    for a, b in zip(tensors(Execution(STRATEGIES[strategy]()).run(own, *args)), tensors(expected), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.cuda
def test_a_region_that_waits_for_the_gpu_is_refused_by_name() -> None:
    with torch.inference_mode(), pytest.raises(CannotPrepare, match="'a.region' cannot be recorded for"):
        CudaGraph().prepare(region(Waits().cuda(), torch.rand(4, 3).cuda()))
    assert float(torch.ones(2, device="cuda").sum()) == 2  # the GPU still works


@pytest.mark.cuda
def test_a_graph_is_one_launch() -> None:
    from torch.profiler import ProfilerActivity, profile

    net, (x,) = on_gpu(mlp(), (torch.randn(8, 4),))
    with torch.inference_mode():
        call = CudaGraph().prepare(region(net, x))
        call(x)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call(x)
            torch.cuda.synchronize()
    names = [event.key for event in seen.key_averages()]
    assert "cudaGraphLaunch" in names


@pytest.mark.cuda
@torch.inference_mode()
def test_many_graphs_share_a_pool_without_disturbing_each_other() -> None:
    engine, nets = CudaGraph(), [mlp().cuda() for _ in range(4)]
    x = torch.randn(16, 4, device="cuda")
    calls = [engine.prepare(region(net, x, sizes=(16,))) for net in nets]
    for n in (16, 3, 9, 1):
        answers = [call(x[:n]) for call in reversed(calls)]
        for answer, net in zip(answers, reversed(nets), strict=True):
            assert torch.allclose(answer, net(x[:n]), atol=1e-5)
