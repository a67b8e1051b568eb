"""IDK cascades: a classifier that does not know ("I don't know") passes the input on to a slower, more accurate one.

Wang, Luo, Crankshaw, Tumanov, Yu, Gonzalez, "IDK Cascades: Fast Deep Learning by Learning not to Overthink", UAI 2018
(arXiv 1706.00885). No authors' code is known: the rules are the paper's as quoted by others, the relaxed objective is a
reconstruction.

The last level may be an expert outside the machine, as the paper's human expert. The expert's answers come with the
inputs, and the cost of a query is *declared* (`Expert`): it is part of no measured time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Exits, Trace
from dynbench.hooks import DeclaredCost
from dynbench.models.accounting import exits_taken, static_macs
from dynbench.models.resnet import resnet
from dynbench.models.sharing import shared_once

PAPER = "Wang et al., IDK Cascades: Fast Deep Learning by Learning not to Overthink, UAI 2018"
PROVENANCE = "reconstruction from the paper's definitions as others quote them; no authors' code is known"

ACCOUNTED = "cost of every classifier times the share of inputs that meet it; IDK rules not counted"
Rule = Literal["probability", "entropy", "learned"]
# the raw input x [n, ...], the logits of the last classifier [n, C], and with an expert the expert's answers [n]
State = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]


def entropy(p: Tensor) -> Tensor:
    """H[p] = - sum_j p_j log p_j in nats: p [n, C] -> [n]."""
    h: Tensor = torch.special.entr(p).sum(-1)
    return h


class Policy(nn.Module):
    """The rule by which a level knows its answer or says IDK, on p = softmax(logits); the last level always knows.

    probability: IDK where max_j p_j < threshold. entropy: IDK where H[p] > threshold. learned: IDK where a classifier
    h(p), logistic or with a hidden layer, exceeds the threshold, one half.

    Args:
        rule: the same for all levels.
        thresholds: one per level but the last.
        num_classes: C.
        hidden: width of the hidden layer of a learned classifier; 0: logistic.
    """

    thresholds: Tensor

    def __init__(self, rule: Rule, thresholds: Sequence[float], num_classes: int, hidden: int = 0) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("thresholds", torch.tensor(thresholds))
        self.idk = nn.ModuleList(_classifier(num_classes, hidden) for _ in thresholds if rule == "learned")

    def doubt(self, logits: Tensor, k: int) -> Tensor:
        """The doubt of level k about its answer: logits [n, C] -> [n], -max p, H or h; IDK where it exceeds a limit."""
        p = logits.softmax(-1)
        if self.rule == "probability":
            return -p.amax(-1)
        if self.rule == "entropy":
            return entropy(p)
        return torch.sigmoid(self.idk[k](p).squeeze(-1))

    def forward(self, answer: Tensor, state: State, k: int) -> Tensor:
        """answer [n, C], the logits after level k -> [n] bool: whether the level knows, so that the input leaves."""
        threshold = self.thresholds[k]
        return self.doubt(answer, k) <= (-threshold if self.rule == "probability" else threshold)


def _classifier(inputs: int, hidden: int) -> nn.Module:
    if hidden == 0:
        return nn.Linear(inputs, 1)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


class Level(nn.Module):
    """A stage of the cascade: the next classifier, on the raw input."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, state: State) -> State:
        """(x, logits so far, ...) -> (x, logits [n, C], ...)."""
        x, _, *expert = state
        return (x, self.classifier(x), *expert)


@dataclass(frozen=True)
class Expert:
    """A person or service outside the machine that is asked last. Declared, not measured.

    Attributes:
        latency_s: time of a query.
        cost: of a query.
        unit: of the cost: money, or 'MACs'.
        name: for reports.
    """

    latency_s: float
    cost: float
    unit: str = "USD"
    name: str = "human expert"

    def __post_init__(self) -> None:
        for name, value in (("latency_s", self.latency_s), ("cost", self.cost)):
            if not value >= 0:
                raise ValueError(f"expert: {name}={value!r}; it is a number of 0 or more")


CERTAINTY = 5.0  # logit of the class that an expert names, the others being 0: with ten classes a probability of 94 %


class ExpertAnswer(nn.Module):
    """The stage of an expert, whose answer is given with the input: nothing is computed.

    Args:
        num_classes: C.
    """

    classes: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("classes", torch.arange(num_classes), persistent=False)

    def forward(self, state: State) -> State:
        """(x, logits so far, named [n]) -> (x, CERTAINTY for the named class and 0 for the others [n, C], named)."""
        x, _, named = state  # type: ignore[misc]
        return x, CERTAINTY * (named.unsqueeze(1) == self.classes).to(x.dtype), named


class Answer(nn.Module):
    """The head of a stage: the logits of its classifier."""

    def forward(self, state: State) -> Tensor | None:
        """(x, logits [n, C]) -> logits."""
        return state[1]


class Last(nn.Module):
    """The static twin: the most accurate classifier alone."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, state: State) -> Tensor:
        """(x, None) -> logits [n, C]."""
        logits: Tensor = self.classifier(state[0])
        return logits


class IDKCascade(nn.Module):
    """casc(x): the first classifier that knows answers; the last always does.

    An expert is asked where the last classifier does not know either. The inputs then have one plane more than the
    classifiers take, which holds the class that the expert would name (inputs `with_expert`). The static twin is the
    last classifier alone in this case too: an expert is not timed.

    Args:
        classifiers: modules `x [n, ...] -> logits [n, C]`, from fast to accurate.
        policy: the rule, with a threshold for every level but the last.
        shape: of one input, for `input_shape`; None: any.
        expert: asked last; None: there is no expert.
        num_classes: C, needed only with an expert.
    """

    def __init__(
        self,
        classifiers: Sequence[nn.Module],
        policy: Policy,
        shape: tuple[int, ...] | None = None,
        expert: Expert | None = None,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.shape, self.expert = shape, expert
        self.classifiers, self.policy = nn.ModuleList(classifiers), policy
        levels: list[nn.Module] = [Level(c) for c in classifiers]
        if expert is not None:
            levels.append(ExpertAnswer(num_classes))
        self.cascade = Exits("cascade", levels, [Answer() for _ in levels], policy, static=Last(classifiers[-1]))
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape or default

    def forward(self, x: Tensor) -> Tensor:
        """x [n, ...] -> logits [n, C] of the classifier that answered, or those of the expert's answer."""
        logits: Tensor = self.cascade(self.beginning(x))
        return logits

    def beginning(self, x: Tensor) -> State:
        """The state before the first level: x [n, ...] -> (image, None), or (image, None, named [n])."""
        if self.expert is None:
            return x, None
        image, named = apart(x)
        return image, None, named


def apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs with an expert's plane [n, c + 1, H, W] -> (the image [n, c, H, W], the class the expert names [n]).

    Raises:
        ValueError: there is no such plane.
    """
    if x.dim() != 4 or x.shape[1] < 2:
        raise ValueError(f"inputs {tuple(x.shape)} hold no plane with an expert's answer; the inputs 'with_expert' do")
    return x[:, :-1].contiguous(), x[:, -1, 0, 0]


class Unaided(nn.Module):
    """A classifier alone, on inputs with an expert's answer, which it ignores."""

    def __init__(self, classifier: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.classifier, self.shape = classifier, shape

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c + 1, H, W] -> logits [n, C]."""
        logits: Tensor = self.classifier(apart(x)[0])
        return logits


def unaided(depth: int = 38, num_classes: int = 10, dataset: str = "cifar") -> Unaided:
    """A ResNet for inputs with an expert's answer: the baseline of a cascade with an expert.

    Args:
        depth: of the ResNet.
        num_classes: outputs.
        dataset: 'cifar' or 'imagenet'.
    """
    classifier = resnet(depth, num_classes, dataset)
    return Unaided(classifier, _one_plane_more(classifier.input_shape((3, 32, 32))))


def _one_plane_more(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0] + 1, *shape[1:])


DEFAULT_THRESHOLD = {"probability": 0.9, "entropy": 0.3, "learned": 0.5}


def idk_cascade(
    depths: Sequence[int] = (8, 20, 38),
    rule: Rule = "entropy",
    thresholds: Sequence[float] | None = None,
    num_classes: int = 10,
    hidden: int = 0,
    dataset: str = "cifar",
    expert: dict[str, Any] | None = None,
) -> IDKCascade:
    """A cascade of ResNets, with or without an expert after them.

    Thresholds are part of the weights (`policy.thresholds`): those chosen on held-out data are saved with them.

    Args:
        depths: of the ResNets, from fast to accurate; with an expert one is enough.
        rule: 'probability', 'entropy' or 'learned'.
        thresholds: one per level but the last; default: 0.9 (probability), 0.3 nats (entropy), 0.5 (learned).
        num_classes: outputs.
        hidden: width of the hidden layer of a learned IDK classifier; 0: logistic.
        dataset: 'cifar' or 'imagenet'.
        expert: the declaration of an expert that is asked last, the fields of `Expert`; None: there is none.

    Raises:
        ValueError: an unknown rule, fewer than two levels, a wrong number of thresholds, or unknown fields of an
            expert.
    """
    if rule not in DEFAULT_THRESHOLD:
        raise ValueError(f"rule={rule!r}: an IDK cascade has the rules {', '.join(map(repr, DEFAULT_THRESHOLD))}")
    asked = None if expert is None else _expert(expert)
    levels = len(depths) + (asked is not None)
    if levels < 2 or not depths:
        raise ValueError(f"depths={list(depths)}: a cascade has at least two levels")
    if thresholds is None:
        thresholds = [DEFAULT_THRESHOLD[rule]] * (levels - 1)
    if len(thresholds) != levels - 1:
        raise ValueError(f"thresholds={list(thresholds)}: {levels} levels need one each, but for the last")
    classifiers = [resnet(depth, num_classes, dataset) for depth in depths]
    policy = Policy(rule, thresholds, num_classes, hidden)
    shape = classifiers[0].input_shape((3, 32, 32))
    return IDKCascade(classifiers, policy, shape if asked is None else _one_plane_more(shape), asked, num_classes)


def _expert(declared: dict[str, Any]) -> Expert:
    try:
        return Expert(**declared)
    except TypeError as e:
        raise ValueError(f"expert={declared}: declare latency_s and cost, and optionally unit and name") from e


@dataclass(frozen=True)
class Choice:
    """Thresholds, and their results on the data on which they were chosen.

    Attributes:
        thresholds: one per level but the last.
        accuracy: of the cascade, 0 to 1.
        last_accuracy: of the last classifier alone, 0 to 1.
        cost: mean cost of an input, in the unit of `costs`.
        idk_rates: share of all inputs that leave each level but the last without an answer.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    last_accuracy: float
    cost: float
    idk_rates: tuple[float, ...]


def choose_thresholds(
    logits: Sequence[Tensor],
    labels: Tensor,
    costs: Sequence[float],
    policy: Policy,
    epsilon: float = 0.0,
    grid: int = 24,
) -> Choice:
    """Grid search on held-out data: the cheapest cascade with Acc(casc) >= (1 - epsilon) Acc(m_acc).

    With two levels the cheapest has the lowest IDK rate. IDK for all inputs is always a candidate, so there is always
    a result.

    Args:
        logits: [n, C] of each classifier, from fast to accurate, on the same inputs.
        labels: [n] long.
        costs: of each classifier, in one unit (MACs); an input pays for every classifier that it reaches.
        policy: its rule is the one the thresholds are for.
        epsilon: the share of the last classifier's accuracy that may be given up.
        grid: candidates per level, at quantiles of its doubt. grid ^ (levels - 1) combinations are tried.

    Raises:
        ValueError: not one cost per classifier.
    """
    if len(costs) != len(logits):
        raise ValueError(f"{len(costs)} costs for {len(logits)} classifiers")
    right = torch.stack([(z.argmax(-1) == labels).double() for z in logits])  # [levels, n]
    doubts = [policy.doubt(z, k).double().detach() for k, z in enumerate(logits[:-1])]
    candidates = [_candidates(d, grid) for d in doubts]
    last_accuracy = float(right[-1].mean())
    sign = -1 if policy.rule == "probability" else 1
    best: Choice | None = None
    for limits in itertools.product(*candidates):
        there, correct, cost, rates = torch.ones_like(right[0]), right[-1], float(costs[0]), []
        for k, limit in enumerate(limits):
            there = there * (doubts[k] > limit)  # [n]: IDK at every level so far
            rates.append(float(there.mean()))
            cost += rates[-1] * costs[k + 1]
        for k in reversed(range(len(limits))):  # an earlier level that knows takes precedence
            correct = torch.where(doubts[k] > limits[k], correct, right[k])
        choice = Choice(
            tuple(sign * float(t) for t in limits), float(correct.mean()), last_accuracy, cost, tuple(rates)
        )
        enough = choice.accuracy >= (1 - epsilon) * last_accuracy - 1e-12
        if enough and (best is None or (choice.cost, -choice.accuracy) < (best.cost, -best.accuracy)):
            best = choice
    assert best is not None  # with IDK for all inputs the cascade is the last classifier
    return best


def _candidates(doubt: Tensor, grid: int) -> Tensor:
    """Limits between the values that occur, exact in float32: from none of the inputs known to all of them."""
    values = doubt.sort().values
    at = torch.linspace(0, len(values), grid).long()  # number of inputs known
    below, above = values[(at - 1).clamp(min=0)], values[at.clamp(max=len(values) - 1)]
    limits = (below + above) / 2
    limits[0], limits[-1] = values[0] - 1, values[-1] + 1
    distinct: Tensor = limits.float().double().unique()
    return distinct


def cascaded(policy: Policy, logits: Sequence[Tensor], labels: Tensor) -> tuple[float, list[float]]:
    """The results of a cascade, from every level's answers to all inputs.

    Args:
        policy: its rule.
        logits: [n, C] of each level, on the same inputs.
        labels: [n] long.

    Returns:
        (accuracy, share of the inputs that reaches each level).
    """
    right = [z.argmax(-1) == labels for z in logits]
    there, correct, reached = torch.ones_like(right[0]), torch.zeros_like(right[0]), []
    for k, z in enumerate(logits):
        reached.append(float(there.double().mean()))
        knows = policy(z, (z, z), k) if k < len(logits) - 1 else torch.ones_like(there)
        correct |= there & knows & right[k]
        there = there & ~knows
    return float(correct.double().mean()), reached


def expected_objective(
    logits: Sequence[Tensor], idk: Sequence[Tensor], labels: Tensor, costs: Sequence[float], weight: float
) -> Tensor:
    """The cost-aware objective J = mean_i [Loss(y_i, casc(x_i)) + lambda C(casc(x_i))], in expectation over the levels.

    For two levels and h in [0, 1]: (1 - h) Loss(y, m_fast) + h Loss(y, m_acc) + lambda (c_fast + h c_acc). For h in
    {0, 1} it is J itself; in between it has a gradient. (The relaxed form is a reconstruction.)

    Args:
        logits: [n, C] of each classifier.
        idk: h [n] of each level but the last: the probability that it does not know.
        labels: [n] long.
        costs: [levels], preferably relative to the last classifier's.
        weight: lambda.

    Returns:
        A scalar.
    """
    reach, total = torch.ones_like(idk[0]), torch.zeros_like(idk[0])
    for k, z in enumerate(logits):
        h = idk[k] if k < len(idk) else torch.zeros_like(reach)
        wrong = F.cross_entropy(z, labels, reduction="none")  # [n]
        total = total + reach * ((1 - h) * wrong + weight * costs[k])
        reach = reach * h
    return total.mean()


def accounted_macs(model: IDKCascade, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper counts: c_fast + IDK rate * c_accurate, and so on; rules and IDK classifiers are free."""
    if model.expert is not None:
        shape = (shape[0] - 1, *shape[1:])
    rates = reach_rates(model, trace)
    macs = sum(rate * static_macs(c, shape) for rate, c in zip(rates, model.classifiers, strict=False))
    return macs, ACCOUNTED


def reach_rates(model: IDKCascade, trace: Trace) -> list[float]:
    """The share of a stream's inputs that reaches each level, an expert's included; the first is 1."""
    levels = len(model.cascade.stages)
    last = exits_taken(trace, "cascade", levels)
    return [float((last >= k).double().mean()) for k in range(levels)]


def declared_costs(model: IDKCascade, trace: Trace) -> list[DeclaredCost]:
    """The queries to an expert, as the workload declares them; without an expert []."""
    if model.expert is None:
        return []
    e = model.expert
    share = reach_rates(model, trace)[-1]
    return [{"what": e.name, "share": share, "latency_s": e.latency_s, "cost": e.cost, "unit": e.unit}]
