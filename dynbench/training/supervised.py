"""Static networks: a ResNet on labelled images."""

from __future__ import annotations

from typing import Any

import torch

from dynbench.models.resnet import ResNet, resnet
from dynbench.training.evaluation import accuracy, logits
from dynbench.training.session import Session, Settings, cross_entropy


def train_resnet(session: Session, depth: int) -> ResNet:
    """A ResNet of this depth, `resnet{depth}_{suffix}`; loaded if it is finished already.

    Args:
        session: of the training.
        depth: of the network.

    Returns:
        The network, in eval mode.
    """
    name = f"resnet{depth}_{session.suffix}"
    settings = session.settings(Settings, "resnet", epochs=10)
    net = _new(session, depth, settings.seed)
    if session.finished(name):
        session.load(net, name)
        return net.to(session.device).eval()
    facts = session.fit(name, net, cross_entropy, settings)
    facts["accuracy"] = test_accuracy(session, net)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}")
    args = {"depth": depth, "num_classes": net.fc.out_features}
    session.save(name, net, session.card("dynbench.models.resnet:resnet", args=args, **facts))
    return net


def _new(session: Session, depth: int, seed: int) -> ResNet:
    torch.manual_seed(seed)
    args: dict[str, Any] = session.workload.get("model_args", {})
    return resnet(depth, args.get("num_classes", 10), args.get("dataset", "cifar"))


def test_accuracy(session: Session, net: ResNet) -> float:
    """Share of right answers on the test part."""
    x, y = session.tensors(session.inputs("test"))
    return accuracy(logits(net, x), y)
