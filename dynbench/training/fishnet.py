"""FiShNet and its baselines: a network of the same width for each task, and one with all filters shared.

All are trained on the same images, each with an answer for every task, for the same number of epochs. The selection is
learned with the filters: straight-through, K of F filters per layer and task, from scores with a separate learning
rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.fishnet import (
    Apart,
    FiShNet,
    OneTrunk,
    cost_by_tasks,
    fishnet,
    fishnet_apart,
    fishnet_one_trunk,
    folded,
)
from dynbench.strategies import Compaction
from dynbench.training.evaluation import logits
from dynbench.training.multitask import accuracy_by_task, answers_of, digits_of
from dynbench.training.session import Session, Settings

COUNTS = (1, 2, 4, 8, 16, 32)  # numbers of tasks in the table of costs
Learn = Callable[[nn.Module, Tensor], list[Tensor]]


@dataclass
class Sharing(Settings):
    """Settings of networks for several tasks.

    Attributes:
        selection: factor on the gradients of the scores by which tasks select filters.
    """

    batch_size: int = 128
    lr: float = 0.1
    selection: float = 10.0


class Joint:
    """The sum over tasks of the cross-entropy.

    Args:
        answers: [10, T] long, the answer of each task for each digit.
        learn: `(model, images) -> logits` of each task.
    """

    def __init__(self, answers: Tensor, learn: Learn) -> None:
        self.answers, self.learn = answers, learn

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Images x [n, 3, H, W] of digits y [n] -> scalar."""
        labels = self.answers.to(y.device)[y].unbind(1)
        losses = [F.cross_entropy(z.float(), own) for z, own in zip(self.learn(model, x), labels, strict=True)]
        return torch.stack(losses).sum()


def train(session: Session) -> None:
    """The workload's FiShNet, `{name}_folded` of it, and the baselines `{name}_apart` and `{name}_one_trunk`.

    `[train.options]` holds the settings of all of them.

    Raises:
        UserError: other inputs.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    name, plain = str(session.workload["name"]), {k: v for k, v in args.items() if k != "bank"}
    images, names = digits_of(session)
    settings = session.settings(Sharing, "all", epochs=8, items=4000)
    answers = answers_of(names)
    for part, build, learn in (
        (f"{name}_one_trunk", fishnet_one_trunk, _one_trunk),
        (f"{name}_apart", fishnet_apart, _apart),
    ):
        if not session.finished(part):
            torch.manual_seed(settings.seed)
            net = build(**plain)
            facts = _fit(images, session, part, net, Joint(answers, learn), settings, names)
            session.save(part, net, session.card(f"dynbench.models.fishnet:{build.__name__}", args=plain, **facts))
    if session.finished(name):
        return
    torch.manual_seed(settings.seed)
    own = fishnet(**args)
    for bank in own.banks:
        bank.scores.register_hook(lambda g: settings.selection * g)
    facts = _fit(images, session, name, own, Joint(answers, _every_task), settings, names)
    sizes = {k: v for k, v in args.items() if k not in ("tasks", "num_classes")}
    facts |= {"shared_filters": shared_filters(own, names), "cost_by_tasks": cost_by_tasks(COUNTS, **sizes)}
    fold = folded(own)
    card = session.card("dynbench.models.fishnet:fishnet_apart", args=plain, folded_from=name)
    session.save(f"{name}_folded", fold, {**card, **evaluate(session, fold, names)})
    session.save(name, own, session.card("dynbench.models.fishnet:fishnet", args=args, **facts))


def _fit(
    images: Session, session: Session, name: str, net: nn.Module, loss: Joint, settings: Sharing, names: list[str]
) -> dict[str, Any]:
    """Trains and evaluates a network; returns facts for its card."""
    facts = images.fit(name, net, loss, settings) | evaluate(session, net, names)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, by task {facts['accuracy_by_task']}")
    return facts


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
    """For the card: accuracy on the test part, over all tasks and by task."""
    x, y = session.tensors(session.inputs("test"))
    outputs = logits(lambda part: Execution(Compaction()).run(net, part), x)
    return {**accuracy_by_task(outputs, y, names), "parameters": sum(p.numel() for p in net.parameters())}


def shared_filters(net: FiShNet, names: list[str]) -> list[dict[str, Any]]:
    """The sharing of filters between tasks, layer by layer.

    Returns:
        For each layer: `filters`; `selected`, the number K that a task selects; `used`, those that any task selects;
        `common`, for each pair of tasks, the share of one's selection that the other selects too; `at_random`, that
        share for random selections, K / F.
    """
    rows, tasks = [], torch.arange(len(names), device=net.heads.device)
    for bank in net.banks:
        selected = torch.zeros_like(bank.scores, dtype=torch.bool).scatter_(1, bank.selection(tasks), True)
        filters, k = selected.shape[1], int(selected[0].sum())
        common = {
            f"{names[a]}, {names[b]}": round(int((selected[a] & selected[b]).sum()) / k, 4)
            for a, b in combinations(range(len(names)), 2)
        }
        used = int(selected.any(0).sum())
        rows.append(
            {"filters": filters, "selected": k, "used": used, "at_random": round(k / filters, 4), "common": common}
        )
    return rows
