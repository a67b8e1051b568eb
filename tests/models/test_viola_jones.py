"""Viola-Jones cascades: OpenCV accepts the same windows, and every strategy gives the same answer."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut
from torch import Tensor

from dynbench import hooks
from dynbench.data import load_inputs
from dynbench.dynamic import Execution, points
from dynbench.errors import UserError
from dynbench.models.viola_jones import (
    Cascade,
    Feature,
    Level,
    ViolaJones,
    accounted_macs,
    cascade_file,
    group_rectangles,
    integral,
    opencv,
    pyramid,
    read_cascade,
    resize_linear_exact,
    tilted_integral,
    viola_jones,
    weak_classifiers_met,
)
from dynbench.strategies import Cascading
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

# weak classifiers, stages, nodes of a tree, features that are turned by 45 degrees: counted in the files of OpenCV 4.14
SHIPPED = {
    "eye": (1066, 24, 1, 0),
    "eye_tree_eyeglasses": (851, 30, 3, 577),
    "frontalcatface": (1275, 20, 1, 0),
    "frontalcatface_extended": (1184, 20, 1, 274),
    "frontalface_alt": (2135, 22, 1, 0),
    "frontalface_alt2": (1047, 20, 2, 0),
    "frontalface_alt_tree": (8468, 47, 1, 0),
    "frontalface_default": (2913, 25, 1, 0),
    "fullbody": (1464, 30, 1, 201),
    "lefteye_2splits": (366, 20, 2, 185),
    "lowerbody": (1221, 27, 1, 110),
    "profileface": (2609, 26, 1, 0),
    "righteye_2splits": (368, 20, 2, 186),
    "russian_plate_number": (212, 20, 1, 7),
    "smile": (569, 20, 1, 117),
    "upperbody": (2423, 30, 1, 474),
}
OLD_FORMAT = "license_plate_rus_16stages"


@cache
def cascade(name: str) -> Cascade:
    return read_cascade(cascade_file(name))


@cache
def photo(height: int, width: int, reduce: int, n: int = 1, seed: int = 0) -> Tensor:
    data = load_inputs("photo", "test", limit=n, seed=seed, height=height, width=width, reduce=reduce)
    return torch.from_numpy(data.inputs)


def written(folder: Path, name: str, stages: int, change: Callable[[ET.Element], None] | None = None) -> Path:
    """A cascade of the first so many stages, as OpenCV reads it."""
    tree = ET.parse(cascade_file(name))
    top = tree.getroot().find("cascade")
    assert top is not None
    every, number = top.find("stages"), top.find("stageNum")
    assert every is not None and number is not None
    for stage in list(every)[stages:]:
        every.remove(stage)
    number.text = str(stages)
    if change is not None:
        change(top)
    tree.write(folder / f"{name}.xml", encoding="utf-8", xml_declaration=True)
    return folder / f"{name}.xml"


def rows(rectangles: Any) -> list[tuple[int, ...]]:
    return sorted(map(tuple, np.asarray(rectangles).reshape(-1, 4).tolist()))


def theirs(file: Path, image: np.ndarray, min_neighbors: int, factor: float, **sizes: Any) -> list[tuple[int, ...]]:
    classifier = cv2.CascadeClassifier(str(file))
    assert not classifier.empty()
    return rows(classifier.detectMultiScale(image, factor, minNeighbors=min_neighbors, **sizes))


def answers(net: ViolaJones, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = Execution(Cascading()).run(net, x)
    return found


# OpenCV accepts the same windows.


@pytest.mark.parametrize("name", SHIPPED)
def test_opencv_accepts_the_same_windows_and_finds_the_same(name: str, tmp_path: Path) -> None:
    whole, x = cascade(name), photo(57, 71, 4)
    accepted = []
    for stages in (1, 4, len(whole.stages)):
        net = ViolaJones(replace(whole, stages=whole.stages[:stages]), 1.2)
        answer = answers(net, x)
        file = written(tmp_path, name, stages)
        want = theirs(file, x[0, 0].numpy(), 0, 1.2)
        assert rows(net.detections(answer, 57, 71, 0)[0]) == want
        assert rows(net.detections(answer, 57, 71, 3)[0]) == theirs(file, x[0, 0].numpy(), 3, 1.2)
        accepted.append(len(want))
    assert accepted[0] > accepted[1] > 0


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    height=st.integers(24, 90),
    width=st.integers(24, 90),
    factor=st.sampled_from([1.05, 1.1, 1.25, 1.7]),
    least=st.one_of(st.none(), st.integers(20, 60)),
    most=st.one_of(st.none(), st.integers(20, 60)),
    seed=st.integers(0, 9),
)
def test_opencv_accepts_the_same_windows_of_images_of_any_size(
    height: int, width: int, factor: float, least: int | None, most: int | None, seed: int
) -> None:
    whole = cascade("frontalface_default")
    limits = [None if v is None else (v, v) for v in (least, most)]
    net = ViolaJones(replace(whole, stages=whole.stages[:2]), factor, *limits)
    x = photo(height, width, 4, seed=seed)
    sizes = {"minSize": limits[0] or (0, 0), "maxSize": limits[1] or (0, 0)}
    want = theirs(TWO_STAGES, x[0, 0].numpy(), 0, factor, **sizes)
    assert rows(net.detections(answers(net, x), height, width, 0)[0]) == want


@pytest.fixture(scope="module", autouse=True)
def _two_stages(tmp_path_factory: pytest.TempPathFactory) -> None:
    global TWO_STAGES
    TWO_STAGES = written(tmp_path_factory.mktemp("cascade"), "frontalface_default", 2)


TWO_STAGES = Path()


def test_a_batch_is_its_images_and_the_face_is_found() -> None:
    net, x = viola_jones(scale_factor=1.25).eval(), photo(54, 72, 4, n=4)
    together = net.detections(answers(net, x), 54, 72)
    assert [rows(a) for a in together] == [
        rows(net.detections(answers(net, x[i : i + 1]), 54, 72)[0]) for i in range(4)
    ]
    assert any(len(found) == 1 for found in together)


def test_the_baseline_answers_in_the_form_of_the_network() -> None:
    net, other, x = viola_jones(scale_factor=1.25), opencv(scale_factor=1.25), photo(54, 72, 4, n=4)
    ours, cv = answers(net, x), other(x)
    assert ours.shape == cv.shape
    assert [rows(a) for a in net.detections(cv, 54, 72, 0)] == [rows(a) for a in net.detections(ours, 54, 72, 0)]
    assert float(cv[..., 0].max()) == 25 and cv2.getNumThreads() == torch.get_num_threads()


# Its parts, one by one.


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.2, 1), st.floats(0.2, 1), st.integers(0, 99))
def test_images_are_resized_as_by_opencv_bit_by_bit(
    height: int, width: int, down: float, across: float, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    h, w = max(1, round(height * down)), max(1, round(width * across))
    want = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR_EXACT)
    assert np.array_equal(resize_linear_exact(torch.from_numpy(image)[None].int(), h, w)[0].numpy(), want)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_integral_images_are_their_sums(height: int, width: int, seed: int) -> None:
    x = torch.randint(0, 256, (2, height, width), generator=torch.Generator().manual_seed(seed))
    upright, tilted = integral(x), tilted_integral(x)
    y0, x0 = torch.arange(height).unsqueeze(1), torch.arange(width)
    for y in range(height + 1):
        for at in range(width + 1):
            cone = (x0 + 1 - at).abs() <= y - 1 - y0
            assert upright[1, y, at] == x[1, :y, :at].sum()
            assert tilted[1, y, at] == (x[1] * cone).sum()


@pytest.mark.parametrize(
    ("rectangles", "references"),
    [
        (((2, 3, 8, 6, -1.0), (6, 3, 4, 6, 2.0)), 6),  # two halves
        (((2, 3, 9, 6, -1.0), (5, 3, 3, 6, 3.0)), 8),  # the middle of three
        (((2, 3, 8, 6, -1.0), (2, 3, 4, 3, 2.0), (6, 6, 4, 3, 2.0)), 9),  # a chess board
    ],
)
def test_features_take_six_eight_or_nine_references(rectangles: Any, references: int) -> None:
    image = torch.randint(0, 256, (24, 24), generator=torch.Generator().manual_seed(0))
    found = Feature(rectangles, False).references()
    table = integral(image[None])[0]
    want = sum(weight * int(image[y : y + h, x : x + w].sum()) for x, y, w, h, weight in rectangles)
    assert len(found) == references
    assert sum(weight * int(table[y, x]) for (_, y, x), weight in found.items()) == want


def test_a_window_s_answer_is_that_of_the_rules_by_hand() -> None:
    whole, x = cascade("frontalface_default"), photo(30, 34, 4, seed=3)
    net = ViolaJones(replace(whole, stages=whole.stages[:3]), 1.1, max_size=(24, 24))
    answer = answers(net, x)[0]
    image = x[0, 0].numpy().astype(np.int64)
    want = []
    for top in range(0, 6, 2):  # OpenCV does not come to the row at 6
        for left in range(0, 11, 2):
            window = image[top : top + 24, left : left + 24]
            inner = window[1:-1, 1:-1]
            scale = inner.size * inner.std()
            passed, total = (-1, 0.0) if inner.std() <= 10 else (0, 0.0)
            for threshold, trees in net.cascade.stages if passed == 0 else ():
                total = 0.0
                for tree in trees:
                    _, _, feature, theta = tree.nodes[0]
                    boxes = whole.features[feature].rectangles
                    value = sum(v * window[b : b + h, a : a + w].sum() for a, b, w, h, v in boxes)
                    total += tree.leaves[0] if value / scale < theta else tree.leaves[1]
                if total < threshold - 1e-5:
                    break
                passed += 1
            want.append((passed, total))
    assert len({p for p, _ in want}) > 2
    assert answer[:, 0].tolist() == [p for p, _ in want]
    assert torch.allclose(answer[:, 1], torch.tensor([t for _, t in want]), atol=1e-5)


def test_flat_windows_are_rejected_unseen() -> None:
    net, x = viola_jones(stages=2), photo(30, 60, 4).clone()
    x[..., :30] = 77
    answer = answers(net, x)[0]
    assert int((answer[:, 0] == -1).sum()) >= 12 and float(answer[answer[:, 0] == -1, 1].abs().sum()) == 0
    assert bool((answer[:, 0] >= 0).any())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 999))
def test_rectangles_are_grouped_as_by_opencv(many: int, least: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.integers(0, 60, (many, 2)), np.repeat(rng.integers(15, 60, (many, 1)), 2, 1)], 1)
    want, _ = cv2.groupRectangles(boxes.tolist(), least, 0.2)
    assert rows(group_rectangles(boxes.astype(np.int32), least)) == rows(want)


def test_levels_shrink_by_the_factor_and_coarse_ones_are_scanned_pixel_by_pixel() -> None:
    levels = pyramid(100, 120, (24, 24), 1.5)
    assert [(v.height, v.width, v.step) for v in levels] == [(100, 120, 2), (67, 80, 2), (44, 53, 1), (30, 36, 1)]
    assert levels[0] == Level(1.0, 100, 120, 2, 39, 49, 0)
    assert [v.top for v in levels] == [0, 101, 169, 214]


# Every strategy gives the same answer.


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("name", ["frontalface_default", "eye_tree_eyeglasses"])
def test_every_strategy_answers_alike(name: str, strategy: str) -> None:
    net, x = viola_jones(name, 4, 1.3, min_size=24, max_size=(30, 30)).eval(), photo(30, 34, 4, n=2, seed=3).clone()
    x[0, :, :, :26] = 77  # one window is flat
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


def test_the_static_twin_gives_the_same_answer_though_it_computes_everything() -> None:
    net, x = viola_jones("frontalface_alt2", 5, 1.25).eval(), photo(40, 44, 4, n=2)
    with torch.inference_mode():
        assert torch.equal(net(x), answers(net, x))


def test_the_dtype_of_the_model_does_not_change_the_arithmetic() -> None:
    net, x = viola_jones(stages=5, scale_factor=1.25).eval(), photo(40, 44, 4)
    want = answers(net, x)
    assert torch.equal(answers(net.double(), x.double()), want)


# What is counted.


@pytest.mark.parametrize("name", SHIPPED)
def test_cascades_are_read_whole(name: str) -> None:
    whole = cascade(name)
    weak, stages, nodes, tilted = SHIPPED[name]
    assert sum(whole.weak_classifiers) == weak and len(whole.stages) == stages
    assert {len(tree.nodes) for _, trees in whole.stages for tree in trees} == {nodes}
    assert sum(f.tilted for f in whole.features) == tilted


def test_a_window_meets_few_weak_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window of a crop at its own scale: the counts of another program, written in numpy."""
    net = ViolaJones(cascade("frontalface_default"))
    monkeypatch.setattr(net, "levels", lambda *_: (Level(1.0, 300, 300, 1, 276, 276, 0),))
    grey = cv2.cvtColor(astronaut(), cv2.COLOR_RGB2GRAY)[:300, 100:400]
    answer = answers(net, torch.from_numpy(np.ascontiguousarray(grey))[None, None])
    passed = answer[..., 0]
    assert [int((passed >= k).sum()) for k in range(6)] == [51_124, 21_694, 10_529, 6_002, 3_178, 1_889]
    assert int((passed == 25).sum()) == 2
    assert float(weak_classifiers_met(net, answer).float().mean()) == pytest.approx(23.6, abs=0.05)


def test_accounting_counts_the_rectangles_of_the_stages_met() -> None:
    net, x = viola_jones(stages=3, scale_factor=1.25).eval(), photo(40, 44, 4, n=2)
    answer, trace = run(net, x, "masking")
    macs, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    trees = [stage for _, stage in net.cascade.stages]
    of_stage = [sum(len(net.cascade.features[n[2]].rectangles) for t in stage for n in t.nodes) for stage in trees]
    met = [int((answer[..., 0] >= k).sum()) for k in range(3)]
    assert met[0] > met[1] > met[2] > 0
    assert macs == pytest.approx(sum(a * b for a, b in zip(met, of_stage, strict=True)) / 2)
    weak = weak_classifiers_met(net, answer)
    assert f"{float(weak.float().mean()):.1f} of {9 + 16 + 27} weak" in rule
    by_hand = [0, 9, 9 + 16, 9 + 16 + 27, 9 + 16 + 27]
    assert weak.flatten().tolist() == [by_hand[int(p) + 1] for p in answer[..., 0].flatten()]


# Its hooks.


def test_the_model_names_its_weights_and_the_baseline_what_it_computes_in() -> None:
    ours = hooks.of(viola_jones())
    assert ours.weights_file == cascade_file("frontalface_default") and ours.outside_torch is None
    assert hooks.of(opencv()).outside_torch == "OpenCV"


# What cannot be read is refused.


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"cascade": "nose"}, "cascade='nose': OpenCV ships eye, .*upperbody"),
        ({"cascade": "no/such.xml"}, "no cascade file"),
        ({"cascade": OLD_FORMAT}, "old format"),
        ({"stages": 26}, "stages=26: cascade haarcascade_frontalface_default.xml has 1 to 25"),
        ({"stages": 0}, "stages=0"),
        ({"scale_factor": 1}, "above 1"),
        ({"min_size": 0}, "min_size=0"),
        ({"max_size": (30, 30, 30)}, "width and height"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        viola_jones(**args)


def _set(path: str, text: str) -> Callable[[ET.Element], None]:
    def change(top: ET.Element) -> None:
        found = top.find(path)
        assert found is not None
        found.text = text

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("featureType", "LBP"), "BOOST LBP"),
        (_set("features/_/rects/_", "20 0 6 4 1."), "outside the window"),
        (_set("features/_/rects/_", "1 2 3"), "damaged"),
        (_set("stages/_/weakClassifiers/_/internalNodes", "0 -1 9999 0.1"), "by feature 9999"),
        (_set("stages/_/weakClassifiers/_/internalNodes", "0 -2 1 0.1"), "leads to 0 and -2"),
        (_set("stages/_/weakClassifiers/_/internalNodes", "-1 0 1 0.1"), "no stump"),
        (_set("stages/_/stageThreshold", "x"), "damaged"),
        (lambda top: top.remove(top.find("width")), "no <width>"),  # type: ignore[arg-type]
    ],
)
def test_a_damaged_cascade_is_one_sentence(change: Callable[[ET.Element], None], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        viola_jones(str(written(tmp_path, "frontalface_default", 1, change)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<opencv_storage><cascade>", "not well-formed"),
        ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        ("<opencv_storage/>", "no <cascade>"),
    ],
)
def test_what_is_no_cascade_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        viola_jones(str(tmp_path / "a.xml"))


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2.data", None)
    with pytest.raises(UserError, match=r"pip install 'dynbench\[vision\]'"):
        viola_jones()


def test_an_opencv_that_ships_no_cascades_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cv2.data, "haarcascades", str(tmp_path))
    with pytest.raises(ValueError, match="versions below 5"):
        viola_jones()


@pytest.mark.parametrize(("shape", "says"), [((1, 3, 40, 40), "grey images"), ((1, 1, 23, 40), "holds no window")])
def test_images_it_cannot_look_at_are_refused(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        viola_jones(stages=1)(torch.zeros(shape))


def test_points_are_one_cascade_of_windows() -> None:
    net = viola_jones(stages=3)
    assert list(points(net)) == ["cascade"] and len(net.state_dict()) == 9
