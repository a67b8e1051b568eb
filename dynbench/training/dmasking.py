"""DMaskingNAS: search, then train what was found; random networks of equal cost beside it, by the same recipe.

Wan et al., CVPR 2020, section 3. Weights and architecture are learned together, on images of which every epoch has new
ones. What is trained from its start, each by the recipe of `[train.options.net]`: the network that was found, from
several seeds; random networks of about as many MACs, which it has to beat on average to have been worth searching; and
random networks of any cost, from which `dynbench.training.predictor` learns what accuracy to expect.

On cluttered digits what is found is a little better than random networks of equal cost; the card says by how much, and
how sure that is. Two things had to differ from the paper for that. Resolutions are compared by their losses (`mix`):
mixed maps do not show what the finest one is worth. And the space has two of them: weights that three share suit the
middle one best, and the search then settles there, although networks of their own are 2 to 5 points better at the
finest at the same cost.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, Width
from dynbench.errors import UserError
from dynbench.meters.params import count_params
from dynbench.models.dmasking import (
    BLOCKS,
    CHANNELS,
    RESOLUTIONS,
    WIDTHS,
    Architecture,
    DMasking,
    Found,
    Plain,
    Space,
    Supernet,
    build,
    dmasking,
    macs,
)
from dynbench.strategies import Masking
from dynbench.training.session import Session, Settings, accuracy, cross_entropy, logits

DRAWS = 200_000  # architectures looked at, at most, for one of a given cost


@dataclass
class Searching(Settings):
    """The search.

    Attributes:
        form: 'plus', CE + lam log(cost)^beta, or 'times', CE * lam log(cost)^beta, cost in MACs.
        lam: see `form`.
        beta: see `form`.
        hot: temperature of the Gumbel-softmax at the beginning.
        cold: at the end; it falls exponentially.
        weights_first: share of the steps in which alpha does not learn yet.
        mix: of resolutions: 'maps', as in the paper, layer by layer, or 'losses', ours: the weights learn from the
            network at each resolution alike, and the probability of each from its loss. So it is compared what one
            resolution makes of an image, not what a mixture does that no network found will ever see, and a
            resolution that is behind in the beginning does not stay there for want of training.
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
            if getattr(self, name) not in accepted:
                raise UserError(f"training: {name} = {getattr(self, name)!r}; accepted: {' or '.join(accepted)}")


@dataclass
class Alone(Settings):
    """The recipe that every network is trained by.

    Attributes:
        seeds: how often the network that was found is trained.
        equals: random networks of equal cost, one seed each.
        within: relative difference of their MACs from its.
        others: random networks of any cost, for the predictor.
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
    """Training one set of weights for many widths.

    Attributes:
        as_found: share of a batch that runs the widths that were found.
        full: share that runs the widest; the rest has a random width at each block.
    """

    lr: float = 0.1
    batch_size: int = 64
    precision: str = "float32"
    as_found: float = 0.4
    full: float = 0.3


def train(session: Session) -> None:
    """Searches; trains what was found, `{name}_plain`, and under the workload's name the masked network.

    `[train.options.search]`, `.net` and `.widths` hold the stages' settings. The workload's `model_args` say the
    widths, blocks and classes of the space, `.search` the rest. What is found has to be written into the workload:
    resolution and channels of the model, and those and the widths of the baseline. The card says them.
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
    """A session in which networks that are trained on the same images do not make them anew."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.inputs = cache(super().inputs)  # type: ignore[method-assign]


# --- the search -------------------------------------------------------------------------------------------------------


class Search:
    """The loss: CE and log(cost), the temperature falling from call to call.

    Args:
        settings: of the search.
        steps: calls that there will be.
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
        said, cost = net(x, g)
        return F.cross_entropy(said.float(), y), self.settings.lam * cost.log() ** self.settings.beta

    def _joined(self, ce: Tensor, price: Tensor) -> Tensor:
        return ce + price if self.settings.form == "plus" else ce * price


class Guided(nn.Module):
    """A supernet that knows how many steps it has been trained for, also after an interruption."""

    step: Tensor

    def __init__(self, net: Supernet) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("step", torch.zeros((), dtype=torch.long))


def search(session: Session, name: str, space: Space, s: Searching) -> tuple[Architecture, dict[str, Any]]:
    """Trains the supernet with its alpha; kept in `{name}_search.json` until all is done.

    Returns:
        The architecture, and facts for the card.
    """
    file = session.out / f"{name}_search.json"
    if session.resume and file.is_file():
        facts = json.loads(file.read_text())
        return space.choose(facts["picked"]), facts
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
    session.write_card(f"{name}_search", facts)
    session.forget(f"{name}_search")
    return found, facts


# --- networks alone ---------------------------------------------------------------------------------------------------


class _Table:
    """Networks trained so far, with what they cost and how good they are; what is in its file is not trained again."""

    def __init__(self, session: Session, name: str, space: Space, recipe: Alone) -> None:
        self.session, self.name, self.space, self.recipe = session, name, space, recipe
        self.file = session.out / f"{name}.json"
        self.rows: dict[str, Any] = {}
        if session.resume and self.file.is_file():
            self.rows = json.loads(self.file.read_text())

    def train(self, a: Architecture, seed: int, keep: str | None = None) -> dict[str, Any]:
        key = f"{seed} {a}"
        if key not in self.rows or (keep is not None and not self.session.finished(keep)):
            net, facts = train_alone(self.session, f"{self.name}_{seed}", self.space, a, self.recipe, seed)
            self.rows[key] = {"picked": self.space.picked(a), "seed": seed, **facts}
            if keep is not None:
                args = {**asdict(a), "blocks": self.space.blocks, "num_classes": self.space.num_classes}
                card = self.session.card("dynbench.models.dmasking:plain", args=args, seed=seed, **facts)
                self.session.save(keep, net, card)
            self.session.forget(f"{self.name}_{seed}")
            self.session.write_card(self.name, self.rows)
            self.session.say(f"{self.name} {seed}: {a}, {facts['macs']:,} MACs, accuracy {facts['accuracy']:.4f}")
        row: dict[str, Any] = self.rows[key]
        return row

    def forget(self) -> None:
        for name in (self.name, self.name.removesuffix("_nets") + "_search"):
            (self.session.out / f"{name}.json").unlink(missing_ok=True)


def train_alone(
    session: Session, name: str, space: Space, a: Architecture, recipe: Settings, seed: int
) -> tuple[Plain, dict[str, Any]]:
    """One network from its start, on the same images as every other; the seed is that of its weights.

    Returns:
        The network, and what it costs and how good it is.
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
    """Random networks that cost about as much."""
    draw, wanted, found = random.Random(1000 + s.seed), macs(space, like), list[Architecture]()
    for _ in range(DRAWS):
        if len(found) == s.equals:
            break
        a = space.random(draw)
        if a != like and a not in found and abs(macs(space, a) / wanted - 1) <= s.within:
            found.append(a)
    return found


def comparison(ours: Sequence[dict[str, Any]], equals: Sequence[dict[str, Any]], within: float) -> dict[str, Any]:
    """The network that was found against random ones of equal cost."""
    a, b = [row["accuracy"] for row in ours], [row["accuracy"] for row in equals]

    def told(values: list[float]) -> dict[str, Any]:
        return {
            "networks": len(values),
            "mean": round(statistics.fmean(values), 4),
            "std": round(statistics.stdev(values), 4) if len(values) > 1 else None,
            "each": values,
        }

    return {
        "found": {**told(a), "what": "one network, from so many seeds", "macs": ours[0]["macs"]},
        "random": {
            **told(b),
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
    """The images of a batch run at different widths: as found, at the widest, or drawn block by block.

    So batch norm sees in training the mixture that its averages then stand for, at any width.
    """

    def __init__(self, settings: Widths) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, 32, 32], y [n] -> scalar."""
        n, s = len(x), self.settings
        kind = torch.rand(n)
        found, full = kind < s.as_found, kind >= 1 - s.full

        def choose(point: DecisionPoint, scores: Tensor) -> Tensor:
            assert isinstance(point, Width) and isinstance(point.choose, Found)
            masks = point.choose.scores > 0  # [K, C]
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
    """For the card: accuracy at the widths that were found, and of the static twin, which is the widest."""
    x, y = session.tensors(session.inputs("test"))
    ex = Execution(Masking())
    run: Callable[[Tensor], Tensor] = lambda part: ex.run(net, part)  # noqa: E731
    return {
        "accuracy": accuracy(logits(run, x), y),
        "static_twin": {"name": "the same network at its full width", "accuracy": accuracy(logits(net, x), y)},
    }
