"""Slimmable networks: all widths in every step; DS-Net: the same, and then the gate alone.

Yu et al. 2019, algorithm 1; Yu and Huang 2019, algorithm 1 (sandwich rule, in-place distillation, recalibrated
statistics); Li et al. 2021, section 3 (the gate). The gate is trained as in the authors' code, on a fixed network, with
one difference: the output of the sampled width is selected from the outputs of all widths instead of computed with
gates on the channels, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.models.dsnet import DSNet, accounted_macs, dsnet, macs_by_width
from dynbench.models.slimmable import Slimmable, at_level, macs_by_level, slimmable
from dynbench.strategies import Compaction
from dynbench.training.evaluation import accuracy, logits, recorded, with_decisions
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import train_resnet


@dataclass
class AllWidths(Settings):
    """Settings of the network.

    Attributes:
        sampled: number of widths, besides the smallest and the largest, that are trained in a step, drawn at random
            (the sandwich rule: 2); None: all.
        distil: the largest width learns from labels, the others from its outputs (in-place distillation).
        calibration: number of training batches on which each width's statistics are measured afterwards; 0: running
            averages from training are used.
    """

    sampled: int | None = None
    distil: bool = False
    calibration: int = 0


@dataclass
class Gated(Settings):
    """Settings of a gate.

    Attributes:
        easy: weight of the loss whose target is the smallest width for inputs that it classifies correctly (easy), and
            the largest width for the others (hard).
        hard: weight of a hard input in that loss (the authors: 1); more if there are so few that all look easy.
        target: weight of the cross-entropy of the sampled width's output.
        cost: weight of (MACs / MACs of the largest width)^2.
    """

    easy: float = 1.0
    hard: float = 1.0
    target: float = 1.0
    cost: float = 0.5


def answers(net: Slimmable | DSNet, x: Tensor, levels: Iterable[int]) -> list[Tensor]:
    """The outputs of levels for images x [n, 3, H, W]: logits [n, K] each."""
    if isinstance(net, Slimmable):
        return [at_level(net.body, level)(x) for level in levels]
    x, _ = net.front(x)
    return [at_level(net.tail, level)(x) for level in levels]


def levels_of(net: Slimmable | DSNet) -> int:
    """The number of widths."""
    return len((net.body if isinstance(net, Slimmable) else net.tail).classifier.inputs)


class Sandwich:
    """The sum over widths of the cross-entropy with the labels, or with the outputs of the largest width."""

    def __init__(self, settings: AllWidths) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        assert isinstance(model, (Slimmable, DSNet))
        top, between = levels_of(model) - 1, torch.arange(1, levels_of(model) - 1)
        if self.settings.sampled is not None:
            between = between[torch.randperm(len(between))[: self.settings.sampled]]
        widest, *others = answers(model, x, [top, *between.tolist(), 0])
        taught: Tensor = widest.detach().float().softmax(1) if self.settings.distil else y
        return F.cross_entropy(widest.float(), y) + sum(F.cross_entropy(z.float(), taught) for z in others)


class GateLoss:
    """Easy or hard, the sampled width's cross-entropy and its cost; front and tail are fixed."""

    def __init__(self, settings: Gated, macs: Tensor) -> None:
        self.settings, self.macs = settings, macs / macs.max()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        assert isinstance(model, DSNet)
        s = self.settings
        model.front.eval(), model.tail.eval()
        with torch.no_grad():
            x, cue = model.front(x)
            outputs = torch.stack([at_level(model.tail, level)(x).float() for level in range(levels_of(model))], 1)
            hard = outputs[:, 0].argmax(1) != y
            wanted = torch.where(hard, levels_of(model) - 1, 0)
        scores = model.gate(cue).float()  # [n, K]
        g = F.gumbel_softmax(scores, hard=True)
        mixed = (g.unsqueeze(2) * outputs).sum(1)
        cost = (g @ self.macs.to(g)).mean() ** 2
        weight = torch.ones_like(scores[0])
        weight[-1] = s.hard
        easy = F.cross_entropy(scores, wanted, weight)
        return s.easy * easy + s.target * F.cross_entropy(mixed, y) + s.cost * cost


@torch.no_grad()
def calibrate(net: Slimmable | DSNet, batches: Iterable[Tensor]) -> None:
    """Measures every width's statistics: the mean over batches of images [n, 3, H, W] (Yu and Huang, section 3.3)."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momentum, training = [m.momentum for m in norms], net.training
    net.train()
    for i, x in enumerate(batches, start=1):
        for m in norms:
            m.momentum = 1 / i
        answers(net, x, range(levels_of(net)))
    for m, before in zip(norms, momentum, strict=True):
        m.momentum = before
    net.train(training)


def _network(session: Session, net: Any, name: str) -> dict[str, Any]:
    """Trains all widths of a network; returns facts for its card."""
    settings = session.settings(AllWidths, "widths", epochs=10, lr=0.1)
    facts = session.fit(name, net, Sandwich(settings), settings)
    if settings.calibration:
        x, _ = session.tensors(session.inputs("train", seed=1000 * settings.seed, limit=settings.items))
        calibrate(net, x.split(settings.batch_size)[: settings.calibration])
    return facts


def train(session: Session) -> None:
    """A ResNet of half the width, `resnet{depth}_{suffix}`, and the slimmable network, named as the workload.

    `[train.options.resnet]` and `[train.options.widths]` hold their settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    name = str(session.workload["name"])
    alone = _alone(session, args.get("network", "cifar_resnet8").removeprefix("cifar_resnet"))
    if session.finished(name):
        return
    torch.manual_seed(session.settings(AllWidths, "widths", epochs=10).seed)
    net = slimmable(**args)
    facts = _network(session, net, name)
    x, y = session.tensors(session.inputs("test"))
    facts |= by_width(net, x, y, net.widths, macs_by_level(net.body, tuple(x.shape[1:])))
    facts["accuracy"] = facts["by_width"][str(net.width)]["accuracy"]
    session.say(f"{name}: test accuracy {[w['accuracy'] for w in facts['by_width'].values()]}")
    card = session.card("dynbench.models.slimmable:slimmable", args=args, **facts, trained_alone=alone)
    session.save(name, net, card)


def _alone(session: Session, depth: Any) -> dict[str, Any]:
    """A network of one width: the usual ResNet with 16 channels in its first group."""
    net = train_resnet(session, int(depth))
    x, y = session.tensors(session.inputs("test"))
    return {"name": f"resnet{depth}_{session.suffix}", "accuracy": accuracy(logits(net, x), y)}


def _answer(net: Slimmable | DSNet, level: int, x: Tensor) -> Tensor:
    return answers(net, x, [level])[0]


def by_width(net: Any, x: Tensor, y: Tensor, widths: Iterable[float], macs: list[int]) -> dict[str, Any]:
    """Accuracy and multiply-accumulates of each width on all inputs."""
    outputs = [logits(partial(_answer, net, k), x) for k in range(levels_of(net))]
    each = zip(widths, outputs, macs, strict=True)
    return {"by_width": {str(w): {"accuracy": accuracy(a, y), "macs": m} for w, a, m in each}}


def train_dsnet(session: Session) -> None:
    """A ResNet, `resnet{depth}_{suffix}`, and the DS-Net, named as the workload: all widths, then the gate.

    `[train.options.resnet]`, `[train.options.widths]` and `[train.options.gate]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    name = str(session.workload["name"])
    alone = _alone(session, args.get("depth", 8))
    if session.finished(name):
        return
    settings = session.settings(Gated, "gate", epochs=2, lr=0.05, precision="float32")
    torch.manual_seed(settings.seed)
    net = dsnet(**args)
    stages = {"widths": _network(session, net, f"{name}_widths")}
    x, y = session.tensors(session.inputs("test"))
    macs = macs_by_width(net, tuple(x.shape[1:]))
    for p in (*net.front.parameters(), *net.tail.parameters()):
        p.requires_grad_(False)
    stages["gate"] = session.fit(f"{name}_gate", net, GateLoss(settings, torch.tensor(macs).float()), settings)
    facts = evaluate(net, x, y) | by_width(net, x, y, args.get("widths", [0.25, 0.5, 0.75, 1.0]), macs)
    session.say(f"{name}: {facts['accuracy']:.4f} with {facts['computation']:.3f}, shares {facts['share_by_width']}")
    card = session.card("dynbench.models.dsnet:dsnet", args=args, **facts, trained_alone=alone, stages=stages)
    session.save(name, net, card)
    for stage in stages:
        session.forget(f"{name}_{stage}")


def evaluate(net: DSNet, x: Tensor, y: Tensor) -> dict[str, Any]:
    """For the card: accuracy, cost, the share of inputs at each width, and whether widths depend on the input.

    `accuracy_with_the_decisions_of_another_input` is lower than `accuracy` as far as decisions fit their input.
    """
    outputs, trace = recorded(net, x, Compaction())
    macs, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    mask = trace.entries[net.point.name, ()].value
    level, of_another = mask.sum(1), {net.point.name: mask.roll(7, 0)}
    share = level.bincount(minlength=levels_of(net)).double() / len(level)
    return {
        "accuracy": accuracy(outputs, y),
        "computation": round(macs / macs_by_width(net, tuple(x.shape[1:]))[-1], 5),
        "computation_rule": f"{rule}; of the greatest width",
        "macs": round(macs),
        "share_by_width": [round(s, 4) for s in share.tolist()],
        "accuracy_with_the_decisions_of_another_input": accuracy(with_decisions(net, x, Compaction(), of_another), y),
    }
