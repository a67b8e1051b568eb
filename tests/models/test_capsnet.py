"""CapsNet: its equations, routing that stops when capsules agree, and the same answer under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynbench.dynamic import Execution
from dynbench.meters.cost import cost
from dynbench.models.capsnet import CapsNet, DigitCaps, capsnet, lengths, margin_loss, squash
from dynbench.strategies import Cascading, Compaction
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

SMALL: dict[str, Any] = {
    "size": 19,
    "channels": 6,
    "capsule_types": 3,
    "capsule_dim": 4,
    "digit_dim": 5,
    "num_classes": 7,
}
TOLERANCE = 0.008  # inputs of `images` leave at different iterations


def make(routings: int = 4, **args: Any) -> CapsNet:
    torch.manual_seed(0)
    net = capsnet(routings, **{**SMALL, **args}).eval()
    with torch.no_grad():
        net.digits.weight.mul_(12)  # capsules long enough to disagree
    return net


def images(n: int = 8, channels: int = 1) -> Tensor:
    scale = torch.linspace(0.2, 3, n).view(-1, 1, 1, 1)
    return scale * torch.randn(n, channels, 19, 19, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_every_strategy_answers_alike_when_inputs_leave_on_convergence(strategy: str) -> None:
    net = make(halt="convergence", tolerance=TOLERANCE)
    assert decided_both_ways(run(net, images(), "per_sample")[1])
    assert_same_answer(net, images(), strategy)


@pytest.mark.parametrize("strategy", [s for s in DYNAMIC if s != "cascading"])
def test_a_fixed_number_of_iterations_is_the_static_network(strategy: str) -> None:
    net, x = make(), images(3)
    with torch.no_grad():
        assert torch.allclose(run(net, x, strategy)[0], net(x), atol=1e-6)


def by_hand(weight: Tensor, u: Tensor, outputs: int, dim: int, routings: int) -> list[Tensor]:
    """Procedure 1 for one input, capsule by capsule: u [I, d] -> v [J, D] after each iteration."""
    inputs = u.shape[0]
    u_hat = torch.stack([(u[i] @ weight[i]).view(outputs, dim) for i in range(inputs)])  # [I, J, D]
    b = torch.zeros(inputs, outputs)
    answers = []
    for _ in range(routings):
        c = torch.stack([b[i].exp() / b[i].exp().sum() for i in range(inputs)])
        v = torch.zeros(outputs, dim)
        for j in range(outputs):
            s = sum(c[i, j] * u_hat[i, j] for i in range(inputs))
            norm = s.norm()
            v[j] = norm**2 / (1 + norm**2) * s / norm
        for i in range(inputs):
            for j in range(outputs):
                b[i, j] = b[i, j] + u_hat[i, j] @ v[j]
        answers.append(v)
    return answers


@pytest.mark.parametrize("routings", [1, 2, 4])
def test_routing_is_procedure_1(routings: int) -> None:
    torch.manual_seed(0)
    caps = DigitCaps(6, 3, 4, 5, routings, None)
    u = 2 * torch.randn(3, 6, 3)
    with torch.no_grad():
        v = caps(u)
        want = torch.stack([by_hand(caps.weight, one, 4, 5, routings)[-1] for one in u])
    assert torch.allclose(v, want, atol=1e-5)
    assert routings == 1 or not torch.allclose(v[0], by_hand(caps.weight, u[0], 4, 5, 1)[-1], atol=1e-2)


def test_an_input_leaves_with_the_capsules_it_had_when_they_stopped_moving() -> None:
    net, x = make(halt="convergence", tolerance=TOLERANCE), images()
    answer, trace = run(net, x, "compaction")
    left = trace.entries["routing", (4,)].value.view(8, 4)
    with torch.no_grad():
        u = net.primary(torch.relu(net.conv1(x)))
        for i in range(8):
            v = by_hand(net.digits.weight, u[i], 7, 5, 4)
            before = [torch.zeros_like(v[0]), *v[:-1]]
            moved = [float((b - a).norm(dim=1).max()) for a, b in zip(before, v, strict=True)]
            last = next((k for k in range(3) if moved[k] < TOLERANCE), 3)
            assert left[i].tolist() == [k == last and k < 3 for k in range(4)]
            assert torch.allclose(answer[i], v[last].norm(dim=1), atol=2e-4)


def test_nobody_leaves_after_the_first_iteration_unless_nothing_is_there() -> None:
    net = make(halt="convergence", tolerance=1.0)
    left = run(net, images(), "compaction")[1].entries["routing", (4,)].value.view(8, 4)
    assert left[:, 0].all()  # every capsule is shorter than 1, and none was there before
    net = make(halt="convergence", tolerance=1e-9)
    left = run(net, images(), "compaction")[1].entries["routing", (4,)].value.view(8, 4)
    assert not left.any()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3))
def test_squash_keeps_the_direction_and_brings_the_length_below_one(s: list[float]) -> None:
    v, q = squash(torch.tensor([s], dtype=torch.float64))[0], sum(x * x for x in s)
    assert float(v.norm()) <= 1
    assert float(v.norm()) == pytest.approx(q / (1 + q), rel=1e-4, abs=1e-4)
    assert float(v @ torch.tensor(s, dtype=torch.float64)) >= 0


def test_margin_loss_is_that_of_the_paper() -> None:
    said = torch.tensor([[0.95, 0.05, 0.3], [0.5, 0.1, 0.9]])
    first = 0.5 * 0.2**2  # 0.95 is enough, 0.05 is little enough, 0.3 is too much
    second = 0.5 * 0.4**2 + 0.8**2 + 0.5 * 0.8**2
    assert float(margin_loss(said, torch.tensor([0, 1]))) == pytest.approx((first + second) / 2)


def test_the_decoder_draws_from_the_capsule_of_the_label_or_from_the_longest() -> None:
    net = make(decoder=True, decoder_widths=(9,), image_channels=2)
    x = images(5, 2)
    with torch.no_grad():
        v = net.capsules(x)
        longest = v.norm(dim=2).argmax(1)
        other = (longest + 1) % 7
        assert torch.equal(net.reconstruct(v), net.reconstruct(v, longest))
        assert not torch.allclose(net.reconstruct(v), net.reconstruct(v, other), atol=1e-3)
        changed = v.clone()
        changed[torch.arange(5), other] += 1
        assert torch.equal(net.reconstruct(v, longest), net.reconstruct(changed, longest))
        drawn = net.reconstruct(v)
    assert drawn.shape == x.shape and float(drawn.min()) > 0 and float(drawn.max()) < 1
    with pytest.raises(ValueError, match="without a decoder"):
        make().reconstruct(v)


def test_a_network_of_one_channel_turns_images_grey() -> None:
    net, x = make(), images(3, 3)
    with torch.no_grad():
        assert torch.allclose(net(x), net(x.mean(1, keepdim=True)))


@pytest.mark.parametrize(("size", "image_channels", "types", "dim"), [(28, 1, 32, 8), (17, 3, 2, 5), (20, 2, 4, 4)])
def test_macs_have_their_closed_form(size: int, image_channels: int, types: int, dim: int) -> None:
    side, small = size - 8, (size - 16) // 2 + size % 2
    inputs = types * small**2
    net = capsnet(3, size=size, image_channels=image_channels, channels=12, capsule_types=types, capsule_dim=dim)
    conv = side**2 * 12 * image_channels * 81 + small**2 * types * dim * 12 * 81
    table = cost(net, torch.zeros(1, image_channels, size, size))
    routing = (3 * 2 - 1) * inputs * 160  # nobody reads b after the last iteration
    assert table["decision_points"][0]["region_macs"] == routing
    assert table["macs"] == conv + inputs * dim * 160 + routing


class Gathers:
    """Counts how often something is gathered."""

    times = 0

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        self.times += phase == "gather"

    def exit(self) -> None:
        pass


@pytest.mark.parametrize("strategy", [Compaction(), Cascading()])
def test_u_hat_is_gathered_only_when_somebody_left(strategy: Any) -> None:
    net, x = make(6, halt="convergence", tolerance=1e-9), images(6)
    trace = run(net, x, "compaction")[1]
    counted = []
    for leaves in ([], [(2, 1)], [(2, 1), (0, 3)]):
        profile = Gathers()
        with torch.inference_mode():
            for item, k in leaves:
                trace.entries["routing", (6,)].value.view(6, 6)[item, k] = True
            Execution(strategy, replay=trace, profile=profile).run(net, x)
        counted.append(profile.times)
    assert counted == [0, 1, 2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"halt": "soon"}, "halt='soon'"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"size": 16}, "size=16"),
        ({"routings": 0}, "routings=0"),
        ({"capsule_types": 0}, "capsule_types=0"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_reason(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capsnet(**args)


def test_lengths_have_a_gradient_at_nothing() -> None:
    v = torch.zeros(1, 2, 3, requires_grad=True)
    lengths(v).sum().backward()
    assert v.grad is not None and torch.isfinite(v.grad).all()
