"""Universal Transformer on bytes: cross-entropy and ponder cost; and a twin with a fixed number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.universal import UniversalTransformer, accounted_macs, ponder_steps, universal_transformer
from dynbench.strategies import Masking
from dynbench.training.evaluation import STORED, recorded, round_parameters
from dynbench.training.lm import BATCH, scores, static_scores
from dynbench.training.session import Session, Settings, cross_entropy

MODEL = "dynbench.models.universal:universal_transformer"
ADAMW: dict[str, Any] = {"batch_size": 32, "warm_up": 0.1, "weight_decay": 0.1, "optimizer": "adamw"}


@dataclass
class Pondered(Settings):
    """Settings of a Universal Transformer.

    Attributes:
        tau: weight of the ponder cost, in nats per step (Graves, section 2.2).
    """

    tau: float = 0.01


def train(session: Session) -> None:
    """Networks without halting, `universal{steps}_{suffix}`, then the one with halting, `universal_{suffix}`.

    There is a network without halting for each baseline, and one with all steps, from whose weights the last one
    starts: a network that halts from the start of its training learns to halt before it learns to use further steps.
    `[train.options.fixed]` and `[train.options.ponder]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    deepest = {**args, "halting": "none"}
    given = [b.get("model_args", {}) for b in session.workload.get("baselines", []) if b.get("model") == MODEL]
    fixed = {a["steps"]: a for a in (*given, deepest)}
    for one in fixed.values():
        train_fixed(session, one)
    name = f"universal_{session.suffix}"
    if session.finished(name):
        return
    settings = session.settings(Pondered, "ponder", epochs=8, lr=1e-3, **ADAMW)
    torch.manual_seed(settings.seed)
    net = universal_transformer(**args)
    session.load(net, f"universal{args['steps']}_{session.suffix}")
    facts = session.fit(name, net, PonderLoss(settings.tau), settings)
    facts |= evaluate(session, net) | {"started_from": f"universal{args['steps']}_{session.suffix}"}
    session.say(f"{name}: {facts['bits_per_byte']:.3f} bits per byte, {facts['mean_ponder_steps']:.2f} steps")
    session.save(name, net, session.card(MODEL, args=args, **facts), STORED)


def train_fixed(session: Session, args: dict[str, Any]) -> None:
    """A network with a fixed number of steps, `universal{steps}_{suffix}`."""
    name = f"universal{args['steps']}_{session.suffix}"
    if session.finished(name):
        return
    settings = session.settings(Settings, "fixed", epochs=16, lr=3e-3, **ADAMW)
    torch.manual_seed(settings.seed)
    net = universal_transformer(**args)
    facts = session.fit(name, net, cross_entropy, settings)
    facts |= static_scores(session, net)
    session.say(f"{name}: {facts['bits_per_byte']:.3f} bits per byte")
    session.save(name, net, session.card(MODEL, args=args, **facts), STORED)


class WithCost(nn.Module):
    """The network with its ponder costs: tokens [n, T] -> logits [n, T, vocab], rho [n, T]."""

    def __init__(self, net: UniversalTransformer) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [n, T] -> (logits, rho)."""
        return self.net.pondered(tokens)


class PonderLoss:
    """The next token's cross-entropy plus tau times the mean ponder cost rho = N + R; N has no gradient.

    Args:
        tau: weight of the ponder cost.
    """

    def __init__(self, tau: float) -> None:
        self.tau = tau

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Tokens x and the next ones y [n, T] -> scalar."""
        assert isinstance(model, UniversalTransformer)
        outputs, rho = Execution(Masking()).run(WithCost(model), x)
        loss: Tensor = F.cross_entropy(outputs.float().flatten(0, 1), y.flatten()) + self.tau * rho.float().mean()
        return loss


def evaluate(session: Session, net: UniversalTransformer) -> dict[str, Any]:
    """For the card: scores with halting and with all steps for all positions, and the number of steps."""
    round_parameters(net)
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Masking(), BATCH)
    macs, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    steps = ponder_steps(net, trace)
    twin = static_scores(session, net)
    return scores(net, outputs, y) | {
        "mean_ponder_steps": round(float(steps.double().mean()), 4),
        "share_by_steps": [round(float((steps == n + 1).double().mean()), 4) for n in range(int(steps.max()))],
        "static_twin": {"bits_per_byte": twin["bits_per_byte"], "accuracy": twin["accuracy"]},
        "accounted_macs": round(macs),
        "computation_rule": rule,
    }
