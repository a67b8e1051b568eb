"""CiNet: extractor and classifier learn from the label alone, through an interpolated patch.

The paper's training is not known. Here one cross-entropy, of the classifier's answer, trains both: its gradient reaches
the place through bilinear interpolation, as in a spatial transformer; the network is not shown where to look.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.cinet import UNIT, CiNet, Thumbnail
from dynbench.strategies import Masking
from dynbench.training.evaluation import accuracy, logits, with_decisions
from dynbench.training.glimpses import train_baseline, train_plain
from dynbench.training.session import Session, Settings

ADAMW: dict[str, Any] = {"optimizer": "adamw", "precision": "float32", "weight_decay": 1e-2}
DEFAULTS: dict[str, Any] = {"epochs": 16, "lr": 3e-3, "batch_size": 64, **ADAMW}


def train(session: Session) -> None:
    """`cinet_{suffix}`, and the workload's baselines, a thumbnail and a plain network.

    `[train.options.cinet]`, `[train.options.thumbnail]` and `[train.options.cnn]` hold the settings. As controls the
    card has the accuracy with every patch at the place found in another image, and at the centre.
    """
    train_plain(session)
    train_baseline(session, Thumbnail, "thumbnail", **DEFAULTS)
    name = f"cinet_{session.suffix}"
    if session.finished(name):
        return
    settings = session.settings(Settings, "cinet", **DEFAULTS)
    torch.manual_seed(settings.seed)
    args: dict[str, Any] = session.workload.get("model_args", {})
    net = CiNet(**args)
    facts = session.fit(name, net, through_patch, settings)
    x, y = session.tensors(session.inputs("test"))
    with torch.inference_mode():
        place = torch.cat([net.look(part) for part in x.split(250)])
    facts |= {
        "accuracy": accuracy(logits(lambda part: Execution(Masking()).run(net, part), x), y),
        "static_twin": {"name": "the same computation for every input", "accuracy": accuracy(logits(net, x), y)},
        "accuracy_with_places_of_other_images": accuracy(_at_places(net, x, place.roll(1, 0)), y),
        "accuracy_at_the_centre": accuracy(_at_places(net, x, torch.zeros_like(place)), y),
        "places": {"std_of_x_and_y": [round(s, 3) for s in (place.double() / UNIT).std(0).tolist()]},
        "sent_bytes": net.patch_bytes,
        "image_bytes": x[0].numel(),
    }
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, {facts['sent_bytes']} of {facts['image_bytes']} bytes")
    session.save(name, net, session.card("dynbench.models.cinet:CiNet", args=args, **facts))


def through_patch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the classifier's answer for the interpolated patch."""
    assert isinstance(model, CiNet)
    return F.cross_entropy(model.soft(x), y)


def _at_places(net: CiNet, x: Tensor, place: Tensor) -> Tensor:
    """Logits for patches at given places [n, 2] in 1/UNIT."""
    return with_decisions(net, x, Masking(), {net.look.name: place}, len(x))
