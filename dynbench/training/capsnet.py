"""CapsNet: margin loss and reconstruction; then the number of iterations until its inputs converge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.data.digits import MEAN, STD
from dynbench.dynamic import Trace
from dynbench.models.capsnet import CapsNet, capsnet, lengths, margin_loss
from dynbench.strategies import Masking
from dynbench.training.evaluation import STORED, accuracy, dtype_name, logits, recorded, round_parameters
from dynbench.training.session import Session, Settings


@dataclass
class Reconstructed(Settings):
    """How a CapsNet is trained.

    Attributes:
        reconstruction: weight of the squared errors of the reconstructed image, summed over its pixels (the paper:
            small enough not to dominate; other implementations: 0.0005).
    """

    reconstruction: float = 0.0005


def train(session: Session) -> None:
    """The network `capsnet_{suffix}`, trained with all its iterations; `[train.options.capsnet]` holds the settings."""
    args: dict[str, Any] = session.workload.get("model_args", {})
    name = f"capsnet_{session.suffix}"
    if session.finished(name):
        return
    settings = session.settings(
        Reconstructed, "capsnet", epochs=20, lr=2e-3, warm_up=0.1, weight_decay=0.0, optimizer="adamw"
    )
    torch.manual_seed(settings.seed)
    net = capsnet(**args)
    facts = session.fit(name, net, MarginAndDrawing(settings.reconstruction), settings)
    facts |= evaluate(session, net)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, {facts['mean_iterations']:.2f} iterations")
    session.save(name, net, session.card("dynbench.models.capsnet:capsnet", args=args, **facts), STORED)


class MarginAndDrawing:
    """Margin loss (eq. 4) plus, with a decoder, the squared error of the image reconstructed from the label's capsule.

    Args:
        weight: of the squared errors, summed over an image, averaged over the batch.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Images x [n, C, H, W] as the model takes them, labels y [n] -> scalar."""
        assert isinstance(model, CapsNet)
        v = model.capsules(x).float()
        loss = margin_loss(lengths(v), y)
        if model.decoder is None:
            return loss
        drawn = model.reconstruct(v, y).float()
        return loss + self.weight * (drawn - brightness(x, model.shape[0])).square().flatten(1).sum(1).mean()


def brightness(x: Tensor, channels: int) -> Tensor:
    """Images [n, C, H, W] before their normalisation, 0 to 1; converted to grey for a model with one channel."""
    image = (x * STD + MEAN).clamp(0, 1)
    return image.mean(1, keepdim=True) if channels == 1 else image


def evaluate(session: Session, net: CapsNet) -> dict[str, Any]:
    """For the card: accuracy with the halting rule and with all iterations, iterations taken, reconstruction error."""
    round_parameters(net)
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Masking())
    facts: dict[str, Any] = {
        "stored_as": dtype_name(STORED),
        "accuracy": accuracy(outputs, y),
        "static_twin": {"accuracy": accuracy(logits(net, x), y), "iterations": net.digits.routing.max_steps},
        "parameters": sum(p.numel() for p in net.parameters()),
        **iterations(net, trace),
    }
    if net.decoder is not None:  # without labels: from the longest capsule
        error = logits(lambda part: (net.reconstruct(net.capsules(part)) - brightness(part, net.shape[0])).square(), x)
        facts["squared_error_per_pixel"] = round(error.mean().item(), 5)
    return facts


def iterations(net: CapsNet, trace: Trace) -> dict[str, Any]:
    """The number of iterations: the mean, and the share of inputs that run at least 1, 2, ... iterations."""
    most = net.digits.routing.max_steps
    if net.digits.routing.halt is None:
        return {"mean_iterations": float(most), "reach_rates": [1.0] * most}
    left = trace.entries["routing", (most,)].value.view(-1, most)[:, :-1]
    there = torch.cat([torch.ones_like(left[:, :1]), (~left).cumprod(1).bool()], 1)  # [items, r]
    rates = there.double().mean(0)
    return {"mean_iterations": round(float(rates.sum()), 4), "reach_rates": [round(r, 4) for r in rates.tolist()]}
