"""CondConv: a ResNet with conditional convolutions, trained in batches in which each input has its own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.accounting import static_macs
from dynbench.models.condconv import Routing, condconv, routings
from dynbench.strategies import Masking
from dynbench.training.evaluation import accuracy, logits
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class Mixed(Settings):
    """Settings of a conditional network.

    Attributes:
        temperature: initial temperature of softmax routing (Chen et al.: 30).
        cooling: its decrease per step, down to 1.
    """

    temperature: float = 1.0
    cooling: float = 0.0


class OwnKernels:
    """Cross-entropy, each input with its own kernels; softmax routing cools down."""

    def __init__(self, settings: Mixed) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        for routing in softmax_routings(model):  # before the forward pass: its gradient needs this value
            routing.temperature.sub_(self.settings.cooling).clamp_(min=1)
        outputs = Execution(Masking()).run(model, x)
        return F.cross_entropy(outputs.float(), y)


def softmax_routings(net: nn.Module) -> list[Routing]:
    """The routings with a temperature."""
    return [m for m in routings(net) if m.squeeze is not None]


def train(session: Session) -> None:
    """The plain ResNet, `resnet{depth}_{suffix}`, and the conditional one, named as the workload.

    `[train.options.resnet]` and `[train.options.condconv]` hold their settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    name, depth = str(session.workload["name"]), int(args["network"].removeprefix("cifar_resnet"))
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    settings = session.settings(Mixed, "condconv", epochs=10, lr=0.1)
    torch.manual_seed(settings.seed)
    net = condconv(**args)
    for routing in softmax_routings(net):
        routing.temperature.fill_(settings.temperature)
    facts = session.fit(name, net, OwnKernels(settings), settings) | evaluate(session, net)
    facts["plain"] = {"name": f"resnet{depth}_{session.suffix}", "accuracy": test_accuracy(session, static)}
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, plain {facts['plain']['accuracy']:.4f}")
    session.save(name, net, session.card("dynbench.models.condconv:condconv", args=args, **facts))


def evaluate(session: Session, net: nn.Module) -> dict[str, Any]:
    """For the card: accuracy, cost, and whether the kernels depend on the input.

    `accuracy_with_the_kernels_of_another_input` is lower than `accuracy` as far as kernels fit their input;
    `accuracy_in_equal_shares` is that of the static twin.
    """
    x, y = session.tensors(session.inputs("test"))
    shares: list[list[Tensor]] = [[] for _ in routings(net)]
    hooks = [
        m.register_forward_hook(lambda module, args, r, own=own: own.append(r))
        for m, own in zip(routings(net), shares, strict=True)
    ]
    own = logits(lambda part: Execution(Masking()).run(net, part), x)
    for hook in hooks:
        hook.remove()
    hooks = [m.register_forward_hook(lambda module, args, r: r.roll(7, 0)) for m in routings(net)]
    other = logits(lambda part: Execution(Masking()).run(net, part), x)
    for hook in hooks:
        hook.remove()
    return {
        "accuracy": accuracy(own, y),
        "accuracy_with_the_kernels_of_another_input": accuracy(other, y),
        "accuracy_in_equal_shares": accuracy(logits(net, x), y),
        "spread_of_routing": [round(torch.cat(r).std(0).mean().item(), 4) for r in shares],
        "macs": static_macs(net, tuple(x.shape[1:])),
    }
