"""Viola-Jones cascades: most windows of an image are rejected by the first few of thousands of features.

Viola, Jones, "Rapid Object Detection using a Boosted Cascade of Simple Features", CVPR 2001. The cascades are trained
ones that ship with OpenCV 4 (`haarcascade_*.xml`), and the rules of the scan are OpenCV's (`cascadedetect.cpp`),
reconstructed: the same windows are accepted as by OpenCV. Differences from the paper: windows keep their size and the
image shrinks; a weak classifier may be a small tree, with any number as the vote of a leaf; a feature is also divided
by the area of the window; some features are rotated by 45 degrees (Lienhart and Maydt 2002).

The items are the windows of all sizes. The arithmetic is OpenCV's for every dtype of the model, which only rounds
thresholds and votes: integral images are exact, a feature is float32, a stage's sum float64. Of a tree with several
nodes all are computed; OpenCV computes those on the path.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dynbench.dynamic import Each, Exits, Shared, Trace
from dynbench.errors import UserError
from dynbench.models.accounting import decided

PAPER = "Viola, Jones, Rapid Object Detection using a Boosted Cascade of Simple Features, CVPR 2001"
PROVENANCE = (
    "cascades that ship with OpenCV 4, trained by others; scan reconstructed from OpenCV: the same windows are accepted"
)
INSTALL = "install the extra 'vision': pip install 'dynbench[vision]'"
EPSILON = np.float32(1e-5)  # OpenCV lowers every stage's threshold by this
FLAT = 0.1  # a window whose standard deviation is below 1 / FLAT is rejected before the first stage
SUM, SQUARES, TILTED = 0, 1, 2  # planes of the integral images
REFERENCES_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 25}  # array references; on a CPU they should fit into the cache

Size = int | tuple[int, int]


# --- the cascade, as stored in its file ---


@dataclass(frozen=True)
class Feature:
    """Weighted sums of the pixels in 2 or 3 rectangles (x, y, width, height, weight) of a window.

    `tilted`: rotated by 45 degrees; (x, y) is then the top corner, the width extends down to the right, the height down
    to the left.
    """

    rectangles: tuple[tuple[int, int, int, int, float], ...]
    tilted: bool

    def references(self) -> dict[tuple[int, int, int], float]:
        """Its array references, weight by (plane, y, x); 6, 8 or 9 (paper, 2.1), as corners coincide."""
        found: Counter[tuple[int, int, int]] = Counter()
        for x, y, w, h, weight in self.rectangles:
            if self.tilted:
                corners = (y, x), (y + h, x - h), (y + w, x + w), (y + w + h, x + w - h)
            else:
                corners = (y, x), (y, x + w), (y + h, x), (y + h, x + w)
            for (at_y, at_x), sign in zip(corners, (1, -1, -1, 1), strict=True):
                found[TILTED if self.tilted else SUM, at_y, at_x] += sign * weight  # type: ignore[assignment]
        return {at: weight for at, weight in found.items() if weight != 0}


@dataclass(frozen=True)
class Tree:
    """A weak classifier: nodes (left, right, feature, threshold), left if value < threshold; `leaves`: the votes.

    A child above 0 is a node, any other is leaf number -child. A tree of one node is a stump.
    """

    nodes: tuple[tuple[int, int, int, float], ...]
    leaves: tuple[float, ...]


@dataclass(frozen=True)
class Cascade:
    """Stages (threshold, trees): a window passes where the sum of the votes reaches the threshold."""

    file: Path
    width: int
    height: int
    stages: tuple[tuple[float, tuple[Tree, ...]], ...]
    features: tuple[Feature, ...]

    @property
    def weak_classifiers(self) -> list[int]:
        """Number of trees in each stage."""
        return [len(trees) for _, trees in self.stages]


def cascade_file(cascade: str | Path) -> Path:
    """The file of a cascade: a path that ends in .xml, or a name such as 'frontalface_default' that OpenCV ships.

    Raises:
        UserError: OpenCV is asked for a cascade but not installed.
        ValueError: no such file, or no cascade of that name.
    """
    if str(cascade).endswith(".xml"):
        path = Path(cascade).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no cascade file {path}")
        return path
    try:
        from cv2.data import haarcascades
    except ImportError as e:
        raise UserError(f"cascade {str(cascade)!r} ships with OpenCV, which is not installed; {INSTALL}") from e
    shipped = {p.stem.removeprefix("haarcascade_"): p for p in sorted(Path(haarcascades).glob("haarcascade_*.xml"))}
    if not shipped:
        raise ValueError("this OpenCV ships no cascades: versions below 5 do ('opencv-python-headless<5')")
    if cascade not in shipped:
        raise ValueError(f"cascade={str(cascade)!r}: OpenCV ships {', '.join(shipped)}; or give the path of an .xml")
    return shipped[str(cascade)]


def read_cascade(path: Path, stages: int | None = None) -> Cascade:
    """Reads a cascade in OpenCV's new format (opencv_storage / cascade); nothing outside the file is read.

    Args:
        path: an .xml file.
        stages: number of stages to keep, from the first; None: all.

    Raises:
        ValueError: not a cascade of Haar features in the new format, or it has fewer stages.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"cascade {path} cannot be read: {e}") from e
    if "<!DOCTYPE" in text:
        raise ValueError(f"cascade {path} declares a document type, which no cascade does: it is not read")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as e:
        raise ValueError(f"cascade {path} is not well-formed XML: {e}") from e
    top = root.find("cascade")
    if top is None or top.find("features") is None:
        old = f" but <{root[0].tag}>, OpenCV's old format" if len(root) else ""
        raise ValueError(f"cascade {path} has no <cascade> with <features>{old}; only the new format is read")
    try:
        found = _cascade(path, top)
    except (AttributeError, IndexError, TypeError, ValueError) as e:
        raise ValueError(f"cascade {path} is damaged or of a kind that is not read: {e}") from e
    if stages is not None and not 1 <= stages <= len(found.stages):
        raise ValueError(f"stages={stages}: cascade {path.name} has 1 to {len(found.stages)} stages")
    return replace(found, stages=found.stages[:stages])


def _text(at: ET.Element, tag: str) -> str:
    found = at.find(tag)
    if found is None or found.text is None:
        raise ValueError(f"<{at.tag}> has no <{tag}>")
    return found.text.strip()


def _cascade(path: Path, top: ET.Element) -> Cascade:
    if (_text(top, "stageType"), _text(top, "featureType")) != ("BOOST", "HAAR"):
        raise ValueError(f"it is of type {_text(top, 'stageType')} {_text(top, 'featureType')}, not BOOST HAAR")
    width, height = int(_text(top, "width")), int(_text(top, "height"))
    features: list[Feature] = []
    for at in top.iterfind("features/_"):
        rectangles = tuple(_rectangle(r.text) for r in at.iterfind("rects/_"))
        feature = Feature(rectangles, at.find("tilted") is not None and _text(at, "tilted") == "1")
        if any(not (0 <= y <= height and 0 <= x <= width) for _, y, x in feature.references()):
            raise ValueError(f"feature {len(features)} reaches outside the window of {width} x {height}")
        features.append(feature)
    stages: list[tuple[float, tuple[Tree, ...]]] = []
    for at in top.iterfind("stages/_"):
        trees = tuple(_tree(weak, len(features)) for weak in at.iterfind("weakClassifiers/_"))
        if not trees:
            raise ValueError(f"stage {len(stages)} has no weak classifier")
        stages.append((float(_text(at, "stageThreshold")), trees))
    if not stages or width < 3 or height < 3:
        raise ValueError(f"{len(stages)} stages on windows of {width} x {height}")
    return Cascade(path, width, height, tuple(stages), tuple(features))


def _rectangle(text: str | None) -> tuple[int, int, int, int, float]:
    x, y, w, h, weight = (text or "").split()
    return int(x), int(y), int(w), int(h), float(weight)


def _tree(weak: ET.Element, features: int) -> Tree:
    numbers = _text(weak, "internalNodes").split()
    nodes = tuple(
        (int(left), int(right), int(feature), float(threshold))
        for left, right, feature, threshold in zip(*(numbers[i::4] for i in range(4)), strict=True)
    )
    leaves = tuple(float(v) for v in _text(weak, "leafValues").split())
    for i, (left, right, feature, _) in enumerate(nodes):
        good = all(i < child < len(nodes) or -len(leaves) < child <= 0 for child in (left, right))
        if not good or not 0 <= feature < features:
            raise ValueError(f"node {i} of a tree leads to {left} and {right} by feature {feature}")
    if not nodes or (len(nodes) == 1 and nodes[0][:2] != (0, -1)):
        raise ValueError(f"a tree of {len(nodes)} nodes is no stump whose votes are left and right")
    return Tree(nodes, leaves)


# --- the scan: which windows there are ---


@dataclass(frozen=True)
class Level:
    """An image of the pyramid and its windows.

    Attributes:
        scale: size of the original relative to this image (float32).
        height: pixels.
        width: pixels.
        step: distance between windows, pixels.
        rows: rows of windows.
        columns: windows in a row.
        top: the first of its height + 1 rows in the integral images, which hold all levels one below the other.
    """

    scale: float
    height: int
    width: int
    step: int
    rows: int
    columns: int
    top: int


def _rounded(value: Any) -> int:
    """Rounds half to even, as OpenCV's cvRound."""
    return int(np.rint(value))


@lru_cache(maxsize=64)
def pyramid(
    height: int,
    width: int,
    window: tuple[int, int],
    scale_factor: float = 1.1,
    min_size: tuple[int, int] | None = None,
    max_size: tuple[int, int] | None = None,
) -> tuple[Level, ...]:
    """OpenCV's levels for an image of `height` x `width`; sizes (width, height) in pixels.

    Raises:
        ValueError: no window fits into the image.
    """
    every, factor = [], 1.0
    while _rounded(window[0] * factor) <= width and _rounded(window[1] * factor) <= height:
        every.append(np.float32(factor))
        factor *= scale_factor
    least, most = min_size or (0, 0), max_size or (width, height)
    sizes = [(_rounded(window[0] * s), _rounded(window[1] * s)) for s in every]
    fits = [least[0] <= w <= most[0] and least[1] <= h <= most[1] for w, h in sizes]
    scales = [s for s, fit in zip(every, fits, strict=True) if fit]
    if not scales and every:  # OpenCV then takes the scale nearest to the smallest size
        away = [(least[0] - w) ** 2 + (least[1] - h) ** 2 for w, h in sizes]
        scales = [every[away.index(min(away))]]
    levels: list[Level] = []
    top = stripes = 0
    for s in scales:
        h, w = _rounded(np.float32(height) / s), _rounded(np.float32(width) / s)
        step = 1 if s >= 2 else 2
        rows, columns = max(h + 1 - window[1], 0), max(w + 1 - window[0], 0)  # positions; every step-th is a window
        stripes = stripes or math.ceil(columns / 32)  # OpenCV scans in stripes, which may lose the last row
        stripe = max((rows // step + stripes - 1) // max(stripes, 1), 1) * step
        rows = min(rows, stripes * stripe)
        levels.append(Level(float(s), h, w, step, math.ceil(rows / step), math.ceil(columns / step), top))
        top += h + 1
    if not any(level.rows * level.columns for level in levels):
        raise ValueError(f"an image of {width} x {height} pixels holds no window of {window[0]} x {window[1]}")
    return tuple(levels)


# --- integral images ---


def resize_linear_exact(x: Tensor, height: int, width: int) -> Tensor:
    """OpenCV's INTER_LINEAR_EXACT, bit for bit: linear interpolation with weights of 8 bits, rounded once.

    Args:
        x: [n, H, W] int32, 0 to 255.
        height: of the result.
        width: of the result.
    """
    if tuple(x.shape[1:]) == (height, width):
        return x
    left, right, weight = _taps(x.shape[2], width, x.device)
    rows = x[:, :, left] * (256 - weight) + x[:, :, right] * weight  # [n, H, width]
    above, below, weight = _taps(x.shape[1], height, x.device)
    weight = weight.unsqueeze(1)
    return (rows[:, above] * (256 - weight) + rows[:, below] * weight + (1 << 15)) >> 16


def _taps(size: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `target` pixels: its two neighbours among `size` [target], and the second's weight out of 256."""
    at = (np.arange(target) + 0.5) * (1.0 / (target / size)) - 0.5
    first = np.floor(at)
    weight = np.rint((at - first) * 256)
    taps = np.stack([np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1), weight]).astype(np.int64)
    left, right, weights = torch.from_numpy(taps).to(device)
    return left, right, weights.int()


def integral(x: Tensor) -> Tensor:
    """ii(x, y), the sum of all pixels above and to the left (paper, eq. 1-2): [n, H, W] -> [n, H + 1, W + 1] int64."""
    return nn.functional.pad(x.long().cumsum(1).cumsum(2), (1, 0, 1, 0))


def tilted_integral(x: Tensor) -> Tensor:
    """The sum of all pixels in the right-angled cone above (x, y): pixel (x', y') with |x' + 1 - x| <= y - 1 - y'.

    Args:
        x: [n, H, W].

    Returns:
        [n, H + 1, W + 1] int64.
    """
    _, height, width = x.shape
    row = nn.functional.pad(x.long().cumsum(2), (1, 0))  # [n, H, W + 1]: R(y', j), the sum of j pixels
    y = torch.arange(height, device=x.device).unsqueeze(1)
    # the cone is the sum over y' of R(y', x + y - 1 - y') - R(y', x - y + y'): a running sum along two diagonals
    span = torch.arange(width + height + 1, device=x.device)
    down = row.gather(2, (span - y - 1).clamp(0, width).expand_as(row[:, :, :1].expand(-1, -1, len(span))))
    up = row.gather(2, (span - height + y).clamp(0, width).expand(len(x), -1, -1))
    down, up = (nn.functional.pad(s.cumsum(1), (0, 0, 1, 0)) for s in (down, up))  # [n, H + 1, W + H + 1]
    y = torch.arange(height + 1, device=x.device).unsqueeze(1)
    at = torch.arange(width + 1, device=x.device)
    return down.gather(2, (at + y).expand(len(x), -1, -1)) - up.gather(2, (at - y + height).expand(len(x), -1, -1))


# --- the network ---


class Atlas(NamedTuple):
    """The data shared by all windows.

    Attributes:
        table: [cells] float64: the integral images of all levels, planes and samples, concatenated.
        offsets: of each stage, [references]: distance of a reference from the window's own cell.
        weights: of each stage, [features, 1, references of a feature] float64.
    """

    table: Tensor
    offsets: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    def weighted(self, k: int, at: Tensor) -> Tensor:
        """Features of stage k for the windows at cells `at` [m] -> [features, m] float64, exact."""
        weight = self.weights[k]
        where = self.offsets[k].unsqueeze(1) + at
        cells = self.table.index_select(0, where.view(-1)).view(weight.shape[0], weight.shape[2], -1)
        return torch.bmm(weight, cells).squeeze(1)


class Windows(NamedTuple):
    """The state of windows.

    Attributes:
        at: [m] long: the cell of the upper left corner.
        norm: [m] float32: 1 / (area times standard deviation).
        passed: [m] float32: number of stages passed; -1: flat.
        total: [m] float32: sum of the votes in the last stage run.
        image: an `Atlas`.
    """

    at: Tensor
    norm: Tensor
    passed: Tensor
    total: Tensor
    image: Shared


class Normalise(nn.Module):
    """Stage 0: the standard deviation of a window, from two integral images; a flat window is rejected.

    sigma^2 = E[x^2] - m^2 (paper, 5.1, where the sign is reversed in print), times the area squared, of the window
    without its border of one pixel.

    Attributes:
        trees: weak classifiers, none.
        rectangles: of the features of weak classifiers, none.
    """

    trees = rectangles = 0

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.area = (width - 2) * (height - 2)
        rectangle = Feature(((1, 1, width - 2, height - 2, 1.0),), False).references()
        self.references = [rectangle, {(SQUARES, y, x): w for (_, y, x), w in rectangle.items()}]

    def forward(self, s: Windows) -> Windows:
        """Windows [m] -> the same with `norm`, and `passed` 0 or -1."""
        one, two = s.image.value.weighted(0, s.at)  # [m] each: sums of pixels and of their squares
        variance = self.area * two - one * one
        norm = torch.where(variance > 0, variance, 1).rsqrt().float()
        flat = (variance <= 0) | (norm.double() * self.area >= FLAT)
        return s._replace(norm=norm, passed=torch.where(flat, -1.0, s.passed))


class Stage(nn.Module):
    """Stage k, 1 to K: a window that has passed all stages before passes where the votes reach the threshold.

    Args:
        k: its number.
        threshold: of the sum of the votes.
        trees: the weak classifiers.
        features: of the cascade.

    Attributes:
        trees: number of weak classifiers.
        rectangles: number of rectangles in the features of all weak classifiers.
    """

    child: Tensor

    def __init__(self, k: int, threshold: float, trees: Sequence[Tree], features: Sequence[Feature]) -> None:
        super().__init__()
        self.k, self.trees, self.nodes = k, len(trees), max(len(t.nodes) for t in trees)
        nodes = [[*t.nodes, *[(0, 0, t.nodes[0][2], 0.0)] * (self.nodes - len(t.nodes))] for t in trees]
        self.references = [features[feature].references() for tree in nodes for _, _, feature, _ in tree]
        self.rectangles = sum(len(features[feature].rectangles) for t in trees for _, _, feature, _ in t.nodes)
        child = torch.tensor([[node[:2] for node in tree] for tree in nodes])  # [trees, nodes, 2]
        self.register_buffer("child", child, persistent=False)
        self.split = _fixed([[node[3] for node in tree] for tree in nodes])  # theta [trees, nodes]
        most = max(len(t.leaves) for t in trees)
        self.votes = _fixed([[*t.leaves, *[0.0] * (most - len(t.leaves))] for t in trees])  # [trees, leaves]
        self.threshold = _fixed(float(np.float32(threshold) - EPSILON))

    def forward(self, s: Windows) -> Windows:
        """Windows [m] -> the same with `passed` and `total`."""
        at_once = max(1, REFERENCES_AT_ONCE.get(s.at.device.type, 1 << 20) // len(s.image.value.offsets[self.k]))
        parts = zip(s.at.split(at_once), s.norm.split(at_once), strict=True)
        sums = [self._sum(s.image.value, at, norm) for at, norm in parts]
        total = sums[0] if len(sums) == 1 else torch.cat(sums)
        here = s.passed == self.k - 1  # windows rejected earlier, which come here if none leave, are unchanged
        passed = s.passed + (here & (total >= self.threshold.float()))
        return s._replace(passed=passed, total=torch.where(here, total.float(), s.total))

    def _sum(self, image: Atlas, at: Tensor, norm: Tensor) -> Tensor:
        """The sum of the votes for windows [m], [m] float64."""
        value = image.weighted(self.k, at).float() * norm
        below = value.view(self.trees, self.nodes, -1) < self.split.float().unsqueeze(2)
        votes = self.votes.float()
        if self.nodes == 1:
            return torch.where(below[:, 0], votes[:, :1], votes[:, 1:2]).sum(0, dtype=torch.float64)
        outcome: dict[int, Tensor] = {}
        for j in reversed(range(self.nodes)):  # children come after their parents
            left, right = votes.gather(1, (-self.child[:, j]).clamp(min=0)).split(1, 1)  # [trees, 1]
            for later, vote in outcome.items():
                left = torch.where(self.child[:, j, :1] == later, vote, left)
                right = torch.where(self.child[:, j, 1:] == later, vote, right)
            outcome[j] = torch.where(below[:, j], left, right)  # [trees, m]
        return outcome[0].sum(0, dtype=torch.float64)


def _fixed(values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad=False)


class Answer(nn.Module):
    """The head of a stage."""

    def forward(self, s: Windows) -> Tensor:
        """Windows [m] -> [m, 2]: stages passed (-1: flat), sum of the votes in the last stage run."""
        return torch.stack((s.passed, s.total), 1)


def rejected(answer: Tensor, s: Windows, k: int) -> Tensor:
    """The windows that leave after stage k, those that have not passed it: [m] bool."""
    return s.passed < k


class ViolaJones(nn.Module):
    """A cascade applied to every window of an image, at every size.

    Windows are ordered by level, row and column. A window's answer is two numbers: the number of stages it passed, all
    of them where it is accepted (-1: flat, rejected before the first), and the sum of the votes in its last stage.

    Args:
        cascade: the stages and features.
        scale_factor: from one size of windows to the next.
        min_size: (width, height) of the smallest windows, pixels; None: the cascade's own.
        max_size: of the largest; None: the image.
    """

    place: Tensor
    weight: Tensor

    def __init__(
        self,
        cascade: Cascade,
        scale_factor: float = 1.1,
        min_size: tuple[int, int] | None = None,
        max_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.cascade, self.window, self.weights_file = cascade, (cascade.width, cascade.height), cascade.file
        self._scan = (self.window, scale_factor, min_size, max_size)
        boosted = [Stage(k, *stage, cascade.features) for k, stage in enumerate(cascade.stages, 1)]
        stages: list[Normalise | Stage] = [Normalise(*self.window), *boosted]
        self.windows = Each(Exits("cascade", stages, [Answer() for _ in stages], rejected))
        self.counts = [(s.trees, s.rectangles) for s in stages]  # weak classifiers and rectangles of each stage
        self._shapes = [(len(s.references), max(map(len, s.references))) for s in stages]
        cells = [c for s in stages for c in _padded(s.references)]
        self.planes = 1 + max(plane for (plane, _, _), _ in cells)
        self.register_buffer("place", torch.tensor([place for place, _ in cells]).T.contiguous(), persistent=False)
        self.register_buffer("weight", torch.tensor([weight for _, weight in cells]), persistent=False)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return (1, max(default[-2], self.window[1]), max(default[-1], self.window[0]))

    def levels(self, height: int, width: int) -> tuple[Level, ...]:
        """The levels of an image of this size.

        Raises:
            ValueError: no window fits into the image.
        """
        return pyramid(height, width, *self._scan)

    def forward(self, x: Tensor) -> Tensor:
        """Grey images x [n, 1, H, W], 0 to 255 -> answers [n, windows, 2].

        Raises:
            ValueError: the images have several channels, or no window fits into them.
        """
        if x.dim() != 4 or x.shape[1] != 1:
            raise ValueError(f"a cascade takes grey images [n, 1, height, width], not {list(x.shape)}")
        levels = self.levels(*x.shape[2:])
        grey = (x.round().clamp(0, 255) if x.is_floating_point() else x).squeeze(1).int()
        table = self._integrals(grey, levels)  # [n, planes, rows, pitch]
        pitch, plane = table.shape[3], table.shape[2] * table.shape[3]
        offsets = self.place[0] * plane + self.place[1] * pitch + self.place[2]
        sizes = [features * most for features, most in self._shapes]
        atlas = Atlas(
            table.view(-1),
            offsets.split(sizes),
            tuple(
                w.view(features, 1, most)
                for w, (features, most) in zip(self.weight.double().split(sizes), self._shapes, strict=True)
            ),
        )
        own = torch.from_numpy(_cells(levels, pitch)).to(x.device)  # [windows]
        at = own + torch.arange(len(x), device=x.device).unsqueeze(1) * (table.shape[1] * plane)  # [n, windows]
        nothing = torch.zeros(at.shape, device=x.device)
        answer: Tensor = self.windows(Windows(at, nothing, nothing, nothing, Shared(atlas)))
        return answer

    def _integrals(self, grey: Tensor, levels: tuple[Level, ...]) -> Tensor:
        """grey [n, H, W] int32 -> [n, planes, rows, pitch] float64, in which integral images are exact."""
        if torch.jit.is_tracing():
            raise NotImplementedError("integral images are written in place, level by level")
        rows, pitch = levels[-1].top + levels[-1].height + 1, max(level.width for level in levels) + 1
        table = grey.new_zeros((len(grey), self.planes, rows, pitch), dtype=torch.float64)
        for level in levels:
            small = resize_linear_exact(grey, level.height, level.width)
            room = table[:, :, level.top : level.top + level.height + 1, : level.width + 1]
            room[:, SUM] = integral(small)
            room[:, SQUARES] = integral(small * small)
            if self.planes > TILTED:
                room[:, TILTED] = tilted_integral(small)
        return table

    def detections(self, answers: Tensor, height: int, width: int, min_neighbors: int = 3) -> list[np.ndarray]:
        """The detections, as OpenCV returns them.

        Where a window fails stage 1, OpenCV skips the next window of the row: in a run of failing windows every second
        one is skipped, and so is the window after the run if the run's last one is evaluated. Here every window is
        computed, and the windows that OpenCV skips are no detections.

        Args:
            answers: [n, windows, 2] of images of this size.
            height: of the images.
            width: of the images.
            min_neighbors: see `group_rectangles`; 0: the accepted windows themselves.

        Returns:
            For each image [m, 4] int32: x, y, width, height.
        """
        levels = self.levels(height, width)
        passed = answers[..., 0].cpu().numpy()
        hit = passed == len(self.cascade.stages)
        begin = 0
        for level in levels:
            end = begin + level.rows * level.columns
            failed = passed[:, begin:end].reshape(len(passed), level.rows, level.columns) == 0
            hit[:, begin:end] &= _evaluated(failed).reshape(len(passed), -1)
            begin = end
        rectangles = _rectangles(levels, self.window)
        return [_clipped(group_rectangles(rectangles[row], min_neighbors), height, width) for row in hit]


def _padded(references: Sequence[dict[tuple[int, int, int], float]]) -> list[tuple[tuple[int, int, int], float]]:
    """All references of a stage, padded to the same number per feature with references of weight 0."""
    most = max(map(len, references))
    return [c for r in references for c in [*r.items(), *[((SUM, 0, 0), 0.0)] * (most - len(r))]]


@lru_cache(maxsize=64)
def _cells(levels: tuple[Level, ...], pitch: int) -> np.ndarray:
    """[windows] int64: the cell of each window's upper left corner."""
    parts = []
    for level in levels:
        y, x = np.mgrid[: level.rows, : level.columns] * level.step
        parts.append(((level.top + y) * pitch + x).ravel())
    return np.concatenate(parts)


@lru_cache(maxsize=64)
def _rectangles(levels: tuple[Level, ...], window: tuple[int, int]) -> np.ndarray:
    """[windows, 4] int32: x, y, width, height of each window in the image; rounding may put it a pixel outside."""
    parts = []
    for level in levels:
        scale = np.float32(level.scale)
        y, x = ((a * level.step).astype(np.float32) * scale for a in np.mgrid[: level.rows, : level.columns])
        w, h = (np.full_like(x, np.float32(side) * scale) for side in window)
        parts.append(np.rint(np.stack([x, y, w, h], -1)).reshape(-1, 4))
    return np.concatenate(parts).astype(np.int32)


def _clipped(rectangles: np.ndarray, height: int, width: int) -> np.ndarray:
    x, y, w, h = rectangles.T
    return np.stack([x, y, np.minimum(w, width - x), np.minimum(h, height - y)], 1)


def _evaluated(failed: np.ndarray) -> np.ndarray:
    """failed [..., columns] -> the windows that OpenCV evaluates: those after an even number of failures in a row."""
    at = np.arange(failed.shape[-1])
    last = np.maximum.accumulate(np.where(failed, -1, at), -1)  # the last window up to here that did not fail
    run = np.concatenate([np.zeros_like(last[..., :1]), (at - last)[..., :-1]], -1)
    evaluated: np.ndarray = run % 2 == 0
    return evaluated


def group_rectangles(rectangles: np.ndarray, min_neighbors: int = 3, eps: float = 0.2) -> np.ndarray:
    """OpenCV's groupRectangles: windows that nearly coincide, directly or through others, are replaced by their mean.

    Args:
        rectangles: [m, 4] int: x, y, width, height.
        min_neighbors: groups of at most this many windows are dropped; 0: no grouping.
        eps: tolerance between the edges of two windows, relative to their size.

    Returns:
        [groups, 4] int32.
    """
    if min_neighbors <= 0 or len(rectangles) == 0:
        return rectangles
    x, y, w, h = rectangles.T.astype(np.float64)
    edges, group = np.stack([x, y, x + w, y + h]), np.full(len(x), -1)
    groups = 0
    for start in range(len(x)):
        if group[start] >= 0:
            continue
        group[start], ahead = groups, [start]
        while ahead:
            i = ahead.pop()
            delta = eps * (np.minimum(w, w[i]) + np.minimum(h, h[i])) * 0.5
            near = (group < 0) & (np.abs(edges - edges[:, i : i + 1]) <= delta).all(0)
            group[near] = groups
            ahead += near.nonzero()[0].tolist()
        groups += 1
    count = np.bincount(group, minlength=groups)
    sums = np.stack([np.bincount(group, c, groups) for c in rectangles.T], 1)
    means = np.rint(sums.astype(np.float32) * (np.float32(1) / count.astype(np.float32))[:, None]).astype(np.int32)
    enough = (count > min_neighbors).nonzero()[0]
    kept = [i for i in enough if not any(_inside(means, count, i, j, eps) for j in enough if j != i)]
    return means[kept]


def _inside(means: np.ndarray, count: np.ndarray, i: Any, j: Any, eps: float) -> bool:
    """Whether group i lies inside group j, which has more windows."""
    (x, y, w, h), (x2, y2, w2, h2) = means[i], means[j]
    dx, dy = _rounded(w2 * eps), _rounded(h2 * eps)
    within = x >= x2 - dx and y >= y2 - dy and x + w <= x2 + w2 + dx and y + h <= y2 + h2 + dy
    return bool(within and (count[j] > max(3, count[i]) or count[i] < 3))


# --- factories ---


def _pair(name: str, size: Size | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(not isinstance(s, int) or s < 1 for s in pair):
        raise ValueError(f"{name}={size!r}: a size is a number of pixels, or width and height")
    return pair[0], pair[1]


def viola_jones(
    cascade: str = "frontalface_default",
    stages: int | None = None,
    scale_factor: float = 1.1,
    min_size: Size | None = None,
    max_size: Size | None = None,
) -> ViolaJones:
    """A cascade that ships with OpenCV, or any in its new format.

    Args:
        cascade: a name such as 'frontalface_default', or the path of an .xml file.
        stages: number of stages to keep, from the first; None: all.
        scale_factor: from one size of windows to the next; the paper scales by 1.25.
        min_size: of the smallest windows: pixels, or (width, height).
        max_size: of the largest.

    Raises:
        UserError: OpenCV, which ships the cascades, is not installed.
        ValueError: no such cascade, an unreadable one, or an argument out of range.
    """
    if not scale_factor > 1:
        raise ValueError(f"scale_factor={scale_factor}: windows grow, so it is above 1")
    found = read_cascade(cascade_file(cascade), stages)
    return ViolaJones(found, float(scale_factor), _pair("min_size", min_size), _pair("max_size", max_size))


class OpenCV(nn.Module):
    """OpenCV's own detectMultiScale, image by image, on the CPU, with as many threads as torch has.

    Answers have the same form: accepted windows have passed all stages; of the others nothing is known: -1.

    Args:
        ours: the model with all stages of a cascade.
    """

    outside_torch = "OpenCV"

    def __init__(self, ours: ViolaJones) -> None:
        super().__init__()
        import cv2

        self.ours = [ours]  # in a list, so that it is not a submodule
        self.classifier = cv2.CascadeClassifier(str(ours.cascade.file))

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.ours[0].input_shape(default)

    def forward(self, x: Tensor) -> Tensor:
        """Grey images x [n, 1, H, W], 0 to 255 -> [n, windows, 2]: stages passed, all or -1; and 0."""
        import cv2

        if cv2.getNumThreads() != torch.get_num_threads():
            cv2.setNumThreads(torch.get_num_threads())
        ours = self.ours[0]
        numbers = _numbers(ours.levels(*x.shape[2:]), ours.window, *x.shape[2:])
        answer = torch.tensor([-1.0, 0.0]).repeat(len(x), max(numbers.values()) + 1, 1)
        _, factor, least, most = ours._scan
        for image, row in zip(x.round().clamp(0, 255).byte().cpu().numpy(), answer, strict=True):
            found = self.classifier.detectMultiScale(
                image[0], factor, minNeighbors=0, minSize=least or (0, 0), maxSize=most or (0, 0)
            )
            row[[numbers[tuple(r)] for r in found], 0] = len(ours.cascade.stages)
        return answer.to(x.device)


@lru_cache(maxsize=8)
def _numbers(levels: tuple[Level, ...], window: tuple[int, int], height: int, width: int) -> dict[tuple[int, ...], int]:
    """The number of each window by its rectangle."""
    return {tuple(r): i for i, r in enumerate(_clipped(_rectangles(levels, window), height, width).tolist())}


def opencv(
    cascade: str = "frontalface_default",
    scale_factor: float = 1.1,
    min_size: Size | None = None,
    max_size: Size | None = None,
) -> OpenCV:
    """OpenCV's own detector, for comparison with `viola_jones`; the same arguments.

    Raises:
        UserError: OpenCV is not installed.
        ValueError: see `viola_jones`.
    """
    return OpenCV(viola_jones(cascade, None, scale_factor, min_size, max_size))


# --- accounting as in the paper ---


def weak_classifiers_met(model: ViolaJones, answers: Tensor) -> Tensor:
    """Number of weak classifiers evaluated on each window, answers [..., 2] -> [...] long; 0 for a flat window."""
    met = np.cumsum([0, *model.cascade.weak_classifiers])
    last = torch.from_numpy(np.concatenate([[0], met[1:], met[-1:]])).to(answers.device)
    return last[answers[..., 0].long() + 1]


def accounted_macs(model: ViolaJones, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper counts: features evaluated per window; as MACs, one for each of their rectangles."""
    left = decided(trace, "cascade").value.view(-1, len(model.counts))  # [windows, stages]
    there = torch.ones(len(left), dtype=torch.bool, device=left.device)
    weak, macs = 0.0, 0.0
    for k, (trees, rectangles) in enumerate(model.counts):
        reached = float(there.double().mean())
        weak += reached * trees
        macs += reached * rectangles * len(left) / trace.items
        there = there & ~left[:, k]
    total = sum(model.cascade.weak_classifiers)
    rule = f"a window meets {weak:.1f} of {total} weak classifiers on average; one MAC for each of their rectangles"
    return macs, rule
