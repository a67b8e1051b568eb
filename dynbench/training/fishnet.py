"""FiShNet and what it is compared with: a network of the same width for each task, and one whose filters all share.

All are trained on the same images, each of which answers every task, for as many epochs. The selection is learned along
with the filters: straight-through, K of F filters per layer and task, from scores of their own learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.data.digit_tasks import labels_of
from dynbench.dynamic import Execution
from dynbench.errors import UserError
from dynbench.models.fishnet import (
    Apart,
    FiShNet,
    OneTrunk,
    cost_by_tasks,
    each,
    fishnet,
    fishnet_apart,
    fishnet_one_trunk,
    folded,
)
from dynbench.strategies import Compaction
from dynbench.training.session import Session, Settings, accuracy, logits

COUNTS = (1, 2, 4, 8, 16, 32)  # of tasks, for the table of costs
Learn = Callable[[nn.Module, Tensor], list[Tensor]]


@dataclass
class Sharing(Settings):
    """How networks for several tasks are trained.

    Attributes:
        selection: gradients of the scores by which tasks select are multiplied by so much.
    """

    batch_size: int = 128
    lr: float = 0.1
    selection: float = 10.0


class Joint:
    """The sum over tasks of the cross-entropy of each one's answers.

    Args:
        answers: [10, T] long, of each digit to each task.
        learn: `(model, images) -> logits` of each task.
    """

    def __init__(self, answers: Tensor, learn: Learn) -> None:
        self.answers, self.learn = answers, learn

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Images x [n, 3, H, W] of digits y [n] -> scalar."""
        right = self.answers.to(y.device)[y].unbind(1)
        each = [F.cross_entropy(z.float(), own) for z, own in zip(self.learn(model, x), right, strict=True)]
        return torch.stack(each).sum()


def train(session: Session) -> None:
    """The workload's FiShNet, `{name}_folded` of it, and the baselines `{name}_apart` and `{name}_one_trunk`.

    `[train.options]` holds the settings of all of them.

    Raises:
        UserError: other inputs.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    inputs: dict[str, Any] = session.workload["inputs"]
    names = inputs.get("options", {}).get("tasks")
    if inputs["name"] != "digit_tasks" or not isinstance(names, list):
        raise UserError("training: the inputs of a FiShNet are 'digit_tasks', its tasks a list of names")
    options = {k: v for k, v in inputs["options"].items() if k not in ("of", "tasks", "asked")}
    digits = {"name": inputs["options"].get("of", "cluttered_digits"), "options": options}
    images = replace(session, workload={**session.workload, "inputs": digits})
    settings = session.settings(Sharing, "all", epochs=8, items=4000)
    answers = torch.from_numpy(labels_of(names, np.arange(10)))
    name, plain = str(session.workload["name"]), {k: v for k, v in args.items() if k != "bank"}
    for part, build, given, learn in (
        (f"{name}_one_trunk", fishnet_one_trunk, plain, _one_trunk),
        (f"{name}_apart", fishnet_apart, plain, _apart),
        (name, fishnet, args, _every_task),
    ):
        if session.finished(part):
            continue
        torch.manual_seed(settings.seed)
        net = build(**given)
        if isinstance(net, FiShNet):
            for bank in each(net.banks):
                bank.scores.register_hook(lambda g: settings.selection * g)
        facts = images.fit(part, net, Joint(answers, learn), settings)
        facts |= evaluate(session, net, names)
        session.say(f"{part}: test accuracy {facts['accuracy']:.4f}, by task {facts['accuracy_by_task']}")
        model = f"dynbench.models.fishnet:{build.__name__}"
        if isinstance(net, FiShNet):
            facts |= {
                "shared_filters": shared_filters(net, names),
                "cost_by_tasks": cost_by_tasks(COUNTS, **_sizes(args)),
            }
            fold = folded(net)
            card = session.card("dynbench.models.fishnet:fishnet_apart", args=plain, folded_from=name)
            session.save(f"{name}_folded", fold, {**card, **evaluate(session, fold, names)})
        session.save(part, net, session.card(model, args=given, **facts))


def _sizes(args: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in args.items() if k not in ("tasks", "num_classes")}


def _every_task(model: nn.Module, x: Tensor) -> list[Tensor]:
    assert isinstance(model, FiShNet)
    return [model.learn(x, t) for t in range(len(model.classes))]


def _apart(model: nn.Module, x: Tensor) -> list[Tensor]:
    assert isinstance(model, Apart)
    return [net(x) for net in model.nets]


def _one_trunk(model: nn.Module, x: Tensor) -> list[Tensor]:
    assert isinstance(model, OneTrunk)
    return model.learn(x)


def evaluate(session: Session, net: nn.Module, names: list[str]) -> dict[str, Any]:
    """For the card: accuracy of what is asked on the test part, over all and by task."""
    x, y = session.tensors(session.inputs("test"))
    said = logits(lambda part: Execution(Compaction()).run(net, part), x)
    task = y // (said.shape[1] // len(names))
    return {
        "accuracy": accuracy(said, y),
        "accuracy_by_task": {n: accuracy(said[task == t], y[task == t]) for t, n in enumerate(names)},
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def shared_filters(net: FiShNet, names: list[str]) -> list[dict[str, Any]]:
    """How far tasks share filters, layer by layer: of the K that a task selects, the share that another selects too.

    Returns:
        For each layer `filters`, `selected`, how many any task selects (`used`), and `common` for each pair of tasks;
        selections drawn at random would have K / F in common.
    """
    rows, tasks = [], torch.arange(len(names), device=net.heads.device)
    for bank in each(net.banks):
        mine = torch.zeros_like(bank.scores, dtype=torch.bool).scatter_(1, bank.selection(tasks), True)
        k = int(mine[0].sum())
        common = {
            f"{names[a]}, {names[b]}": round(int((mine[a] & mine[b]).sum()) / k, 4)
            for a in range(len(names))
            for b in range(a + 1, len(names))
        }
        rows.append(
            {
                "filters": mine.shape[1],
                "selected": k,
                "used": int(mine.any(0).sum()),
                "at_random": round(k / mine.shape[1], 4),
            }
            | {"common": common}
        )
    return rows
