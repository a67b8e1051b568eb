"""IDK cascade: its classifiers one by one, then the rule on held-out data.

Wang et al., UAI 2018. The classifiers are trained separately; rule and thresholds are chosen on the validation part, on
which no classifier was trained. The card also compares all rules at equal accuracy: the cost of the cascade when it is
as accurate as its last level, or less accurate by given points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dynbench.data import Dataset
from dynbench.models.accounting import static_macs
from dynbench.models.idk import (
    ACCOUNTED,
    IDKCascade,
    Policy,
    cascaded,
    choose_thresholds,
    expected_objective,
    idk_cascade,
)
from dynbench.training.evaluation import accuracy, logits
from dynbench.training.keeping import Steps, unkept
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import train_resnet

EXPERT_COST = 1e3  # of a query, in runs of the last classifier: computation is cheap relative to any expert

Answers = tuple[Sequence[Tensor], Tensor]  # logits [n, C] of each level, labels [n]


@dataclass
class RuleSettings(Settings):
    """Settings of the choice of a rule.

    Attributes:
        epsilon: share of the last level's accuracy that may be lost.
        objective: of a learned rule: 'cost-aware', or 'cost-oblivious', whether the classifier is right.
        cost_weight: lambda of the cost-aware objective, with costs relative to the last classifier's.
        cost_weights: the lambdas tried in the comparison of rules.
        grid: thresholds tried per level.
        give_up: losses of accuracy, relative to the last level, at which rules are compared.
    """

    passes: ClassVar[bool] = False
    epsilon: float = 0.0
    objective: str = "cost-aware"
    cost_weight: float = 0.05
    cost_weights: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    grid: int = 24
    give_up: tuple[float, ...] = (0.0, 0.005)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("objective", ("cost-aware", "cost-oblivious"))


def train(session: Session) -> None:
    """ResNets of the workload's depths, `resnet{depth}_{suffix}`, and the rule, named as the workload.

    `[train.options.resnet]` and `[train.options.rule]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depths = args.get("depths", (8, 20, 38))
    classifiers = [train_resnet(without_expert(session), depth) for depth in depths]
    name = str(session.workload["name"])
    if session.finished(name):
        return
    settings = session.settings(RuleSettings, "rule", epochs=300, lr=0.05)
    cascade = idk_cascade(**args).to(session.device)
    for classifier, trained in zip(cascade.classifiers, classifiers, strict=True):
        classifier.load_state_dict(trained.state_dict())
    cascade.eval()
    held_out, test = session.inputs("validation"), session.inputs("test")
    chosen_on, tested_on = (answers_of_levels(session, cascade, data) for data in (held_out, test))
    planes = test.inputs.shape[1] - (cascade.expert is not None)
    macs = [static_macs(net, (planes, *test.inputs.shape[2:])) for net in cascade.classifiers]
    costs = [m / macs[-1] for m in macs] + ([EXPERT_COST] if cascade.expert else [])
    steps = session.steps(name, settings)
    if cascade.policy.rule == "learned":
        weight = settings.cost_weight if settings.objective == "cost-aware" else None
        learn_rule(cascade.policy, *chosen_on, costs, settings, weight, steps)
    choice = choose_thresholds(*chosen_on, costs, cascade.policy, settings.epsilon, settings.grid)
    cascade.policy.thresholds.copy_(torch.tensor(choice.thresholds))
    facts = evaluate(cascade, tested_on, macs)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the last one's MACs")
    facts["rule"] = {
        "kind": cascade.policy.rule,
        **asdict(choice),
        "cost_unit": "runs of the last classifier"
        + (f"; a query to the expert {EXPERT_COST:g}" if cascade.expert else ""),
        "epsilon": settings.epsilon,
        "held_out_data": {"description": held_out.description, "content_hash": held_out.content_hash},
    }
    facts["rules"] = compare_rules(chosen_on, tested_on, costs, settings, steps)
    parts = {f"classifiers.{k}": f"resnet{depth}_{session.suffix}" for k, depth in enumerate(depths)} | {"policy": name}
    session.save(
        name, cascade.policy, session.card("dynbench.models.idk:idk_cascade", args=args, weights_by_part=parts, **facts)
    )


def without_expert(session: Session) -> Session:
    """The same session with inputs without an expert's answers, for training the classifiers."""
    inputs = dict(session.workload["inputs"])
    if inputs["name"] != "with_expert":
        return session
    options = {k: v for k, v in inputs.get("options", {}).items() if k not in ("of", "error_rate")}
    of = inputs.get("options", {}).get("of", "cluttered_digits")
    return replace(session, workload={**session.workload, "inputs": {"name": of, "options": options}})


def answers_of_levels(session: Session, cascade: IDKCascade, data: Dataset) -> Answers:
    """The answers of every level, an expert's included, to all inputs."""
    x, y = session.tensors(data)
    outputs = []
    for level in cascade.cascade.stages:

        def run(part: Tensor, level: Any = level) -> Tensor:
            answer: Tensor = level(cascade.beginning(part))[1]
            return answer

        outputs.append(logits(run, x))
    return outputs, y


def learn_rule(
    policy: Policy,
    outputs: Sequence[Tensor],
    y: Tensor,
    costs: Sequence[float],
    settings: RuleSettings,
    cost_weight: float | None,
    steps: Steps = unkept,
) -> None:
    """Trains the IDK classifiers on all of the held-out data at once.

    Args:
        policy: with rule 'learned'; trained in place.
        outputs: logits [n, C] of each level.
        y: [n] labels.
        costs: of each level, relative to the last classifier's; a query to an expert counts as much as that one, as its
            real cost would dominate every loss.
        settings: epochs are steps here.
        cost_weight: lambda of the relaxed cost-aware objective; None: cost-oblivious, the cross-entropy of predicting
            where a level is wrong.
        steps: of the training.
    """
    costs = [min(cost, 1.0) for cost in costs]
    wrong = [(z.argmax(-1) != y).float() for z in outputs[:-1]]
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.Adam(policy.parameters(), settings.lr)
    for _ in steps(settings.epochs, policy=policy, optimizer=optimizer):
        optimizer.zero_grad()
        idk = [policy.doubt(z, k) for k, z in enumerate(outputs[:-1])]
        if cost_weight is None:
            loss = torch.stack([F.binary_cross_entropy(h, w) for h, w in zip(idk, wrong, strict=True)]).sum()
        else:
            loss = expected_objective(outputs, idk, y, costs, cost_weight)
        loss.backward()
        optimizer.step()


def compare_rules(
    held_out: Answers, test: Answers, costs: Sequence[float], settings: RuleSettings, steps: Steps = unkept
) -> dict[str, dict[str, dict[str, Any]]]:
    """All rules at equal accuracy: thresholds (and lambda) chosen on held-out data, results on test data.

    Args:
        held_out: the levels' answers on data on which rules are chosen and trained.
        test: the levels' answers on test data.
        costs: of each level, relative to the last classifier's.
        settings: accepted losses of accuracy, and the training of learned rules.
        steps: of that training.

    Returns:
        By rule and by accuracy lost: `cost` and `accuracy` on both, and the share of the test data that reaches each
        level.
    """
    outputs, y = held_out
    classes = outputs[0].shape[-1]
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, policies in _rules(outputs, y, costs, settings, classes, steps).items():
        for points in settings.give_up:
            epsilon = points / max(accuracy(outputs[-1], y), 1e-9)
            found = [(choose_thresholds(outputs, y, costs, p, epsilon, settings.grid), p) for p in policies]
            chosen, policy = min(found, key=lambda pair: pair[0].cost)
            policy.thresholds.copy_(torch.tensor(chosen.thresholds))
            right, reached = cascaded(policy, test[0], test[1])
            paid = sum(rate * cost for rate, cost in zip(reached, costs, strict=True))
            row = {
                "held_out_cost": round(chosen.cost, 4),
                "held_out_accuracy": round(chosen.accuracy, 4),
                "cost": round(paid, 4),
                "accuracy": round(right, 4),
                "reach_rates": [round(rate, 4) for rate in reached],
            }
            label = f"{100 * points:g} points below the last" if points else "as accurate as the last"
            table.setdefault(name, {})[label] = row
    return table


def _rules(
    outputs: Sequence[Tensor],
    y: Tensor,
    costs: Sequence[float],
    settings: RuleSettings,
    classes: int,
    steps: Steps,
) -> Mapping[str, list[Policy]]:
    """The policies of each rule, by its name: one for each lambda of a cost-aware rule, else one."""
    levels = [0.5] * (len(outputs) - 1)

    def learned(hidden: int, weight: float | None) -> Policy:
        torch.manual_seed(settings.seed)
        policy = Policy("learned", levels, classes, hidden).to(y.device)
        learn_rule(policy, outputs, y, costs, settings, weight, steps)
        return policy

    rules = {"probability": [Policy("probability", levels, classes)], "entropy": [Policy("entropy", levels, classes)]}
    for kind, hidden in (("logistic", 0), ("hidden layer", 16)):
        rules[f"learned, cost-aware, {kind}"] = [learned(hidden, weight) for weight in settings.cost_weights]
        rules[f"learned, cost-oblivious, {kind}"] = [learned(hidden, None)]
    return {name: [p.to(y.device) for p in policies] for name, policies in rules.items()}


def evaluate(cascade: IDKCascade, test: Answers, macs: Sequence[int]) -> dict[str, Any]:
    """For the card: accuracy, computation as the paper counts it, reach rates, and each level alone.

    Args:
        cascade: with its rule.
        test: the levels' answers on test data.
        macs: of each classifier.
    """
    outputs, y = test
    right, reached = cascaded(cascade.policy, outputs, y)
    counted = sum(rate * count for rate, count in zip(reached, macs, strict=False))
    declared = cascade.expert
    expert = {} if declared is None else {"accuracy": accuracy(outputs[-1], y), "declared": asdict(declared)}
    return {
        "accuracy": round(right, 5),
        "computation": round(counted / macs[-1], 5),
        "computation_rule": f"{ACCOUNTED}; relative to the last classifier alone",
        "reach_rates": [round(rate, 4) for rate in reached],
        "classifiers": [{"accuracy": accuracy(z, y), "macs": count} for z, count in zip(outputs, macs, strict=False)],
        **({"expert": expert} if expert else {}),
    }
