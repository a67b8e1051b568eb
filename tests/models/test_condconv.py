"""CondConv and dynamic convolution: the mixture by hand, published costs, who refuses and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Trace, Weights, points
from dynbench.meters.required import PartCosts
from dynbench.models.accounting import static_macs
from dynbench.models.condconv import (
    CondResNet,
    Conv2d,
    MBConv,
    Routing,
    SqueezeExcite,
    accounted_macs,
    condconv,
    conditional,
    efficientnet,
)
from dynbench.models.resnet import resnet
from dynbench.strategies import STRATEGIES
from dynbench.training import train_workload
from tests.models.same_answer import TOLERANCE, run


def images(n: int = 5, size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size) * torch.linspace(0.3, 3, n).view(-1, 1, 1, 1)


def told_apart(net: nn.Module) -> Any:
    """Routing that differs from input to input, and batch norms with statistics."""
    m: Any
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 2)
        if isinstance(m, Routing):
            nn.init.normal_(m.fc.weight, 0, 1)
    return net.eval()


@pytest.mark.parametrize(
    ("routing", "stages", "n"), [("sigmoid", 3, 5), ("softmax", 2, 5), ("sigmoid", 1, 1), ("softmax", 3, 1)]
)
def test_a_batch_answers_as_each_input_alone(routing: str, stages: int, n: int) -> None:
    torch.manual_seed(0)
    net, x = told_apart(condconv("cifar_resnet8", 3, routing, stages, 10)), images(n)  # type: ignore[arg-type]
    want, trace = run(net, x, "per_sample")
    got, _ = run(net, x, "masking")
    assert float((got - want).abs().max() / want.abs().max()) < TOLERANCE
    assert not trace.entries  # nothing is decided
    with torch.inference_mode():
        assert not torch.allclose(net(x), want, rtol=0.01)  # equal shares are another network


def test_efficientnet_answers_alike_too() -> None:
    torch.manual_seed(0)
    net, x = told_apart(condconv(experts=2, num_classes=4, width=0.3)), images(3, 32)
    want, got = run(net, x, "per_sample")[0], run(net, x, "masking")[0]
    assert float((got - want).abs().max() / want.abs().max()) < TOLERANCE


def test_kernels_are_mixed_by_the_sigmoid_of_the_pooled_input() -> None:
    """W = sum_i r_i W_i, r = sigmoid(R pool(x)): the same as mixing the experts' answers, by linearity."""
    torch.manual_seed(0)
    net, x = told_apart(condconv("cifar_resnet8", 3, num_classes=10)), images(4)
    point: Any = net.get_submodule("group3_layer0")
    seen: list[tuple[Tensor, Tensor]] = []
    point.layer.block.conv1.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    run(net, x, "masking")
    h, out = seen[0]
    with torch.inference_mode():
        r = 1 / (1 + torch.exp(-(h.mean((2, 3)) @ point.choose.fc.weight.T + point.choose.fc.bias)))
        assert r.shape == (4, 3) and float(r.std(0).min()) > 0.01
        each = [F.conv2d(h, w, None, 2, 1) for w in point.layer.experts.kernels[0].unbind()]
        mixed = sum(r[:, i, None, None, None] * y for i, y in enumerate(each))
        assert torch.allclose(out, mixed, atol=1e-5)  # type: ignore[arg-type]


def test_softmax_routing_is_sharper_the_colder_it_is() -> None:
    torch.manual_seed(0)
    routing, x = Routing(8, 4, "softmax"), images(6, 4, 8)
    hidden = F.relu(x.mean((2, 3)) @ routing.squeeze.weight.T + routing.squeeze.bias)  # type: ignore[union-attr]
    scores = hidden @ routing.fc.weight.T + routing.fc.bias
    for tau in (1.0, 30.0):
        routing.temperature.fill_(tau)
        assert torch.allclose(routing(x), (scores / tau).softmax(1)) and torch.allclose(
            routing(x).sum(1), torch.ones(6)
        )
    assert (routing(x) - 0.25).abs().max().item() < 0.02
    assert "temperature" in routing.state_dict() and "temperature" not in Routing(8, 4, "sigmoid").state_dict()


def test_one_kernel_with_all_of_the_share_is_the_plain_network() -> None:
    """Softmax over one kernel is 1: dynamic and static twin are the plain ResNet with that kernel."""
    torch.manual_seed(0)
    net, x = told_apart(condconv("cifar_resnet8", 1, "softmax", 3, 10)), images(3)
    assert isinstance(net, CondResNet)
    plain = resnet(8).eval()
    state = {k.replace("layer.block.", ""): v for k, v in net.state_dict().items()}
    for name in points(net):
        for i, kernel in enumerate(net.get_submodule(name).layer.experts.kernels, start=1):  # type: ignore[union-attr, arg-type]
            state[f"{name}.conv{i}.weight"] = kernel[0]
    plain.load_state_dict({k: state[k] for k in plain.state_dict()})
    with torch.inference_mode():
        assert torch.allclose(plain(x), net(x), atol=1e-5)
        assert torch.allclose(plain(x), run(net, x, "masking")[0], atol=1e-5)


def test_a_kernel_of_each_item_s_own_is_a_convolution_of_each_item() -> None:
    torch.manual_seed(0)
    for conv in (Conv2d(6, 4, 3, 2, 1, bias=False), Conv2d(6, 6, 5, 1, 2, groups=6, bias=False)):
        x, kernels = images(3, 9, 6), torch.randn(3, *conv.weight.shape)
        each = [F.conv2d(x[i : i + 1], kernels[i], None, conv.stride, conv.padding, 1, conv.groups) for i in range(3)]
        assert torch.allclose(conv(x, kernels), torch.cat(each), atol=1e-5)
        assert torch.equal(
            conv(x, kernels[0]), F.conv2d(x, kernels[0], None, conv.stride, conv.padding, 1, conv.groups)
        )


def test_no_nan_of_one_input_reaches_another() -> None:
    torch.manual_seed(0)
    net, x = told_apart(condconv("cifar_resnet8", 3, num_classes=10, stages=3)), images(3)
    want, _ = run(net, x, "masking")
    x[1] = float("nan")
    got, _ = run(net, x, "masking")
    assert got[1].isnan().all() and torch.allclose(got[[0, 2]], want[[0, 2]], atol=1e-5)


def test_required_work_is_what_item_by_item_executes_the_kernels_of_each_input_anew() -> None:
    torch.manual_seed(0)
    net, x = told_apart(condconv("cifar_resnet8", 3, num_classes=10)), images(4)
    costs, trace = PartCosts(net, x), run(net, x, "per_sample")[1]
    with FlopCounter() as counter:
        run(net, x, "per_sample")
    assert costs.required(trace).total == sum(counter.by_part.values())
    point: Any = net.get_submodule("group3_layer0")
    mixing = 2 * 3 * sum(w[0].numel() for w in point.layer.experts.kernels)
    routing = 2 * 3 * 32
    extra = costs.required(trace).total - costs.required(trace).region  # type: ignore[operator]
    assert extra == 4 * (mixing + routing)


def meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


def shaping(net: nn.Module) -> int:
    """Elements that squeeze-and-excitation pools and scales, and that routing pools: no products of a convolution."""
    total = 0

    def add(module: nn.Module, given: tuple[Tensor, ...], _: Any) -> None:
        nonlocal total
        total += given[0].numel() * (2 if isinstance(module, SqueezeExcite) else 1)

    hooks = [m.register_forward_hook(add) for m in net.modules() if isinstance(m, SqueezeExcite)]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize(
    ("args", "params", "madds"),
    [
        (None, 5.3e6, 391e6),
        ({"experts": 4}, 13.3e6, 402e6),
        ({"experts": 8}, 24.0e6, 413e6),
        ({"experts": 8, "depth": 1.1}, 39.7e6, 614e6),
    ],
)
def test_the_authors_networks_have_their_parameters_and_multiply_adds(
    args: dict[str, Any] | None, params: float, madds: float
) -> None:
    """Theirs count, we infer, what squeeze-and-excitation pools and scales as well."""
    net = meta(lambda: efficientnet() if args is None else condconv(**args))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(params, rel=0.005)
    products = static_macs(net, (3, 224, 224))
    assert products == pytest.approx(madds, rel=0.015)
    assert products + shaping(net) == pytest.approx(madds, rel=0.005)


def test_the_last_three_stages_are_conditional_and_a_block_s_convolutions_share_one_routing() -> None:
    net = meta(lambda: condconv())
    names = [f"stage5_block{i}" for i in range(3)] + [f"stage6_block{i}" for i in range(4)] + ["stage7_block0"]
    assert list(points(net)) == names and all(isinstance(p, Weights) and not p.shared for p in points(net).values())
    assert all(len(p.layer.experts.kernels) == 3 for p in points(net).values() if isinstance(p, Weights))  # type: ignore[union-attr, arg-type]


def test_every_input_costs_the_same_routing_and_mixing_included() -> None:
    net = condconv("cifar_resnet8", 4, num_classes=10)
    macs, rule = accounted_macs(net, Trace(), (3, 32, 32))
    kernels = 9 * 64 * (32 + 64)
    assert macs == static_macs(resnet(8), (3, 32, 32)) + 4 * kernels + 4 * 32
    assert "mixing" in rule


def test_strategies_that_have_nothing_to_group_say_so() -> None:
    net = condconv("cifar_resnet8", num_classes=10).eval()
    reasons = {name: kind().refuses(net) for name, kind in STRATEGIES.items()}
    assert {name for name, why in reasons.items() if why} == {"compaction", "cascading", "batch_union", "specialised"}
    assert "every item's weights are its own" in str(reasons["compaction"])


def test_a_state_is_saved_once_and_loads_again() -> None:
    torch.manual_seed(0)
    net, other, x = (
        told_apart(condconv("cifar_resnet8", 2, num_classes=10)),
        condconv("cifar_resnet8", 2, num_classes=10),
        images(),
    )
    state = net.state_dict()
    assert len({v.data_ptr() for v in state.values() if v.numel() > 1}) == sum(v.numel() > 1 for v in state.values())
    other.load_state_dict(state)
    assert torch.equal(run(other.eval(), x, "masking")[0], run(net, x, "masking")[0])


def test_an_inverted_residual_without_expansion_has_two_kernels() -> None:
    torch.manual_seed(0)
    point, x = told_apart(conditional("block", MBConv(8, 8, 3, 1, 1), 8, 2, "sigmoid")), images(3, 6, 8)
    assert len(point.layer.experts.kernels) == 2
    assert torch.allclose(run(point, x, "masking")[0], run(point, x, "per_sample")[0], atol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"network": "vgg"}, "efficientnet_b0, or cifar_resnet8"),
        ({"network": "cifar_resnet9"}, r"6n\+2"),
        ({"network": "cifar_resnet8", "stages": 4}, "1 to 3 groups"),
        ({"network": "cifar_resnet8", "width": 2.0}, "for EfficientNet only"),
        ({"experts": 0}, "1 kernel or more"),
        ({"routing": "top1"}, "'sigmoid' or 'softmax'"),
        ({"stages": 8}, "up to 7 stages"),
        ({"depth": 0.0}, "positive"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        condconv(**args)


@pytest.mark.parametrize("routing", ["sigmoid", "softmax"])
def test_it_is_trained_with_a_card_that_says_whether_kernels_follow_the_input(tmp_path: Path, routing: str) -> None:
    options = {"epochs": 1, "items": 32, "batch_size": 16, "condconv": {"temperature": 3.0, "cooling": 1.5}}
    table = {"recipe": "dynbench.training.condconv:train", "options": options}
    args = {"network": "cifar_resnet8", "experts": 2, "routing": routing, "num_classes": 10}
    inputs = {"name": "digits", "options": {"size": 8}}
    workload = {"name": "cond_tiny", "inputs": inputs, "model_args": args, "train": table}
    train_workload(workload, tmp_path, progress=False)
    card = json.loads((tmp_path / "cond_tiny.json").read_text())
    assert card["plain"]["name"] == "resnet8_tiny" and len(card["spread_of_routing"]) == 1
    assert {"accuracy", "accuracy_with_the_kernels_of_another_input", "accuracy_in_equal_shares"} < card.keys()
    net = condconv(**args)  # type: ignore[arg-type]
    net.load_state_dict(load_file(tmp_path / "cond_tiny.safetensors"))
    cooled = [float(m.temperature) for m in net.modules() if isinstance(m, Routing) and m.squeeze is not None]
    assert cooled == ([1.0] if routing == "softmax" else [])  # 3 -> 1.5 -> 1
