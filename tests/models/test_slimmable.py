"""Slimmable networks and DS-Net: published costs, one set of weights by hand, each width's own statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Trace
from dynbench.dynamic.regions import Region
from dynbench.engines import ENGINES, prepared
from dynbench.graph import Session, static_graph
from dynbench.meters.required import PartCosts
from dynbench.models.accounting import static_macs
from dynbench.models.dsnet import DSNet, dsnet, dsnet_mobilenet, likeliest, macs_by_width
from dynbench.models.dsnet import accounted_macs as dsnet_macs
from dynbench.models.slimmable import (
    Slimmable,
    SwitchableBatchNorm2d,
    accounted_macs,
    at_level,
    at_width,
    individual,
    macs_by_level,
    rounded,
    slimmable,
)
from dynbench.strategies import STRATEGIES, Masking, Specialised
from tests.models.same_answer import assert_same_answer, decided_both_ways, forced, run

SLICES = ["masking", "compaction", "batch_union", "specialised", "per_sample"]
WIDTHS = [0.25, 0.5, 0.75, 1.0]


def images(n: int = 5, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size) * torch.linspace(0.3, 3, n).view(-1, 1, 1, 1)


def told_apart(net: nn.Module) -> Any:
    """Every width with statistics and parameters of its own, so that taking another's would show."""
    m: Any
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 2)
        if isinstance(m, nn.BatchNorm2d | SwitchableBatchNorm2d) and m.weight is not None:
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return net.eval()


def deciding(net: DSNet, x: Tensor) -> DSNet:
    """A gate that sends these images to all widths in turn."""
    gate: Any = net.gate
    with torch.no_grad():
        seen = net.front(x)[1]
        last = gate if isinstance(gate, nn.Linear) else gate.choose
        if last is not gate:
            seen = F.relu(gate.reduce(seen.mean((2, 3))))
            nn.init.zeros_(last.bias)
        wanted = F.one_hot(torch.arange(len(x)) % last.out_features, last.out_features).double()
        last.weight.copy_((torch.linalg.pinv(seen.double()) @ wanted).T)
    return net


MAKE: dict[str, Callable[[Tensor], nn.Module]] = {
    "resnet": lambda x: told_apart(slimmable("cifar_resnet8", 0.5, base=8)),
    "universal": lambda x: told_apart(
        slimmable("cifar_resnet8", 0.25, (0.25, 0.5, 0.8, 1.0, 1.5), norm="universal", base=16)
    ),
    "mobilenet_v1": lambda x: told_apart(slimmable("mobilenet_v1", 0.25, (0.25, 0.5), num_classes=4)),
    "mobilenet_v2": lambda x: told_apart(slimmable("mobilenet_v2", 0.35, (0.35, 0.5), num_classes=4)),
    "dsnet": lambda x: deciding(told_apart(dsnet(base=8, front=8)), x),
    "dsnet_universal": lambda x: deciding(told_apart(dsnet(base=16, norm="universal", widths=(0.5, 1.0))), x),
}


@pytest.mark.parametrize("strategy", SLICES)
@pytest.mark.parametrize("name", MAKE)
def test_every_strategy_answers_alike(name: str, strategy: str) -> None:
    torch.manual_seed(0)
    x = images(5, 32 if "mobilenet" in name else 8)
    net = MAKE[name](x)
    if isinstance(net, DSNet):
        assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


def test_the_authors_dsnet_answers_alike_under_every_strategy() -> None:
    torch.manual_seed(0)
    x = images(3, 32)
    net = deciding(told_apart(dsnet_mobilenet((0, 3), num_classes=4)), x)
    assert decided_both_ways(run(net, x, "per_sample")[1])
    for strategy in SLICES:
        assert_same_answer(net, x, strategy)


def by_hand(net: Slimmable, x: Tensor, level: int) -> Tensor:
    """A ResNet-8 of 8, 16, 32 channels, its first channels only, with the batch norm of its width."""
    state, c = net.state_dict(), [rounded(k * net.widths[level]) for k in (16, 32, 64)]

    def conv_norm(x: Tensor, name: str, out: int, stride: int = 1) -> Tensor:
        w = state[f"body.features.{name}.conv.weight"][:out, : x.shape[1]]
        y = F.conv2d(x, w, None, stride, w.shape[-1] // 2)
        own = {k: state[f"body.features.{name}.norm.bn.{level}.{k}"] for k in ("weight", "bias")}
        stats = (state[f"body.features.{name}.norm.bn.{level}.running_{k}"] for k in ("mean", "var"))
        return F.batch_norm(y, *stats, **own)

    x = F.relu(conv_norm(x, "0", c[0]))
    for g, stride in ((1, 1), (2, 2), (3, 2)):
        y = F.relu(conv_norm(x, f"{g}.body.0", c[g - 1], stride))
        y = conv_norm(y, f"{g}.body.1", c[g - 1])
        x = F.relu(y + (x if g == 1 else conv_norm(x, f"{g}.shortcut", c[g - 1], stride)))
    w = state["body.classifier.weight"][:, : c[2]]
    return F.linear(x.mean((2, 3)), w, state["body.classifier.bias"])


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_is_the_first_channels_of_every_layer_with_its_own_batch_norm(width: float) -> None:
    torch.manual_seed(0)
    net, x = told_apart(slimmable(base=16, width=width)), images()
    with torch.no_grad():
        want = by_hand(net, x, WIDTHS.index(width))
    for strategy in SLICES:
        assert torch.allclose(run(net, x, strategy)[0], want, atol=1e-5), strategy
    deployed = at_width(base=16, width=width)
    deployed.load_state_dict(net.state_dict())
    assert torch.allclose(deployed.eval()(x), want, atol=1e-5)
    if width == 1:
        assert torch.allclose(net(x), want, atol=1e-5)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_network_deployed_at_a_width_can_be_a_graph_and_a_region_of_an_engine(called_before: bool) -> None:
    torch.manual_seed(0)
    net, x = at_width(base=16, width=0.5).eval(), images()
    with torch.inference_mode():
        if called_before:
            net(x)
        run = Session(static_graph(net, x))
        (answer,) = run.answer(run.feeds(x))
        by_engine = prepared(net, ENGINES["onnxruntime"], lambda m: m(x))(x)
        assert torch.allclose(answer, net(x), atol=1e-5) and torch.allclose(by_engine, net(x), atol=1e-5)


def test_items_of_several_widths_in_a_batch_each_get_the_batch_norm_of_their_own() -> None:
    torch.manual_seed(0)
    net, x = told_apart(slimmable(base=16)), images(4)
    for m in net.modules():
        if isinstance(m, SwitchableBatchNorm2d):
            m.bn[2].running_mean.fill_(float("nan"))  # type: ignore[union-attr, operator]
    levels = torch.tensor([3, 0, 1, 0])
    every = Execution(Masking(), record=True)
    every.run(net, x)
    trace: Trace | None = every.trace
    assert trace is not None
    trace.entries["width", ()].value.copy_(torch.arange(1, 4) <= levels[:, None])
    with torch.no_grad():
        want = torch.cat([by_hand(net, x[i : i + 1], int(level)) for i, level in enumerate(levels)])
    for strategy in SLICES:
        assert torch.allclose(run(net, x, strategy, trace)[0], want, atol=1e-5), strategy


def test_the_width_may_change_from_one_batch_to_the_next() -> None:
    torch.manual_seed(0)
    net, x = told_apart(slimmable(base=16)), images()
    answers = []
    for width in (1.0, 0.25, 0.5, 1.0):
        net.width = width
        assert net.width == width
        answers.append(run(net, x, "compaction")[0])
    assert torch.equal(answers[0], answers[3]) and torch.allclose(answers[0], net(x), atol=1e-6)
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)
    with pytest.raises(ValueError, match=r"0\.25, 0\.5, 0\.75, 1\.0"):
        net.width = 0.3


def test_a_slice_is_made_once_for_each_width_when_copies_are_kept() -> None:
    torch.manual_seed(0)
    net, x, made = told_apart(slimmable(base=8)), images(), list[int]()
    layer = net.point.layer
    original = layer.special
    layer.special = lambda mask: made.append(int(mask.sum())) or original(mask)  # type: ignore[method-assign, func-returns-value]
    ex = Execution(Specialised())
    for width in (0.5, 0.25, 0.5, 0.25):
        net.width = width
        ex.run(net, x)
    assert made == [1, 0]


@pytest.mark.parametrize("name", ["resnet", "dsnet"])
def test_required_work_is_what_item_by_item_executes(name: str) -> None:
    torch.manual_seed(0)
    x = images()
    net = MAKE[name](x)
    costs = PartCosts(net, x)
    for kind, trace in [("learned", run(net, x, "per_sample")[1]), *forced(net, x)]:
        with FlopCounter() as counter:
            run(net, x, "per_sample", trace)
        assert costs.required(trace).total == sum(counter.by_part.values()), kind


def meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize(
    ("network", "widths", "published", "within"),
    [
        ("mobilenet_v1", (0.25, 0.75, 1.0), (41e6, 325e6, 569e6), 0.005),
        ("mobilenet_v2", (0.45, 0.625, 0.65), (88e6, 161e6, 161e6), 0.01),  # universal
        ("resnet50", (0.25, 1.0), (278e6, 4.1e9), 0.005),
    ],
)
def test_costs_at_every_width_are_the_published_ones_and_those_of_a_network_of_that_width(
    network: str, widths: tuple[float, ...], published: tuple[float, ...], within: float
) -> None:
    net = meta(lambda: slimmable(network, widths=widths, num_classes=1000))
    macs = macs_by_level(net.body, (3, 224, 224))
    assert macs == pytest.approx(published, rel=within)
    alone = meta(lambda: individual(network, widths[0], 1000))
    assert static_macs(alone, (3, 224, 224)) == macs[0]


def test_the_supernet_of_dsnet_costs_what_was_published() -> None:
    macs = macs_by_width(dsnet_mobilenet((0, 5, 13)), (3, 224, 224))
    assert (macs[0], macs[-1]) == pytest.approx((133e6, 565e6), rel=0.01)
    assert macs[0] < macs[1] < macs[2]


def test_what_is_accounted_is_the_mean_over_the_widths_taken() -> None:
    torch.manual_seed(0)
    x = images(4, 32)
    net = told_apart(slimmable(base=8))
    macs, traces = macs_by_level(net.body, (3, 32, 32)), dict(forced(net, x))
    assert accounted_macs(net, traces["all"], (3, 32, 32))[0] == macs[-1]
    assert accounted_macs(net, traces["one"], (3, 32, 32))[0] == pytest.approx((macs[-1] + 3 * macs[0]) / 4)
    gated = deciding(told_apart(dsnet(base=8, front=8)), x)
    each = macs_by_width(gated, (3, 32, 32))
    _, trace = run(gated, x, "compaction")
    levels = trace.entries["width", ()].value.sum(1).tolist()
    assert dsnet_macs(gated, trace, (3, 32, 32))[0] == pytest.approx(sum(each[level] for level in levels) / 4)


def test_the_gate_chooses_the_likeliest_width_from_what_the_front_saw() -> None:
    scores = torch.tensor([[3.0, 1, 2, 0], [0, 1, 5, 2], [0, 0, 0, 9.0]])
    assert likeliest(scores).tolist() == [[False] * 3, [True, True, False], [True] * 3]
    torch.manual_seed(0)
    x = images(6)
    net = deciding(told_apart(dsnet(base=8, front=8)), x)
    gate: Any = net.gate
    with torch.no_grad():
        pooled = net.front(x)[0].flatten(2).mean(2)
        hidden = (pooled @ gate.reduce.weight.T + gate.reduce.bias).clamp(min=0)
        wanted = (hidden @ gate.choose.weight.T + gate.choose.bias).argmax(1)
    assert torch.equal(run(net, x, "compaction")[1].entries["width", ()].value.sum(1), wanted)


def test_the_authors_gate_shares_the_squeeze_of_its_block() -> None:
    torch.manual_seed(0)
    net, x = told_apart(dsnet_mobilenet((0, 5), num_classes=3)), images(2, 32)
    front: Any = net.front
    with torch.no_grad():
        seen = front.layers(x)
        squeezed = front.se.reduce(seen.mean((2, 3), keepdim=True)).clamp(min=0)
        y, cue = front(x)
        assert torch.allclose(cue, squeezed.flatten(1)) and net.gate.in_features == cue.shape[1] == 66
        assert torch.allclose(y, seen * torch.sigmoid(front.se.expand(squeezed)), atol=1e-6)


def test_a_slice_learns_as_part_of_the_whole() -> None:
    torch.manual_seed(0)
    net, x = slimmable(base=16), images()
    at_level(net.body, 1)(x).square().sum().backward()
    weight: Any = net.body.features[1].body[0].conv.weight  # type: ignore[index, union-attr]
    assert float(weight.grad[:8, :8].abs().sum()) > 0
    assert float(weight.grad[8:].abs().sum()) == float(weight.grad[:, 8:].abs().sum()) == 0
    norms: Any = net.body.features[0].norm.bn  # type: ignore[union-attr]
    assert norms[1].weight.grad is not None and norms[3].weight.grad is None
    assert int(norms[1].num_batches_tracked) == 1 and int(norms[3].num_batches_tracked) == 0


@pytest.mark.parametrize(("channels", "want"), [(8, 8), (3, 8), (12, 16), (11.2, 16), (19.2, 24), (24 * 0.35, 8)])
def test_channels_are_rounded_to_8_and_never_by_more_than_a_tenth_down(channels: float, want: int) -> None:
    assert rounded(channels) == want and rounded(channels) >= 0.9 * channels


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (slimmable, {"network": "vgg"}, "mobilenet_v1, mobilenet_v2"),
        (slimmable, {"network": "cifar_resnet9"}, r"6n\+2"),
        (slimmable, {"width": 0.4}, "runs at"),
        (slimmable, {"widths": (1.0, 0.5)}, "ascending"),
        (slimmable, {"widths": (1.0,)}, "2 or more"),
        (slimmable, {"norm": "batch"}, "'switchable' or 'universal'"),
        (slimmable, {"base": 4}, "8 channels"),
        (individual, {"width": 0.0}, "positive"),
        (dsnet, {"depth": 9}, r"6n\+2"),
        (dsnet, {"norm": "none"}, "'switchable' or 'universal'"),
        (dsnet, {"reduced": 0}, "reduced=0"),
        (dsnet_mobilenet, {"subnets": (3,)}, "two or more"),
        (dsnet_mobilenet, {"subnets": (0, 14)}, "0 to 13"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(
    make: Callable[..., Any], args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**args)


def test_strategies_that_mean_nothing_here_say_so() -> None:
    assert {name for name, kind in STRATEGIES.items() if kind().refuses(slimmable(base=8).eval())} == {"cascading"}


class AsTheWhole:
    """An engine that prepares every region as it is at full width."""

    name, as_written = "as the whole", False

    def facts(self) -> dict[str, object]:
        return {}

    def refuses(self, device: str) -> str | None:
        return None

    def prepare(self, region: Region) -> Callable[..., Any]:
        return partial(type(region.module).forward, region.module)


@pytest.mark.parametrize("strategy", ["compaction", "specialised"])
def test_a_slice_of_a_network_that_an_engine_prepared_is_the_slice(strategy: str) -> None:
    torch.manual_seed(0)
    model, x = dsnet(num_classes=4).eval(), images(6, 32)
    with torch.inference_mode():
        net = prepared(model, AsTheWhole(), lambda m: Execution(Masking()).run(m, x))
        found = [Execution(STRATEGIES[strategy]()).run(m, x) for m in (model, net)]
    torch.testing.assert_close(found[1], found[0])
