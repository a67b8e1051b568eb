"""Multi-task network: from a trained ResNet, all tasks together; for comparison the same without adapters.

Every image has an answer for every task in training (the static twin), so a task has as many examples as alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.data.digit_tasks import labels_of
from dynbench.dynamic import Execution
from dynbench.errors import UserError
from dynbench.models.accounting import static_macs
from dynbench.models.multitask import MultiTaskResNet, cost_by_tasks, multitask
from dynbench.models.resnet import ResNet
from dynbench.strategies import Compaction
from dynbench.training.evaluation import accuracy, logits
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import train_resnet

COUNTS = (1, 2, 4, 8, 16)  # numbers of tasks in the table of costs


class Joint:
    """The sum over tasks of the cross-entropy.

    Args:
        answers: [10, T] long, the answer of each task for each digit.
    """

    def __init__(self, answers: Tensor) -> None:
        self.answers = answers

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Images x [n, 3, H, W] of digits y [n] -> scalar."""
        tasks = self.answers.shape[1]
        p = model(torch.cat([x, torch.ones_like(x[:, :1])], 1)).float().unflatten(1, (tasks, -1))  # [n, T, K]
        return tasks * F.nll_loss((p + 1e-7).log().flatten(0, 1), self.answers.to(y.device)[y].flatten())


def train(session: Session) -> None:
    """ResNet, `resnet{depth}_{suffix}`; the workload's network, and `{name}_shared`, in which all blocks are shared.

    `[train.options.resnet]` and `[train.options.tasks]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    images, names = digits_of(session)
    ten_classes = replace(images, workload={**images.workload, "model_args": {}})
    static = train_resnet(ten_classes, args.get("depth", 20))
    name = str(session.workload["name"])
    settings = session.settings(Settings, "tasks", epochs=2, lr=0.02)
    answers = answers_of(names)
    for part, extra in ((f"{name}_shared", {"shared": len(static.layers)}), (name, {})):
        _train(images, session, part, {**args, **extra}, static, settings, Joint(answers), names)


def digits_of(session: Session) -> tuple[Session, list[str]]:
    """The same session with images of digits in place of digit tasks, and the names of the tasks.

    Raises:
        UserError: other inputs.
    """
    inputs: dict[str, Any] = session.workload["inputs"]
    names = inputs.get("options", {}).get("tasks")
    if inputs["name"] != "digit_tasks" or not isinstance(names, list):
        raise UserError("training: the inputs of several tasks are 'digit_tasks', with a list of names as `tasks`")
    options = {k: v for k, v in inputs["options"].items() if k not in ("of", "tasks", "asked")}
    digits = {"name": inputs["options"].get("of", "cluttered_digits"), "options": options}
    return replace(session, workload={**session.workload, "inputs": digits}), names


def answers_of(names: Sequence[str]) -> Tensor:
    """The answer of each task for each digit, [10, T] long."""
    return torch.from_numpy(labels_of(list(names), np.arange(10)))


def _train(
    images: Session,
    session: Session,
    name: str,
    args: dict[str, Any],
    static: ResNet,
    settings: Settings,
    loss: Joint,
    names: Sequence[str],
) -> None:
    if session.finished(name):
        return
    torch.manual_seed(settings.seed)
    net = multitask(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    facts = images.fit(name, net, loss, settings)
    facts |= evaluate(session, net, names)
    facts["static_twin"] = single_task(images, static, loss.answers, names)
    facts["cost_by_tasks"] = cost_by_tasks(COUNTS, **{k: v for k, v in args.items() if k != "tasks"})
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, by task {facts['accuracy_by_task']}")
    session.save(name, net, session.card("dynbench.models.multitask:multitask", args=args, **facts))


def evaluate(session: Session, net: MultiTaskResNet, names: Sequence[str]) -> dict[str, Any]:
    """For the card: accuracy for the requested tasks, over all and by task, and the cost of an image."""
    x, y = session.tensors(session.inputs("test"))
    outputs, shape = logits(lambda part: Execution(Compaction()).run(net, part), x), tuple(x.shape[1:])
    trunk, whole = _trunk_macs(net, shape), static_macs(net, shape)
    return {
        **accuracy_by_task(outputs, y, names),
        "macs": {"one_asked": trunk + (whole - trunk) // len(names), "all": whole},
    }


def accuracy_by_task(outputs: Tensor, y: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """For the card: accuracy over all tasks and by task, of outputs [n, T * K] and labels t * K + answer [n]."""
    task = y // (outputs.shape[1] // len(names))
    return {
        "accuracy": accuracy(outputs, y),
        "accuracy_by_task": {n: accuracy(outputs[task == t], y[task == t]) for t, n in enumerate(names)},
    }


def _trunk_macs(net: MultiTaskResNet, shape: tuple[int, ...]) -> int:
    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net.features(x[:, :-1])

    return static_macs(Trunk(), shape)


def single_task(images: Session, static: ResNet, answers: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """For the card: the accuracy of the digit classifier alone, as each task's answer follows from the digit."""
    x, y = images.tensors(images.inputs("test"))
    digit = logits(static, x).argmax(-1)
    right = answers.to(y.device)[digit] == answers.to(y.device)[y]  # [n, T]
    by_task = {n: round(float(right[:, t].double().mean()), 5) for t, n in enumerate(names)}
    return {"accuracy": round(float(right.double().mean()), 5), "accuracy_by_task": by_task}
