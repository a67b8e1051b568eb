"""SkipNet: from a ResNet, supervised with straight-through gates, then hybrid reinforcement learning.

Wang et al., ECCV 2018, sections 3.2 and 3.3. Two things differ from the authors' training, which takes many times as long:
the supervised stage starts from a trained ResNet and presses the share of blocks run towards a target, and the rewards of
the hybrid stage are centred on their mean over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, Trace, points, straight_through
from dynbench.models.skipnet import SkipNet, accounted_macs, skipnet
from dynbench.strategies import Masking
from dynbench.training.session import Session, Settings, accuracy, logits
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class Pressed(Settings):
    """The supervised stage.

    Attributes:
        target: share of the blocks to run.
        pressure: weight of the squared distance from it.
        openness: bias of the gates' logits at the beginning, so that nearly everything runs.
    """

    target: float = 0.6
    pressure: float = 5.0
    openness: float = 1.0


@dataclass
class Reinforced(Settings):
    """The hybrid stage.

    Attributes:
        alpha: reward of skipping every block, against a loss of 1 (section 3.3).
        rl_weight: weight of the REINFORCE term.
    """

    alpha: float = 0.5
    rl_weight: float = 0.1


def train(session: Session) -> None:
    """ResNet and SkipNet of the workload's depth: `resnet{depth}_{suffix}` and `skipnet{depth}_{suffix}`.

    `[train.options.resnet]`, `[train.options.supervised]` and `[train.options.hybrid]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth = args.get("depth", 38)
    name = f"skipnet{depth}_{session.suffix}"
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    first = session.settings(Pressed, "supervised", epochs=4, lr=0.05)
    second = session.settings(Reinforced, "hybrid", epochs=3, lr=0.01)
    torch.manual_seed(first.seed)
    net = skipnet(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    open_gates(net, first.openness)
    stages = {
        "supervised": session.fit(f"{name}_supervised", net, Supervised(first), first),
        "hybrid": session.fit(f"{name}_hybrid", net, Hybrid(second), second),
    }
    facts = evaluate(session, net)
    facts["static_twin"] = {"name": f"resnet{depth}_{session.suffix}", "accuracy": test_accuracy(session, static)}
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the blocks")
    card = session.card("dynbench.models.skipnet:skipnet", args=args, **facts, stages=stages)
    session.save(name, net, card)
    for stage in stages:
        session.forget(f"{name}_{stage}")


def open_gates(net: SkipNet, openness: float) -> None:
    """Adds `openness` to every gate's logit."""
    for module_name, module in net.named_modules():
        if module_name == "control.proj":
            nn.init.constant_(module.bias, openness)
        elif module_name.startswith("group") and module_name.endswith("linear_layer"):
            with torch.no_grad():
                module.bias.copy_(torch.tensor([0.0, openness]))


class Supervised:
    """L + pressure (share of blocks run - target)^2; the gates learn by the straight-through gradient."""

    def __init__(self, settings: Pressed) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        kept: list[Tensor] = []

        def observe(point: DecisionPoint, scores: Tensor, keep: Tensor) -> None:
            kept.append(straight_through(keep, scores.float()))

        said = Execution(Masking(), observe=observe).run(model, x)
        share = (1 + torch.stack(kept).mean(1).sum()) / (1 + len(kept))           # the first block always runs
        return F.cross_entropy(said.float(), y) + self.settings.pressure * (share - self.settings.target) ** 2


class Hybrid:
    """The supervised gradient and that of REINFORCE (section 3.3, eq. 5) over sampled decisions.

    r_i = -[L - (alpha / N) sum_{j >= i} R_j], R_j = 1 - g_j; the gradient is that of L - rl_weight sum_i r_i log p(g_i).
    """

    def __init__(self, settings: Reinforced) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        seen: list[tuple[Tensor, Tensor]] = []

        def sample(point: DecisionPoint, scores: Tensor) -> Tensor:
            return torch.rand_like(scores, dtype=torch.float32) < torch.sigmoid(scores.float())

        def observe(point: DecisionPoint, scores: Tensor, keep: Tensor) -> None:
            seen.append((scores.float(), keep.float()))

        said = Execution(Masking(), choose=sample, observe=observe).run(model, x)
        loss = F.cross_entropy(said.float(), y, reduction="none")                 # [n]
        scores, g = (torch.stack(t) for t in zip(*seen, strict=True))             # [N, n]
        saved = (1 - g).flip(0).cumsum(0).flip(0)                                 # sum_{j >= i} R_j
        r = -(loss.detach() - self.settings.alpha / len(seen) * saved)
        r = r - r.mean(1, keepdim=True)
        log_p = -F.binary_cross_entropy_with_logits(scores, g, reduction="none")
        return loss.mean() - self.settings.rl_weight * (r * log_p).sum(0).mean()


def evaluate(session: Session, net: SkipNet) -> dict[str, Any]:
    """For the card: accuracy, computation as the paper counts it, how often each block runs, how decisions differ."""
    x, y = session.tensors(session.inputs("test"))
    ex = Execution(Masking(), record=True)
    starts = iter(range(0, len(x), 250))
    said = logits(lambda part: ex.run(net, part, start=next(starts), items=len(x)), x)
    assert ex.trace is not None
    _, rule = accounted_macs(net, ex.trace, tuple(x.shape[1:]))
    keep = decisions(net, ex.trace)                                               # [N, n]
    blocks = (keep.sum(0) + 1).double()                                           # [n]
    return {
        "accuracy": accuracy(said, y),
        "computation": round(blocks.mean().item() / (len(keep) + 1), 5),
        "computation_rule": rule,
        "keep_rates": {name: round(rate, 4) for name, rate in zip(points(net), keep.double().mean(1).tolist(), strict=True)},
        "distinct_paths": len({tuple(path) for path in keep.T.tolist()}),
        "blocks_run": {"mean": round(blocks.mean().item(), 3), "std": round(blocks.std().item(), 3)},
    }  # fmt: skip


def decisions(net: SkipNet, trace: Trace) -> Tensor:
    """[N, n] bool: which of the N gated blocks each of n inputs runs."""
    return torch.stack([trace.entries[name, ()].value for name in points(net)])
