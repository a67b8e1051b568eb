"""Multi-task by routing: who is asked is answered by the task's own modules; cost against number of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.data import load_inputs
from dynbench.data.digit_tasks import TASKS, answers_per_task, labels_of
from dynbench.dynamic import Execution
from dynbench.errors import UserError
from dynbench.meters.required import PartCosts
from dynbench.models.multitask import Adapter, MultiTaskResNet, cost_by_tasks, multitask, separate
from dynbench.models.resnet import resnet
from dynbench.strategies import Masking
from tests.models.same_answer import assert_same_answer, decided_both_ways, run

CLASSES = [4, 2, 3]


def make(shared: int = 2) -> MultiTaskResNet:
    torch.manual_seed(0)
    net = multitask(CLASSES, 8, shared).train()
    for m in net.modules():
        if isinstance(m, Adapter):  # else all tasks would compute the same
            nn.init.normal_(m.conv.weight, std=0.3)
    with torch.no_grad():
        Execution(Masking()).run(net, requests())
    return net.eval()


def requests(n: int = 5, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 8, 8, generator=generator)
    x[:, -1] = 0
    x[:, -1, 0, :3] = (torch.rand(n, 3, generator=generator) < 0.5).float()
    return x


def all_asked(x: Tensor) -> Tensor:
    return torch.cat([x[:, :3], torch.ones_like(x[:, :1])], 1)


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample", "cascading"])
@pytest.mark.parametrize("shared", [0, 2, 3])
def test_every_strategy_answers_alike(shared: int, strategy: str) -> None:
    net, x = make(shared), requests()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("strategy", ["masking", "compaction", "per_sample"])
@pytest.mark.parametrize("n", [1, 2])
def test_an_image_alone_or_one_that_nobody_asks_about_is_answered_as_in_a_batch(n: int, strategy: str) -> None:
    net, x = make(), requests()
    x[3, -1] = 0
    before, (whole, _) = x.clone(), run(net, x, "per_sample")
    for i in range(0, 4, n):
        assert torch.allclose(run(net, x[i : i + n], strategy)[0], whole[i : i + n], atol=1e-5)
    assert torch.equal(x, before) and float(whole[3].abs().sum()) == 0


def by_hand(net: MultiTaskResNet, image: Tensor, task: int) -> Tensor:
    """One image, one task: the trunk with the task's adapters after its own blocks, and its head."""
    x = F.relu(net.bn1(net.conv1(image)))
    for name in ("group1_layer0", "group2_layer0", "group3_layer0"):
        x = net.get_submodule(name)(x)
        if name not in net.shared_blocks:
            adapter = net.get_submodule(f"{name}_adapters.{task}")
            x = x + F.conv2d(adapter.bn(x), adapter.conv.weight)  # type: ignore[operator, arg-type]
    head = net.get_submodule(f"heads.{task}.fc")
    return head(x.mean((2, 3))).softmax(-1)


@pytest.mark.parametrize("shared", [0, 2, 3])
def test_who_is_asked_is_answered_by_the_task_s_own_modules_and_nobody_else(shared: int) -> None:
    net, x = make(shared), requests()
    assert 0 < float(x[:, -1, 0, :3].mean()) < 1
    y, _ = run(net, x, "compaction")
    y = y.unflatten(1, (3, 4))
    with torch.inference_mode():
        static, every = net(x).unflatten(1, (3, 4)), net(all_asked(x)).unflatten(1, (3, 4))
        for i in range(len(x)):
            for task, classes in enumerate(CLASSES):
                want = torch.zeros(4)
                want[:classes] = by_hand(net, x[i : i + 1, :3], task)[0]
                assert torch.allclose(every[i, task], want, atol=1e-5)
                want *= x[i, -1, 0, task]
                assert torch.allclose(y[i, task], want, atol=1e-5)
                assert torch.allclose(static[i, task], want, atol=1e-5)


def test_the_trunk_runs_once_per_image_and_each_task_asked_costs_the_same() -> None:
    net, x = make(), requests(1)
    costs = PartCosts(net, x)
    totals = []
    for asked in ([], [0], [2], [0, 1], [0, 1, 2]):
        x[:, -1, 0, :3] = 0
        x[:, -1, 0, asked] = 1
        totals.append(float(costs.required(run(net, x, "per_sample")[1]).region))  # type: ignore[arg-type]
    trunk, one, other, two, three = totals
    heads = 2 * 64  # FLOPs of a head, per answer
    assert one - trunk - 4 * heads == other - trunk - 3 * heads > 0
    assert two - one == one - trunk - 2 * heads
    assert three == two + other - trunk


def test_parameters_and_work_grow_by_the_same_with_each_task_from_1_to_16() -> None:
    rows = cost_by_tasks((1, 2, 4, 8, 16), depth=8, shared=2)
    by_count = {r["tasks"]: r for r in rows}
    for key in ("params", "macs_all_asked", "separate_params", "separate_macs"):
        step = by_count[2][key] - by_count[1][key]
        assert step > 0
        assert all(by_count[t][key] == by_count[1][key] + (t - 1) * step for t in by_count), key
    assert len({r["macs_one_asked"] for r in rows}) == 1
    own = 64 * 64 + 2 * 64 + 65 * 10  # an adapter with its batch norm, and a head
    assert by_count[2]["params"] - by_count[1]["params"] == own
    assert by_count[16]["separate_macs"] == 16 * by_count[1]["separate_macs"]


def test_it_starts_as_the_network_it_is_made_of() -> None:
    torch.manual_seed(0)
    net, plain = multitask(2, 8).eval(), resnet(8).eval()
    state = plain.state_dict()
    missing = net.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == ["fc.weight", "fc.bias"]
    assert all("adapter" in name or "head" in name for name in missing.missing_keys)
    net.get_submodule("heads.1.fc").load_state_dict(plain.fc.state_dict())
    with torch.inference_mode():
        y = net(all_asked(requests())).unflatten(1, (2, 10))[:, 1]
        assert torch.allclose(y, plain(requests()[:, :3]).softmax(-1), atol=1e-6)


def test_separate_networks_answer_every_task() -> None:
    nets = separate(CLASSES, 8).eval()
    with torch.inference_mode():
        y = nets(all_asked(requests())).unflatten(1, (3, 4))
        assert float(nets(requests()).unflatten(1, (3, 4))[requests()[:, -1, 0, :3] == 0].abs().sum()) == 0
    assert torch.allclose(y.sum(2), torch.ones(5, 3)) and float(y[:, 1, 2:].max()) == 0


def test_images_too_small_to_say_what_is_asked_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold requests"):
        multitask(70, 8)(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tasks": 0}, "1 task or more"),
        ({"tasks": [3, 1]}, "2 answers or more"),
        ({"shared": 4}, "0 to 3 groups"),
        ({"depth": 9}, "6n\\+2"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multitask(**args)


def test_inputs_say_which_task_is_asked_and_the_label_is_its_answer() -> None:
    names = ["digit", "holes", "is_7"]
    data = load_inputs("digit_tasks", "test", of="digits", tasks=names, size=16)
    plain = load_inputs("digits", "test", size=16)
    assert data.labels is not None and plain.labels is not None and answers_per_task(names) == 10
    assert np.array_equal(data.inputs[:, :3], plain.inputs)
    asked = data.inputs[:, 3].reshape(len(data), -1)
    assert (asked.sum(1) == 1).all() and asked[:, 3:].sum() == 0
    task = asked.argmax(1)
    assert set(task) == {0, 1, 2}
    for t, digit, label in zip(task, plain.labels, data.labels, strict=True):
        assert label == 10 * t + TASKS[names[t]][digit]


def test_tasks_are_what_they_are_called() -> None:
    table = labels_of(list(TASKS), np.arange(10))
    answers = dict(zip(TASKS, table.T.tolist(), strict=True))
    assert answers["parity"] == [0, 1] * 5 and answers["above_five"] == [0] * 6 + [1] * 4
    assert answers["holes"] == [1, 0, 0, 0, 1, 0, 1, 0, 2, 1] and answers["prime"] == [0, 0, 1, 1, 0, 1, 0, 1, 0, 0]
    assert answers["is_3"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0] and len(TASKS) == 16


def test_several_tasks_asked_have_no_one_label() -> None:
    data = load_inputs("digit_tasks", "test", of="digits", tasks=16, asked=5, limit=20, size=16)
    assert data.labels is None and (data.inputs[:, 3].reshape(20, -1).sum(1) == 5).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tasks": ["digit", "colour"]}, "'colour'"),
        ({"tasks": 17}, "tasks are 1 to 16"),
        ({"tasks": 2, "asked": 3}, "asked=3"),
        ({"of": "digit_scenes"}, "no images of digits"),
    ],
)
def test_tasks_there_are_not_are_refused(options: dict[str, Any], says: str) -> None:
    if "of" in options:
        options = {**options, "digits": 2, "rule": "equal"}
    with pytest.raises(UserError, match=says):
        load_inputs("digit_tasks", "test", limit=4, **options)
