"""CondConv: a ResNet with conditional convolutions, all inputs of a batch at once, each with its own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.condconv import Routing, condconv
from dynbench.models.macs import static_macs
from dynbench.strategies import Masking
from dynbench.training.session import Session, Settings, accuracy, logits
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class Mixed(Settings):
    """Of a conditional network.

    Attributes:
        temperature: of softmax routing, at the beginning (Chen et al.: 30).
        cooling: by how much it falls with every step, down to 1.
    """

    temperature: float = 1.0
    cooling: float = 0.0


class OwnKernels:
    """Cross-entropy, each input with its own kernels; softmax routing cools down."""

    def __init__(self, settings: Mixed) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        for routing in softmax_routings(model):  # before the pass, whose gradient needs it as it was there
            routing.temperature.sub_(self.settings.cooling).clamp_(min=1)
        said = Execution(Masking()).run(model, x)
        return F.cross_entropy(said.float(), y)


def softmax_routings(net: nn.Module) -> list[Routing]:
    """Those that have a temperature."""
    return [m for m in net.modules() if isinstance(m, Routing) and m.squeeze is not None]


def train(session: Session) -> None:
    """The plain ResNet, `resnet{depth}_{suffix}`, and under the workload's name the conditional one.

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
    """For the card: how right, what it costs, and whether the kernels follow the input.

    `accuracy_with_the_kernels_of_another_input` is lower than `accuracy` as far as they fit the input;
    `accuracy_in_equal_shares` is that of the static twin.
    """
    x, y = session.tensors(session.inputs("test"))
    routings = [m for m in net.modules() if isinstance(m, Routing)]
    shares: list[list[Tensor]] = [[] for _ in routings]
    hooks = [
        m.register_forward_hook(lambda *given, seen=seen: seen.append(given[2]))
        for m, seen in zip(routings, shares, strict=True)
    ]
    own = logits(lambda part: Execution(Masking()).run(net, part), x)
    for hook in hooks:
        hook.remove()
    hooks = [m.register_forward_hook(lambda *given: given[2].roll(7, 0)) for m in routings]
    other = logits(lambda part: Execution(Masking()).run(net, part), x)
    for hook in hooks:
        hook.remove()
    return {
        "accuracy": accuracy(own, y),
        "accuracy_with_the_kernels_of_another_input": accuracy(other, y),
        "accuracy_in_equal_shares": accuracy(logits(net, x), y),
        "spread_of_routing": [round(torch.cat(seen).std(0).mean().item(), 4) for seen in shares],
        "macs": static_macs(net, tuple(x.shape[1:])),
    }
