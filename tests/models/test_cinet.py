"""CiNet: where it looks, what it sends, what is declared of the network, and the same answer under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynbench.dynamic import Execution, Trace
from dynbench.models.accounting import static_macs
from dynbench.models.cinet import (
    UNIT,
    CiNet,
    Crop,
    Network,
    SoftArgmax,
    Thumbnail,
    accounted_macs,
    declared_costs,
    on_grid,
)
from dynbench.strategies import STRATEGIES, Masking
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

SMALL: dict[str, Any] = {"image": 24, "patch": 4, "zoom": 2, "widths": [4, 6], "classifier_widths": [6, 8]}
LTE = {"name": "LTE", "up_mbit_s": 12.0, "round_trip_ms": 70.0}


def make(**args: Any) -> CiNet:
    torch.manual_seed(0)
    net = CiNet(**{**SMALL, **args})
    with torch.no_grad():
        net.look.body.saliency.weight.mul_(30)  # type: ignore[union-attr, operator]
    return net.eval()


def images(n: int = 6, channels: int = 1, height: int = 24, width: int = 24) -> Tensor:
    return 2 * torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("args", [{}, {"channels": 3, "zoom": 1}, {"down": 1, "patch": 24, "zoom": 1}])
def test_every_strategy_answers_alike(args: dict[str, Any], strategy: str) -> None:
    assert_same_answer(make(**args), images(channels=args.get("channels", 1)), strategy)


def test_places_differ_from_image_to_image_and_are_recorded() -> None:
    net, x = make(), images()
    _, trace = run(net, x, "masking")
    assert decided_both_ways(trace)
    found = trace.entries["look", ()]
    with torch.inference_mode():
        assert torch.equal(found.value, net.look(x)) and bool(found.reached.all())


def test_cascading_is_refused_there_is_nothing_to_leave() -> None:
    assert "leave a Loop or Exits early" in str(STRATEGIES["cascading"]().refuses(make()))


def by_hand(image: Tensor, place: Tensor, patch: int, zoom: int) -> Tensor:
    """image [c, H, W], place [2] in 1/UNIT -> [c, g, g], pixel by pixel."""
    channels, height, width = image.shape
    side = patch * zoom
    left, top = (
        min(max(int(((int(p) / UNIT + 1) / 2) * size + 0.5) - side // 2, 0), size - side)
        for p, size in zip(place, (width, height), strict=True)
    )
    out = torch.zeros(channels, patch, patch, dtype=image.dtype)
    for row in range(side):
        for column in range(side):
            out[:, row // zoom, column // zoom] += image[:, top + row, left + column] / zoom**2
    return out


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(12, 20), st.integers(12, 20))
def test_the_patch_is_the_window_around_the_place_averaged_down(
    data: st.DataObject, patch: int, zoom: int, height: int, width: int
) -> None:
    steps = st.integers(-UNIT, UNIT)
    place = torch.tensor([[data.draw(steps), data.draw(steps)] for _ in range(3)])
    x = images(3, 2, height, width).double()
    got = Crop(patch, zoom)(x, place)
    want = torch.stack([by_hand(x[i], place[i], patch, zoom) for i in range(3)])
    assert torch.allclose(got, want)


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(1, 3))
def test_the_soft_patch_is_the_patch_where_the_place_falls_on_pixels(data: st.DataObject, zoom: int) -> None:
    side, size = 4 * zoom, 16
    corner = torch.tensor([[data.draw(st.integers(0, size - side)) for _ in range(2)] for _ in range(3)])
    place = (corner + side / 2) * 2 / size - 1  # the middle of the window
    crop, x = Crop(4, zoom), images(3, 2, size, size)
    assert torch.allclose(crop.soft(x, place), crop(x, on_grid(place)), atol=1e-5)


def test_the_label_teaches_the_extractor_through_the_patch() -> None:
    net, x = make().train(), images()
    F.cross_entropy(net.soft(x), torch.arange(6)).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert all(g is not None and bool(g.abs().sum() > 0) for n, g in gradients.items() if "bias" not in n)


def test_a_place_beyond_the_edge_shows_the_edge() -> None:
    x, crop = images(1, 1, 10, 10), Crop(4, 1)
    corners = torch.tensor([[-UNIT, -UNIT], [UNIT, UNIT]])
    first, last = crop(x.expand(2, -1, -1, -1), corners)
    assert torch.equal(first, x[0, :, :4, :4]) and torch.equal(last, x[0, :, 6:, 6:])
    soft = crop.soft(x.expand(2, -1, -1, -1), corners / UNIT)
    assert torch.allclose(soft, torch.stack([first, last]), atol=1e-5)


def test_soft_argmax_is_the_mean_place_under_the_softmax() -> None:
    saliency = torch.full((1, 1, 3, 5), -30.0)
    saliency[0, 0, 2, 1] = 0.0
    assert torch.allclose(SoftArgmax()(saliency), torch.tensor([[3 / 5 - 1, 5 / 3 - 1]]), atol=1e-5)
    saliency[0, 0, 0, 1] = 0.0  # two equal peaks: the middle between them
    assert torch.allclose(SoftArgmax()(saliency), torch.tensor([[3 / 5 - 1, 0.0]]), atol=1e-5)
    p = torch.randn(2, 1, 3, 5).flatten(1).softmax(1).view(2, 3, 5)
    x = torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8])
    got = SoftArgmax()(p.log().unsqueeze(1))
    assert torch.allclose(got[:, 0], (p * x).sum((1, 2)), atol=1e-5)


@pytest.mark.parametrize(("image", "patch"), [(100, 10), ((60, 40), 6)])
def test_images_of_other_sizes_and_a_tenth_of_either_side(image: Any, patch: int) -> None:
    height, width = (image, image) if isinstance(image, int) else image
    net = CiNet(channels=3, image=image, patch=patch, zoom=3).eval()
    with torch.inference_mode():
        assert net(images(2, 3, height, width)).shape == (2, 10)
    assert net.patch_bytes == 3 * patch**2
    if image == 100:  # Figure 1: 10 x 10 x 3 of 100 x 100 x 3, the abstract's 99 % less
        assert net.patch_bytes / (3 * 100 * 100) == 0.01


def test_what_the_device_computes_is_accounted() -> None:
    net = make()
    convolutions = 8 * 8 * 9 * 1 * 4 + 4 * 4 * 9 * 4 * 6 + 4 * 4 * 9 * 6 * 1  # 24 / 3 = 8, halved by the second
    macs, rule = accounted_macs(net, Trace(), net.shape)
    assert macs == convolutions and "extractor" in rule
    assert static_macs(net, (1, 24, 24)) == convolutions + 16 * 9 * 6 + 4 * 9 * 6 * 8 + 80


def test_the_network_is_declared() -> None:
    (row,) = declared_costs(make(network=LTE), Trace())
    assert row["share"] == 1.0 and row["cost"] == 16.0 and row["unit"] == "bytes sent"
    assert row["latency_s"] == pytest.approx(0.070 + 8 * 16 / 12e6)
    assert "LTE of 12 Mbit/s up and 70 ms round trip" in row["what"]
    assert declared_costs(make(), Trace()) == []
    assert Network("slow", 0.001, 0).query_s(125) == pytest.approx(1.0)


def test_the_thumbnail_has_as_many_pixels_of_the_whole_image() -> None:
    net, x = Thumbnail(image=24, patch=4).eval(), images()
    with torch.inference_mode():
        assert torch.allclose(net.shrink(x), F.avg_pool2d(x, 6), atol=1e-6)
        assert net(x).shape == (6, 10)
    assert net.input_shape((1,)) == (1, 24, 24)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"patch": 0}, "patch=0"),
        ({"zoom": -1}, "zoom=-1"),
        ({"patch": 7, "zoom": 4}, "28 pixels do not fit an image of 24"),
        ({"down": 30}, "down=30"),
        ({"widths": []}, "widths=0"),
        ({"classifier_widths": [4, 0]}, "classifier_widths=0"),
        ({"network": {"name": "LTE"}}, "declare name, up_mbit_s and round_trip_ms"),
        ({"network": {**LTE, "up_mbit_s": 0}}, "up_mbit_s=0 is above 0"),
        ({"network": {**LTE, "round_trip_ms": -1}}, "round_trip_ms=-1 0 or more"),
    ],
)
def test_bad_arguments_are_told(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**args)


def test_bad_images_and_thumbnails_are_told() -> None:
    with pytest.raises(ValueError, match="this network takes"):
        make()(images(1, 1, 20, 24))
    with pytest.raises(ValueError, match="every size"):
        Thumbnail(patch=0)


def test_a_choice_can_be_replayed() -> None:
    net, x = make(), images()
    y, trace = run(net, x, "masking")
    other = run(net, x.roll(1, 0), "masking", trace)[0]
    with torch.inference_mode():
        patch = net.crop(x.roll(1, 0), trace.entries["look", ()].value)
        assert torch.allclose(other, net.classifier(patch), atol=1e-6)
    assert not torch.allclose(other, y, atol=1e-3)
    assert Execution(Masking()).run(net, x).shape == y.shape
