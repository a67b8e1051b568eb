"""BlockDrop: a policy for a trained ResNet by reinforcement learning with a curriculum of blocks, then both together.

Wu et al., CVPR 2018, section 3.2, as in the authors' cl_training.py and finetune.py. Three differences: training takes
minutes; the curriculum frees a block after a number of steps, not every epoch; and the entropy is that of the whole
decision, H(s) = -s log s - (1 - s) log(1 - s), of which their code has only the first term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.blockdrop import BlockDrop, accounted_macs, blockdrop
from dynbench.strategies import Compaction, Masking
from dynbench.training.blocks import evaluate
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class Curriculum(Settings):
    """Training of the policy alone; the ResNet is fixed.

    Attributes:
        penalty: gamma, the cost of a wrong answer; a right one earns 1 - (share of blocks run)^2 (eq. 4).
        bound: alpha: decisions are drawn with probabilities alpha s + (1 - alpha)(1 - s) (eq. 7).
        entropy: weight of the policy's entropy, which prevents early convergence.
        every: number of steps after which the policy decides for one more block, from the last backwards.
    """

    penalty: float = 1.0
    bound: float = 0.8
    entropy: float = 0.1
    every: int = 20


@dataclass
class Together(Curriculum):
    """Joint training of policy and ResNet; the policy decides for all blocks from the first step."""

    penalty: float = 5.0
    entropy: float = 0.0
    every: int = 0


class Learner(nn.Module):
    """The trained module, with the progress of the curriculum.

    Args:
        net: its ResNet has trained weights.
        together: whether the ResNet is trained too; else it is in evaluation mode.
    """

    steps: Tensor

    def __init__(self, net: BlockDrop, together: bool) -> None:
        super().__init__()
        self.net, self.together = net, together
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        for p in net.parameters():
            p.requires_grad_(together)
        for p in net.policy.parameters():
            p.requires_grad_(True)

    def train(self, mode: bool = True) -> Learner:
        """Training mode; a fixed ResNet stays in evaluation mode."""
        super().train(mode)
        if not self.together:
            self.net.train(False)
            self.net.policy.train(mode)
        return self

    def answer(self, x: Tensor, u: Tensor) -> Tensor:
        """x [n, 3, H, W], u [n, K] bool, the blocks to run -> logits [n, num_classes]."""
        decided = _Decided(self.net)
        decided.training = self.together  # the policy, which does not run, may be in training mode
        outputs: Tensor = Execution(Masking() if self.together else Compaction()).run(decided, x, u)
        return outputs.float()


class _Decided(nn.Module):
    """The network with given decisions."""

    def __init__(self, net: BlockDrop) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        keep = zip(self.net.skips, u.unbind(1), strict=True)
        return self.net.answer(x, {skip.name: (own, None) for skip, own in keep})


def train(session: Session) -> None:
    """ResNet and BlockDrop of the workload's depth, `resnet{depth}_{suffix}` and the workload's name.

    `[train.options.resnet]`, `[train.options.curriculum]` and `[train.options.together]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth, name = args.get("depth", 110), str(session.workload["name"])
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    adam = {"optimizer": "adamw", "weight_decay": 0.0}
    first = session.settings(Curriculum, "curriculum", epochs=10, lr=1e-3, **adam)
    second = session.settings(Together, "together", epochs=4, lr=3e-4, **adam)
    torch.manual_seed(first.seed)
    net = blockdrop(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    stages = {}
    for stage, settings, together in (("curriculum", first, False), ("together", second, True)):
        learner = Learner(net, together)
        stages[stage] = session.fit(f"{name}_{stage}", learner, Reinforce(settings), settings)
        session.say(f"{name}: after {stage} {_short(evaluate(session, net.eval(), accounted_macs))}")
    facts = evaluate(session, net, accounted_macs)
    facts["static_twin"] = {"name": f"resnet{depth}_{session.suffix}", "accuracy": test_accuracy(session, static)}
    session.save(name, net, session.card("dynbench.models.blockdrop:blockdrop", args=args, **facts, stages=stages))
    for stage in stages:
        session.forget(f"{name}_{stage}")


def _short(facts: dict[str, Any]) -> str:
    return f"test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the computation"


class Reinforce:
    """-A sum_k log pi(u_k) - entropy H(s), A = R(u) - R(unsampled u) (eq. 5 to 8); plus L if the ResNet is trained."""

    def __init__(self, settings: Curriculum) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        assert isinstance(model, Learner)
        logits = model.net.policy(x).float()  # [n, K]
        blocks = logits.shape[1]
        free = self.free(int(model.steps), blocks)
        model.steps += 1
        s = torch.sigmoid(logits)
        drawn_from = self.settings.bound * s + (1 - self.settings.bound) * (1 - s)
        u, greedy = torch.rand_like(s) < drawn_from, logits > 0
        u[:, : blocks - free] = greedy[:, : blocks - free] = True  # earlier blocks run for all inputs
        with torch.no_grad():
            unsampled = self.reward(model.answer(x, greedy), y, greedy)
        with torch.set_grad_enabled(model.together):
            outputs = model.answer(x, u)
        advantage = self.reward(outputs.detach(), y, u) - unsampled  # [n]
        log_p = -F.binary_cross_entropy(drawn_from, u.float(), reduction="none")[:, blocks - free :]
        bounded = drawn_from[:, blocks - free :]
        entropy = F.binary_cross_entropy(bounded, bounded, reduction="none").sum(1)
        loss = -(advantage * log_p.sum(1)).mean() - self.settings.entropy * entropy.mean()
        return loss + F.cross_entropy(outputs, y) if model.together else loss

    def free(self, step: int, blocks: int) -> int:
        """The number of blocks, counted from the last, that the policy decides for."""
        return blocks if self.settings.every == 0 else min(1 + step // self.settings.every, blocks)

    def reward(self, outputs: Tensor, y: Tensor, u: Tensor) -> Tensor:
        """R(u) (eq. 4): logits [n, C], labels [n], u [n, K] bool -> [n]."""
        right = outputs.argmax(1) == y
        return torch.where(right, 1 - u.float().mean(1) ** 2, -self.settings.penalty)
