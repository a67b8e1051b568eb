"""The search, the comparison with random networks, and the predictor that picks a network for a latency."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dynbench.devices.fake import FakeDevice
from dynbench.dynamic import Width, points
from dynbench.errors import UserError
from dynbench.models.dmasking import Bottleneck, Space, Supernet, dmasking, macs, params, plain
from dynbench.training import train_workload
from dynbench.training.dmasking import Alone, Guided, ManyWidths, Search, Searching, Widths, _of_cost, comparison
from dynbench.training.predictor import (
    Embedding,
    choose,
    cross_validated,
    encode,
    evolve,
    latencies_ms,
    rank_correlation,
    statistics_of,
)

OPTIONS = [[4, 8], [8, 16]]
CHANNELS = [[4, 8], [4, 8], [8, 16]]
SPACE = Space((16, 24, 32), CHANNELS, OPTIONS, 1)
QUICK = {"epochs": 1, "items": 64, "batch_size": 32}
WORKLOAD: dict[str, Any] = {
    "name": "dmasking_tiny",
    "inputs": {"name": "digits"},
    "model_args": {"options": OPTIONS, "blocks": 1},
    "train": {
        "recipe": "dynbench.training.dmasking:train",
        "options": {
            **QUICK,
            "search": {"channels": CHANNELS},
            "net": {"seeds": 2, "equals": 2, "others": 2, "within": 0.5},
        },
    },
}


def test_what_is_found_random_networks_and_the_masked_network_are_trained_with_a_card(tmp_path: Path) -> None:
    train_workload(WORKLOAD, tmp_path, progress=False)
    name = "dmasking_tiny"
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{net}.{kind}" for net in (name, f"{name}_plain") for kind in ("json", "safetensors")
    }
    card, alone = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (name, f"{name}_plain"))
    found = SPACE.choose(card["picked"])
    assert card["found"] == {
        "resolution": found.resolution,
        "channels": list(found.channels),
        "widths": list(found.widths),
    }
    assert alone["args"]["widths"] == list(found.widths) and alone["macs"] == macs(SPACE, found) == card["found_macs"]
    net = dmasking(**card["args"])
    net.load_state_dict(load_file(tmp_path / f"{name}.safetensors"), strict=False)
    widths = [int((p.choose(torch.ones(1)) > 0).sum()) for p in points(net).values() if isinstance(p, Width)]
    assert widths == list(found.widths)
    plain(**alone["args"]).load_state_dict(load_file(tmp_path / f"{name}_plain.safetensors"), strict=False)
    table = card["found_against_random"]
    assert table["found"]["networks"] == 2 and table["random"]["networks"] == 2 and len(card["trained_nets"]) == 6
    assert all(abs(m / card["found_macs"] - 1) <= 0.5 for m in table["random"]["macs"])
    assert table["gain"] == pytest.approx(table["found"]["mean"] - table["random"]["mean"], abs=1e-4)
    row = card["trained_nets"][0]
    assert SPACE.choose(row["picked"]) == found and row["accuracy"] == alone["accuracy"] == table["found"]["each"][0]
    assert card["search"]["settings"]["lam"] > 0 and card["space"]["networks"] == 3 * 2**5


def test_interrupted_training_goes_on_with_what_was_found_and_trained(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(self: Any, *_: Any) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("dynbench.training.dmasking._train_widths", stop)
        train_workload(WORKLOAD, tmp_path, progress=False)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    notes = {p.name for p in (tmp_path / "unfinished").glob("*.note.json")}
    assert notes == {"dmasking_tiny_nets.note.json", "dmasking_tiny_search.note.json"}
    train_workload(WORKLOAD, tmp_path, progress=False)
    assert not (tmp_path / "unfinished").exists()
    file = tmp_path / "dmasking_tiny_plain.safetensors"
    assert file.stat().st_mtime_ns == before[file.name]
    assert json.loads((tmp_path / "dmasking_tiny.json").read_text())["trained_nets"]


def images(n: int = 12) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 32, 32, generator=draw), torch.randint(10, (n,), generator=draw)


@pytest.mark.parametrize("mix", ["maps", "losses"])
@pytest.mark.parametrize("form", ["plus", "times"])
def test_the_price_of_the_cost_presses_on_the_architecture_but_not_in_the_beginning(form: str, mix: str) -> None:
    torch.manual_seed(0)
    model = Guided(Supernet(SPACE))
    loss = Search(Searching(epochs=1, lam=5.0, form=form, mix=mix, weights_first=0.5, hot=4.0, cold=1.0), steps=2)
    loss(model, *images()).backward()
    assert all(a.grad is None for a in model.net.alpha.values()) and model.net.temperature == 4.0
    loss(model, *images()).backward()
    assert model.net.temperature == pytest.approx(2.0) and int(model.step) == 2
    pressed = [float(a.grad[-1] - a.grad[0]) for a in model.net.alpha.values() if a.grad is not None]
    assert len(pressed) == 6 and sum(pressed) > 0  # downhill is away from what costs more


def test_weights_learn_from_all_resolutions_alike_and_their_chances_from_what_each_loses_and_costs() -> None:
    torch.manual_seed(0)
    model, (x, y) = Guided(Supernet(SPACE)).eval(), images()
    start = torch.tensor([0.0, 0.1, -0.05])
    with torch.no_grad():
        model.net.alpha["resolution"].copy_(start)
    s = Searching(epochs=1, mix="losses", weights_first=0.0, lam=0.5)
    torch.manual_seed(1)
    Search(s, 4)(model, x, y).backward()
    weight, chance = model.net.fc.weight.grad, model.net.alpha["resolution"].grad
    torch.manual_seed(1)
    g = {name: drawn.detach() for name, drawn in model.net.sample().items()}
    model.zero_grad()
    terms = [model.net(x, {**g, "resolution": torch.eye(3)[k]}) for k in range(3)]
    ce = torch.stack([torch.nn.functional.cross_entropy(said, y) for said, _ in terms])
    ce.mean().backward()
    assert weight is not None and chance is not None
    torch.testing.assert_close(weight, model.net.fc.weight.grad)
    free = start.clone().requires_grad_()
    worth = ce.detach() + s.lam * torch.stack([cost for _, cost in terms]).log()
    ((15 * free).softmax(0) @ worth).backward()
    assert free.grad is not None and float(free.grad.abs().min()) > 0
    torch.testing.assert_close(chance, free.grad)


@pytest.mark.parametrize(
    ("setting", "message"), [({"form": "power"}, "plus or times"), ({"mix": "pixels"}, "maps or losses")]
)
def test_a_search_there_is_not_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Searching(epochs=1, **setting)


def test_random_networks_cost_as_much_and_are_others() -> None:
    like = SPACE.random(random.Random(3))
    found = _of_cost(SPACE, like, Alone(epochs=1, equals=3, within=0.1))
    assert len(found) == 3 and like not in found
    assert all(abs(macs(SPACE, a) / macs(SPACE, like) - 1) <= 0.1 for a in found)


def test_the_comparison_is_of_means() -> None:
    ours, others = ([{"accuracy": a, "macs": 10} for a in each] for each in ([0.6, 0.8], [0.5, 0.75, 0.7, 0.61]))
    table = comparison(ours, others, 0.05)
    assert table["gain"] == pytest.approx(0.06) and table["found_is_better_than"] == "2 of 4"
    assert table["found"]["std"] == pytest.approx(0.1414, abs=1e-4)
    assert table["standard_error"] == pytest.approx((0.02 / 2 + 0.0122 / 4) ** 0.5, abs=1e-3)


def test_a_batch_is_trained_at_the_widths_found_at_the_widest_and_at_others(monkeypatch: Any) -> None:
    net = dmasking(16, (4, 8, 8), ((4, 8, 12), (8, 16, 20)), (8, 16), blocks=1).train()
    seen: list[Tensor] = []
    forward = Bottleneck.forward

    def noted(self: Bottleneck, x: Tensor, mask: Tensor) -> Tensor:
        seen.append(mask.sum(1))
        return forward(self, x, mask)

    monkeypatch.setattr(Bottleneck, "forward", noted)
    torch.manual_seed(0)
    for found, full, wanted in ((1.0, 0.0, {8}), (0.0, 1.0, {12}), (0.0, 0.0, {4, 8, 12})):
        ManyWidths(Widths(epochs=1, as_found=found, full=full))(net, *images(40)).backward()
        assert set(seen[0].tolist()) == wanted
        seen.clear()


# --- the predictor ----------------------------------------------------------------------------------------------------


def some(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(SPACE.picked(SPACE.random(draw))) for _ in range(n)]


def test_an_architecture_is_encoded_one_option_per_question() -> None:
    x = encode(SPACE, [(2, 0, 1, 0, 1, 0)])
    assert x.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0]]


def test_the_free_statistics_are_macs_and_parameters() -> None:
    (net,) = some(1)
    a = SPACE.choose(net)
    assert statistics_of(SPACE, [net])[0].exp().tolist() == pytest.approx([macs(SPACE, a), params(SPACE, a)], rel=1e-4)


@pytest.fixture(scope="module")
def embedding() -> Embedding:
    return Embedding(SPACE)


def test_pre_training_teaches_the_statistics_and_helps_where_values_follow_them(embedding: Embedding) -> None:
    nets = sorted(set(some(60, 1)))
    random.Random(0).shuffle(nets)
    known = embedding(nets)[:, -2]
    log_macs = statistics_of(SPACE, nets)[:, 0]
    assert float(torch.corrcoef(torch.stack([known, log_macs]))[0, 1]) > 0.98
    values = (-0.5 * (-log_macs).exp() * 1e5).tolist()
    learned = cross_validated(embedding, nets[:20], values[:20])
    blank = cross_validated(Embedding(SPACE, pretrained=False), nets[:20], values[:20])
    assert learned.rank_correlation is not None and learned.rank_correlation > 0.85 and learned.networks == 20
    assert learned.error < blank.error


def test_it_is_seeded_and_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(5)
    a = Embedding(SPACE, 3)(some(2))
    first = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(a, Embedding(SPACE, 3)(some(2))) and torch.equal(first, torch.rand(1))


@pytest.mark.parametrize(("a", "b", "wanted"), [([1, 2, 3], [2, 4, 9], 1.0), ([1, 2, 3], [3, 2, 1], -1.0)])
def test_rank_correlation(a: list[float], b: list[float], wanted: float) -> None:
    assert rank_correlation(a, b) == pytest.approx(wanted)
    assert rank_correlation(a, [1, 1, 1]) is None
    assert rank_correlation([1, 1, 2, 3], [1, 1, 5, 9]) == pytest.approx(1.0)  # ties share a rank


def test_evolution_finds_what_trying_all_finds() -> None:
    every = [tuple(p) for p in torch.cartesian_prod(*(torch.arange(len(o)) for _, o in SPACE.questions())).tolist()]
    taste = torch.linspace(-1, 2, 13)

    def score(nets: Any) -> Tensor:
        return encode(SPACE, nets) @ taste

    def cost(nets: Any) -> Tensor:
        return statistics_of(SPACE, nets)[:, 0].exp()

    for limit in (6e4, 2e5, 1e7):
        best = max(float(score([p])) for p in every if float(cost([p])) <= limit)
        found = evolve(SPACE, score, cost, limit)
        assert found is not None and float(score([found])) == pytest.approx(best) and float(cost([found])) <= limit
    assert evolve(SPACE, score, cost, 10.0) is None


class Costly(nn.Module):
    """Takes as long on a fake clock as it says."""

    def __init__(self, clock: FakeDevice, ns: int) -> None:
        super().__init__()
        self.clock, self.ns = clock, ns

    def forward(self, x: Tensor) -> Tensor:
        self.clock.work(self.ns)
        return x


def test_networks_are_timed_in_turn_and_get_the_median() -> None:
    clock, calls = FakeDevice(), list[int]()
    nets = [Costly(clock, ns) for ns in (3_000_000, 1_000_000)]
    for net in nets:
        net.register_forward_pre_hook(lambda net, _: calls.append(net.ns))
    assert latencies_ms(nets, torch.zeros(1), clock, rounds=4) == [3.0, 1.0]
    assert all(set(calls[i : i + 2]) == {3_000_000, 1_000_000} for i in range(0, len(calls), 2))


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """Networks take 10 ns a MAC."""
    clock = FakeDevice()
    monkeypatch.setattr(
        "dynbench.training.predictor._net", lambda space, p, x: Costly(clock, 10 * macs(space, space.choose(p)))
    )
    return clock


def trained(n: int) -> list[dict[str, Any]]:
    """Accuracy rises with the logarithm of MACs."""
    return [{"picked": list(p), "accuracy": 0.1 * float(statistics_of(SPACE, [p])[0, 0]) - 0.7} for p in some(n, 4)]


def test_what_is_picked_keeps_the_limit_and_is_about_the_best_that_does(priced: FakeDevice) -> None:
    limit_ms = 0.8
    rows = trained(24)
    twice = [{**row, "accuracy": row["accuracy"] + e} for row in rows for e in (-0.01, 0.01)]  # from two seeds
    found = choose(SPACE, twice, torch.zeros(1), priced, limit_ms, rounds=2)
    assert found.predicted_ms <= limit_ms and found.measured_ms == pytest.approx(found.macs * 1e-5)
    assert found.measured_ms == pytest.approx(found.predicted_ms, rel=0.2)
    assert found.macs > 0.6 * limit_ms / 1e-5  # what a network may cost is used
    assert found.largest_ms == pytest.approx(macs(SPACE, SPACE.largest) * 1e-5)
    assert found.predicted_accuracy == pytest.approx(0.1 * float(torch.tensor(found.macs).log()) - 0.7, abs=0.05)
    assert found.latency.rank_correlation is not None and found.latency.rank_correlation > 0.9
    assert found.latency.networks == 32 and found.accuracy.networks == len({tuple(row["picked"]) for row in rows})


@pytest.mark.parametrize(
    ("networks", "limit_ms", "message"),
    [
        (24, 1e-3, "--max-latency-ms 0.001: no network is expected to be as fast"),
        (9, 1.0, "8 trained and 32 measured networks"),
    ],
)
def test_what_cannot_be_picked_is_told_with_what_there_is(
    priced: FakeDevice, networks: int, limit_ms: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose(SPACE, trained(networks), torch.zeros(1), priced, limit_ms, rounds=1)
