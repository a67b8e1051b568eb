"""Networks with several exits: joint training of all exits, then the choice of thresholds on held-out data.

A model for this recipe has `every_exit(x) -> logits of each exit`, a `policy` with `thresholds`, and a `twin`: the same
network without early exits, which shares its modules.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench import hooks
from dynbench.errors import UserError
from dynbench.meters.cost import cost
from dynbench.models.accounting import exits_taken
from dynbench.models.idk import Policy, choose_thresholds
from dynbench.models.msdnet import budgeted_thresholds, exit_fractions
from dynbench.paths import load_function
from dynbench.strategies import Masking
from dynbench.training.evaluation import STORED, accuracy, dtype_name, logits, recorded
from dynbench.training.session import Session, Settings, cross_entropy


class ManyExits(Protocol):
    """A model for this recipe.

    Attributes:
        policy: determines which inputs leave; its `thresholds` are chosen here.
        twin: the network without early exits.
    """

    policy: Policy
    twin: nn.Module

    def every_exit(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits [n, C] of each exit."""


@dataclass
class JointSettings(Settings):
    """Settings of joint training.

    Attributes:
        weights: of each exit's loss; None: 1 each (MSDNet). BranchyNet's paper recommends 1 for the first exit and 0.3
            for the last.
        from_twin: start from the trained twin, as in BranchyNet's paper; the network is then trained for twice as many
            epochs as the twin.
        rule: for choosing thresholds. 'grid': the cheapest of all combinations of quantiles (BranchyNet, IDK);
            'budget': the cheapest of the budgeted batch's geometric shares q^k (MSDNet).
        epsilon: share of the last exit's accuracy that may be lost.
    """

    weights: list[float] | None = None
    from_twin: bool = False
    rule: Literal["grid", "budget"] = "grid"
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("rule", ("grid", "budget"))


class JointLoss:
    """sum_n w_n CE_n over the exits (BranchyNet, section III-B; MSDNet, section 4: all w_n = 1).

    Args:
        weights: w_n; None: 1 each.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights = weights

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Inputs x and labels y [n] -> scalar.

        Raises:
            UserError: not one weight per exit.
        """
        outputs = cast(ManyExits, model).every_exit(x)
        weights = [1.0] * len(outputs) if self.weights is None else self.weights
        if len(weights) != len(outputs):
            raise UserError(f"training: weights = {list(weights)}; the {len(outputs)} exits need one each")
        losses = [w * F.cross_entropy(z.float(), y) for w, z in zip(weights, outputs, strict=True)]
        return torch.stack(losses).sum()


def train(session: Session) -> None:
    """The workload's model, named as the workload, and its twin, `{name}_plain`, for the same number of epochs.

    `[train.options.exits]` holds the settings of both.
    """
    settings = session.settings(JointSettings, "exits", epochs=10)
    name = str(session.workload["name"])
    args: dict[str, Any] = session.workload.get("model_args", {})
    twin = _train_twin(session, f"{name}_plain", settings)
    if session.finished(name):
        return
    net, model = _new(session, settings.seed)
    if settings.from_twin:
        model.twin.load_state_dict(twin.state_dict())
    facts = session.fit(name, net, JointLoss(settings.weights), settings)
    round_as_stored(net)
    x, y = session.tensors(session.inputs("test"))
    facts |= choose(session, net, settings)
    facts |= evaluate(net, x, y)
    facts["static_twin"] = {
        "name": f"{name}_plain",
        "accuracy": accuracy(logits(twin, x), y),
        "macs": cost(net, x[:1])["macs"],
    }
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, leaving {facts['exit_shares']}")
    _save(session, name, net, session.card(str(session.workload["model"]), args=args, **facts))


def _new(session: Session, seed: int) -> tuple[nn.Module, ManyExits]:
    """The workload's untrained model; the same object under two types."""
    torch.manual_seed(seed)
    make = load_function(str(session.workload["model"]), Path.cwd())
    net = make(**session.workload.get("model_args", {}))
    missing = [what for what in ("every_exit", "policy", "twin") if not hasattr(net, what)]
    if missing:
        raise UserError(f"{session.workload['model']} cannot be trained as a net with exits: it has no {missing[0]}")
    net.to(session.device)
    return net, net


def _train_twin(session: Session, name: str, settings: JointSettings) -> nn.Module:
    twin = _new(session, settings.seed)[1].twin
    if session.finished(name):
        session.load(twin, name)
        return twin.eval()
    facts = session.fit(name, twin, cross_entropy, settings)
    round_as_stored(twin)
    x, y = session.tensors(session.inputs("test"))
    facts["accuracy"] = accuracy(logits(twin, x), y)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}")
    primary: dict[str, Any] = next((b for b in session.workload.get("baselines", []) if b.get("primary")), {})
    card = session.card(primary.get("model", "self:dense"), args=primary.get("model_args", {}), **facts)
    _save(session, name, twin, card)
    return twin


def round_as_stored(net: nn.Module) -> None:
    """Rounds every matrix and kernel to the values that it will have when loaded; vectors are not rounded."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() > 1 and tensor.is_floating_point():
            tensor.data = tensor.data.to(STORED).to(tensor.dtype)


def _save(session: Session, name: str, net: nn.Module, card: dict[str, Any]) -> None:
    small = copy.deepcopy(net)
    for tensor in (*small.parameters(), *small.buffers()):
        if tensor.dim() > 1 and tensor.is_floating_point():
            tensor.data = tensor.data.to(STORED)
    session.save(name, small, {**card, "stored_as": dtype_name(STORED)}, None)


def choose(session: Session, net: nn.Module, settings: JointSettings) -> dict[str, Any]:
    """Sets the thresholds to those chosen on the validation part; returns facts for the card."""
    held_out = session.inputs("validation")
    x, y = session.tensors(held_out)
    model = cast(ManyExits, net)
    outputs = every_logits(net, x)
    macs = cost(net, x[:1])["exits"]
    facts: dict[str, Any] = {"kind": settings.rule, "epsilon": settings.epsilon}
    if settings.rule == "grid":
        steps = [b - a for a, b in zip([0, *macs[:-1]], macs, strict=True)]
        choice = choose_thresholds(outputs, y, steps, model.policy, settings.epsilon)
        thresholds = list(choice.thresholds)
        facts |= {"accuracy": choice.accuracy, "last_accuracy": choice.last_accuracy, "macs": round(choice.cost)}
    else:
        budget = choose_budget(outputs, y, macs, settings.epsilon)
        thresholds = list(budget.thresholds)
        facts |= {**asdict(budget), "last_accuracy": accuracy(outputs[-1], y)}
    model.policy.thresholds.copy_(torch.tensor(thresholds))
    facts["thresholds"] = model.policy.thresholds.tolist()
    facts["held_out_data"] = {"description": held_out.description, "content_hash": held_out.content_hash}
    return {"rule": facts}


@dataclass(frozen=True)
class Budget:
    """A budgeted batch, and its results on the data on which its thresholds were chosen.

    Attributes:
        q: shares of inputs that leave at exit k are proportional to q^k.
        thresholds: one per exit but the last.
        accuracy: 0 to 1.
        macs: mean of an input.
    """

    q: float
    thresholds: tuple[float, ...]
    accuracy: float
    macs: float


def budgets(outputs: Sequence[Tensor], labels: Tensor, costs: Sequence[float]) -> list[Budget]:
    """MSDNet's sweep: q = p / 20 for p = 1 .. 39, each with its thresholds on held-out data.

    Args:
        outputs: logits [n, C] of each exit.
        labels: [n] long.
        costs: of an input that leaves at each exit.
    """
    found = []
    for p in range(1, 40):
        q = p / 20
        thresholds = budgeted_thresholds(outputs, exit_fractions(q, len(outputs)))
        found.append(Budget(q, tuple(thresholds), *outcome(outputs, labels, costs, thresholds)))
    return found


def outcome(
    outputs: Sequence[Tensor], labels: Tensor, costs: Sequence[float], thresholds: Sequence[float]
) -> tuple[float, float]:
    """Accuracy and mean cost if inputs leave where their confidence reaches the threshold."""
    taken = torch.full_like(labels, len(outputs) - 1)
    for k in reversed(range(len(thresholds))):
        taken[outputs[k].softmax(-1).amax(-1) >= thresholds[k]] = k
    answers = torch.stack([z.argmax(-1) for z in outputs])  # [exits, n]
    right = answers.gather(0, taken.unsqueeze(0)).squeeze(0) == labels
    mean = torch.tensor(costs, dtype=torch.float64, device=labels.device)[taken].mean()
    return round(float(right.double().mean()), 5), round(float(mean), 1)


def choose_budget(outputs: Sequence[Tensor], labels: Tensor, costs: Sequence[float], epsilon: float) -> Budget:
    """The cheapest of the sweep with (1 - epsilon) of the last exit's accuracy; if there is none, the best one."""
    found = budgets(outputs, labels, costs)
    least = (1 - epsilon) * accuracy(outputs[-1], labels)
    enough = [b for b in found if b.accuracy >= least]
    return min(enough, key=lambda b: b.macs) if enough else max(found, key=lambda b: b.accuracy)


def every_logits(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits [n, C] of each exit for all of x."""
    model = cast(ManyExits, net)
    stacked = logits(lambda part: torch.stack(model.every_exit(part), 1), x)  # [n, exits, C]
    return list(stacked.unbind(1))


def evaluate(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """For the card: accuracy of the net and of each exit, the share of inputs at each exit, and computation.

    Args:
        net: with its thresholds, in evaluation mode.
        x: test inputs.
        y: [n] labels.
    """
    answers, trace = recorded(net, x, Masking())
    outputs, counted = every_logits(net, x), cost(net, x[:1])
    point = next(iter(name for name, _ in trace.entries))
    taken = exits_taken(trace, point, len(outputs))
    shares = torch.bincount(taken, minlength=len(outputs)).double() / len(x)
    facts = {
        "accuracy": accuracy(answers, y),
        "exit_shares": [round(s, 4) for s in shares.tolist()],
        "exits": [
            {"accuracy_on_all": accuracy(z, y), "accuracy_on_its_own": _among(z, y, taken == k), "macs": macs}
            for k, (z, macs) in enumerate(zip(outputs, counted["exits"], strict=True))
        ],
        "macs": round(sum(s * m for s, m in zip(shares.tolist(), counted["exits"], strict=True))),
    }
    accounted = hooks.of(net).accounted_macs(trace, tuple(x.shape[1:]))
    if accounted is not None:
        macs, rule = accounted
        facts |= {"computation": round(macs / counted["macs"], 5), "computation_rule": f"{rule}; relative to the twin"}
    return facts


def _among(outputs: Tensor, labels: Tensor, rows: Tensor) -> float | None:
    return accuracy(outputs[rows], labels[rows]) if bool(rows.any()) else None
