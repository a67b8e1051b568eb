"""IDK cascade: its classifiers one by one, then the rule on held-out data.

Wang et al., UAI 2018. The classifiers are trained as they would be alone; rule and thresholds are chosen on the
validation part, which no classifier was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dynbench.dynamic import Execution
from dynbench.models.idk import IDKCascade, Policy, accounted_macs, choose_thresholds, expected_objective, idk_cascade
from dynbench.models.macs import static_macs
from dynbench.strategies import Masking
from dynbench.training.session import Session, Settings, accuracy, logits
from dynbench.training.supervised import train_resnet


@dataclass
class RuleSettings(Settings):
    """How the rule is chosen.

    Attributes:
        epsilon: share of the last classifier's accuracy that may be given up.
        cost_weight: lambda of the cost-aware objective, cost in units of the last classifier's (learned rules only).
    """

    epsilon: float = 0.0
    cost_weight: float = 0.05


def train(session: Session) -> None:
    """ResNets of the workload's depths, `resnet{depth}_{suffix}`, and the rule, `idk_{suffix}`.

    `[train.options.resnet]` and `[train.options.rule]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depths = args.get("depths", (8, 20, 38))
    classifiers = [train_resnet(session, depth) for depth in depths]
    name = f"idk_{session.suffix}"
    if session.finished(name):
        return
    settings = session.settings(RuleSettings, "rule", epochs=300, lr=0.05)
    cascade = idk_cascade(**args).to(session.device)
    for mine, trained in zip(cascade.classifiers, classifiers, strict=True):
        mine.load_state_dict(trained.state_dict())
    cascade.eval()
    held_out = session.inputs("validation")
    x, y = session.tensors(held_out)
    said = [logits(net, x) for net in cascade.classifiers]
    macs = [static_macs(net, tuple(x.shape[1:])) for net in cascade.classifiers]
    if cascade.policy.rule == "learned":
        learn_rule(cascade.policy, said, y, [m / macs[-1] for m in macs], settings)
    choice = choose_thresholds(said, y, macs, cascade.policy, settings.epsilon)
    cascade.policy.thresholds.copy_(torch.tensor(choice.thresholds))
    facts = evaluate(session, cascade, macs)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the last one's MACs")
    facts["rule"] = {
        "kind": cascade.policy.rule,
        **asdict(choice),
        "epsilon": settings.epsilon,
        "held_out_data": {"description": held_out.description, "content_hash": held_out.content_hash},
    }
    parts = {f"classifiers.{k}": f"resnet{depth}_{session.suffix}" for k, depth in enumerate(depths)} | {"policy": name}
    session.save(
        name, cascade.policy, session.card("dynbench.models.idk:idk_cascade", args=args, weights_by_part=parts, **facts)
    )


def learn_rule(
    policy: Policy, said: Sequence[Tensor], y: Tensor, costs: Sequence[float], settings: RuleSettings
) -> None:
    """Trains the IDK classifiers by the relaxed cost-aware objective, on all of the held-out data at once.

    Args:
        policy: with rule 'learned'; trained in place.
        said: logits [n, C] of each classifier.
        y: [n] labels.
        costs: of each classifier, relative to the last one's.
        settings: epochs are steps here.
    """
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.Adam(policy.parameters(), settings.lr)
    for _ in range(settings.epochs):
        optimizer.zero_grad()
        idk = [policy.doubt(z, k) for k, z in enumerate(said[:-1])]
        expected_objective(said, idk, y, costs, settings.cost_weight).backward()
        optimizer.step()


def evaluate(session: Session, cascade: IDKCascade, macs: Sequence[int]) -> dict[str, Any]:
    """For the card: accuracy, computation as the paper counts it, who answers, and each classifier alone."""
    x, y = session.tensors(session.inputs("test"))
    ex = Execution(Masking(), record=True)
    starts = iter(range(0, len(x), 250))
    answers = logits(lambda part: ex.run(cascade, part, start=next(starts), items=len(x)), x)
    assert ex.trace is not None
    counted, rule = accounted_macs(cascade, ex.trace, tuple(x.shape[1:]))
    levels = len(macs)
    knows = ex.trace.entries["cascade", (levels,)].value.view(-1, levels)[:, :-1]
    there = torch.cat([torch.ones_like(knows[:, :1]), (~knows).cumprod(1).bool()], 1)  # [n, levels]: who meets them
    return {
        "accuracy": accuracy(answers, y),
        "computation": round(counted / macs[-1], 5),
        "computation_rule": f"{rule}; relative to the last classifier alone",
        "reach_rates": [round(rate, 4) for rate in there.double().mean(0).tolist()],
        "classifiers": [
            {"accuracy": accuracy(logits(net, x), y), "macs": count}
            for net, count in zip(cascade.classifiers, macs, strict=True)
        ],
    }
