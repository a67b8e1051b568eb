"""Decisions that are made up have the rates, correlations and skew that were asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import chisquare, multivariate_normal, norm
from torch import Tensor, nn

from dynbench.dynamic import Exits, Loop, Route, Skip, Trace, TraceError, Weights
from dynbench.dynamic.sources import edge, keep_rate, synthetic
from dynbench.dynamic.trace import Entry

DEVIATIONS = 4.5  # of a binomial: by chance in one of 100 000 draws


def skip(name: str) -> Skip:
    return Skip(name, lambda x, c: (x[:, 0], c), nn.Identity())


def route(name: str, experts: int = 4, k: int = 1) -> Route:
    return Route(name, nn.Linear(2, experts), [nn.Identity() for _ in range(experts)], k, lambda s, e: s.gather(1, e))


def exits(name: str, n: int = 3) -> Exits:
    return Exits(name, [nn.Identity()] * n, [nn.Identity()] * n, lambda a, s, k: a[:, 0] > 0)


def model(*points: nn.Module) -> nn.Module:
    return nn.ModuleList(points)


def like(items: int, **sizes: tuple[int, ...]) -> Trace:
    """Empty tables. A name that begins with 'route' has experts, `k` as in its last letter; others are yes or no."""
    entries = {}
    for name, rest in sizes.items():
        n = items * math.prod(rest)
        value = torch.zeros(n, int(name[-1]), dtype=torch.long) if name.startswith("route") else torch.zeros(n) > 0
        entries[name, rest] = Entry(value, torch.zeros(n, dtype=torch.bool))
    return Trace(entries, items, "stream", frozenset(sizes))


def table(trace: Trace, name: str) -> Tensor:
    """[items, rest, ...] decisions of a point."""
    value = next(e.value for (point, _), e in trace.entries.items() if point == name)
    return value.unflatten(0, (trace.items, -1))


def both(rate: float, correlation: float) -> float:
    """Probability that two decisions of the copula are both yes."""
    z = norm.ppf(rate)
    return float(multivariate_normal.cdf([z, z], cov=[[1, correlation], [correlation, 1]], allow_singular=True))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
def test_rates_are_what_was_asked_for(rate: float) -> None:
    n = 20_000
    made = synthetic(like(n, a=(), b=(2,)), model(skip("a"), exits("b", 2)), keep_rate=rate)
    bound = DEVIATIONS * math.sqrt(rate * (1 - rate) / n) + 1e-12
    assert abs(float(table(made, "a").double().mean()) - rate) <= bound
    for step in range(2):  # who stays in a loop does not halt
        assert abs(1 - float(table(made, "b")[:, step].double().mean()) - rate) <= bound


def test_every_point_has_its_own_rate() -> None:
    n, rates = 20_000, (0.1, 0.8, 0.4)
    made = synthetic(like(n, a=(), c=(3,), b=()), model(skip("a"), skip("b"), exits("c")), keep_rate=rates)
    found = (table(made, "a"), table(made, "b"), ~table(made, "c"))
    for rate, values in zip(rates, found, strict=True):
        bound = DEVIATIONS * math.sqrt(rate * (1 - rate) / values.numel())
        assert abs(float(values.double().mean()) - rate) <= bound


def test_every_step_of_a_loop_has_its_own_rate() -> None:
    n, rates = 20_000, (0.2, 0.7)
    net = model(skip("a"), exits("c"), exits("d"))
    made = synthetic(like(n, a=(), c=(3,), d=(2, 3)), net, keep_rate=[0.4, rates, rates])
    assert abs(float(table(made, "a").double().mean()) - 0.4) < 0.02
    inner = table(made, "d").unflatten(1, (2, 3))  # an Exits whose items are (sample, one of two)
    for step, rate in enumerate(rates):
        for stayed in (~table(made, "c")[:, step], ~inner[:, 0, step], ~inner[:, 1, step]):
            bound = DEVIATIONS * math.sqrt(rate * (1 - rate) / n)
            assert abs(float(stayed.double().mean()) - rate) <= bound


@pytest.mark.parametrize(
    ("point", "rates", "says"),
    [
        (exits("a"), [0.5], "Exits 'a' has 1 values; it takes a single one, or a list of 2"),
        (skip("a"), [0.5, 0.5], "Skip 'a' has 2 values; it takes a single one"),
        (exits("a"), [0.5, 1.5], "lies outside 0 to 1"),
    ],
)
def test_rates_of_steps_are_checked(point: nn.Module, rates: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        synthetic(like(4, a=(3,)), model(point), keep_rate=[rates])


def phi(pairs: Tensor) -> float:
    """Correlation of yes and no over pairs [n, 2]."""
    return float(torch.corrcoef(pairs.double().T)[0, 1])


def phi_of_copula(rate: float, correlation: float) -> float:
    """Correlation of two thresholded normals of which `correlation` is known."""
    return (both(rate, correlation) - rate**2) / (rate * (1 - rate))


def test_the_expected_correlation_is_the_known_one_at_one_half() -> None:
    assert phi_of_copula(0.5, 0.5) == pytest.approx(2 * math.asin(0.5) / math.pi, abs=1e-6)


@pytest.mark.parametrize("rate", [0.5, 0.2])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, 1.0])
def test_items_correlate_at_a_point(rate: float, correlation: float) -> None:
    n = 20_000  # visits, each a layer of its own, of two items
    made = synthetic(like(2, a=(n,)), model(skip("a")), keep_rate=rate, item_correlation=correlation)
    assert phi(table(made, "a").T) == pytest.approx(phi_of_copula(rate, correlation), abs=DEVIATIONS / math.sqrt(n))


@pytest.mark.parametrize("rate", [0.5, 0.2])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, 1.0])
def test_layers_correlate_for_an_item(rate: float, correlation: float) -> None:
    n = 20_000  # items at two points
    net = model(skip("a"), exits("b", 1))
    made = synthetic(like(n, a=(), b=(1,)), net, keep_rate=rate, layer_correlation=correlation)
    pairs = torch.cat([table(made, "a"), ~table(made, "b")], 1)
    assert phi(pairs) == pytest.approx(phi_of_copula(rate, correlation), abs=DEVIATIONS / math.sqrt(n))


def test_both_correlations_at_once() -> None:
    net, empty = model(skip("a"), skip("b")), like(2, a=(), b=())
    made = [synthetic(empty, net, item_correlation=0.6, layer_correlation=0.4, seed=s) for s in range(2000)]
    bits = torch.stack([torch.cat([table(t, "a"), table(t, "b")], 1) for t in made])  # [seed, item, layer]
    tolerance = DEVIATIONS / math.sqrt(len(made))
    assert phi(bits[:, :, 0]) == pytest.approx(phi_of_copula(0.5, 0.6), abs=tolerance)
    assert phi(bits[:, 0, :]) == pytest.approx(phi_of_copula(0.5, 0.4), abs=tolerance)
    assert phi(torch.stack([bits[:, 0, 0], bits[:, 1, 1]], 1)) == pytest.approx(0, abs=tolerance)


@pytest.mark.parametrize("skew", [0.0, 1.0, 2.5])
def test_experts_are_drawn_by_zipf(skew: float) -> None:
    made = synthetic(like(500, route1=(20,)), model(route("route1", 6)), expert_skew=skew)
    found = table(made, "route1").flatten().bincount(minlength=6).double()
    weight = torch.arange(1, 7, dtype=torch.float64) ** -skew
    assert chisquare(found, weight / weight.sum() * found.sum()).pvalue > 1e-4


def test_an_item_goes_to_different_experts() -> None:
    made = synthetic(like(50, route3=(4,)), model(route("route3", 4, 3)), expert_skew=1.0)
    assert all(len(set(row)) == 3 for row in table(made, "route3").flatten(0, 1).tolist())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_experts_correlate_between_items_and_between_layers(share: float) -> None:
    seeds, experts = 1500, 4
    net, empty = model(route("route1", experts), route("routeB1", experts)), like(2, route1=(), routeB1=())

    def agree(first: tuple[str, int], second: tuple[str, int], **correlation: float) -> float:
        made = (synthetic(empty, net, seed=s, **correlation) for s in range(seeds))
        same = sum(int(table(t, first[0])[first[1]] == table(t, second[0])[second[1]]) for t in made)
        return same / seeds

    expected = share**2 + (1 - share**2) / experts  # both follow what is common, or agree by chance
    tolerance = DEVIATIONS * 0.5 / math.sqrt(seeds)
    assert agree(("route1", 0), ("route1", 1), item_correlation=share) == pytest.approx(expected, abs=tolerance)
    assert agree(("route1", 0), ("routeB1", 0), layer_correlation=share) == pytest.approx(expected, abs=tolerance)
    assert agree(("route1", 0), ("routeB1", 1), layer_correlation=share) == pytest.approx(1 / experts, abs=tolerance)


def test_a_synthetic_trace_is_total_and_bound_to_the_same_stream() -> None:
    made = synthetic(like(5, a=(3,), route2=()), model(skip("a"), route("route2", 4, 2)))
    assert all(e.reached.all() for e in made.entries.values())
    assert made.entries.keys() == {("a", (3,)), ("route2", ())}
    assert (made.items, made.stream_hash, made.covers) == (5, "stream", frozenset({"a", "route2"}))


def test_the_seed_decides() -> None:
    net, empty = model(skip("a"), route("route1")), like(40, a=(), route1=())
    assert synthetic(empty, net, seed=3) == synthetic(empty, net, seed=3)
    assert synthetic(empty, net, seed=3) != synthetic(empty, net, seed=4)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"keep_rate": 1.1}, "keep_rate 1.1 lies outside 0 to 1"),
        ({"keep_rate": -0.1}, "keep_rate -0.1 lies outside"),
        ({"keep_rate": math.nan}, "keep_rate nan lies outside"),
        ({"keep_rate": [0.5, 0.5]}, "keep_rate has 2 values; the model has 1"),
        ({"keep_rate": []}, "keep_rate has 0 values; the model has 1"),
        ({"item_correlation": -0.1}, "item_correlation -0.1"),
        ({"layer_correlation": -0.1}, "layer_correlation -0.1"),
        ({"item_correlation": 0.6, "layer_correlation": 0.6}, "add up to at most 1"),
        ({"item_correlation": math.nan}, "item_correlation nan"),
        ({"expert_skew": -1.0}, "expert_skew -1.0"),
        ({"expert_skew": math.nan}, "expert_skew nan"),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        synthetic(like(4, a=()), model(skip("a")), **values)


def test_a_loop_of_a_fixed_count_has_no_rate() -> None:
    net = model(Loop("fixed", lambda s, k: s, None, 3), skip("a"))
    made = synthetic(like(4, a=()), net, keep_rate=[1.0])
    assert table(made, "a").all()


def test_codes_of_weights_cannot_be_made_up() -> None:
    point = Weights("w", lambda c: c, lambda c: c, nn.Linear(1, 1))
    with pytest.raises(TraceError, match="'w' .Weights. cannot be made up"):
        synthetic(like(4, w=()), model(point))


EDGES: dict[str, Callable[[int], tuple[bool, bool, list[int]]]] = {  # item -> (runs the body, halts, experts)
    "all": lambda item: (True, False, [0, 1]),
    "none": lambda item: (False, True, [3, 2]),
    "one": lambda item: (item == 0, item != 0, [0, 1] if item == 0 else [3, 2]),
}


@pytest.mark.parametrize("kind", EDGES)
def test_edge_traces_decide_alike_for_all_or_for_all_but_the_first(kind: str) -> None:
    net = model(skip("a"), exits("b", 2), route("route2", 4, 2))
    made = edge(like(3, a=(2,), b=(2,), route2=(2,)), net, kind)
    for item in range(3):
        runs, halts, experts = EDGES[kind](item)
        assert table(made, "a")[item].tolist() == [runs] * 2
        assert table(made, "b")[item].tolist() == [halts] * 2
        assert table(made, "route2")[item].tolist() == [experts] * 2


def test_an_unknown_edge_is_refused() -> None:
    with pytest.raises(ValueError, match="'some' is none of all, none, one, random"):
        edge(like(3, a=()), model(skip("a")), "some")


def test_keep_rate_counts_what_was_asked() -> None:
    net = model(skip("a"), exits("b", 2), route("route2", 4, 2))
    trace = edge(like(4, a=(), b=(2,), route2=()), net, "one")
    assert keep_rate(trace, net) == 0.25
    trace.entries["a", ()].reached[2:] = False
    assert keep_rate(trace, net) == 0.5


def test_keep_rate_of_a_loop_is_who_stays() -> None:
    net = model(exits("b", 2))
    assert keep_rate(edge(like(4, b=(2,)), net, "one"), net) == 0.25


def test_keep_rate_of_a_route_is_its_share_of_experts_without_the_dropped() -> None:
    net = model(route("route2", 4, 2))
    trace = edge(like(4, route2=()), net, "all")
    assert keep_rate(trace, net) == 0.5
    trace.entries["route2", ()].value[0, 0] = -1
    assert keep_rate(trace, net) == pytest.approx(0.5 * 7 / 8)


def test_keep_rate_of_what_nobody_asked_is_unknown() -> None:
    assert keep_rate(like(4, a=()), model(skip("a"))) is None
