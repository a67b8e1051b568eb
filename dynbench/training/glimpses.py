"""RAM and GARN: classification is learned from labels, where to look from rewards.

Mnih et al., NeurIPS 2014, section 3: a hybrid of the label's gradient and REINFORCE with a learned baseline; weights as
in the public re-implementation. GARN (Dai et al., KDD 2020) is guided by the regions of interest; the exact reward is a
reconstruction. Three things are ours. The classifier is trained and rewarded after each glimpse (for a RAM without
halting: after the last, as in the paper). In a first stage glimpses are shown the regions, because learning from
rewards alone takes many times as long. And the recurrent state learns from the rewards as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.data import Split
from dynbench.dynamic import DecisionPoint, Execution, Strategy, Trace
from dynbench.models.accounting import static_macs
from dynbench.models.garn import GARN, guidance
from dynbench.models.ram import RAM, Confident, HaltingUnit, Locator, PlainCNN, accounted_macs, class_state, on_grid
from dynbench.strategies import Dense, Masking
from dynbench.training.evaluation import accuracy, logits, recorded
from dynbench.training.session import Session, Settings, cross_entropy

SHOWN: dict[str, Any] = {"epochs": 14, "batch_size": 64, "lr": 3e-3, "rl_weight": 0.02}
HYBRID: dict[str, Any] = {"epochs": 5, "batch_size": 64, "lr": 3e-4, "rl_weight": 0.03}


@dataclass
class Looking(Settings):
    """Settings of a stage.

    Attributes:
        rl_weight: of the REINFORCE term (public re-implementation: 0.01).
        every_glimpse: the classifier answers and is rewarded after each glimpse; else after the last (paper).
        guided: reward 1 for each region of interest found (GARN).
        places: 'policy': drawn by the network; 'shown': around the regions of interest, from left to right, which the
            network learns to draw (curriculum, uses the regions); 'random': uniform, with no learning of places
            (control).
        joint: the recurrent state also receives the locator's gradient (not in the public re-implementation).
    """

    lr: float = 3e-3
    optimizer: str = "adamw"
    precision: str = "float32"
    weight_decay: float = 1e-4
    rl_weight: float = 0.01
    every_glimpse: bool = False
    guided: bool = False
    places: str = "policy"
    joint: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("places", ("policy", "shown", "random"))


@dataclass
class Halting(Settings):
    """Settings of the halting rule, which is chosen on held-out data.

    Attributes:
        epsilon: share of the accuracy after all glimpses that may be lost.
    """

    passes: ClassVar[bool] = False
    epsilon: float = 0.005


def train_ram(session: Session) -> None:
    """RAM in two stages, `ram_{suffix}`, and its baseline, a plain network, if the workload has one.

    `[train.options.shown]`, `[train.options.hybrid]`, `[train.options.halting]` and `[train.options.cnn]` hold the
    settings. As a control a network of the same size is trained for as long with glimpses at random places.
    """
    train_plain(session)
    name = f"ram_{session.suffix}"
    if session.finished(name):
        return
    args: dict[str, Any] = session.workload.get("model_args", {})
    each = args.get("halt") is not None
    shown = session.settings(Looking, "shown", places="shown", every_glimpse=each, **SHOWN)
    hybrid = session.settings(Looking, "hybrid", every_glimpse=each, **HYBRID)
    net, stages, before = _two_stages(session, RAM, name, shown, hybrid)
    random = replace(shown, epochs=shown.epochs + hybrid.epochs, places="random")
    control, about = _fit(session, RAM, f"{name}_random", random)
    facts = {
        "random_places": {
            "accuracy_after_each_glimpse": after_each(session, control, random),
            "epochs": about["epochs"],
        },
        "accuracy_after_each_glimpse": after_each(session, net, hybrid),
        "accuracy_before_rewards": before,
        "regions_found": found(session, net),
        "static_twin": {
            "name": "all glimpses",
            "accuracy": accuracy(_recorded(session, net, Dense())[0], _labels(session)),
        },
        "halting": set_halting(session, net, session.settings(Halting, "halting", epochs=300, lr=0.05))
        if each
        else None,
        **evaluate(session, net),
    }
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['glimpses']['mean']:.2f} glimpses")
    session.save(name, net, session.card("dynbench.models.ram:RAM", args=args, **facts, stages=stages))
    for stage in ("shown", "hybrid", "random"):
        session.forget(f"{name}_{stage}")


def train_garn(session: Session) -> None:
    """GARN in two guided stages, `garn_{suffix}`, and its baseline, a plain network, if the workload has one.

    Settings as for `train_ram`. As a control the same network is trained for as long without guidance, with rewards
    for right answers only.
    """
    train_plain(session)
    name = f"garn_{session.suffix}"
    if session.finished(name):
        return
    shown = session.settings(Looking, "shown", places="shown", guided=True, every_glimpse=True, **SHOWN)
    hybrid = session.settings(Looking, "hybrid", guided=True, every_glimpse=True, **HYBRID)
    net, stages, before = _two_stages(session, GARN, name, shown, hybrid)
    unguided = replace(shown, epochs=shown.epochs + hybrid.epochs, places="policy", guided=False)
    control, about = _fit(session, GARN, f"{name}_unguided", unguided)
    facts = {
        "unguided": {
            "accuracy": evaluate(session, control)["accuracy"],
            "regions_found": found(session, control),
            "epochs": about["epochs"],
        },
        "accuracy_before_rewards": before,
        "regions_found": found(session, net),
        **evaluate(session, net),
    }
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, unguided {facts['unguided']['accuracy']:.4f}")
    args = session.workload.get("model_args", {})
    session.save(name, net, session.card("dynbench.models.garn:GARN", args=args, **facts, stages=stages))
    for stage in ("shown", "hybrid", "unguided"):
        session.forget(f"{name}_{stage}")


def train_plain(session: Session) -> None:
    """The workload's baseline of class `PlainCNN`, if it has one with weights; `[train.options.cnn]`."""
    adamw: dict[str, Any] = {"optimizer": "adamw", "precision": "float32", "weight_decay": 1e-2}
    train_baseline(session, PlainCNN, "cnn", epochs=12, lr=3e-3, batch_size=64, **adamw)


def train_baseline(session: Session, kind: type[nn.Module], stage: str, **defaults: Any) -> None:
    """The workload's baselines of a class, by cross-entropy, if they have weights.

    Args:
        session: of the training.
        kind: the class.
        stage: `[train.options.STAGE]` holds the settings.
        **defaults: of the settings.
    """
    for table in session.workload.get("baselines", []):
        if not str(table.get("model", "")).endswith(f":{kind.__name__}") or "weights" not in table:
            continue
        name = Path(table["weights"]).stem
        if session.finished(name):
            continue
        settings = session.settings(Settings, stage, **defaults)
        torch.manual_seed(settings.seed)
        args = table.get("model_args", {})
        net = kind(**args)
        facts = session.fit(name, net, cross_entropy, settings)
        x, y = session.tensors(session.inputs("test"))
        facts["accuracy"] = accuracy(logits(net, x), y)
        session.say(f"{name}: test accuracy {facts['accuracy']:.4f}")
        session.save(name, net, session.card(f"{kind.__module__}:{kind.__name__}", args=args, **facts))


def _with_boxes(session: Session) -> Session:
    """The same session, with labels that include the boxes of the regions."""
    inputs = session.workload["inputs"]
    inputs = {**inputs, "options": {**inputs.get("options", {}), "guidance": True}}
    return replace(session, workload={**session.workload, "inputs": inputs})


def _fit(
    session: Session, kind: type[RAM], name: str, settings: Looking, net: RAM | None = None
) -> tuple[RAM, dict[str, Any]]:
    if net is None:
        torch.manual_seed(settings.seed)
        net = kind(**session.workload.get("model_args", {}))
    return net, _with_boxes(session).fit(name, net, Hybrid(settings), settings)


def _two_stages(
    session: Session, kind: type[RAM], name: str, shown: Looking, hybrid: Looking
) -> tuple[RAM, dict[str, Any], float]:
    """The network, facts for the card of both stages, and its test accuracy between them."""
    net, first = _fit(session, kind, f"{name}_shown", shown)
    between = accuracy(_recorded(session, net, Dense())[0], _labels(session))
    _, second = _fit(session, kind, f"{name}_hybrid", hybrid, net)
    return net, {"shown": first, "hybrid": second}, between


def _labels(session: Session) -> Tensor:
    return session.tensors(session.inputs("test"))[1]


def _recorded(session: Session, net: RAM, strategy: Strategy) -> tuple[Tensor, Trace]:
    """Log-probabilities for the test part [n, C], and the trace."""
    x, _ = session.tensors(session.inputs("test"))
    return recorded(net.eval(), x, strategy)


def evaluate(session: Session, net: RAM) -> dict[str, Any]:
    """For the card: accuracy with the halting rule, glimpses taken, computation as the paper counts it."""
    outputs, trace = _recorded(session, net, Masking())
    x, y = session.tensors(session.inputs("test"))
    steps = net.loop.max_steps
    taken = trace.entries["look", (steps,)].reached.view(-1, steps).sum(1)  # [n]
    counted, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    return {
        "accuracy": accuracy(outputs, y),
        "computation": round(counted / static_macs(net, tuple(x.shape[1:])), 5),
        "computation_rule": f"{rule}; relative to all glimpses",
        "glimpses": {
            "mean": round(taken.double().mean().item(), 3),
            "shares": [round((taken == k + 1).double().mean().item(), 4) for k in range(steps)],
        },
    }


@torch.no_grad()
def look_around(
    session: Session, net: RAM, split: Split, places: str = "policy"
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Runs the network on a part of the data, from the centre, at the means or at random places.

    Returns:
        The T states from which classes are read, each [n, hidden]; places [T, n, 2]; labels [n]; boxes [n, R, 4].
    """
    x, y = session.tensors(_with_boxes(session).inputs(split))
    generator = torch.Generator().manual_seed(0)

    def draw(t: int, mu: Tensor) -> Tensor:
        return mu if places == "policy" else (2 * torch.rand(mu.shape, generator=generator) - 1).to(mu)

    states, at, _, _ = glimpse(net.eval(), x, draw, x.new_zeros(len(x), 2))
    return [class_state(h) for h in states], at, y[:, 0], y[:, 1:].unflatten(1, (-1, 4))


@torch.no_grad()
def after_each(session: Session, net: RAM, settings: Looking) -> list[float]:
    """Test accuracy if all inputs stop after each glimpse."""
    states, _, y, _ = look_around(session, net, "test", "random" if settings.places == "random" else "policy")
    return [accuracy(net.classifier(h), y) for h in states]


def found(session: Session, net: RAM) -> float:
    """Share of the regions of interest that contain the centre of a glimpse, on the test part."""
    _, places, _, boxes = look_around(session, net, "test")
    visited = guidance(places, boxes, net.shape[1:]).sum(0)
    return round((visited / boxes.shape[1]).mean().item(), 4)


def set_halting(session: Session, net: RAM, settings: Halting) -> dict[str, Any]:
    """Chooses the halting rule on the validation part, in place; a learned unit is trained there first.

    The unit learns whether the answer is right. Its limit, or the threshold of 'confidence', is the one with the fewest
    glimpses that costs at most `epsilon` of the accuracy after all glimpses.
    """
    states, _, y, _ = look_around(session, net, "validation")
    h = torch.stack(states)  # [T, n, hidden]
    with torch.no_grad():
        log_p = net.classifier(h).log_softmax(-1)  # [T, n, C]
    right = log_p.argmax(-1) == y
    rule = net.loop.halt
    if isinstance(rule, HaltingUnit):
        torch.manual_seed(settings.seed)
        optimizer = torch.optim.Adam(rule.parameters(), settings.lr)
        steps = session.steps(f"ram_{session.suffix}", settings)
        for _ in steps(settings.epochs, rule=rule, optimizer=optimizer):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(rule.score(h), right.float()).backward()
            optimizer.step()
        with torch.no_grad():
            limit, taken, kept = choose_limit(rule.score(h)[:-1], right, settings.epsilon)
            assert rule.unit.bias is not None
            rule.unit.bias.sub_(limit)
    else:
        assert isinstance(rule, Confident)
        limit, taken, kept = choose_limit(log_p.amax(-1).exp()[:-1], right, settings.epsilon)
        rule.threshold.fill_(limit)
    return {
        "kind": "learned" if isinstance(rule, HaltingUnit) else "confidence",
        "limit": limit,
        "epsilon": settings.epsilon,
        "held_out_glimpses": round(taken, 3),
        "held_out_accuracy": round(kept, 5),
        "held_out_accuracy_of_all_glimpses": round(right[-1].double().mean().item(), 5),
    }


def choose_limit(scores: Tensor, right: Tensor, epsilon: float, grid: int = 200) -> tuple[float, float, float]:
    """The limit with the fewest glimpses: an item halts after the first glimpse whose score exceeds it.

    Args:
        scores: [T - 1, n]; there is no decision after the last glimpse.
        right: [T, n] bool: whether the answer after each glimpse is right.
        epsilon: share of the accuracy after all T glimpses that may be lost.
        grid: number of candidates, at quantiles of the scores. A limit with no early halting is always among them.

    Returns:
        (limit, mean glimpses, accuracy).
    """
    limits = torch.quantile(
        scores.flatten()[: 1 << 20].float(), torch.linspace(0, 1, grid, device=scores.device)
    ).unique()
    enough = (1 - epsilon) * right[-1].double().mean().item() - 1e-12
    best = (float(scores.max()), float(len(right)), right[-1].double().mean().item())  # no early halting
    for limit in limits.tolist():
        halts = torch.cat([scores > limit, torch.ones_like(right[:1])])
        at = halts.int().argmax(0)  # the first glimpse
        correct = right.gather(0, at.unsqueeze(0)).double().mean().item()
        taken = at.double().mean().item() + 1
        if correct >= enough and (taken, -correct) < (best[1], -best[2]):
            best = (limit, taken, correct)
    return best


Places = Callable[[int, Tensor], Tensor]


class Hybrid:
    """NLL + MSE(b, R) + rl_weight REINFORCE, REINFORCE = mean over the batch of sum_t -log pi(l_t) (R_t - b_t).

    R_t is the reward after the choice of l_t. Paper: 1 where the last answer is right. With `every_glimpse` the mean
    over the later answers; NLL is then the mean over the glimpses. With `guided` each region found adds 1. The choice
    after the last glimpse has no effect and is left out. Locations are drawn from N(mu, std^2), the first one
    uniformly.
    """

    def __init__(self, settings: Looking) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, c, H, W], y [n] or, with boxes, [n, 1 + 4 R] -> scalar."""
        assert isinstance(model, RAM)
        s, label = self.settings, y if y.dim() == 1 else y[:, 0]
        size = (x.shape[2], x.shape[3])
        boxes = y[:, 1:].unflatten(1, (-1, 4)) if s.guided or s.places == "shown" else None  # [n, R, 4]
        centres = None if boxes is None else middle(boxes, size)  # [R, n, 2]
        cast(Locator, model.look.body).detach = model.reward_stops and not s.joint
        h, places, mu, drawn = glimpse(model, x, self._places(centres, model.std))
        from_glimpse = 0 if s.every_glimpse else -1
        outputs = torch.stack([model.classifier(class_state(state)) for state in h[from_glimpse:]])  # [1 or T, n, C]
        nll = F.cross_entropy(outputs.flatten(0, 1), label.repeat(len(outputs)))
        if s.places == "random" or len(h) == 1:
            return nll
        if s.places == "shown":
            assert centres is not None
            target = torch.stack([centres[t % len(centres)] for t in range(len(mu))])
            return nll - s.rl_weight * log_pi(mu, target, model.std).sum(0).mean()
        right = (outputs.detach().argmax(-1) == label).float()  # [1 or T, n]
        reward = returns(right, len(h) - 1)  # [T - 1, n]
        if s.guided:
            assert boxes is not None
            found = guidance(places, boxes, size)[1:]  # the first place is not chosen
            reward = reward + found.flip(0).cumsum(0).flip(0)
        b = torch.stack([model.baseline(model.for_place(state).detach()).squeeze(-1) for state in h[:-1]])  # [T - 1, n]
        reinforce = -(log_pi(mu, drawn, model.std) * (reward - b.detach())).sum(0).mean()
        return nll + F.mse_loss(b, reward) + s.rl_weight * reinforce

    def _places(self, centres: Tensor | None, std: float) -> Places:
        """`(t, mu [n, 2]) -> location [n, 2]` of the glimpse after glimpse t."""
        if self.settings.places == "random":
            return lambda t, mu: 2 * torch.rand_like(mu) - 1
        if centres is None or self.settings.places == "policy":
            return lambda t, mu: torch.normal(mu, std)

        def shown(t: int, mu: Tensor) -> Tensor:  # half near a region, half uniform, to learn the way from anywhere
            near = torch.normal(centres[t % len(centres)].to(mu.dtype), std)
            return torch.where(torch.rand_like(mu[:, :1]) < 0.5, near, 2 * torch.rand_like(mu) - 1)

        return shown


def middle(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [n, R, 4] in pixels of images (H, W) -> their centres in -1 .. 1, [R, n, 2] float32, from left to right.

    The order has to be visible in the image: with any other order only the mean of all regions can be learned.
    """
    extent = torch.tensor([size[1], size[0]], device=boxes.device)
    middles = (boxes[..., :2] + boxes[..., 2:]) / extent - 1
    order = middles[..., 0].argsort(1).unsqueeze(2)  # [n, R, 1]
    return middles.gather(1, order.expand_as(middles)).transpose(0, 1)


def log_pi(mu: Tensor, drawn: Tensor, std: float) -> Tensor:
    """log N(drawn; mu, std^2) of locations [T, n, 2] -> [T, n]."""
    return torch.distributions.Normal(mu, std).log_prob(drawn).sum(-1)


def returns(right: Tensor, choices: int) -> Tensor:
    """The reward after each choice: right [1 or T, n] -> [choices, n].

    With one answer, the last, all choices have the same reward; with T answers, choice t (after glimpse t) has the mean
    over the answers after t.
    """
    if len(right) == 1:
        return right.expand(choices, -1)
    to_come = right.flip(0).cumsum(0).flip(0)[1:]  # sum over the answers after t
    return to_come / torch.arange(choices, 0, -1, device=right.device).unsqueeze(1)


def glimpse(
    model: RAM, x: Tensor, draw: Places, first: Tensor | None = None
) -> tuple[list[Any], Tensor, Tensor, Tensor]:
    """Runs a network with drawn locations.

    Args:
        model: the network, with T glimpses.
        x: [n, c, H, W].
        draw: `(t, mu [n, 2]) -> location [n, 2]` of the glimpse after glimpse t.
        first: the first location [n, 2]; default: uniformly random.

    Returns:
        The T hidden states with their graph; the places of the T glimpses [T, n, 2] in 1/UNIT; for the T - 1 choices
        that are followed by a glimpse: mu with its graph, and the drawn location, each [T - 1, n, 2].
    """
    states: list[Any] = []
    means: list[Tensor] = []
    if first is None:
        first = 2 * torch.rand(len(x), 2, device=x.device) - 1
    locations = [first]

    def choose(point: DecisionPoint, mu: Tensor) -> Tensor | None:
        if point is not model.look:
            return None
        means.append(mu)
        locations.append(draw(len(means) - 1, mu.detach()))
        return on_grid(locations[-1])

    hook = model.core.register_forward_hook(lambda core, args, h: states.append(h))
    try:
        Execution(Masking(), choose=choose).run(model, x, first)
    finally:
        hook.remove()
    places = torch.stack([on_grid(place) for place in locations[:-1]])
    nothing = first.new_empty(0, *first.shape)
    mu = torch.stack(means[:-1]) if len(means) > 1 else nothing
    return states, places, mu, torch.stack(locations[1:-1]) if len(means) > 1 else nothing
