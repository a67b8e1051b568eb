"""RAM: the glimpse sensor, the equations, halting, Monte-Carlo repeats, and the same answer under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.data import load_inputs
from dynbench.dynamic import Execution, Trace
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import load_spec
from dynbench.meters.required import PartCosts
from dynbench.models.accounting import static_macs
from dynbench.models.ram import RAM, UNIT, GlimpseSensor, PlainCNN, accounted_macs, on_grid
from dynbench.strategies import STRATEGIES, Cascading, Masking, PerSample
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, forced, run

THRESHOLD = 0.2


def make(halt: Any = None, **args: Any) -> RAM:
    """A small network whose decisions differ from image to image."""
    torch.manual_seed(0)
    net = RAM(**{"glimpses": 4, "size": 4, "scales": 2, "image": 20, "hidden": 32, "width": 16, "halt": halt, **args})
    with torch.no_grad():
        net.look.body.place.weight.mul_(8)  # type: ignore[union-attr, operator]
        net.classifier.weight.mul_(6)
    if halt == "confidence":
        net.loop.halt.threshold.fill_(THRESHOLD)  # type: ignore[union-attr, operator]
    if halt == "learned":
        with torch.no_grad():
            net.loop.halt.unit.weight.mul_(6)  # type: ignore[union-attr, operator]
            net.loop.halt.unit.bias.sub_(0.35)  # type: ignore[union-attr, operator]
    return net.eval()


def images(n: int = 6, size: int = 20, channels: int = 1) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2


def crop(image: Tensor, side: int, l: list[float]) -> Tensor:  # noqa: E741
    """One patch of one image [c, H, W], as the public re-implementation takes it."""
    _, height, width = image.shape
    around = F.pad(image, (side // 2, side - side // 2) * 2)
    x, y = int(0.5 * (l[0] + 1) * width), int(0.5 * (l[1] + 1) * height)
    return around[:, y : y + side, x : x + side]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 6),
    scales=st.integers(1, 3),
    scale=st.integers(1, 3),
    channels=st.integers(1, 3),
    height=st.integers(5, 13),
    width=st.integers(5, 13),
    seed=st.integers(0, 99),
    n=st.integers(1, 5),
)
def test_a_glimpse_is_the_patches_cropped_one_by_one(
    size: int, scales: int, scale: int, channels: int, height: int, width: int, seed: int, n: int
) -> None:
    torch.manual_seed(seed)
    x, row = torch.randn(7, channels, height, width), torch.randint(7, (n,))
    l = torch.cat([torch.randint(-UNIT, UNIT + 1, (n, 2)), torch.tensor([[-1, -1], [1, 1], [1, -1]]) * UNIT])  # noqa: E741
    row = torch.cat([row, torch.tensor([0, 3, 6])])
    sensor = GlimpseSensor(size, scales, scale)
    phi = sensor(sensor.pad(x), row, l)
    for i, (image, place) in enumerate(zip(row.tolist(), l.tolist(), strict=True)):
        patches = [crop(x[image], size * scale**j, [v / UNIT for v in place]) for j in range(scales)]
        pooled = [F.avg_pool2d(p, p.shape[-1] // size) for p in patches]
        assert torch.allclose(phi[i], torch.cat(pooled).flatten(), atol=1e-6)


def test_outside_the_image_there_are_zeros() -> None:
    sensor = GlimpseSensor(4, 1, 2)
    corner = torch.tensor([[-UNIT, -UNIT]])
    phi = sensor(sensor.pad(torch.ones(1, 1, 10, 10)), torch.zeros(1, dtype=torch.long), corner).view(4, 4)
    assert phi.sum() == 4 and phi[2:, 2:].sum() == 4


def by_hand(net: RAM, x: Tensor, glimpses: int) -> Tensor:
    """The class of one image [c, H, W], equation by equation."""
    w = dict(net.named_parameters())

    def linear(name: str, v: Tensor) -> Tensor:
        return w[f"{name}.weight"] @ v + w[f"{name}.bias"]

    h, l = torch.zeros(net.hidden), torch.zeros(2)  # noqa: E741
    for _ in range(glimpses):
        patches = [crop(x, side, l.tolist()) for side in net.sensor.sides]
        phi = torch.cat([F.avg_pool2d(p, p.shape[-1] // net.sensor.size).flatten() for p in patches])
        what, where = linear("glimpse.what1", phi).relu(), linear("glimpse.where1", l).relu()
        g = (linear("glimpse.what2", what) + linear("glimpse.where2", where)).relu()
        h = (linear("core.i2h", g) + linear("core.h2h", h)).relu()
        mu = h
        if "look.body.hidden.weight" in w:
            mu = linear("look.body.hidden", h).relu()
        l = (linear("look.body.place", mu).tanh() * UNIT).round() / UNIT  # noqa: E741
    return linear("classifier", h).log_softmax(0)


@pytest.mark.parametrize("locator_hidden", [0, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_answer_is_that_of_the_equations(locator_hidden: int, channels: int) -> None:
    net, x = make(locator_hidden=locator_hidden, channels=channels), images(4, channels=channels)
    with torch.inference_mode():
        assert torch.allclose(net(x), torch.stack([by_hand(net, i, 4) for i in x]), atol=1e-4)


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("halt", [None, "confidence", "learned"])
def test_every_strategy_answers_alike(halt: Any, strategy: str) -> None:
    net, x = make(halt), images()
    trace = run(net, x, "per_sample")[1]
    assert decided_both_ways(Trace({k: v for k, v in trace.entries.items() if k[0] == "glimpses"})) == (
        halt is not None
    )
    assert_same_answer(net, x, strategy)


def test_cascading_means_nothing_where_nobody_halts() -> None:
    assert Cascading().refuses(make()) and not Cascading().refuses(make("learned"))


def test_who_halts_answers_what_was_sure_enough() -> None:
    net, x = make("confidence"), images()
    said, trace = run(net, x, "cascading")
    with torch.inference_mode():
        each = torch.stack([torch.stack([by_hand(net, i, k + 1) for k in range(4)]) for i in x])  # [n, T, C]
    halts = each.amax(-1).exp() > THRESHOLD
    halts[:, -1] = True
    at = halts.int().argmax(1)
    assert len(at.unique()) > 1
    assert torch.allclose(said, each[torch.arange(len(x)), at], atol=1e-4)
    assert trace.entries["look", (4,)].reached.view(-1, 4).sum(1).tolist() == (at + 1).tolist()


def test_the_static_twin_takes_every_glimpse() -> None:
    net, x = make("confidence"), images()
    with torch.inference_mode():
        assert torch.allclose(net(x), torch.stack([by_hand(net, i, 4) for i in x]), atol=1e-4)


@pytest.mark.parametrize("strategy", ["masking", "compaction", "cascading"])
def test_images_are_not_moved_when_items_leave(strategy: str) -> None:
    net, x = make("confidence"), images()
    seen: list[tuple[int, int]] = []
    net.sensor.register_forward_hook(lambda m, args, out: seen.append((args[0].data_ptr(), len(args[1]))))
    run(net, x, strategy)
    assert len(seen) == 4 and len({where for where, _ in seen}) == 1
    assert (seen[-1][1] < len(x)) == (strategy != "masking")


def test_places_are_replayed_to_the_pixel_in_half_precision() -> None:
    net, x = make("confidence"), images()
    _, trace = run(net, x, "per_sample")
    half, want = run(net.bfloat16(), x.bfloat16(), "compaction", trace)
    assert want == trace and torch.isfinite(half).all()


def test_repeats_are_averaged_and_do_not_depend_on_the_batch() -> None:
    net, x = make("confidence", repeats=3, std=0.3), images()
    whole, trace = run(net, x, "compaction")
    assert trace.entries["look", (3, 4)].reached.shape == (6 * 3 * 4,)
    with torch.inference_mode():
        parts = [Execution(PerSample()).run(net, x[i : i + 2], start=i, items=6) for i in (0, 2, 4)]
        assert torch.allclose(torch.cat(parts), whole, atol=1e-5)
        assert torch.equal(net(x), net(x))
    again, other = make(repeats=3, std=0.3), make(repeats=3, std=0.3, seed=1)
    assert torch.equal(again.noise, net.noise) and not torch.equal(other.noise, net.noise)
    one = make("confidence", std=0.3)
    single = torch.zeros_like(whole)
    for m in range(3):  # the same, repeat by repeat
        ex = Execution(Masking(), choose=_drawn(one, net.noise[m]))
        with torch.inference_mode():
            single += ex.run(one, x, net.first[m].expand(6, 2)) / 3
    assert torch.allclose(single, whole, atol=1e-4)


def _drawn(net: RAM, noise: Tensor) -> Any:
    steps = iter(noise)
    return lambda point, mu: on_grid(mu + next(steps)) if point is net.look else None


@pytest.mark.parametrize("strategy", DYNAMIC)
def test_repeats_answer_alike_under_every_strategy(strategy: str) -> None:
    assert_same_answer(make("confidence", repeats=2, std=0.3), images(4), strategy)


def test_rewards_teach_the_locator_and_not_the_state() -> None:
    net, x = make().train(), images()
    kept: list[Tensor] = []
    Execution(Masking(), observe=lambda point, mu, place: kept.append(mu)).run(net, x)
    torch.stack(kept).sum().backward()
    taught = {name for name, p in net.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert taught == {name for name, _ in net.named_parameters() if name.startswith("look.")}


def test_work_is_that_of_the_glimpses_taken_whatever_the_image() -> None:
    net, x = make("confidence"), images()
    each = (static_macs(net, (1, 20, 20)) - 320) / 4
    for kind, trace in forced(net, x):
        masked = run(net, x, "masking", trace)[1]
        macs, _ = accounted_macs(net, masked, net.shape)
        if kind in ("all", "none"):
            assert macs == pytest.approx({"all": 4, "none": 1}[kind] * each + 320)
            required = PartCosts(net, x).required(trace)
            assert required.region == pytest.approx(2 * 6 * {"all": 4, "none": 1}[kind] * each)
    assert static_macs(net, (1, 50, 31)) == static_macs(net, (1, 20, 20))


def test_a_plain_network_counts_what_its_layers_say() -> None:
    layers = 900 * 9 * 8 + 225 * 72 * 16 + 64 * 144 * 32 + 16 * 288 * 64
    assert static_macs(PlainCNN(1, 60), (1, 60, 60)) == layers + 640
    assert PlainCNN(3, (30, 40), 7, [4])(torch.randn(2, 3, 30, 40)).shape == (2, 7)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: RAM(halt="sometimes"), "halt='sometimes'.*'confidence'.*'learned'"),  # type: ignore[arg-type]
        (lambda: RAM(glimpses=0), "glimpses=0: it is 1 or more"),
        (lambda: RAM(std=0.0), "std=0.0"),
        (lambda: RAM(locator_hidden=-1), "locator_hidden=-1"),
        (lambda: RAM(channels=3)(torch.zeros(1, 1, 28, 28)), "images of 1 channels.*takes 3"),
        (lambda: PlainCNN(widths=[]), "at least one layer"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


def test_the_trained_network_sees_far_more_than_at_random_places() -> None:
    spec = load_spec("ram_digits60")
    net = build_model(spec, spec.folder)
    data = load_inputs("digit_scenes", "test", limit=300)
    x, y = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    generator = torch.Generator().manual_seed(0)

    def anywhere(point: nn.Module, mu: Tensor) -> Tensor | None:
        return on_grid(2 * torch.rand(mu.shape, generator=generator) - 1) if point is net.look else None

    with torch.inference_mode():
        right = [
            float((Execution(STRATEGIES["masking"](), choose=choose).run(net, x).argmax(1) == y).float().mean())
            for choose in (None, anywhere)
        ]
    assert right[0] > 0.8 and right[0] > right[1] + 0.15
