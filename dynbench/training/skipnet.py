"""SkipNet: from a ResNet, supervised with straight-through gates, then hybrid reinforcement learning.

Wang et al., ECCV 2018, sections 3.2 and 3.3. Three differences from the authors' training, which takes many times as
long: the supervised stage starts from a trained ResNet; both stages have a penalty that pushes the share of blocks run
towards a target; and the hybrid stage compares sampled decisions with unsampled ones (self-critical, as BlockDrop
does), which has far less variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, straight_through
from dynbench.models.resnet import ResNet
from dynbench.models.skipnet import FFGateI, FFGateII, SkipNet, Unskipped, accounted_macs, skipnet, unskipped
from dynbench.strategies import Masking
from dynbench.training.blocks import evaluate
from dynbench.training.evaluation import accuracy, dtype_name, logits
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class Pressed(Settings):
    """The supervised stage.

    Attributes:
        target: share of the blocks to run.
        pressure: weight of the squared distance from the target.
        openness: initial bias of the gates' logits, with which nearly all blocks run.
        each: every gate is pushed towards the target, not only their mean: then no gate can be always or never open,
            and decisions have to depend on the input (the target rates of ConvNet-AIG).
    """

    target: float = 0.55
    pressure: float = 5.0
    openness: float = 1.0
    each: bool = False


@dataclass
class Reinforced(Pressed):
    """The hybrid stage; the penalty remains.

    Attributes:
        alpha: reward of skipping all blocks, relative to a loss of 1 (section 3.3).
        rl_weight: weight of the REINFORCE term.
        sharpness: initial factor on the gates' logits, so that few sampled decisions differ from those learned before
            (the authors scale by 20 on ImageNet).
    """

    target: float = 0.65
    alpha: float = 0.5
    rl_weight: float = 0.1
    sharpness: float = 5.0


def train(session: Session) -> None:
    """ResNet and SkipNet of the workload's depth, `resnet{depth}_{suffix}` and the workload's name.

    `[train.options.resnet]`, `[train.options.supervised]` and `[train.options.hybrid]` hold the stages' settings. With
    `[train.options.soft]` the same network is also trained with soft gates, as `{name}_soft`.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth, name = args.get("depth", 38), str(session.workload["name"])
    static = train_resnet(session, depth)
    if "soft" in session.workload.get("train", {}).get("options", {}):
        train_soft(session, static, f"{name}_soft")
    if session.finished(name):
        return
    first = session.settings(Pressed, "supervised", epochs=5, lr=0.05)
    second = session.settings(Reinforced, "hybrid", epochs=3, lr=0.02)
    torch.manual_seed(first.seed)
    net = skipnet(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    open_gates(net, first.openness)
    stages = {"supervised": session.fit(f"{name}_supervised", net, Supervised(first), first)}
    sharpen_gates(net, second.sharpness)
    stages["hybrid"] = session.fit(f"{name}_hybrid", net, Hybrid(second), second)
    stored = stored_as(net)
    round_to(net, stored)
    facts = {"stored_as": dtype_name(stored), **evaluate(session, net, accounted_macs, always=1)}
    facts["static_twin"] = {"name": f"resnet{depth}_{session.suffix}", "accuracy": test_accuracy(session, static)}
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the blocks")
    card = session.card("dynbench.models.skipnet:skipnet", args=args, **facts, stages=stages)
    session.save(name, net, card, stored)
    for stage in stages:
        session.forget(f"{name}_{stage}")


def train_soft(session: Session, static: ResNet, name: str) -> None:
    """The ablation of table 3: gates weight every block in training; in tests they weight or decide."""
    if session.finished(name):
        return
    settings = session.settings(Pressed, "soft", epochs=5, lr=0.05)
    args: dict[str, Any] = session.workload.get("model_args", {})
    torch.manual_seed(settings.seed)
    net = unskipped(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    open_gates(net, settings.openness)
    facts = session.fit(name, net, Soft(settings), settings)
    stored = stored_as(net)
    round_to(net, stored)
    facts["stored_as"] = dtype_name(stored)
    x, y = session.tensors(session.inputs("test"))
    for gating in ("soft", "hard"):
        net.gating = gating
        facts[f"accuracy_tested_{gating}"] = accuracy(logits(net, x), y)
    with torch.inference_mode():
        p = torch.cat([net.mixed(part)[1] for part in x.split(250)], 1).double()
    shares = {
        "mean_p": p.mean(),
        "open": (p > 0.5).double().mean(),
        "undecided": ((p - 0.5).abs() < 0.4).double().mean(),
    }
    facts["gates"] = {what: round(share.item(), 4) for what, share in shares.items()}
    facts["accuracy"] = facts["accuracy_tested_soft"]
    session.say(f"{name}: soft {facts['accuracy_tested_soft']:.4f}, hard {facts['accuracy_tested_hard']:.4f}")
    session.save(name, net, session.card("dynbench.models.skipnet:unskipped", args=args, **facts), stored)


def stored_as(net: SkipNet) -> torch.dtype:
    """Half precision for convolutional gates, which double the size of the file."""
    return torch.float32 if net.control is not None else torch.float16


def round_to(net: nn.Module, dtype: torch.dtype) -> None:
    """Rounds parameters and floating-point buffers to the values that they will have when loaded."""
    with torch.no_grad():
        for value in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            value.copy_(value.to(dtype))


def open_gates(net: SkipNet, openness: float) -> None:
    """Sets the bias of every gate's logit."""
    with torch.no_grad():
        for projection in _projections(net):
            assert projection.bias is not None
            projection.bias.zero_()
            projection.bias[-1] = openness  # of p, or of the second of two logits


def sharpen_gates(net: SkipNet, factor: float) -> None:
    """Scales every gate's logit."""
    with torch.no_grad():
        for projection in _projections(net):
            for p in projection.parameters():
                p.mul_(factor)


def _projections(net: SkipNet) -> list[nn.Linear | nn.Conv2d]:
    """The last layers of the gates."""
    if net.control is not None:
        return [net.control.proj]
    return [cast(FFGateI | FFGateII, skip.gate).linear_layer for skip in net.skips]


def pressure(kept: Tensor, settings: Pressed) -> Tensor:
    """pressure (share of blocks run - target)^2, kept [N, n] without the first block; with `each`, mean over blocks."""
    if settings.each:
        return settings.pressure * ((kept.mean(1) - settings.target) ** 2).mean()
    share = (1 + kept.mean(1).sum()) / (1 + len(kept))
    return settings.pressure * (share - settings.target) ** 2


class Supervised:
    """L + pressure (share of blocks run - target)^2; gates learn by the straight-through gradient."""

    def __init__(self, settings: Pressed) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        kept: list[Tensor] = []

        def observe(point: DecisionPoint, scores: Tensor, keep: Tensor) -> None:
            kept.append(straight_through(keep, scores.float()))

        outputs = Execution(Masking(), observe=observe).run(model, x)
        return F.cross_entropy(outputs.float(), y) + pressure(torch.stack(kept), self.settings)


class Soft:
    """L of the network mixed by its gates + pressure (mean p - target)^2, without straight-through gradient."""

    def __init__(self, settings: Pressed) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        assert isinstance(model, Unskipped)
        outputs, p = model.mixed(x)
        return F.cross_entropy(outputs.float(), y) + pressure(p.float(), self.settings)


class Hybrid:
    """The supervised gradient and that of REINFORCE (section 3.3, eq. 5) over sampled decisions.

    r_i = -[L - (alpha / N) sum_{j >= i} R_j], R_j = 1 - g_j; descends L - rl_weight sum_i r_i log p(g_i), where r_i is
    relative to the reward of the same input with unsampled decisions. The penalty remains: it fixes the share of blocks
    run, while rewards determine for which inputs.
    """

    def __init__(self, settings: Reinforced) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        with torch.no_grad():
            greedy_loss, _, greedy = self._run(model, x, y, sample=False)
        loss, scores, g = self._run(model, x, y, sample=True)
        advantage = self._rewards(loss.detach(), g) - self._rewards(greedy_loss, greedy)  # [N, n]
        log_p = -F.binary_cross_entropy_with_logits(scores, g, reduction="none")
        pressed = pressure(straight_through(scores > 0, scores), self.settings)  # on the share without sampling
        return loss.mean() - self.settings.rl_weight * (advantage * log_p).sum(0).mean() + pressed

    def _rewards(self, loss: Tensor, g: Tensor) -> Tensor:
        """r_i from losses [n] and decisions g [N, n] -> [N, n]."""
        to_come = (1 - g).flip(0).cumsum(0).flip(0)  # sum_{j >= i} R_j
        return -(loss - self.settings.alpha / len(g) * to_come)

    def _run(self, model: nn.Module, x: Tensor, y: Tensor, sample: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Losses [n], scores [N, n] with their graph, decisions [N, n]."""
        scores: list[Tensor] = []
        decisions: list[Tensor] = []

        def reinforce_only(gate: nn.Module, _: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            scores.append(output[0].float())
            return output[0].detach(), output[1]  # stops the straight-through gradient

        def choose(point: DecisionPoint, logit: Tensor) -> Tensor | None:
            return torch.rand_like(logit, dtype=torch.float32) < torch.sigmoid(logit.float()) if sample else None

        def observe(point: DecisionPoint, logit: Tensor, keep: Tensor) -> None:
            decisions.append(keep.float())

        gates = [cast(nn.Module, skip.gate) for skip in cast(SkipNet, model).skips]
        hooks = [gate.register_forward_hook(reinforce_only) for gate in gates]
        try:
            outputs = Execution(Masking(), choose=choose, observe=observe).run(model, x)
        finally:
            for hook in hooks:
                hook.remove()
        return F.cross_entropy(outputs.float(), y, reduction="none"), torch.stack(scores), torch.stack(decisions)
