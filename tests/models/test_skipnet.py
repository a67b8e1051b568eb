"""SkipNet: the rule of its gates, and the same answer under every strategy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynbench.dynamic import Execution, Skip, Trace, points
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import resnet
from dynbench.models.skipnet import SkipNet, accounted_macs, from_author_checkpoint, skipnet, unskipped
from dynbench.strategies import Masking
from dynbench.training import train_workload
from dynbench.training.skipnet import Pressed, pressure
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run


def make(depth: int = 14, gate: Any = "rnn", dataset: str = "cifar") -> SkipNet:
    """With statistics in the batch norms, and gates that decide both ways."""
    torch.manual_seed(0)
    net = skipnet(depth, gate, dataset=dataset).train()
    with torch.no_grad():
        for _ in range(3):
            Execution(Masking()).run(net, images(8, 64 if dataset == "imagenet" else 16))
        for name, p in net.named_parameters():
            if name.startswith("control.") or "linear_layer" in name:
                p.mul_(6)
    return net.eval()


def images(n: int = 4, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size) * torch.linspace(0.3, 3, n).view(-1, 1, 1, 1)


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("gate", ["rnn", "ff1", "ff2"])
def test_every_strategy_answers_alike(gate: str, strategy: str) -> None:
    net, x = make(gate=gate), images()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("strategy", ["masking", "compaction"])
def test_every_strategy_answers_alike_in_channels_last(strategy: str) -> None:
    net, x = make().to(memory_format=torch.channels_last), images().to(memory_format=torch.channels_last)
    assert_same_answer(net, x, strategy)


def test_every_strategy_answers_alike_for_bottlenecks() -> None:
    assert_same_answer(make(50, dataset="imagenet"), images(2, 64), "compaction")


def as_the_authors_run_it(net: SkipNet, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loop of the published code: every block on every image, then the mask; logits and the decisions."""
    x = F.relu(net.bn1(net.conv1(x)))
    h = c = torch.zeros(len(x), 10)
    x = net.group1_layer0(x)
    masks = []
    names = [name for name, point in points(net).items() if isinstance(point, Skip)]
    gates = [name.replace("layer", "gate") for name in ("group1_layer0", *names)]
    for name, gate in zip(names, gates, strict=False):
        block = net.get_submodule(name)
        embedded = F.conv2d(F.avg_pool2d(x, x.shape[-1]), net.get_submodule(gate).weight[:, :, None, None]).flatten(1)
        h, c = net.control.rnn(embedded + net.get_submodule(gate).bias, (h, c))
        keep = torch.sigmoid(net.control.proj(h)).flatten() > 0.5
        masks.append(keep)
        bypass = x if block.downsample is None else block.downsample(x)
        g = keep.float().view(-1, 1, 1, 1)
        x = g * block(x) + (1 - g) * bypass
    return net.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1)), masks


@pytest.mark.parametrize("size", [16, 32, 48])
def test_masking_computes_what_the_authors_code_computes(size: int) -> None:
    net, x = make(), images(6, size)
    with torch.no_grad():
        want, masks = as_the_authors_run_it(net, x)
    y, trace = run(net, x, "masking")
    assert torch.allclose(y, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert decided_both_ways(trace)
    for name, mask in zip(list(points(net)), masks, strict=True):
        assert torch.equal(trace.entries[name, ()].value, mask), name


@pytest.mark.parametrize("gate", ["rnn", "ff1", "ff2"])
def test_hard_gates_without_skipping_are_what_masking_computes(gate: Any) -> None:
    net, x = make(gate=gate), images(6)
    plain = unskipped(14, gate, gating="hard").eval()
    plain.load_state_dict(net.state_dict())
    y, trace = run(net, x, "masking")
    assert decided_both_ways(trace)
    with torch.inference_mode():
        assert torch.allclose(plain(x), y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


def test_soft_gates_weigh_every_block_by_p_and_differ_from_hard_ones() -> None:
    net, x = make(gate="ff2"), images(6)
    soft = unskipped(14, "ff2", gating="soft").eval()
    soft.load_state_dict(net.state_dict())
    with torch.inference_mode():
        y, p = soft.mixed(x)
        z = net.get_submodule("group1_layer0")(F.relu(net.bn1(net.conv1(x))))
        for k, skip in enumerate(net.skips):
            g = torch.softmax(torch.stack([torch.zeros(len(x)), skip.gate(z, None)[0]], 1), 1)[:, 1]
            assert torch.allclose(p[k], g, atol=1e-6)
            g = g.view(-1, 1, 1, 1)
            block = net.get_submodule(skip.name)
            z = g * block(z) + (1 - g) * (z if block.downsample is None else block.downsample(z))
        assert torch.allclose(y, net.fc(z.mean((2, 3))), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(y, run(net, x, "masking")[0], rtol=1e-2)


def test_gates_pressed_one_by_one_cannot_make_up_for_each_other() -> None:
    kept = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert float(pressure(kept, Pressed(epochs=1, target=2 / 3))) == pytest.approx(0)  # 2 of 3, the first included
    assert float(pressure(kept, Pressed(epochs=1, target=0.5, pressure=2.0, each=True))) == pytest.approx(0.5)


def test_soft_gates_are_trained_beside_the_skipnet_where_asked(tmp_path: Path) -> None:
    options = {"epochs": 1, "items": 16, "batch_size": 16, "supervised": {"each": True}, "soft": {"target": 0.4}}
    train_workload(
        {
            "name": "ff8_tiny",
            "inputs": {"name": "digits", "options": {"size": 16}},
            "model_args": {"depth": 8, "gate": "ff1"},
            "train": {"recipe": "dynbench.training.skipnet:train", "options": options},
        },
        tmp_path,
        progress=False,
    )
    names = ("ff8_tiny", "ff8_tiny_soft", "resnet8_tiny")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("json", "safetensors")}
    unskipped(8, "ff1").load_state_dict(load_file(tmp_path / "ff8_tiny_soft.safetensors"))
    card = json.loads((tmp_path / "ff8_tiny_soft.json").read_text())
    assert {"accuracy_tested_soft", "accuracy_tested_hard"} < set(card) and 0 <= card["gates"]["mean_p"] <= 1


def seen_by(module: torch.nn.Module, seen: list[Tensor]) -> None:
    module.register_forward_hook(lambda m, args, out: seen.append(args[0].clone()))


def test_a_gate_sees_the_output_of_the_block_before() -> None:
    net, x = make(), images(1)
    everything = dict(forced(net, x))["all"]
    made: list[Tensor] = []
    gated: list[Tensor] = []
    net.skips[2].body.register_forward_hook(lambda m, args, out: made.append(out.clone()))
    seen_by(net.skips[3].gate, gated)
    run(net, x, "compaction", everything)
    assert len(gated) == 1 and torch.equal(gated[0], made[0])


def test_a_skipped_stride_block_lets_negative_values_through() -> None:
    net, x = make(), images(2)
    traces = dict(forced(net, x))
    stride, following = net.skips[1], net.skips[2]
    assert stride.name == "group2_layer0" and stride.shared is net.get_submodule(stride.name).downsample
    after: list[Tensor] = []
    seen_by(following.gate, after)
    run(net, x, "compaction", traces["none"])
    run(net, x, "compaction", traces["all"])
    skipped, computed = after
    assert float(skipped.min()) < 0 and float(computed.min()) == 0  # a block ends in ReLU


def test_the_first_block_always_runs_and_a_skipped_one_never() -> None:
    net, x = make(), images(3)
    traces = dict(forced(net, x))
    ran: list[str] = []
    for name, m in net.named_modules():
        if name.startswith("group") and name.endswith(("layer0", "layer1")):
            m.register_forward_hook(lambda m, args, out, name=name: ran.append(name))
    run(net, x, "compaction", traces["none"])
    assert ran == ["group1_layer0"]


def test_every_forward_begins_with_an_empty_state() -> None:
    net, x = make(), images(4)
    _, first = run(net, x, "compaction")
    run(net, images(5) + 3, "compaction")
    assert run(net, x, "compaction")[1] == first


def test_without_gates_it_is_the_plain_resnet() -> None:
    net, x = make(), images(2)
    plain = resnet(14).eval()
    state = net.state_dict()
    assert set(plain.state_dict()) < set(state)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    with torch.inference_mode():
        assert torch.equal(net(x), plain(x))


@pytest.mark.parametrize("gate", ["rnn", "ff1"])
def test_gates_learn_through_hard_decisions(gate: str) -> None:
    torch.manual_seed(0)
    net = skipnet(14, gate).train()  # type: ignore[arg-type]
    y = Execution(Masking()).run(net, images(6))
    F.cross_entropy(y, torch.arange(6)).backward()
    gates = [p for n, p in net.named_parameters() if "gate" in n or "control" in n]
    assert gates and all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in gates if p.dim() > 1)


def test_weights_are_named_once_and_survive_a_file(tmp_path: Path) -> None:
    net = make()
    state = net.state_dict()
    assert not any(name.startswith("skips") for name in state)
    assert {"control.rnn.weight_ih", "group1_gate0.weight", "group2_layer0.downsample.0.weight"} < set(state)
    save_file(state, tmp_path / "net.safetensors")
    other = copy.deepcopy(skipnet(14))
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x = images()
    assert torch.equal(run(other.eval(), x, "compaction")[0], run(net, x, "compaction")[0])


def as_author_checkpoint(net: SkipNet) -> dict[str, Tensor]:
    """The same weights under the names, and with the extras, that the published code saves."""
    state = {}
    for name, value in net.state_dict().items():
        if "num_batches_tracked" in name:
            continue
        name += "_l0" if name.startswith("control.rnn") else ""
        if "_gate" in name and "bn" not in name and "conv" not in name and "linear_layer" not in name:
            group, _, what = name.partition(".")
            name, value = f"{group}.1.{what}", value[:, :, None, None] if what == "weight" else value
        if name == "control.proj.weight" and net.dataset == "imagenet":
            value = value[:, :, None, None]
        state["module." + name] = value
        if "downsample" in name:
            state["module." + name.replace("_layer0.downsample", "_ds0")] = value
    last_group, last = len(net.layers), net.layers[-1]
    like = f"module.group{last_group}_gate{last - 2}."
    for name in [n for n in state if n.startswith(like)]:
        state[name.replace(f"_gate{last - 2}.", f"_gate{last - 1}.")] = torch.full_like(state[name], 7.0)
    return state


@pytest.mark.parametrize(
    ("gate", "depth", "dataset"),
    [("rnn", 14, "cifar"), ("ff1", 14, "cifar"), ("ff2", 14, "cifar"), ("rnn", 50, "imagenet")],
)
def test_the_authors_checkpoints_load(gate: Any, depth: int, dataset: str) -> None:
    torch.manual_seed(1)
    net, other = (skipnet(depth, gate, dataset=dataset) for _ in range(2))
    saved = as_author_checkpoint(net)
    assert ("module.group2_ds0.0.weight" in saved) and (gate != "rnn" or "module.control.rnn.weight_hh_l0" in saved)
    assert f"module.group1_gate0.{'1.weight' if gate == 'rnn' else 'conv1.weight'}" in saved
    other.load_state_dict(from_author_checkpoint(saved))
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_accounting_counts_blocks_the_first_included_and_no_gates() -> None:
    net, x = make(), images(8)
    dense, blocks = static_macs(net, (3, 32, 32)), 6
    traces = dict(forced(net, x))
    assert accounted_macs(net, traces["all"], (3, 32, 32))[0] == dense
    assert accounted_macs(net, traces["none"], (3, 32, 32))[0] == pytest.approx(dense / blocks)
    _, trace = run(net, x, "per_sample")
    run_blocks = sum(float(e.value.float().mean()) for e in trace.entries.values())
    macs, rule = accounted_macs(net, trace, (3, 32, 32))
    assert macs == pytest.approx((run_blocks + 1) / blocks * dense) and "gates not counted" in rule


def test_accounting_goes_with_the_size_of_the_input() -> None:
    net = make()
    trace: Trace = dict(forced(net, images()))["all"]
    assert accounted_macs(net, trace, (3, 64, 64))[0] > 3.9 * accounted_macs(net, trace, (3, 32, 32))[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"gate": "lstm"}, "gate='lstm'"),
        ({"gate": "ff1", "dataset": "imagenet", "depth": 50}, "recurrent gates"),
        ({"depth": 39}, "6n\\+2"),
        ({"depth": 38, "dataset": "mnist"}, "mnist"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        skipnet(**args)


def test_the_recurrent_gate_answers_bit_by_bit_as_its_modules_do() -> None:
    net = make()
    gate, x = net.skips[0].gate, torch.randn(5, 16, 8, 8)
    h = (torch.randn(5, 10), torch.randn(5, 10))
    with torch.inference_mode():
        score, (a, b) = gate(x, h)
        want_h, want_c = net.control.rnn(gate.embed(x.mean((2, 3))), h)
        assert torch.equal(a, want_h) and torch.equal(b, want_c)
        assert torch.equal(score, net.control.proj(want_h).squeeze(1))
