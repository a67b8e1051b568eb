"""DMaskingNAS: the search, then training of the network found, and of random networks of equal cost for comparison.

Wan et al., CVPR 2020, section 3. Weights and architecture are learned together, on new images in every epoch. Trained
from scratch by the recipe of `[train.options.net]` are: the network that was found, with several seeds; random networks
with about as many MACs, which it has to outperform on average for the search to be worthwhile; and random networks of
any cost, from which `dynbench.training.predictor` learns to predict accuracy.

On cluttered digits the network found is slightly better than random networks of equal cost; the card has the gain and
its standard error. This needed two changes to the paper. Resolutions are compared by their losses (`mix`), as mixed
maps do not show the value of the finest one. And the space has only two resolutions: weights shared by three suit the
middle one best, and the search then chooses it, although separate networks are 2 to 5 points better at the finest
resolution at the same cost.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.counting.params import count_params
from dynbench.dynamic import DecisionPoint, Execution
from dynbench.errors import UserError
from dynbench.models.dmasking import (
    BLOCKS,
    CHANNELS,
    RESOLUTIONS,
    WIDTHS,
    Architecture,
    DMasking,
    Plain,
    Space,
    Supernet,
    build,
    dmasking,
    macs,
)
from dynbench.strategies import Masking
from dynbench.training.evaluation import accuracy, logits
from dynbench.training.session import Session, Settings, cross_entropy

DRAWS = 200_000  # maximum number of random architectures drawn to find some of a given cost


@dataclass
class Searching(Settings):
    """Settings of the search.

    Attributes:
        form: 'plus', CE + lam log(cost)^beta, or 'times', CE * lam log(cost)^beta, cost in MACs.
        lam: see `form`.
        beta: see `form`.
        hot: initial temperature of the Gumbel-softmax.
        cold: final temperature; the decay is exponential.
        weights_first: initial share of the steps in which alpha is not trained.
        mix: of resolutions: 'maps', layer by layer as in the paper, or 'losses', ours: weights are trained at each
            resolution equally, and the probability of a resolution learns from its loss. So resolutions are compared on
            their own, not in a mixture that the final network never sees, and one that is worse at first is still
            trained.
        sharpness: see `Supernet`.
        resolutions: options of the space.
        channels: options of the space, of the stem and of each stage.
    """

    optimizer: str = "adamw"
    lr: float = 5e-3
    weight_decay: float = 0.01
    precision: str = "float32"
    form: str = "plus"
    lam: float = 0.15
    beta: float = 1.0
    hot: float = 5.0
    cold: float = 0.5
    weights_first: float = 0.15
    mix: str = "maps"
    sharpness: float = 15.0
    resolutions: Sequence[int] = RESOLUTIONS
    channels: Sequence[Sequence[int]] = CHANNELS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, accepted in (("form", ("plus", "times")), ("mix", ("maps", "losses"))):
            self.check_choice(name, accepted)


@dataclass
class Alone(Settings):
    """The recipe for single networks.

    Attributes:
        seeds: number of trainings of the network that was found.
        equals: number of random networks of equal cost, one seed each.
        within: maximum relative difference of their MACs.
        others: number of random networks of any cost, for the predictor.
    """

    lr: float = 0.1
    batch_size: int = 64
    precision: str = "float32"
    seeds: int = 3
    equals: int = 8
    within: float = 0.05
    others: int = 12


@dataclass
class Widths(Settings):
    """Settings for training one set of weights for many widths.

    Attributes:
        as_found: share of a batch that runs the widths that were found.
        full: share that runs the largest widths; the rest has a random width at each block.
    """

    lr: float = 0.1
    batch_size: int = 64
    precision: str = "float32"
    as_found: float = 0.4
    full: float = 0.3


def train(session: Session) -> None:
    """The search, the network found, `{name}_plain`, and the masked network, named as the workload.

    `[train.options.search]`, `.net` and `.widths` hold the stages' settings. The workload's `model_args` have the
    widths, blocks and classes of the space, `.search` the rest. The result has to be copied into the workload:
    resolution and channels of the model, and those and the widths of the baseline. They are in the card.
    """
    name = str(session.workload["name"])
    session = Remembering(**vars(session))
    settings = session.settings(Searching, "search", epochs=5)
    space = space_of(session.workload, settings)
    found, facts = search(session, name, space, settings)
    session.say(f"{name}: found {found}, {macs(space, found):,} MACs")
    alone = session.settings(Alone, "net", epochs=5)
    table = _Table(session, f"{name}_nets", space, alone)
    ours = [table.train(found, seed, keep=f"{name}_plain" if seed == 0 else None) for seed in range(alone.seeds)]
    equals = [table.train(a, 100 + i) for i, a in enumerate(_of_cost(space, found, alone))]
    draw = random.Random(2000 + alone.seed)
    others = [table.train(space.random(draw), 200 + i) for i in range(alone.others)]
    facts["found_against_random"] = comparison(ours, equals, alone.within)
    session.say(f"{name}: {facts['found_against_random']}")
    if not session.finished(name):
        _train_widths(session, name, space, found, {**facts, "trained_nets": [*ours, *equals, *others]})
    table.forget()


def space_of(workload: dict[str, Any], s: Searching) -> Space:
    """The space: the model's widths, blocks and classes, and the resolutions and channels of the search."""
    args: dict[str, Any] = workload.get("model_args", {})
    widths, blocks = args.get("options", WIDTHS), args.get("blocks", BLOCKS)
    try:
        return Space(s.resolutions, s.channels, widths, blocks, args.get("num_classes", 10))
    except ValueError as e:
        raise UserError(f"workload {workload.get('name')!r}: {e}") from e


class Remembering(Session):
    """A session that caches inputs, for networks that are trained on the same images."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.inputs = cache(super().inputs)  # type: ignore[method-assign]


# --- the search -------------------------------------------------------------------------------------------------------


class Search:
    """The loss of CE and log(cost), with a temperature that falls from call to call.

    Args:
        settings: of the search.
        steps: total number of calls.
    """

    def __init__(self, settings: Searching, steps: int) -> None:
        self.settings, self.steps = settings, steps

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, 32, 32], y [n] -> scalar."""
        assert isinstance(model, Guided)
        s, net = self.settings, model.net
        done = float(model.step) / self.steps
        model.step += 1
        net.temperature, net.sharpness = s.hot * (s.cold / s.hot) ** done, s.sharpness
        learning = done >= s.weights_first
        g = net.sample(learning)
        if s.mix == "maps":
            return self._loss(net, x, y, g)
        p = net.chances()["resolution"]
        each = [self._terms(net, x, y, {**g, "resolution": net.only(k)}) for k in range(len(p))]
        ce = torch.stack([ce for ce, _ in each])
        if not learning:
            return ce.mean()
        fixed = [self._joined(one.detach(), price) for one, (_, price) in zip(ce, each, strict=True)]
        return ce.mean() + p @ torch.stack(fixed)

    def _loss(self, net: Supernet, x: Tensor, y: Tensor, g: dict[str, Tensor]) -> Tensor:
        return self._joined(*self._terms(net, x, y, g))

    def _terms(self, net: Supernet, x: Tensor, y: Tensor, g: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """CE and lam log(cost)^beta."""
        outputs, cost = net(x, g)
        return F.cross_entropy(outputs.float(), y), self.settings.lam * cost.log() ** self.settings.beta

    def _joined(self, ce: Tensor, price: Tensor) -> Tensor:
        return ce + price if self.settings.form == "plus" else ce * price


class Guided(nn.Module):
    """A supernet with the number of its training steps, which is part of a checkpoint."""

    step: Tensor

    def __init__(self, net: Supernet) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("step", torch.zeros((), dtype=torch.long))


def search(session: Session, name: str, space: Space, s: Searching) -> tuple[Architecture, dict[str, Any]]:
    """Trains the supernet with its alpha; the result is kept until all networks are finished.

    Returns:
        The architecture, and facts for the card.
    """
    if (known := session.noted(f"{name}_search")) is not None:
        return space.choose(known["picked"]), known
    torch.manual_seed(s.seed)
    model = Guided(Supernet(space))
    items = len(session.inputs("train", seed=1000 * s.seed, limit=s.items))
    facts = session.fit(f"{name}_search", model, Search(s, s.epochs * max(items // s.batch_size, 1)), s)
    found = model.net.found()
    chances = {q: [round(c, 3) for c in p.tolist()] for q, p in model.net.chances().items()}
    facts = {
        "found": asdict(found),
        "found_macs": macs(space, found),
        "picked": space.picked(found),
        "space": {**asdict(space), "networks": space.networks},
        "search": {**facts, "chances": chances},
    }
    session.note(f"{name}_search", facts)
    session.keeping.forget(f"{name}_search")
    return found, facts


# --- single networks --------------------------------------------------------------------------------------------------


class _Table:
    """The networks trained so far with cost and accuracy; those that are kept are not trained again."""

    def __init__(self, session: Session, name: str, space: Space, recipe: Alone) -> None:
        self.session, self.name, self.space, self.recipe = session, name, space, recipe
        self.rows: dict[str, Any] = session.noted(name) or {}

    def train(self, a: Architecture, seed: int, keep: str | None = None) -> dict[str, Any]:
        key = f"{seed} {a}"
        if key not in self.rows or (keep is not None and not self.session.finished(keep)):
            net, facts = train_alone(self.session, f"{self.name}_{seed}", self.space, a, self.recipe, seed)
            self.rows[key] = {"picked": self.space.picked(a), "seed": seed, **facts}
            if keep is not None:
                args = {**asdict(a), "blocks": self.space.blocks, "num_classes": self.space.num_classes}
                card = self.session.card("dynbench.models.dmasking:plain", args=args, seed=seed, **facts)
                self.session.save(keep, net, card)
            self.session.note(self.name, self.rows)
            self.session.forget(f"{self.name}_{seed}")
            self.session.say(f"{self.name} {seed}: {a}, {facts['macs']:,} MACs, accuracy {facts['accuracy']:.4f}")
        row: dict[str, Any] = self.rows[key]
        return row

    def forget(self) -> None:
        for name in (self.name, self.name.removesuffix("_nets") + "_search"):
            self.session.forget(name)


def train_alone(
    session: Session, name: str, space: Space, a: Architecture, recipe: Settings, seed: int
) -> tuple[Plain, dict[str, Any]]:
    """Trains one network from scratch, on the same images as all others; the seed is that of its weights.

    Returns:
        The network, and its cost and accuracy.
    """
    torch.manual_seed(seed)
    net = build(space, a)
    spent = session.fit(name, net, cross_entropy, recipe)
    x, y = session.tensors(session.inputs("test"))
    return net, {
        "macs": macs(space, a),
        "params": count_params(net),
        "accuracy": accuracy(logits(net, x), y),
        "epochs": spent["epochs"],
        "items_per_epoch": spent["items_per_epoch"],
    }


def _of_cost(space: Space, like: Architecture, s: Alone) -> list[Architecture]:
    """Random networks of about the same cost."""
    draw, wanted, found = random.Random(1000 + s.seed), macs(space, like), list[Architecture]()
    for _ in range(DRAWS):
        if len(found) == s.equals:
            break
        a = space.random(draw)
        if a != like and a not in found and abs(macs(space, a) / wanted - 1) <= s.within:
            found.append(a)
    return found


def comparison(ours: Sequence[dict[str, Any]], equals: Sequence[dict[str, Any]], within: float) -> dict[str, Any]:
    """Compares the network that was found with random ones of equal cost."""
    a, b = [row["accuracy"] for row in ours], [row["accuracy"] for row in equals]

    def summary(values: list[float]) -> dict[str, Any]:
        return {
            "networks": len(values),
            "mean": round(statistics.fmean(values), 4),
            "std": round(statistics.stdev(values), 4) if len(values) > 1 else None,
            "each": values,
        }

    return {
        "found": {**summary(a), "what": "one network, from so many seeds", "macs": ours[0]["macs"]},
        "random": {
            **summary(b),
            "what": f"networks drawn evenly from the space, of equal MACs within {100 * within:g} %, one seed each",
            "macs": [row["macs"] for row in equals],
        },
        "gain": round(statistics.fmean(a) - statistics.fmean(b), 4) if b else None,
        "standard_error": round(_error(a, b), 4) if min(len(a), len(b)) > 1 else None,
        "found_is_better_than": f"{sum(statistics.fmean(a) > other for other in b)} of {len(b)}",
    }


def _error(a: Sequence[float], b: Sequence[float]) -> float:
    """Standard error of the difference of two means."""
    return (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5


# --- one set of weights for all widths --------------------------------------------------------------------------------


class ManyWidths:
    """The images of a batch run at different widths: as found, the largest, or random for each block.

    So the running averages of batch norm are those of the mixture of widths.
    """

    def __init__(self, settings: Widths) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, 32, 32], y [n] -> scalar."""
        n, s = len(x), self.settings
        kind = torch.rand(n)
        found, full = kind < s.as_found, kind >= 1 - s.full

        def choose(point: DecisionPoint, scores: Tensor) -> Tensor:
            masks = cast(DMasking, model).gates[point.name].scores > 0  # [K, C]
            drawn = masks[torch.randint(len(masks), (n,))]
            drawn = torch.where(found[:, None], scores > 0, drawn)
            return torch.where(full[:, None], masks[-1:], drawn)

        return F.cross_entropy(Execution(Masking(), choose=choose).run(model, x).float(), y)


def _train_widths(session: Session, name: str, space: Space, found: Architecture, facts: dict[str, Any]) -> None:
    settings = session.settings(Widths, "widths", epochs=5)
    torch.manual_seed(settings.seed)
    args: dict[str, Any] = {
        "resolution": found.resolution,
        "channels": list(found.channels),
        "options": [list(o) for o in space.widths],
        "blocks": space.blocks,
        "num_classes": space.num_classes,
    }
    net = dmasking(**args, widths=found.widths)
    facts["widths"] = session.fit(name, net, ManyWidths(settings), settings)
    facts |= evaluate(session, net)
    session.say(f"{name}: as found {facts['accuracy']:.4f}, widest {facts['static_twin']['accuracy']:.4f}")
    session.save(name, net, session.card("dynbench.models.dmasking:dmasking", args=args, **facts))


def evaluate(session: Session, net: DMasking) -> dict[str, Any]:
    """For the card: accuracy with the widths that were found, and with the largest ones, the static twin."""
    x, y = session.tensors(session.inputs("test"))
    return {
        "accuracy": accuracy(logits(lambda part: Execution(Masking()).run(net, part), x), y),
        "static_twin": {"name": "the same network at its full width", "accuracy": accuracy(logits(net, x), y)},
    }
