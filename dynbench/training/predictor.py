"""The network for a budget: a predictor learns from a few trained and measured networks, and ranks all others.

The idea of Dai et al., "FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining", CVPR 2021 (arXiv
2006.02049): a small MLP on an encoded architecture, pre-trained on statistics that are free (MACs, parameters), then
trained on few networks; an evolutionary search uses it in place of training. Reconstruction, on the space of
`dynbench.models.dmasking`: only the architecture is encoded, not the training recipe; the networks for learning are
drawn at random and not iteratively where the predictor expects the most; and latency is predicted as well as accuracy.

Latencies are measured on this machine; accuracies are taken from the card of a trained workload.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from torch import Tensor, nn

from dynbench.errors import UserError
from dynbench.meters.device import MeasuredDevice
from dynbench.meters.latency import time_batches
from dynbench.models.dmasking import Architecture, Plain, Space, build, macs, params
from dynbench.reading import read_json
from dynbench.store.jsonable import first_fault
from dynbench.training.dmasking import Alone, train_alone
from dynbench.training.session import Session

FREE = 3000  # architectures whose statistics are learned in pre-training, without training or measuring them
HIDDEN = 64
FOLDS = 5
WARM_UP = 3  # rounds
POPULATION, GENERATIONS, PARENTS = 96, 40, 24
CHANGE = 0.15  # probability of a random option for a question of a child

Picked = Sequence[int]  # an option index per question of the space


def encode(space: Space, nets: Sequence[Picked]) -> Tensor:
    """One-hot encodings of all questions, concatenated: [N, sum of options]."""
    parts = [
        F.one_hot(column, len(options)) for column, (_, options) in zip(_columns(nets), space.questions(), strict=True)
    ]
    return torch.cat(parts, 1).float()


def _columns(nets: Sequence[Picked]) -> Iterable[Tensor]:
    return torch.tensor([list(net) for net in nets]).unbind(1)


def statistics_of(space: Space, nets: Sequence[Picked]) -> Tensor:
    """Statistics that are known without running a network: log MACs and log parameters, [N, 2]."""
    known = [[macs(space, a), params(space, a)] for a in map(space.choose, nets)]
    return torch.tensor(known, dtype=torch.float32).log()


class Embedding(nn.Module):
    """The encoder, pre-trained on the statistics of untrained networks.

    Args:
        space: the networks.
        seed: of weights and networks.
        pretrained: False: random weights, to show the effect of pre-training.
    """

    def __init__(self, space: Space, seed: int = 0, pretrained: bool = True) -> None:
        super().__init__()
        self.space = space
        draw = random.Random(seed)
        some = [space.picked(space.random(draw)) for _ in range(FREE)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(len(encode(space, some[:1])[0]), HIDDEN),
                nn.Hardswish(),
                nn.Linear(HIDDEN, HIDDEN),
                nn.Hardswish(),
            )
            self.known = nn.Linear(HIDDEN, 2)
            if pretrained:
                self._pretrain(some)
        self.requires_grad_(False)

    def _pretrain(self, nets: Sequence[Picked]) -> None:
        x, y = encode(self.space, nets), statistics_of(self.space, nets)
        y = (y - y.mean(0)) / y.std(0)
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        for _ in range(15):
            for rows in torch.randperm(len(x)).split(128):
                optimizer.zero_grad()
                F.mse_loss(self.known(self.layers(x[rows])), y[rows]).backward()
                optimizer.step()

    @torch.no_grad()
    def forward(self, nets: Sequence[Picked]) -> Tensor:
        """-> [N, HIDDEN + 2]: the encoder's features, and the statistics on which it was trained."""
        h = self.layers(encode(self.space, nets))
        return torch.cat([h, self.known(h)], 1)


class Head:
    """A linear map of the embedding, fitted to few values by ridge regression.

    Args:
        embedding: of the architectures.
        nets: with known values.
        values: of each.
        ridge: penalty of large weights, relative to the number of values.
    """

    def __init__(
        self, embedding: Embedding, nets: Sequence[Picked], values: Sequence[float], ridge: float = 0.1
    ) -> None:
        x, y = embedding(nets).double(), torch.tensor(values, dtype=torch.float64)
        self._embedding, self._mean, self._scale = embedding, x.mean(0), x.std(0).clamp(min=1e-6)
        self._offset = y.mean()
        z = (x - self._mean) / self._scale
        penalty = ridge * len(y) * torch.eye(z.shape[1], dtype=z.dtype)
        self._weights = torch.linalg.solve(z.T @ z + penalty, z.T @ (y - self._offset))

    def __call__(self, nets: Sequence[Picked]) -> Tensor:
        """-> [N]."""
        z = (self._embedding(nets).double() - self._mean) / self._scale
        return z @ self._weights + self._offset


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None if all values of a or of b are the same."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return statistics.correlation(_ranks(a), _ranks(b))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 0; equal values share their mean rank."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


@dataclass(frozen=True)
class Trust:
    """The quality of predictions for networks that were not used in fitting.

    Attributes:
        rank_correlation: Spearman's.
        error: median absolute difference; relative if values are logarithms.
        networks: number of networks.
    """

    rank_correlation: float | None
    error: float
    networks: int


def cross_validated(
    embedding: Embedding, nets: Sequence[Picked], values: Sequence[float], logarithms: bool = False
) -> Trust:
    """Predicts each value by a head fitted to the other folds."""
    predicted = [0.0] * len(nets)
    for fold in range(FOLDS):
        held_out = range(fold, len(nets), FOLDS)
        rest = [i for i in range(len(nets)) if i % FOLDS != fold]
        if not held_out:
            continue
        head = Head(embedding, [nets[i] for i in rest], [values[i] for i in rest])
        for i, v in zip(held_out, head([nets[i] for i in held_out]).tolist(), strict=True):
            predicted[i] = v
    difference = torch.tensor(predicted, dtype=torch.float64) - torch.tensor(values, dtype=torch.float64)
    error = difference.exp().sub(1).abs().median() if logarithms else difference.abs().median()
    return Trust(rank_correlation(predicted, values), float(error), len(nets))


def latencies_ms(
    nets: Sequence[nn.Module], x: Tensor, device: MeasuredDevice, rounds: int, seed: int = 0
) -> list[float]:
    """Median milliseconds of a batch for each network; all networks in every round, in random order."""
    draw, spent = random.Random(seed), [list[int]() for _ in nets]
    with torch.inference_mode():
        for n in range(WARM_UP + rounds):
            order = list(range(len(nets)))
            draw.shuffle(order)
            for i in order:
                (timing,) = time_batches(nets[i], [(x,)], device)
                if n >= WARM_UP:
                    spent[i].append(timing.duration_ns)
    return [statistics.median(ns) / 1e6 for ns in spent]


def evolve(
    space: Space,
    score: Callable[[Sequence[Picked]], Tensor],
    cost: Callable[[Sequence[Picked]], Tensor],
    limit: float,
    seed: int = 0,
) -> tuple[int, ...] | None:
    """The best network found by an evolutionary search among those that cost at most `limit`.

    Args:
        space: the networks.
        score: of networks, [N].
        cost: of networks, [N].
        limit: of the cost.
        seed: of the search.

    Returns:
        Its option indices; None if none within the limit was found.
    """
    draw = random.Random(seed)
    alive = {tuple(space.picked(space.random(draw))) for _ in range(POPULATION)}
    alive |= {tuple(0 for _ in space.questions())}
    options = [len(o) for _, o in space.questions()]
    for _ in range(GENERATIONS):
        ranked = _ranked(list(alive), score, cost, limit)[:PARENTS]
        alive = set(ranked)
        for _ in range(POPULATION - PARENTS):
            a, b = draw.choice(ranked), draw.choice(ranked)
            child = [draw.choice(genes) for genes in zip(a, b, strict=True)]
            alive.add(
                tuple(draw.randrange(k) if draw.random() < CHANGE else g for g, k in zip(child, options, strict=True))
            )
    best = _ranked(list(alive), score, cost, limit)[0]
    return best if float(cost([best])[0]) <= limit else None


def _ranked(
    nets: list[tuple[int, ...]],
    score: Callable[[Sequence[Picked]], Tensor],
    cost: Callable[[Sequence[Picked]], Tensor],
    limit: float,
) -> list[tuple[int, ...]]:
    """Sorts networks: those within the limit by their score, then the others by their cost."""
    nets.sort()
    scores, costs = score(nets).tolist(), cost(nets).tolist()
    order = sorted(range(len(nets)), key=lambda i: (costs[i] > limit, -scores[i] if costs[i] <= limit else costs[i]))
    return [nets[i] for i in order]


@dataclass(frozen=True)
class Best:
    """The network chosen for a budget.

    Attributes:
        architecture: the network.
        picked: its option indices.
        macs: of one input.
        predicted_ms: of a batch.
        measured_ms: of a batch, measured in turn with the largest network.
        largest_ms: of the largest network, in the same rounds.
        predicted_accuracy: on the workload's test part.
        latency: quality of predicted latencies.
        accuracy: quality of predicted accuracies.
        accuracy_unpretrained: the same with an encoder that was not pre-trained.
        sampled_ms: fastest and slowest of the networks measured for learning.
    """

    architecture: Architecture
    picked: tuple[int, ...]
    macs: int
    predicted_ms: float
    measured_ms: float
    largest_ms: float
    predicted_accuracy: float
    latency: Trust
    accuracy: Trust
    accuracy_unpretrained: Trust
    sampled_ms: tuple[float, float]


def choose(
    space: Space,
    trained: Sequence[dict[str, Any]],
    x: Tensor,
    device: MeasuredDevice,
    max_latency_ms: float,
    samples: int = 32,
    rounds: int = 15,
    seed: int = 0,
) -> Best:
    """Measures some networks, learns to predict, searches, and measures the result.

    Args:
        space: the networks.
        trained: networks with known accuracy: rows with `picked` and `accuracy`.
        x: a batch of inputs, on the device.
        device: for the measurements.
        max_latency_ms: limit for a batch.
        samples: number of networks measured for learning.
        rounds: number of timed rounds.
        seed: of networks, predictor and search.

    Raises:
        UserError: too few networks to learn from, or none expected within the limit.
    """
    known, values = _means(trained)
    if len(known) < 2 * FOLDS or samples < 2 * FOLDS:
        raise UserError(f"{len(known)} trained and {samples} measured networks: a predictor needs {2 * FOLDS} of each")
    embedding, blank = Embedding(space, seed), Embedding(space, seed, pretrained=False)
    draw = random.Random(seed)
    some = [tuple(space.picked(space.random(draw))) for _ in range(samples)]
    largest = tuple(space.picked(space.largest))
    *taken, top = latencies_ms([_net(space, p, x) for p in (*some, largest)], x, device, rounds, seed)
    ratios = [float(torch.tensor(ms / top, dtype=torch.float64).log()) for ms in taken]
    accuracy, log_ratio = Head(embedding, known, values), Head(embedding, some, ratios, ridge=0.01)

    def cost(nets: Sequence[Picked]) -> Tensor:
        return log_ratio(nets).exp() * top

    best = evolve(space, accuracy, cost, max_latency_ms, seed)
    if best is None:
        raise UserError(
            f"--max-latency-ms {max_latency_ms:g}: no network is expected to be as fast; those measured take "
            f"{min(taken):.2f} to {max(taken):.2f} ms, the largest {top:.2f}"
        )
    measured, again = latencies_ms([_net(space, best, x), _net(space, largest, x)], x, device, 3 * rounds, seed)
    found = space.choose(best)
    return Best(
        found,
        best,
        macs(space, found),
        float(cost([best])[0]),
        measured,
        again,
        float(accuracy([best])[0]),
        cross_validated(embedding, some, ratios, logarithms=True),
        cross_validated(embedding, known, values),
        cross_validated(blank, known, values),
        (min(taken), max(taken)),
    )


def _means(trained: Sequence[dict[str, Any]]) -> tuple[list[Picked], list[float]]:
    """Each network once, with its mean accuracy: several seeds of one network must not be in different folds."""
    accuracies: dict[tuple[int, ...], list[float]] = {}
    for row in trained:
        accuracies.setdefault(tuple(row["picked"]), []).append(float(row["accuracy"]))
    return list(accuracies), [statistics.fmean(values) for values in accuracies.values()]


def _net(space: Space, picked: Picked, x: Tensor) -> Plain:
    return build(space, space.choose(picked)).eval().to(x.device)


@dataclass(frozen=True)
class Budget:
    """The request of a search.

    Attributes:
        max_latency_ms: limit for a batch.
        batch: inputs in a batch.
        samples: number of networks measured for learning.
        rounds: number of timed rounds.
        seed: of networks, predictor and search.
    """

    max_latency_ms: float
    batch: int = 32
    samples: int = 32
    rounds: int = 15
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """The result of a search.

    Attributes:
        budget: the request.
        choice: the chosen network.
        accuracy: after training with the recipe of the others; None: it was not trained.
        networks: number of networks in the space.
        most: MACs of the largest network.
        seconds: total time.
    """

    budget: Budget
    choice: Best
    accuracy: float | None
    networks: int
    most: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def answer(
    workload: dict[str, Any],
    folder: Path,
    device: MeasuredDevice,
    budget: Budget,
    train: bool = True,
    data_dir: Path | None = None,
) -> Answer:
    """The network for a budget, in the search space of a trained workload.

    Args:
        workload: the table of its file.
        folder: of the file.
        device: for measurements and training.
        budget: the request.
        train: train the chosen network, by the workload's recipe for single networks.
        data_dir: folder of a data set that is not part of dynbench.

    Raises:
        UserError: the workload's card lists no trained networks, or no network is within the budget.
    """
    began = time.monotonic()
    space, trained = _known(workload, folder)
    torch.set_num_threads(1)
    with TemporaryDirectory() as out:
        session = Session(workload, Path(out), torch.device(device.name), data_dir, progress=False)
        session.console = Console(quiet=True)
        x = torch.from_numpy(session.inputs("test", limit=budget.batch).inputs).to(session.device)
        choice = choose(space, trained, x, device, budget.max_latency_ms, budget.samples, budget.rounds, budget.seed)
        accuracy = None
        if train:
            recipe = session.settings(Alone, "net", epochs=5)
            accuracy = train_alone(session, "picked", space, choice.architecture, recipe, budget.seed)[1]["accuracy"]
    return Answer(budget, choice, accuracy, space.networks, macs(space, space.largest), time.monotonic() - began)


_Size = Annotated[int, Field(ge=1, le=1 << 16)]


class _SpaceOfACard(BaseModel, strict=True):
    """The part of a card that `Space` takes."""

    resolutions: list[_Size]
    channels: list[list[_Size]]
    widths: list[list[_Size]]
    blocks: Annotated[int, Field(ge=1, le=1000)]
    num_classes: _Size


class _TrainedNet(BaseModel, strict=True):
    """A network of a card, with what became of it."""

    picked: list[int]
    accuracy: Annotated[float, Field(ge=0, le=1)]


class _Card(BaseModel, strict=True):
    """What is used of the card of a workload with a search space."""

    space: _SpaceOfACard
    trained_nets: list[_TrainedNet]


def _known(workload: dict[str, Any], folder: Path) -> tuple[Space, list[dict[str, Any]]]:
    """The search space in a workload's card, and its trained networks.

    Raises:
        UserError: there is no card, or it has no space or networks, or such as cannot be.
    """
    wanted = "a card has a search space and trained networks, as that of dmasking_digits"
    if (weights := workload.get("weights")) is None:
        raise UserError(f"workload {workload.get('name')!r} has no weights, and so no model card; {wanted}")
    card = folder / Path(weights).with_suffix(".json")
    if not card.exists():
        raise UserError(f"workload {workload.get('name')!r} has no model card {card}; {wanted}")
    try:
        facts = _Card.model_validate(read_json(card))
        space = Space(**facts.space.model_dump())
        options = [len(found) for _, found in space.questions()]
        for number, net in enumerate(facts.trained_nets):
            if len(net.picked) != len(options) or not all(0 <= k < n for k, n in zip(net.picked, options, strict=True)):
                raise ValueError(f"trained_nets.{number}.picked = {net.picked} is no network of its space")
    except ValidationError as e:
        raise UserError(f"model card {card}: {first_fault(e)}; {wanted}") from e
    except ValueError as e:
        raise UserError(f"model card {card}: {e}") from e
    return space, [net.model_dump() for net in facts.trained_nets]
