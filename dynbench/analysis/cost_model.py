"""A model of cost: a cell's time from T(n) in place, from what its arm was seen to do, and from the device's constants.

The time of one pass over the stream is a sum of terms, each with a factor that is fitted:

    body       calls of bodies and fixed parts, each T(n) at its own number of items
    decide     the same of gates, routers, policies and heads
    moving     rows gathered and put back: calls and bytes
    operators  other operators between regions: calls and bytes
    products   the FLOPs of matrix products and convolutions among them
    waiting    times that the host looks at a value
    points     Python at decision points and around calls of regions

A factor of 1 is what the measurements of T(n) and of constants say by themselves. Factors are fitted on some cells,
close to 1 unless these say otherwise, and judged on others, which the fit never sees (`held_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from dynbench.store.scaling import Between, Constants, Counted, Network, Part, Rate, Scaling, Usage
from dynbench.store.schema import Arm, Cell

TERMS = ("body", "decide", "moving", "operators", "products", "waiting", "points")
NOISE, TRUST = 0.05, 0.1  # spread of a measured time, and of a factor around 1, that the fit reckons with
TRUST_OF_ONE = 0.03  # of a factor that is fitted at one batch size alone: it tells little of others
OUTLYING = 0.1  # of the time: cells further off count less (Huber)
LEAST_HELD_OUT = 5  # cells: fewer tell no distribution of errors
LEAST_FITTED = 3
NEAR = 0.25  # of the measured time
MOSTLY = 0.95  # of the time of a region at one item: at most so much of it is launching

Family = tuple[str, str]  # engine, and who plays the strategy: factors are fitted for each


@dataclass(frozen=True)
class Levers:
    """What is taken away, to see what it costs.

    Attributes:
        no_wait: the host never waits.
        no_launch: a call of an operator takes no time of its own.
        free_gather: rows are gathered and put back in no time.
        perfect_small_batches: n items take n / B of the time of the largest number B that was measured.
        known_ahead: nothing is decided, and nobody waits for decisions.
        slower: another device, on which computation takes so many times as long.
        on: constants of that device; None: it is this one.
    """

    no_wait: bool = False
    no_launch: bool = False
    free_gather: bool = False
    perfect_small_batches: bool = False
    known_ahead: bool = False
    slower: float = 1.0
    on: Constants | None = None


NONE = Levers()


def time_of(part: Part, n: int, constants: Constants, levers: Levers = NONE) -> float:
    """T(n) in us: linear between the sizes that were measured, and never less for more items.

    Beyond the largest size the last two go on in a line, or the last in proportion, whichever is more; below the
    smallest, the first counts in full.
    """
    sizes, us = np.array(part.sizes, np.float64), np.maximum.accumulate(np.array(part.us, np.float64))
    launch = min(part.operators * constants.operator_us, MOSTLY * float(us[0]))
    if levers.perfect_small_batches:
        found = us[-1] * n / sizes[-1]
        launch *= n / sizes[-1]
    elif n <= sizes[-1]:
        found = float(np.interp(n, sizes, us))
    else:
        slope = (us[-1] - us[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else us[-1] / sizes[-1]
        found = us[-1] + slope * (n - sizes[-1])
    there = 1.0 if levers.on is None else levers.on.operator_us / constants.operator_us
    return float(found - launch) * levers.slower + (0.0 if levers.no_launch else launch * there)


def products_us(flops: int, operators: int, rate: Rate | None) -> float:
    """What products take that execute so many FLOPs together; 0 where no rate is known."""
    if rate is None or not operators:
        return 0.0
    return flops * float(np.interp(np.log(flops / operators), np.log(rate.flops), rate.us_per_flop))


def terms(
    usage: Usage,
    network: Network,
    constants: Constants,
    levers: Levers = NONE,
    between: Between | None = None,
    rate: Rate | None = None,
) -> dict[str, float]:
    """The terms of one pass over the stream, in us, before any factor.

    In a graph no Python runs at points, and nothing waits; what lies between its regions has a T(n) of its own.

    Args:
        usage: what the arm does.
        network: what it runs; a region that it does not know takes no time.
        constants: of the device.
        levers: what is taken away, and where.
        between: what lies between regions, in place; None: visits to points and bytes as the constants have them.
        rate: of products between regions; None: they take no time beyond that of other operators.
    """
    parts = {part.name: part for part in network.parts}
    found = dict.fromkeys(TERMS, 0.0)
    for name, sizes in usage.calls.items():
        if (part := parts.get(name)) is not None:
            found[part.role] += sum(calls * time_of(part, n, constants, levers) for n, calls in sizes.items())
    if network.control == "graph":
        for part in network.parts:
            if part.role in ("moving", "points"):
                passes = usage.items / usage.batch_size
                found[part.role] += passes * time_of(part, usage.batch_size, constants, levers)
    else:
        calls = sum(sum(sizes.values()) for sizes in usage.calls.values())
        found |= outside_us(usage, calls, constants, levers, between, rate)
    if levers.free_gather:
        found["moving"] = 0.0
    if levers.no_wait or levers.known_ahead:
        found["waiting"] = 0.0
    if levers.known_ahead:
        found["decide"] = 0.0
    return found


def outside_us(
    seen: Counted,
    calls: int,
    constants: Constants,
    levers: Levers = NONE,
    between: Between | None = None,
    rate: Rate | None = None,
) -> dict[str, float]:
    """The terms of what lies outside regions, in us, as `terms` has them.

    Args:
        seen: what was counted there.
        calls: of regions.
        constants: of the device.
        levers: what is taken away, and where.
        between: what lies between regions, in place.
        rate: of products.
    """
    here, call = levers.on or constants, 0.0 if levers.no_launch else 1.0
    us_per_byte = 1e6 / constants.moved_bytes_per_s if between is None else between.us_per_byte
    us_per_byte *= constants.moved_bytes_per_s / here.moved_bytes_per_s
    python_us = seen.points * constants.point_us if between is None else calls * between.call_us
    return {
        "moving": seen.movings * call * here.gather_us + seen.moved_bytes * us_per_byte,
        "operators": seen.operators * call * here.operator_us + seen.operator_bytes * us_per_byte,
        "products": products_us(seen.flops, seen.products, rate) * levers.slower,
        "waiting": seen.waits * here.wait_us,
        "points": python_us * here.point_us / constants.point_us,
    }


@dataclass(frozen=True)
class Prediction:
    """One arm's time for the items of its usage, predicted, and measured where it was.

    Attributes:
        workload: its name.
        arm: as measured.
        usage: what it does.
        predicted_us: by the fitted model.
        parts_us: its terms.
        measured_us: None: it was not measured.
        held_out: the fit did not see it.
    """

    workload: str
    arm: Arm
    usage: Usage
    predicted_us: float
    parts_us: dict[str, float]
    measured_us: float | None = None
    held_out: bool = False

    @property
    def ratio(self) -> float | None:
        """Predicted over measured."""
        return None if self.measured_us is None else self.predicted_us / self.measured_us

    @property
    def item_ms(self) -> float:
        """Predicted milliseconds per item."""
        return self.predicted_us / 1e3 / self.usage.items


@dataclass(frozen=True)
class Errors:
    """How far predictions of held-out cells are off.

    Attributes:
        cells: how many.
        median: of |predicted / measured - 1|.
        p90: 90 % are nearer than this.
        near: share within 25 %.
        bias: median of predicted / measured.
        worst: the term whose share goes best with what is off; it says where, not why: see `misses` for that.
    """

    cells: int
    median: float
    p90: float
    near: float
    bias: float
    worst: str


@dataclass(frozen=True)
class Model:
    """A fitted model of one workload.

    Attributes:
        scaling: what it is made of.
        factors: by family; one with fewer than `LEAST_FITTED` cells that the fit may see has none, which means 1.
        predictions: of the cells that were measured.
        fitted: cells that the fit saw, by family.
    """

    scaling: Scaling
    factors: dict[Family, dict[str, float]]
    predictions: list[Prediction] = field(default_factory=list)
    fitted: dict[Family, int] = field(default_factory=dict)

    def predict(self, arm: Arm, usage: Usage, levers: Levers = NONE, *, pace: float = 1.0) -> Prediction | None:
        """What an arm takes for a pass over the stream; None where T(n) of its network is not known.

        Args:
            arm: which.
            usage: what it does.
            levers: what is taken away, and where.
            pace: how much longer things take than in the middle of the run.
        """
        found = _terms(self.scaling, arm, usage, levers)
        if found is None:
            return None
        factors = self.factors.get((arm.engine, arm.control), dict.fromkeys(TERMS, 1.0))
        parts = {name: pace * factors[name] * us for name, us in found.items()}
        return Prediction(self.scaling.workload, arm, usage, sum(parts.values()), parts)

    def static_us(self, baseline: str, batch_size: int, items: int, arm: Arm, levers: Levers = NONE) -> float | None:
        """What a static network takes for a pass over so many items; None where its T(n) is not known."""
        network = self.scaling.network(baseline, arm.engine, arm.form)
        if network is None:
            return None
        plain = replace(levers, perfect_small_batches=False)
        return time_of(network.parts[0], batch_size, self.scaling.constants, plain) * items / batch_size


def model_of(cells: Sequence[Cell], scaling: Scaling) -> Model:
    """Fits a model of one workload on a part of its cells, and predicts all of them.

    Args:
        cells: of the run; others than those of this workload are left out.
        scaling: of the workload.
    """
    mine = [c for c in cells if c.workload == scaling.workload and c.status == "ok" and c.latency is not None]
    seen = [(c, usage) for c in mine if (usage := usage_of(c, scaling)) is not None]
    out = held_out([c for c, _ in seen])
    by_family: dict[Family, list[tuple[float, dict[str, float]]]] = {}
    sizes: dict[Family, set[int]] = {}
    for cell, usage in seen:
        found = _terms(scaling, cell.arm, usage)
        if found is not None and cell.cell_id not in out:
            us, family = _us(cell, usage) / scaling.pace(cell), (cell.arm.engine, cell.arm.control)
            by_family.setdefault(family, []).append((us, found))
            sizes.setdefault(family, set()).add(cell.batch_size)
    factors = {
        family: fit(
            [t for _, t in rows],
            [us for us, _ in rows],
            trust=TRUST_OF_ONE if len(sizes[family]) == 1 else TRUST,
        )
        for family, rows in by_family.items()
        if len(rows) >= LEAST_FITTED
    }
    model = Model(scaling, factors, [], {family: len(by_family[family]) for family in factors})
    for cell, usage in seen:
        prediction = model.predict(cell.arm, usage, pace=scaling.pace(cell))
        if prediction is not None:
            model.predictions.append(replace(prediction, measured_us=_us(cell, usage), held_out=cell.cell_id in out))
    return model


def fit(rows: Sequence[Mapping[str, float]], measured_us: Sequence[float], trust: float = TRUST) -> dict[str, float]:
    """Factors of the terms, none below 0, that make relative errors small and stay close to 1.

    Args:
        rows: terms of each cell.
        measured_us: time of each cell.
        trust: spread of a factor around 1.

    Returns:
        A factor for each of `TERMS`.

    Raises:
        ValueError: no cells, numbers that do not pair up, or a number that is not finite and positive.
    """
    from scipy.optimize import nnls  # imported late: it takes a while

    measured = np.asarray(measured_us, np.float64)
    table = np.array([[row[name] for name in TERMS] for row in rows], np.float64)
    if len(rows) == 0 or len(rows) != len(measured):
        raise ValueError(f"a time for each of the cells is expected, found {len(measured)} for {len(rows)}")
    if not (np.isfinite(table).all() and np.isfinite(measured).all() and (measured > 0).all() and (table >= 0).all()):
        raise ValueError("terms must be finite and from 0 on, times finite and above 0")
    relative, near_1 = table / measured[:, None], np.eye(len(TERMS)) * (NOISE / trust)
    weights = np.ones(len(rows))
    factors = np.ones(len(TERMS))
    for _ in range(10):
        above = np.vstack([relative * weights[:, None], near_1])
        factors, _ = nnls(above, np.concatenate([weights, np.full(len(TERMS), NOISE / trust)]))
        off = np.abs(relative @ factors - 1)
        weights = np.sqrt(np.minimum(1.0, OUTLYING / np.maximum(off, 1e-12)))
    return dict(zip(TERMS, (float(f) for f in factors), strict=True))


def held_out(cells: Sequence[Cell]) -> set[str]:
    """Ids of the cells that a fit does not see; a rule that looks at no time.

    Of the batch sizes, in order, every second one; of the made-up keep-rates, in order, every second one; and where
    there are made-up decisions at a batch size, all others there: other traces. Of two batch sizes both are seen if
    there are several made-up keep-rates: what is fitted to one alone, such as to single items, tells little of another.
    """
    sizes = sorted({c.batch_size for c in cells})
    rates = sorted({c.decisions.keep_rate for c in cells if _made_up(c) and c.decisions.keep_rate is not None})
    other_rates = set(rates[1::2])
    other_sizes = set() if len(sizes) == 2 and other_rates else set(sizes[1::2])
    drawn = {c.batch_size for c in cells if _made_up(c)}
    return {
        c.cell_id
        for c in cells
        if c.batch_size in other_sizes
        or (c.decisions.keep_rate in other_rates if _made_up(c) else c.batch_size in drawn)
    }


def errors(predictions: Sequence[Prediction]) -> Errors | str:
    """How far held-out cells are off; or why there is no figure, in a sentence."""
    judged = [p for p in predictions if p.held_out and p.ratio is not None]
    if len(judged) < LEAST_HELD_OUT:
        return (
            f"{len(judged)} held-out cell{' is' if len(judged) == 1 else 's are'} too few to judge the model by; it "
            f"takes {LEAST_HELD_OUT}: measure more batch sizes, or a keep-rate sweep"
        )
    ratios = np.array([p.ratio for p in judged], np.float64)
    off = np.abs(ratios - 1)
    shares = np.array([[p.parts_us[name] / p.predicted_us for name in TERMS] for p in judged])
    worst = TERMS[int(np.argmax(np.abs((ratios - 1) @ shares)))]
    return Errors(
        cells=len(judged),
        median=float(np.median(off)),
        p90=float(np.percentile(off, 90)),
        near=float(np.mean(off <= NEAR)),
        bias=float(np.median(ratios)),
        worst=worst,
    )


def usage_of(cell: Cell, scaling: Scaling) -> Usage | None:
    """What the arm of a cell does; None: nobody watched it, or it decides for itself.

    In micro-batches it does what it does at that batch size.
    """
    arm = cell.arm
    if arm.kind not in ("strategy", "control") or arm.live and arm.control == "host":
        return None
    wanted = (arm.strategy, arm.without, cell.decisions.label, arm.micro_batch or cell.batch_size)
    found = (u for u in scaling.usages if (u.arm.strategy, u.arm.without, u.label, u.batch_size) == wanted)
    return next(found, None)


@dataclass(frozen=True)
class BreakEven:
    """The keep-rate at which a strategy is as fast as the primary baseline, by batch size, predicted.

    Attributes:
        strategy: its name.
        baseline: what it is set against.
        rates: by batch size; None: it is slower at every rate that was watched; 1: faster at every rate.
    """

    strategy: str
    baseline: str
    rates: dict[int, float | None]

    @property
    def in_words(self) -> str:
        """'none at batch 1, 0.61 at batch 8'."""
        return ", ".join(f"{'none' if r is None else f'{r:.2f}'} at batch {b}" for b, r in self.rates.items())


def primary_of(cells: Sequence[Cell], workload: str) -> str | None:
    """The name of a workload's primary baseline; None: none was measured."""
    return next((c.arm.baseline for c in cells if c.workload == workload and c.primary), None)


def break_even(model: Model, baseline: str) -> list[BreakEven]:
    """The break-even keep-rate of each strategy as written, over batch size; empty where no rates were watched."""
    found: list[BreakEven] = []
    usages = [u for u in model.scaling.usages if u.made_up and u.arm.kind == "strategy" and u.keep_rate is not None]
    usages.sort(key=lambda u: (u.arm.strategy or "", u.batch_size, u.keep_rate or 0.0))
    for strategy, mine in groupby(usages, key=lambda u: u.arm.strategy):
        rates: dict[int, float | None] = {}
        for size, at_size in groupby(mine, key=lambda u: u.batch_size):
            points = []
            for usage in at_size:
                predicted = model.predict(usage.arm, usage)
                static = model.static_us(baseline, size, usage.items, usage.arm)
                if predicted is not None and static is not None and usage.keep_rate is not None:
                    points.append((usage.keep_rate, static / predicted.predicted_us))
            if len(points) >= 2 and points[0][0] < points[-1][0]:
                rates[size] = crossing(points)
        if rates:
            found.append(BreakEven(strategy or "", baseline, rates))
    return found


def crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """The highest keep-rate up to which the speed-up, linear between points, is 1 or more.

    Args:
        points: (keep-rate, speed-up), by keep-rate.

    Returns:
        None: it is below 1 at every rate; the last rate: it is 1 or more there.
    """
    if points[-1][1] >= 1:
        return points[-1][0]
    for (r0, s0), (r1, s1) in reversed(list(zip(points, points[1:], strict=False))):
        if s0 >= 1 > s1:
            return r0 + (r1 - r0) * (s0 - 1) / (s0 - s1)
    return None


def _terms(scaling: Scaling, arm: Arm, usage: Usage, levers: Levers = NONE) -> dict[str, float] | None:
    """None: T(n) of its network is not known, or not of a region that calls operators."""
    single = arm.control == "graph" and usage.batch_size == 1
    form = arm.in_whole_batches.form if arm.control == "graph" else arm.form
    network = scaling.network(None, arm.engine, form, control=arm.control, single=single)
    if usage.decided and arm.control == "host":
        network = scaling.network(None, arm.engine, form, decided=True) or network
    written = scaling.network(None, "eager", "plain")
    if network is None or written is None:
        return None
    unknown = usage.calls.keys() - {part.name for part in network.parts}
    if network.control == "graph":
        unknown -= set(scaling.fixed)  # merged into others there, or named after nothing
    if unknown - {part.name for part in written.parts if not part.operators}:
        return None
    between = scaling.between_decided if usage.decided and scaling.between_decided else scaling.between
    return terms(usage, network, scaling.constants, levers, between, scaling.rate)


def _us(cell: Cell, usage: Usage) -> float:
    """Measured time of as many items as were watched."""
    assert cell.latency is not None
    return cell.latency.item_ms * 1e3 * usage.items


def _made_up(cell: Cell) -> bool:
    return cell.decisions.source in ("synthetic", "published")
