"""Language models on bytes: the sparse mixture of experts, and its dense twin of equal active parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution, Route, points
from dynbench.models.moe_gpt import GPT, Balance, accounted_macs, dense_gpt, moe_gpt
from dynbench.strategies import Masking
from dynbench.training.session import Session, Settings, accuracy, cross_entropy, logits

STORED = torch.float16  # halves the files; converted when loaded


@dataclass
class Balanced(Settings):
    """How language models are trained.

    Attributes:
        balance: weight alpha of the load-balancing loss (Switch, section 2.2); the twin has nothing to balance.
    """

    balance: float = 0.01


def train(session: Session) -> None:
    """The mixture `moe_{suffix}` and its dense twin `dense_{suffix}`, trained alike.

    `[train.options.lm]` holds the settings of both.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    settings = session.settings(
        Balanced, "lm", epochs=20, batch_size=32, lr=3e-3, warm_up=0.1, weight_decay=0.1, optimizer="adamw"
    )
    twin_args = {k: v for k, v in args.items() if k in ("layers", "width", "heads", "context", "vocab")}
    twin_args["ff_multiple"] = args.get("k", 2) * args.get("ff_multiple", 1)
    twin = f"dense_{session.suffix}"
    if not session.finished(twin):
        torch.manual_seed(settings.seed)
        net = dense_gpt(**twin_args)
        facts = session.fit(twin, net, cross_entropy, settings)
        facts |= scores(session, net, net)
        session.say(f"{twin}: {facts['bits_per_byte']:.3f} bits per byte")
        session.save(twin, net, session.card("dynbench.models.moe_gpt:dense_gpt", args=twin_args, **facts), STORED)
    name = f"moe_{session.suffix}"
    if not session.finished(name):
        torch.manual_seed(settings.seed)
        net = moe_gpt(**args)
        facts = session.fit(name, net, Mixture(settings.balance), settings)
        facts |= evaluate(session, net) | {"dense_twin": twin}
        session.say(f"{name}: {facts['bits_per_byte']:.3f} bits per byte")
        session.save(name, net, session.card("dynbench.models.moe_gpt:moe_gpt", args=args, **facts), STORED)


class Mixture:
    """The next token's cross-entropy and the load-balancing loss of every router."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Tokens x and the next ones y [n, T] -> scalar."""
        balance = Balance(self.alpha)
        said = Execution(Masking(), observe=balance).run(model, x)
        return F.cross_entropy(said.float().flatten(0, 1), y.flatten()) + balance.loss


def scores(session: Session, net: nn.Module, run: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """For the card: how well the test part is predicted by the weights as they are stored."""
    for p in net.parameters():
        p.data = p.data.to(STORED).to(p.dtype)
    x, y = session.tensors(session.inputs("test"))
    said = logits(run, x, 50)
    return {
        "stored_as": str(STORED).removeprefix("torch."),
        "bits_per_byte": round(F.cross_entropy(said.flatten(0, 1), y.flatten()).item() / math.log(2), 5),
        "accuracy": accuracy(said, y),
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def evaluate(session: Session, net: GPT) -> dict[str, Any]:
    """For the card: how well, how many MACs as the papers count them, and how evenly the experts are used."""
    x, _ = session.tensors(session.inputs("test"))
    ex = Execution(Masking(), record=True)
    starts = iter(range(0, len(x), 50))
    facts = scores(session, net, lambda part: ex.run(net, part, start=next(starts), items=len(x)))
    assert ex.trace is not None
    macs, rule = accounted_macs(net, ex.trace, tuple(x.shape[1:]))
    load = {}
    for name, point in points(net).items():
        if isinstance(point, Route):
            chosen = ex.trace.entries[name, tuple(x.shape[1:])].value
            count = chosen[chosen >= 0].bincount(minlength=len(point.experts)).double()
            load[name] = [round(share, 4) for share in (count / count.sum()).tolist()]
    return facts | {"accounted_macs": round(macs), "computation_rule": rule, "expert_shares": load}
