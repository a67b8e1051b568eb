"""ConvNet-AIG: from a ResNet, with a target rate for every gate; first with sampled decisions, then without sampling.

Veit and Belongie, ECCV 2018, sections 3.3 and 3.4. Two differences from the authors' training, which takes many times
as long. It starts from a trained ResNet, with more weight on the target rates. And a second stage draws no Gumbel
noise: a gate can reach its target rate by random sampling alone, independently of the input, and its unsampled decision
is then always or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, straight_through
from dynbench.models.convnet_aig import ConvNetAIG, Gate, accounted_macs, convnet_aig
from dynbench.strategies import Masking
from dynbench.training.blocks import evaluate
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class Rated(Settings):
    """Settings of a stage.

    Attributes:
        target: t, the share of inputs for which each block should run.
        rate_weight: of the target rate loss, mean over blocks of (t - share)^2 (the authors: 2, over 350 epochs).
        spread: initial standard deviation of the weights of the gates' last layers. With the authors' 0.001 gates
            hardly depend on the input at first, and need many epochs to differ.
    """

    target: float = 0.6
    rate_weight: float = 10.0
    spread: float = 0.5


def train(session: Session) -> None:
    """ResNet and ConvNet-AIG of the workload's depth, `resnet{depth}_{suffix}` and the workload's name.

    `[train.options.resnet]`, `[train.options.sampled]` and `[train.options.unsampled]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth, name = args.get("depth", 110), str(session.workload["name"])
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    first = session.settings(Rated, "sampled", epochs=5, lr=0.05)
    second = session.settings(Rated, "unsampled", epochs=5, lr=0.02)
    torch.manual_seed(first.seed)
    net = convnet_aig(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    for gate in gates(net):
        nn.init.normal_(gate.fc2.weight, 0, first.spread)
    stages = {"sampled": session.fit(f"{name}_sampled", net, TargetRate(first), first)}
    draw(net, False)
    stages["unsampled"] = session.fit(f"{name}_unsampled", net, TargetRate(second), second)
    facts = evaluate(session, net, accounted_macs)
    facts["static_twin"] = {"name": f"resnet{depth}_{session.suffix}", "accuracy": test_accuracy(session, static)}
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the computation")
    session.save(name, net, session.card("dynbench.models.convnet_aig:convnet_aig", args=args, **facts, stages=stages))
    for stage in stages:
        session.forget(f"{name}_{stage}")


def gates(net: ConvNetAIG) -> list[Gate]:
    """The gates of the blocks."""
    return [cast(Gate, skip.gate) for skip in net.skips]


def draw(net: ConvNetAIG, noisy: bool) -> None:
    """Sets whether decisions are drawn in training."""
    for gate in gates(net):
        gate.noisy = noisy


class TargetRate:
    """L + rate_weight mean_l (t - share of inputs that run block l)^2 (eq. 6)."""

    def __init__(self, settings: Rated) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        rates: list[Tensor] = []

        def observe(point: DecisionPoint, scores: Tensor, keep: Tensor) -> None:
            rates.append(straight_through(keep, scores.float()).mean())

        outputs = Execution(Masking(), observe=observe).run(model, x)
        missed = (self.settings.target - torch.stack(rates)) ** 2
        return F.cross_entropy(outputs.float(), y) + self.settings.rate_weight * missed.mean()
