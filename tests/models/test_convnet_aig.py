"""ConvNet-AIG: its gates, what stands for a skipped block, and the same answer under every strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Skip, points
from dynbench.models.accounting import static_macs
from dynbench.models.convnet_aig import ConvNetAIG, Gate, accounted_macs, convnet_aig
from dynbench.models.resnet import resnet
from dynbench.strategies import Masking
from dynbench.training import train_workload
from dynbench.training.convnet_aig import Rated, TargetRate, draw
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run


def make(depth: int = 14, dataset: str = "cifar") -> ConvNetAIG:
    """With statistics in the batch norms, and gates that decide both ways."""
    torch.manual_seed(0)
    net = convnet_aig(depth, dataset=dataset).train()
    with torch.no_grad():
        for _ in range(3):
            Execution(Masking()).run(net, images(8, 64 if dataset == "imagenet" else 16))
        for m in net.modules():
            if isinstance(m, Gate):
                m.fc2.weight.mul_(2000)
                m.fc2.bias.zero_()
    return net.eval()


def images(n: int = 4, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size) * torch.linspace(0.3, 3, n).view(-1, 1, 1, 1)


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_every_strategy_answers_alike(strategy: str) -> None:
    net, x = make(), images()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


def test_every_strategy_answers_alike_for_bottlenecks() -> None:
    assert_same_answer(make(50, "imagenet"), images(2, 64), "compaction")


def as_the_authors_run_it(net: ConvNetAIG, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The published code without its noise: the gate multiplies the residual branch, the ReLU comes after the sum."""
    x, masks = F.relu(net.bn1(net.conv1(x))), []
    for name in points(net):
        block, gate = net.get_submodule(name), net.get_submodule(name.replace("layer", "gate"))
        w = F.relu(gate.fc1bn(F.avg_pool2d(x, x.shape[2]).flatten(1) @ gate.fc1.weight.T + gate.fc1.bias))
        w = F.one_hot((w @ gate.fc2.weight.T + gate.fc2.bias).argmax(1), 2)
        masks.append(w[:, 1].bool())
        out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        shortcut = x if block.downsample is None else block.downsample(x)
        x = F.relu(shortcut + out * w[:, 1].view(-1, 1, 1, 1))
    return net.fc(F.avg_pool2d(x, x.shape[2]).flatten(1)), masks


@pytest.mark.parametrize("size", [16, 32])
def test_masking_computes_what_the_authors_code_computes(size: int) -> None:
    net, x = make(), images(6, size)
    with torch.no_grad():
        want, masks = as_the_authors_run_it(net, x)
    y, trace = run(net, x, "masking")
    assert decided_both_ways(trace)
    assert torch.allclose(y, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    for name, mask in zip(points(net), masks, strict=True):
        assert torch.equal(trace.entries[name, ()].value, mask), name


def test_every_block_has_a_gate_and_may_be_skipped() -> None:
    net, x = make(), images(3)
    assert len(points(net)) == 6 and all(isinstance(p, Skip) for p in points(net).values())
    ran: list[str] = []
    for name in points(net):
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))  # type: ignore[misc]
    traces = dict(forced(net, x))
    ran.clear()
    run(net, x, "compaction", traces["none"])
    assert ran == []
    run(net, x, "compaction", traces["all"])
    assert ran == list(points(net))


def test_without_gates_it_is_the_plain_resnet() -> None:
    net, x = make(), images(2)
    plain = resnet(14).eval()
    state = net.state_dict()
    assert set(plain.state_dict()) < set(state) and not any(name.startswith("skips") for name in state)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    with torch.inference_mode():
        assert torch.equal(net(x), plain(x))


def test_training_draws_open_with_the_probability_of_the_softmax_and_evaluation_takes_the_likelier() -> None:
    torch.manual_seed(0)
    gate, x = Gate(8, 16), torch.randn(4000, 8, 2, 2)
    fresh = gate.train()(x, None)[0] > 0
    assert float(fresh.float().mean()) == pytest.approx(0.87, abs=0.03)  # softmax(0.1, 2)
    gate.noisy = False
    assert bool((gate(x, None)[0] > 0).all())
    gate.noisy = True
    assert torch.equal(gate.eval()(x, None)[0], gate(x, None)[0])


def test_a_drawn_decision_learns_by_the_gumbel_softmax_s_gradient() -> None:
    """hard - sg(p) + p with p = softmax of the logits and their noise: as in the authors' gumbelmodule.py."""
    torch.manual_seed(0)
    net = convnet_aig(14).train()
    seen: list[tuple[Tensor, Tensor]] = []
    Execution(Masking(), observe=lambda point, scores, keep: seen.append((scores, keep))).run(net, images(16))
    scores, keep = seen[0]
    assert torch.equal(keep, scores > 0) and scores.requires_grad
    gumbel = torch.stack([torch.zeros_like(scores), scores], 1).softmax(1)[:, 1]
    assert torch.allclose(gumbel, scores.sigmoid())


def test_the_target_rate_loss_moves_every_gate_towards_its_target() -> None:
    torch.manual_seed(0)
    net, x, y = convnet_aig(14).train(), images(32), torch.randint(10, (32,))
    draw(net, False)
    gates = [m for m in net.modules() if isinstance(m, Gate)]
    optimizer = torch.optim.SGD([p for g in gates for p in g.parameters()], 0.5)

    def rates() -> list[float]:
        found: list[float] = []
        with torch.no_grad():
            Execution(Masking(), observe=lambda p, s, keep: found.append(float(keep.float().mean()))).run(net, x)
        return found

    assert rates() == [1.0] * 6
    for _ in range(40):
        optimizer.zero_grad()
        TargetRate(Rated(epochs=1, target=0.5, rate_weight=50.0))(net, x, y).backward()
        optimizer.step()
    assert sum(abs(r - 0.5) for r in rates()) / 6 < 0.3


def test_accounting_counts_what_runs_and_no_gates() -> None:
    net, x = make(), images(8)
    traces, dense = dict(forced(net, x)), static_macs(net, (3, 32, 32))
    assert accounted_macs(net, traces["all"], (3, 32, 32))[0] == dense
    block, down = 4718592, 131072
    assert accounted_macs(net, traces["none"], (3, 32, 32))[0] == dense - 4 * block - 2 * (3538944 + down) + 2 * down
    macs, rule = accounted_macs(net, traces["one"], (3, 32, 32))  # one input of eight runs everything
    assert macs == pytest.approx(dense / 8 + 7 / 8 * accounted_macs(net, traces["none"], (3, 32, 32))[0])
    assert "gates not counted" in rule


@pytest.mark.parametrize(
    ("args", "message"), [({"depth": 39}, "6n\\+2"), ({"dataset": "svhn"}, "svhn"), ({"hidden": 0}, "hidden=0")]
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convnet_aig(**args)


def test_it_is_trained_from_its_static_twin_with_a_card(tmp_path: Path) -> None:
    table = {"recipe": "dynbench.training.convnet_aig:train", "options": {"epochs": 1, "items": 64, "batch_size": 32}}
    train_workload(
        {
            "name": "aig8_tiny",
            "inputs": {"name": "digits", "options": {"size": 16}},
            "model_args": {"depth": 8},
            "train": table,
        },
        tmp_path,
        progress=False,
    )
    names = ("aig8_tiny", "resnet8_tiny")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    net = convnet_aig(8)
    net.load_state_dict(load_file(tmp_path / "aig8_tiny.safetensors"))


def test_masking_executes_the_macs_of_the_authors_form() -> None:
    """Every block and every gate once: a shortcut that a skipped block needs too is not computed twice."""
    with torch.device("meta"):
        net, x = convnet_aig(50, 1000, "imagenet").eval(), torch.zeros(1, 3, 224, 224)
    gates = sum(m.weight.numel() for g in net.modules() if isinstance(g, Gate) for m in (g.fc1, g.fc2))
    with torch.no_grad(), FlopCounter() as counter:
        Execution(Masking()).run(net, x)
    assert sum(counter.by_part.values()) // 2 == static_macs(net, (3, 224, 224)) + gates
    assert static_macs(net, (3, 224, 224)) == pytest.approx(4.089e9, rel=1e-3)
