"""Spatially dynamic ResNet: from a ResNet, masks are learned by the straight-through gradient under a budget.

Verelst and Tuytelaars, CVPR 2020, section 3.3. Differences from the authors' training, which takes about 350 epochs: it
starts from a trained ResNet; masks are sampled with probability sigmoid(score), equivalent to their Gumbel noise, and
have the gradient of that probability (theirs: of the noisy score); a separate second stage has no noise (theirs: the
last fifth); and the bounds on each block's share, which they relax during the first third, stay halfway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, straight_through
from dynbench.models.accounting import static_macs
from dynbench.models.spatial import (
    MaskUnit,
    SpatialResNet,
    accounted_macs,
    asked_macs,
    decisions,
    pixel_masks,
    spatial_resnet,
)
from dynbench.strategies import Masking
from dynbench.training.evaluation import accuracy, recorded
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class Budgeted(Settings):
    """Settings of a stage.

    Attributes:
        budget: share of the residual branches' MACs to compute.
        pressure: weight of the squared distance from the budget, and of each block's from its bounds.
        noise: sample the masks.
        openness: initial bias of the scores; None: unchanged.
    """

    budget: float = 0.4
    pressure: float = 10.0
    noise: bool = True
    openness: float | None = None


def train(session: Session) -> None:
    """ResNet and spatial ResNet of the workload's depth, `resnet{depth}_{suffix}` and the workload's name.

    `[train.options.resnet]`, `[train.options.sampled]` and `[train.options.hard]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth, name = args.get("depth", 20), str(session.workload["name"])
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    first = session.settings(Budgeted, "sampled", epochs=4, lr=0.05, openness=1.0)
    second = session.settings(Budgeted, "hard", epochs=2, lr=0.02, noise=False)
    torch.manual_seed(first.seed)
    net = spatial_resnet(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    stages = {}
    for stage, settings in (("sampled", first), ("hard", second)):
        if settings.openness is not None:
            open_masks(net, settings.openness)
        stages[stage] = session.fit(f"{name}_{stage}", net, Supervised(settings), settings)
    facts = evaluate(session, net)
    facts["static_twin"] = {
        "name": f"resnet{depth}_{session.suffix}",
        "accuracy": test_accuracy(session, static),
        "macs": static_macs(static, session.inputs("test").inputs.shape[1:]),
    }
    session.say(
        f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the residual branches"
    )
    session.save(name, net, session.card("dynbench.models.spatial:spatial_resnet", args=args, **facts, stages=stages))
    for stage in stages:
        session.forget(f"{name}_{stage}")


def open_masks(net: SpatialResNet, openness: float) -> None:
    """Sets the bias of every block's scores."""
    with torch.no_grad():
        for name, m in net.named_modules():
            if isinstance(m, MaskUnit) and name.endswith("_mask"):
                assert m.conv.bias is not None
                m.conv.bias.fill_(openness)
                m.fc.bias.zero_()


class Supervised:
    """L + pressure (L_net + L_block) (section 3.3), with the straight-through gradient of the masks.

    L_net = (share of all residual branches' MACs - budget)^2; L_block is the sum over blocks (the paper's: the mean) of
    the squared distance of a block's own share from [budget / 2, (1 + budget) / 2].
    """

    def __init__(self, settings: Budgeted) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        assert isinstance(model, SpatialResNet)
        kept: dict[str, Tensor] = {}

        def sample(point: DecisionPoint, scores: Tensor) -> Tensor | None:
            return torch.rand_like(scores, dtype=torch.float32) < torch.sigmoid(scores.float())

        def observe(point: DecisionPoint, scores: Tensor, keep: Tensor) -> None:
            kept[point.name] = straight_through(keep, scores.float())

        choose = sample if self.settings.noise else None
        outputs = Execution(Masking(), choose=choose, observe=observe).run(model, x)
        return F.cross_entropy(outputs.float(), y) + self._budget(model, pixel_masks(model, kept, tuple(x.shape[1:])))

    def _budget(self, net: SpatialResNet, masks: dict[str, Tensor]) -> Tensor:
        branches = asked_macs(net, masks)
        asked, dense = torch.stack([a for a, _ in branches]), [d for _, d in branches]
        budget = self.settings.budget
        share = asked / asked.new_tensor(dense)  # for each block
        outside = F.relu(share - (1 + budget) / 2) + F.relu(budget / 2 - share)
        whole = asked.sum() / sum(dense)
        return self.settings.pressure * ((whole - budget) ** 2 + (outside**2).sum())


def evaluate(session: Session, net: SpatialResNet) -> dict[str, Any]:
    """For the card: accuracy, computation as the paper counts it, variation of masks between inputs and patches."""
    x, y = session.tensors(session.inputs("test"))
    shape = tuple(x.shape[1:])
    outputs, trace = recorded(net, x, Masking())
    macs, rule = accounted_macs(net, trace, shape)
    decided = decisions(trace)
    branches = asked_macs(net, pixel_masks(net, decided, shape))
    return {
        "accuracy": accuracy(outputs, y),
        "computation": round(sum(float(a) for a, _ in branches) / sum(d for _, d in branches), 5),
        "computation_rule": "of the residual branches' MACs; convolutions before the last 3x3 on the dilated mask",
        "macs": round(macs),
        "macs_rule": rule,
        "masks": {name: _variation(value.view(len(x), -1).float()) for name, value in decided.items()},
    }


def _variation(mask: Tensor) -> dict[str, float]:
    """The variation of a block's mask [items, P] of 0 and 1.

    `share_std`: standard deviation between inputs of the share of patches computed. `patches_that_vary`: the share of
    places computed for 5 to 95 % of the inputs; the others hardly depend on the input.
    """
    by_place = mask.mean(0)
    return {
        "computed": round(float(mask.mean()), 4),
        "share_std": round(float(mask.mean(1).std()), 4),
        "patches_that_vary": round(float(((by_place > 0.05) & (by_place < 0.95)).float().mean()), 4),
    }
