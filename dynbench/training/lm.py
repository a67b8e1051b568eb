"""Language models on bytes: the sparse mixture of experts, and its dense twin of equal active parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.accounting import decided
from dynbench.models.moe_gpt import GPT, Balance, accounted_macs, dense_gpt, moe_gpt
from dynbench.strategies import Masking
from dynbench.training.evaluation import STORED, accuracy, dtype_name, logits, recorded, round_parameters
from dynbench.training.session import Session, Settings, cross_entropy

BATCH = 50  # windows at once in the evaluation


@dataclass
class Balanced(Settings):
    """Settings of language models.

    Attributes:
        balance: weight alpha of the load-balancing loss (Switch, section 2.2), which the dense twin does not have.
    """

    balance: float = 0.01


def train(session: Session) -> None:
    """The mixture `moe_{suffix}` and its dense twin `dense_{suffix}`, trained in the same way.

    `[train.options.lm]` holds the settings of both.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    settings = session.settings(
        Balanced, "lm", epochs=20, batch_size=32, lr=3e-3, warm_up=0.1, weight_decay=0.1, optimizer="adamw"
    )
    twin_args = {k: v for k, v in args.items() if k in ("layers", "width", "heads", "context", "vocab")}
    twin_args["ff_multiple"] = args.get("k", 2) * args.get("ff_multiple", 1)
    twin = f"dense_{session.suffix}"
    train_dense(session, twin, twin_args, settings)
    name = f"moe_{session.suffix}"
    if not session.finished(name):
        torch.manual_seed(settings.seed)
        net = moe_gpt(**args)
        facts = session.fit(name, net, Mixture(settings.balance), settings)
        facts |= evaluate(session, net) | {"dense_twin": twin}
        session.say(f"{name}: {facts['bits_per_byte']:.3f} bits per byte")
        session.save(name, net, session.card("dynbench.models.moe_gpt:moe_gpt", args=args, **facts), STORED)


def train_dense(session: Session, name: str, args: dict[str, Any], settings: Settings) -> None:
    """A dense language model."""
    if session.finished(name):
        return
    torch.manual_seed(settings.seed)
    net = dense_gpt(**args)
    facts = session.fit(name, net, cross_entropy, settings)
    facts |= static_scores(session, net)
    session.say(f"{name}: {facts['bits_per_byte']:.3f} bits per byte")
    session.save(name, net, session.card("dynbench.models.moe_gpt:dense_gpt", args=args, **facts), STORED)


class Mixture:
    """The next token's cross-entropy plus the load-balancing loss of every router."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Tokens x and the next ones y [n, T] -> scalar."""
        balance = Balance(cast(GPT, model).routes, self.alpha)
        outputs = Execution(Masking(), observe=balance).run(model, x)
        return F.cross_entropy(outputs.float().flatten(0, 1), y.flatten()) + balance.loss


def scores(net: nn.Module, outputs: Tensor, y: Tensor) -> dict[str, Any]:
    """For the card: how well the next tokens y [n, T] are predicted by logits [n, T, vocab]."""
    return {
        "stored_as": dtype_name(STORED),
        "bits_per_byte": round(F.cross_entropy(outputs.flatten(0, 1), y.flatten()).item() / math.log(2), 5),
        "accuracy": accuracy(outputs, y),
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def static_scores(session: Session, net: nn.Module) -> dict[str, Any]:
    """For the card: the scores on the test part outside any execution, with weights as stored."""
    round_parameters(net)
    x, y = session.tensors(session.inputs("test"))
    return scores(net, logits(net, x, BATCH), y)


def evaluate(session: Session, net: GPT) -> dict[str, Any]:
    """For the card: scores, MACs as the papers count them, and the share of choices of each expert."""
    round_parameters(net)
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Masking(), BATCH)
    macs, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    load = {}
    for route in net.routes:
        chosen = decided(trace, route.name).value
        count = chosen[chosen >= 0].bincount(minlength=len(route.experts)).double()
        load[route.name] = [round(share, 4) for share in (count / count.sum()).tolist()]
    return scores(net, outputs, y) | {
        "accounted_macs": round(macs),
        "computation_rule": rule,
        "expert_shares": load,
    }
