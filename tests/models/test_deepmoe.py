"""DeepMoE: its gates and embedding, what a closed channel leaves out, and the same answer under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Width, points
from dynbench.engines.forms import apply_form
from dynbench.meters.required import PartCosts
from dynbench.models.accounting import static_macs
from dynbench.models.deepmoe import DeepMoEResNet, DeepMoEVGG, Mixture, accounted_macs, deepmoe, sliced
from dynbench.models.resnet import resnet
from dynbench.strategies import STRATEGIES, Masking, PerSample
from tests.models.same_answer import DYNAMIC, TOLERANCE, assert_same_answer, decided_both_ways, forced, run

NETS: dict[str, dict[str, Any]] = {
    "resnet": {"depth": 8},
    "wide": {"depth": 8, "expand": 2, "inner": True},
    "vgg": {"depth": 11, "base": "vgg", "expand": 0.125},
    "bottleneck": {"depth": 50, "dataset": "imagenet", "expand": 0.25, "embedding": [8, 8]},
}
CHANNELS = [name for name in DYNAMIC if name not in ("cascading", "specialised")]


def make(kind: str) -> DeepMoEResNet | DeepMoEVGG:
    """With statistics in the batch norms, shifts that are not zero, and gates of both signs."""
    torch.manual_seed(0)
    net = deepmoe(**{"embedding": [8, 16], **NETS[kind]}).train()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
                m.bias.uniform_(-0.5, 0.5)
            if isinstance(m, Width):
                assert isinstance(m.choose, nn.Linear)
                m.choose.weight.uniform_(-1, 1)
        net.embedding.fc.weight.mul_(20)
        for _ in range(3):
            Execution(Masking()).run(net, images(kind, 8))
    return net.eval()


def images(kind: str, n: int = 4) -> Tensor:
    size = 32 if kind in ("vgg", "bottleneck") else 16
    return torch.randn(n, 3, size, size) * torch.linspace(0.3, 3, n).view(-1, 1, 1, 1)


@pytest.mark.parametrize("strategy", CHANNELS)
@pytest.mark.parametrize("kind", NETS)
def test_every_strategy_answers_alike(kind: str, strategy: str) -> None:
    net, x = make(kind), images(kind, 3 if kind == "bottleneck" else 4)
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("strategy", ["cascading", "specialised"])
def test_what_means_nothing_here_is_refused(strategy: str) -> None:
    assert STRATEGIES[strategy]().refuses(make("resnet"))


@pytest.mark.parametrize("form", ["folded", "channels_last", "folded+channels_last"])
@pytest.mark.parametrize("kind", ["wide", "vgg"])
def test_every_form_answers_alike(kind: str, form: str) -> None:
    """Folded, a convolution has a bias and no batch norm: it is sliced all the same."""
    net, x = make(kind), images(kind)
    formed, inputs = apply_form(form, net, x, lambda net, x: Execution(Masking()).run(net, x))
    assert form == "channels_last" or not any(isinstance(m, nn.BatchNorm2d) for m in formed.modules())
    want, trace = run(net, x, "per_sample")
    for strategy in CHANNELS:
        got, _ = run(formed, inputs(x), strategy, trace)
        assert float((got - want).abs().max() / want.abs().max()) < 2 * TOLERANCE, strategy


def as_m3vit_runs_it(net: DeepMoEResNet, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The published code: every channel is computed and multiplied by ReLU(W_g e), e the softmax of the embedding."""
    e, masks = net.embedding(x).softmax(1), {}
    x = F.relu(net.bn1(net.conv1(x)))
    if net.dataset == "imagenet":
        x = F.max_pool2d(x, 3, 2, 1)
    for name, point in points(net).items():
        assert isinstance(point, Width) and isinstance(point.layer, Mixture) and isinstance(point.choose, nn.Linear)
        block = point.layer
        g = F.relu(e @ point.choose.weight.T).split(block.widths, 1)
        masks[name] = torch.cat(g, 1) > 0
        y = F.relu(block.bn1(block.conv1(x)) * g[0][:, :, None, None])  # type: ignore[operator]
        y = block.bn2(block.conv2(y)) * (g[1][:, :, None, None] if len(g) > 1 else 1)  # type: ignore[operator]
        if block.length == 3:
            y = block.bn3(block.conv3(F.relu(y))) * (g[2][:, :, None, None] if len(g) > 2 else 1)  # type: ignore[operator]
        x = F.relu(y + (x if block.downsample is None else block.downsample(x)))  # type: ignore[operator]
    return net.fc(x.mean((2, 3))), masks


@pytest.mark.parametrize("kind", ["resnet", "wide", "bottleneck"])
def test_every_strategy_computes_what_m3vit_computes(kind: str) -> None:
    net, x = make(kind), images(kind)
    assert isinstance(net, DeepMoEResNet)
    with torch.no_grad():
        want, masks = as_m3vit_runs_it(net, x)
    for strategy in ("masking", "per_sample", "batch_union"):
        y, trace = run(net, x, strategy)
        assert torch.allclose(y, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        for name, mask in masks.items():
            assert torch.equal(trace.entries[name, ()].value, mask), name


def test_a_vgg_is_convolution_norm_gate_relu_and_pooling_in_a_row() -> None:
    net, x = make("vgg"), images("vgg")
    (point,) = points(net).values()
    assert isinstance(point, Width) and isinstance(point.layer, Mixture) and isinstance(point.choose, nn.Linear)
    with torch.no_grad():
        g = F.relu(net.embedding(x).softmax(1) @ point.choose.weight.T).split(point.layer.widths, 1)
        y = x
        for i, stage in enumerate((1, 2, 4, 6, 8)):
            for j in range((0, 1, 2, 4, 6)[i], stage):
                y = point.layer.norm(j + 1)(point.layer.conv(j + 1)(y))
                y = F.relu(y * g[j][:, :, None, None])
            y = F.max_pool2d(y, 2)
        want = net.fc(y.flatten(1))
    assert torch.allclose(run(net, x, "per_sample")[0], want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("kind", NETS)
def test_required_work_is_what_one_by_one_executes_and_shrinks_on_both_sides(kind: str) -> None:
    """And accounted work is less by the embedding network and the gates, which are always asked."""
    net, x = make(kind), images(kind, 3)
    shape, parts = tuple(x.shape[1:]), PartCosts(net, x)
    deciding = []
    for case, trace in forced(net, x):
        with FlopCounter() as counted, torch.no_grad():
            Execution(PerSample(), replay=trace).run(net, x)
        required = parts.required(trace)
        assert counted.flops == required.total, case
        macs = accounted_macs(net, trace, shape)[0]
        assert 2 * macs * len(x) == pytest.approx(required.region)
        deciding.append(float(required.total) / 2 / len(x) - macs)  # type: ignore[arg-type]
        if case == "all":
            assert macs == static_macs(net, shape)
    gates = sum(m.choose.weight.numel() for m in net.mixtures)  # type: ignore[union-attr, operator, misc]
    assert deciding == pytest.approx([static_macs(net.embedding, shape) + gates] * len(deciding))


def test_accounting_counts_channels_in_use_on_both_sides_of_a_convolution() -> None:
    net, x = make("resnet"), images("resnet", 2)
    trace = dict(forced(net, x))["none"]
    mask = trace.entries["group1_layer0", ()].value
    nothing = accounted_macs(net, trace, (3, 16, 16))[0]
    mask[0, :5] = True  # of the first convolution, for one input of two
    mask[0, 16:19] = True  # of the second
    macs, rule = accounted_macs(net, trace, (3, 16, 16))
    assert macs - nothing == (16 * 16 * 9) * (16 * 5 + 5 * 3) / 2
    assert "gates and their embedding not counted" in rule


def test_a_channel_nobody_uses_may_hold_anything() -> None:
    """Neither inf nor NaN leaks from a closed channel."""
    net, x = make("resnet"), images("resnet")
    clean, trace = run(net, x, "per_sample")
    unused = next(
        (point, channel)
        for name, point in points(net).items()
        for channel in (~trace.entries[name, ()].value.any(0)).nonzero().flatten().tolist()
        if isinstance(point, Width) and isinstance(point.layer, Mixture) and channel < point.layer.widths[0]
    )
    with torch.no_grad():
        unused[0].layer.conv(1).weight[unused[1]] = float("inf")  # type: ignore[operator]
    for strategy in CHANNELS:
        got, _ = run(net, x, strategy, trace)
        assert float((got - clean).abs().max() / clean.abs().max()) < TOLERANCE, strategy


def test_without_gates_it_is_the_plain_resnet_and_the_embedding_is_not_asked() -> None:
    net, x = make("resnet"), images("resnet", 2)
    plain, state = resnet(8).eval(), net.state_dict()
    assert set(plain.state_dict()) < set(state)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    net.embedding.register_forward_hook(lambda *_: pytest.fail("asked"))
    with torch.inference_mode():
        assert torch.equal(net(x), plain(x))


def test_gates_start_as_in_m3vit_and_learn_through_what_their_channels_are_multiplied_by() -> None:
    torch.manual_seed(0)
    net = deepmoe(8).train()
    gates = [m.choose for m in net.mixtures if isinstance(m, Width)]
    for gate in gates:
        assert isinstance(gate, nn.Linear) and gate.bias is None
        assert -0.5 <= gate.weight.min().item() < -0.4 and 0.9 < gate.weight.max().item() <= 1
    seen: list[Tensor] = []
    Execution(Masking(), observe=lambda point, scores, mask: seen.append(mask)).run(
        net, images("resnet", 4)
    ).sum().backward()
    for gate, mask in zip(gates, seen, strict=True):
        assert isinstance(gate, nn.Linear) and gate.weight.grad is not None
        moved = gate.weight.grad.abs().sum(1) > 0
        assert bool(moved.any()) and not bool((moved & ~mask.any(0)).any())  # a gate closed for all learns nothing
    assert net.embedding.fc.weight.grad is not None and bool(net.embedding.fc.weight.grad.any())


@given(
    st.integers(1, 3),
    st.integers(0, 5),
    st.integers(0, 6),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_sliced_convolution_is_the_whole_one_on_some_channels(
    kernel: int, ins: int, outs: int, stride: int, bias: bool, normed: bool, seed: int
) -> None:
    """Other inputs count as zero; no inputs and no outputs are fine."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(5, 6, kernel, stride, padding=kernel // 2, bias=bias)
    norm = nn.BatchNorm2d(6).eval() if normed else nn.Identity()
    if isinstance(norm, nn.BatchNorm2d):
        for t in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            assert t is not None
            t.uniform_(0.5, 2)
    inputs, outputs = torch.randperm(5)[:ins].sort().values, torch.randperm(6)[:outs].sort().values
    x = torch.randn(2, 5, 6, 7)
    with torch.no_grad():
        whole = norm(conv(torch.zeros_like(x).index_copy(1, inputs, x[:, inputs])))[:, outputs]
        part = sliced(conv, norm, None if ins == 5 else inputs, None if outs == 6 else outputs)(x[:, inputs])
    assert part.shape == whole.shape
    assert torch.allclose(part, whole, atol=1e-5)


def test_every_depth_and_width_there_is_can_be_made() -> None:
    assert len(points(deepmoe(110))) == 54
    assert len(points(deepmoe(18, dataset="imagenet", num_classes=1000, embedding=[4]))) == 8
    assert list(points(deepmoe(16, base="vgg", expand=1 / 64))) == ["trunk"]
    net = deepmoe(8, num_classes=3, expand=1.5, embedding=[4])
    with torch.no_grad():
        assert Execution(Masking()).run(net.eval(), torch.randn(2, 3, 24, 24)).shape == (2, 3)
    (first, *_) = net.mixtures
    assert isinstance(first, Width) and isinstance(first.layer, Mixture)
    assert first.layer.widths == [24, 16]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 57}, "6n\\+2"),
        ({"dataset": "svhn"}, "svhn"),
        ({"base": "densenet"}, "'resnet' or 'vgg'"),
        ({"base": "vgg", "depth": 20}, "11, 13, 16, 19"),
        ({"base": "vgg", "depth": 16, "dataset": "imagenet"}, "built for 'cifar'"),
        ({"base": "vgg", "depth": 16, "inner": True}, "all have gates"),
        ({"expand": 0}, "expand=0"),
        ({"embedding": []}, "1 convolution or more"),
        ({"embedding": [8, 0]}, "1 or more wide"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deepmoe(**args)
