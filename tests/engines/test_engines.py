"""Engines and forms change how a network runs, not what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution, Loop, Skip, points
from dynbench.dynamic.items import first
from dynbench.dynamic.regions import Region, find_regions
from dynbench.dynamic.sources import edge
from dynbench.engines import (
    ENGINES,
    FORMS,
    CannotPrepare,
    MicroBatches,
    applicable,
    apply_form,
    compiled_regions,
    prepared,
)
from dynbench.engines import compile as compile_engine
from dynbench.engines.compile import Compile
from dynbench.engines.forms import fold_batchnorm, micro_batched
from dynbench.models.resnet import resnet
from dynbench.names import without_micro_batches
from dynbench.strategies import Compaction, Masking
from tests.networks import make


def unlearned_norms(net: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -1, 1)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.uniform_(m.bias, -1, 1)
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def masked(net: nn.Module, x: Tensor) -> Any:
    return Execution(Masking()).run(net, x)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


@torch.inference_mode()
def test_folding_leaves_no_norm_in_a_resnet_and_the_same_answer() -> None:
    torch.manual_seed(0)
    net, x = unlearned_norms(resnet(depth=8)), torch.randn(2, 3, 32, 32)
    folded = fold_batchnorm(net, x)
    assert norms(net) > 0 and norms(folded) == 0
    assert close(folded(x), net(x))


@torch.inference_mode()
def test_folding_reaches_the_bodies_that_the_pass_reaches() -> None:
    net, (x,) = make("pyramid")
    unlearned_norms(net)
    folded = fold_batchnorm(net, x, masked)
    assert norms(folded) == 0
    assert close(Execution(Compaction()).run(folded, x), Execution(Compaction()).run(net, x))


class MadeKernels(nn.Conv2d):
    """A convolution whose kernel is made for a call."""

    def __init__(self) -> None:
        super().__init__(3, 3, 1, bias=False)
        self.weight = None  # type: ignore[assignment]

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:  # type: ignore[override]
        return self._conv_forward(x, kernel, None)


class Given(nn.Module):
    """One norm that is folded, one after a convolution that is given its kernel, and one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.own, self.last = MadeKernels(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.kernel = nn.Parameter(torch.randn(3, 3, 1, 1))
        self.three = nn.BatchNorm2d(3, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.own(self.one(self.made(x, self.kernel))))
        return self.three(self.last(y))


@torch.inference_mode()
def test_a_kernel_that_is_given_and_a_norm_without_statistics_stay() -> None:
    net, x = Given().eval(), torch.randn(2, 3, 4, 4)
    for norm in (net.one, net.two):
        nn.init.uniform_(norm.running_mean, -1, 1)
    folded = fold_batchnorm(net, x)
    assert norms(net) == 3 and norms(folded) == 2 and isinstance(folded.two, nn.Identity)
    assert close(folded(x), net(x))


class Odd(nn.Module):
    """Norms that must not be folded: one conv for two norms, a norm met by two convs, a norm first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.other = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.one, self.two, self.both = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.first(x))
        return self.one(y) + self.two(y) + self.both(self.other(x)) + self.both(self.shared(x))


@torch.inference_mode()
def test_a_norm_that_is_not_alone_with_its_convolution_stays() -> None:
    net, x = unlearned_norms(Odd()), torch.randn(2, 3, 4, 4)
    folded = fold_batchnorm(net, x)
    assert norms(folded) == 4 and close(folded(x), net(x))


class Leaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(self.norm(y)) + y


def test_folding_that_would_change_the_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="apart from its batch norm"):
        fold_batchnorm(unlearned_norms(Leaks()), torch.randn(2, 3, 4, 4))


@torch.inference_mode()
@pytest.mark.parametrize("form", [*FORMS, "folded+channels_last"])
def test_every_form_answers_the_same(form: str) -> None:
    torch.manual_seed(0)
    net, x = unlearned_norms(resnet(depth=8)), torch.randn(3, 3, 32, 32)
    formed, inputs = apply_form(form, net, x)
    assert close(formed(inputs(x)), net(x))
    assert inputs(x).is_contiguous(memory_format=torch.channels_last) == ("channels_last" in form)


def test_an_unknown_form_names_the_known() -> None:
    with pytest.raises(ValueError, match="unknown form 'flat': it is one of plain, folded, channels_last"):
        apply_form("flat", nn.Identity(), torch.zeros(1))


@torch.inference_mode()
def test_micro_batches_know_which_items_they_are() -> None:
    net, (x,) = make("pyramid", n=5)
    whole = Execution(Masking(), record=True)
    expected = whole.run(net, x)
    replayed = Execution(Compaction(), replay=whole.trace)
    call = micro_batched(lambda start, part: replayed.run(net, part, start=start, items=5), 2)
    assert torch.allclose(call(0, x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="at least 1"):
        micro_batched(call, 0)


class Records:
    """An engine that keeps what it is asked to prepare, and counts the calls."""

    name = "records"
    as_written = False

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.calls = 0

    def facts(self) -> dict[str, object]:
        return {}

    def refuses(self, device: str) -> str | None:
        return None

    def prepare(self, region: Region) -> Callable[..., Any]:
        self.regions.append(region)
        forward = region.module.forward

        def call(*args: Any) -> Any:
            self.calls += 1
            return forward(*args)

        return call


def test_eager_runs_the_network_itself() -> None:
    net = nn.Linear(2, 2)
    assert ENGINES["eager"].refuses("cpu") is None
    assert prepared(net, ENGINES["eager"], lambda m: m(torch.zeros(1, 2))) is net


@torch.inference_mode()
def test_a_region_contains_no_decision_point_and_lies_apart() -> None:
    net, x = make("moe_exits")
    found = find_regions(net, lambda m: masked(m, *x))
    names = {r.name for r in found}
    assert {
        "stages.0.attn.body",
        "stages.0.attn.gate",
        "stages.0.moe.inner.router",
        "stages.0.moe.inner.experts.3",
        "heads.2",
    } <= names
    assert "stages.0" not in names and "stages.0.attn" not in names
    inside = [id(m) for r in found for m in r.module.modules()]
    assert len(inside) == len(set(inside))
    by_name = {r.name: r for r in found}
    assert not by_name["heads.2"].fixed and not by_name["stages.0.attn.gate"].fixed
    for region in found:  # what was seen can be called again
        assert region.sizes and len(region.example) >= 1
        region.module(*region.example)


@torch.inference_mode()
def test_a_region_knows_how_many_items_it_was_called_with() -> None:
    net, (x,) = make("moe_exits", n=3)
    by_name = {r.name: r for r in find_regions(net, lambda m: masked(m, x))}
    tokens = first(x).shape[0] * first(x).shape[1]
    assert by_name["stages.0.moe.inner.router"].sizes == [tokens]


@torch.inference_mode()
def test_a_static_net_is_one_region() -> None:
    net = resnet(depth=8)
    (region,) = find_regions(net, lambda m: m(torch.zeros(2, 3, 32, 32)))
    assert (region.name, region.module, region.sizes, region.fixed) == ("", net, [2], True)


@torch.inference_mode()
def test_the_fixed_parts_between_the_points_are_regions_too() -> None:
    net, (x,) = make("pyramid")
    fixed = {r.name for r in find_regions(net, lambda m: masked(m, x)) if r.fixed}
    parts = {id(part) for point in points(net).values() for part in point.parts()}
    assert fixed and all(id(net.get_submodule(name)) not in parts for name in fixed)


@torch.inference_mode()
def test_a_prepared_copy_shares_its_weights_and_leaves_the_network_as_it_is() -> None:
    net, x = Skipping(3).eval(), torch.randn(6, 4)
    expected = masked(net, x)
    engine = Records()
    own = prepared(net, engine, lambda m: masked(m, x))
    assert own is not net and {id(p) for p in own.parameters()} == {id(p) for p in net.parameters()}
    assert torch.equal(masked(own, x), expected) and engine.calls == 6  # a gate and a body each
    engine.calls = 0
    assert torch.equal(masked(net, x), expected) and engine.calls == 0


class Behind(nn.Module):
    """Calls a layer that it also holds elsewhere than among its submodules: a copy would call the original."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(4, 4)
        self.layer, self.call = layer, lambda x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.skip, self.behind = Skipping(1), Behind()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.skip(x))


@torch.inference_mode()
def test_a_layer_behind_a_closure_is_prepared_with_the_module_around_it() -> None:
    net, x = Around().eval(), torch.randn(2, 4)
    engine = Records()
    own = prepared(net, engine, lambda m: masked(m, x))
    assert "behind" in {r.name for r in engine.regions}
    assert torch.equal(masked(own, x), masked(net, x))


class HiddenBody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.body = body
        self.loop = Loop("loop", lambda state, k: body(state), None, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(x)


@torch.inference_mode()
def test_a_network_whose_copy_would_not_reach_a_region_is_refused_by_its_name() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(CannotPrepare, match="cannot prepare 'body'"):
        prepared(HiddenBody().eval(), Records(), lambda m: masked(m, x))


def test_a_network_that_cannot_be_copied_is_refused_with_the_reason() -> None:
    class Uncopied(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("only one of me")

    with pytest.raises(CannotPrepare, match="RuntimeError: only one of me"):
        prepared(Uncopied(2, 2), Records(), lambda m: m(torch.zeros(1, 2)))


def test_a_compiler_that_does_not_work_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(compile_engine.torch, "compile", broken)
    compile_engine._try.cache_clear()
    why = ENGINES["compile"].refuses("cpu")
    compile_engine._try.cache_clear()
    assert why == "torch.compile does not work on cpu here: no C++ compiler"


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return self.linear(x).tanh().squeeze(1), carry


class Skipping(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.skips = nn.ModuleList(
            Skip(f"skip{i}", Gate(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for skip in self.skips:
            x, _ = skip(x)
        return x


@torch.inference_mode()
def test_compiled_gates_run_though_the_decisions_are_replayed() -> None:
    calls = {"gate": 0, "body": 0}

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        part = "gate" if any("tanh" in str(node.target) for node in graph.graph.nodes) else "body"

        def call(*args: Any) -> Any:
            calls[part] += 1
            return graph(*args)

        return call

    net, x = Skipping(12).eval(), torch.randn(6, 4)
    own = Execution(Compaction(), record=True)
    expected = own.run(net, x)
    assert own.trace is not None
    none = edge(own.trace, net, "none")
    compiled = prepared(net, Compile(backend), lambda m: masked(m, x))
    assert torch.allclose(Execution(Compaction()).run(compiled, x), expected, atol=1e-6)
    calls.update(gate=0, body=0)
    Execution(Compaction(), replay=none).run(compiled, x)
    assert calls == {"gate": 12, "body": 0}


def graphs_as_they_are(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
    """A backend that compiles nothing, so that tests are fast."""
    return graph


def compiled_with(net: nn.Module, x: Tensor, backend: Any = graphs_as_they_are) -> nn.Module:
    return prepared(net, Compile(backend), lambda m: masked(m, x))


@torch.inference_mode()
def test_a_region_is_compiled_for_one_size_for_any_and_for_one_item() -> None:
    net, x = Skipping(3).eval(), torch.randn(6, 4)
    compiled = compiled_with(net, x)
    regions = [compiled.skips[i].body for i in range(3)]  # type: ignore[index, union-attr]
    for n in (6, 5, 1, 2, 3, 32, 64, 1, 6):
        x = torch.randn(n, 4)
        for region, written in zip(regions, net.skips, strict=True):  # type: ignore[arg-type]
            assert torch.allclose(region(x), written.body(x), atol=1e-6)
    found = {r.name: r for r in compiled_regions(compiled)}
    assert set(found) == {f"skips.{i}.{part}" for i in range(3) for part in ("gate", "body")}
    assert [found[f"skips.{i}.body"].compilations for i in range(3)] == [3, 3, 3]
    assert all(r.breaks == () for r in found.values())
    assert compiled_regions(net) == []


class Reads(nn.Module):
    """Reads a word that somebody else changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.word = nn.Linear(4, 4), "a"

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * len(self.word)


@torch.inference_mode()
def test_a_region_that_is_compiled_too_often_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_engine, "LIMIT", 3)
    module, x = Reads().eval(), torch.randn(2, 4)
    call = Compile(graphs_as_they_are).prepare(Region("a.region", module, False, (x,), [2]))
    for word in ("a", "bb", "ccc", "a"):
        module.word = word
        assert torch.allclose(call(x), len(word) * module.linear(x), atol=1e-6)
    module.word = "dddd"
    for _ in range(2):  # each time, and not eager without a word
        with pytest.raises(CannotPrepare, match=r"region 'a.region' was compiled 3 times and would have to be again"):
            call(x)


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        torch._dynamo.graph_break()
        return self.two(y)


@torch.inference_mode()
def test_graph_breaks_are_reported_with_region_and_reason() -> None:
    net, x = nn.Sequential(Breaks(), Skipping(1)).eval(), torch.randn(2, 4)
    compiled = compiled_with(net, x)
    assert torch.allclose(masked(compiled, x), masked(net, x), atol=1e-6)
    found = {r.name: r for r in compiled_regions(compiled)}
    assert found["0"].compilations == 1 and "graph_break()" in found["0"].breaks[0]
    assert found["1.skips.0.body"].breaks == ()


@torch.inference_mode()
def test_layers_that_are_a_region_and_a_part_of_others_are_compiled_in_both() -> None:
    net, x = SharesRegions().eval(), torch.randn(6, 4)
    compiled = compiled_with(net, x)
    assert {"inner", "skips.0.gate", "skips.1.gate"} <= {r.name for r in compiled_regions(compiled)}
    for n in (6, 1):
        expected = Execution(Compaction()).run(net, x[:n])
        assert torch.allclose(Execution(Compaction()).run(compiled, x[:n]), expected, atol=1e-6)
    assert all(r.breaks == () for r in compiled_regions(compiled))


class Shares(nn.Module):
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
        bodies = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.skips = nn.ModuleList(Skip(f"skip{i}", Shares(self.inner), body) for i, body in enumerate(bodies))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for skip in self.skips:
            x, _ = skip(x)
        return x


def test_weights_are_constants_only_where_a_change_would_be_seen() -> None:
    can_freeze = compile_engine._can_freeze
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    assert can_freeze(net)
    assert not can_freeze(nn.Sequential(nn.BatchNorm1d(4)).train())
    with torch.inference_mode():
        assert not can_freeze(nn.Linear(4, 4).eval())
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    tied[1].weight = tied[0].weight  # one tensor twice: one version
    assert can_freeze(tied)
    tied[1].weight = nn.Parameter(tied[0].weight.detach().t())  # another tensor in the same memory
    assert not can_freeze(tied)


@torch.inference_mode()
def test_frozen_weights_thaw_when_somebody_changes_them() -> None:
    if why := ENGINES["compile"].refuses("cpu"):
        pytest.skip(why)
    with torch.inference_mode(False):
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = torch.randn(6, 4)
    compiled = prepared(net, Compile(), lambda m: m(x))
    call = compiled.__dict__["forward"]
    assert torch.allclose(compiled(x), net(x), atol=1e-6) and call._frozen
    assert torch._inductor.config.freezing is False
    before = net(x)
    with torch.inference_mode(False), torch.no_grad():
        net[0].weight.mul_(2)  # of the original, whose tensors the copy shares
    assert torch.allclose(compiled(x), net(x), atol=1e-6) and not torch.allclose(net(x), before)
    assert not call._frozen
    with torch.inference_mode(False), torch.no_grad():
        net[0].weight.mul_(2)
    assert torch.allclose(compiled(x), net(x), atol=1e-6)
    assert [r.compilations for r in compiled_regions(compiled)] == [2]


@pytest.mark.parametrize(
    "form, found",
    [
        ("plain", ("plain", None)),
        ("folded+channels_last", ("folded+channels_last", None)),
        ("micro_batches_8", ("plain", 8)),
        ("folded+micro_batches_16", ("folded", 16)),
        ("micro_batches_0", ("micro_batches_0", None)),
    ],
)
def test_micro_batches_are_the_last_part_of_a_form(form: str, found: tuple[str, int | None]) -> None:
    assert without_micro_batches(form) == found


class Two(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"double": 2 * x, "parts": (x.sum(1), None)}


def test_a_network_in_micro_batches_answers_the_same_in_the_same_structure() -> None:
    x = torch.randn(7, 3)
    for size in (1, 3, 7, 8):
        got, expected = MicroBatches(Two(), size)(x), Two()(x)
        assert torch.equal(got["double"], expected["double"])
        assert torch.equal(got["parts"][0], expected["parts"][0]) and got["parts"][1] is None


def test_only_forms_that_can_make_a_difference_apply() -> None:
    assert applicable(nn.Sequential(nn.Linear(4, 4))) == ["plain"]
    assert applicable(nn.Sequential(nn.Conv2d(3, 3, 1))) == ["plain", "channels_last"]
    assert applicable(nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3))) == ["plain", "folded"]
    assert applicable(resnet(depth=8)) == ["plain", "folded", "channels_last", "folded+channels_last"]
