"""TAFE-Net: a meta-learner generates the weights of a small network for each task; an image is tested task by task.

Wang, Yu, Wang, Darrell, Gonzalez, "TAFE-Net: Task-Aware Feature Embeddings for Low Shot Learning", CVPR 2019
(arXiv 1904.05967). An item is a pair of an image and a task; the answer is whether the image is an example of the task.

From the authors' code (tafenet.py of ucbdrive/tafe-net): the layers and their names, so that its state dictionaries fit
without their prefix `module.`. The meta-learner embeds the task and generates one number per row of each feature layer
(eq. 5: W_task = W_shared o W_ts), which also scales the row's bias. Rows are scaled after the product, so the first
product is the same for all tasks of an image.

Outside any execution it computes as published: every pair separately, with first product and meta-learner
(train_zsl.py repeats image and task embedding for each pair). In an execution the first product is computed once per
image, and the strategy determines how often the meta-learner runs: for each pair (masking); for each task of a batch,
with pairs grouped by task (compaction); once for all (specialised, which keeps the scales and computes all pairs as
one).

Deliberately different from that code: the sigmoid inside the network, to whose output the zero-shot script applies a
loss for logits (here logits are returned; the sigmoid belongs to the loss); in-place products, which overwrite values
that autograd may need; initial weights with a standard deviation of 0.001 (features) and 0.01 (meta-learner), with
which the product of three layers starts close to zero. Reproduced: T(t) ends in a ReLU and z_3 does not, so the
similarity in the embedding loss sees only the positive part of T(t).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Each, Shared, Trace, Weights, current
from dynbench.models.accounting import static_macs
from dynbench.models.sharing import shared_once

PAPER = "Wang et al., TAFE-Net: Task-Aware Feature Embeddings for Low Shot Learning, CVPR 2019, arXiv 1904.05967"
PROVENANCE = (
    "layers as in the authors' code; the first product shared between tasks, initial weights and the small "
    "feature extractor are ours"
)

Scales = tuple[Tensor, ...]  # of each feature layer, [m, width] for m tasks or [width] for one
Pairs = tuple[Tensor, Tensor, Shared]  # task [m] and image [m] long, and of the images W_0 x + b_0 [n, width]


class Classes(nn.Module):
    """Zero-shot tasks: is it this class? Each class is described by its attributes.

    Args:
        classes: T.
        size: d_t, number of attributes of a class.
        seed: of random attributes, 0 to 1, used until others are loaded.
    """

    attributes: Tensor

    def __init__(self, classes: int, size: int, seed: int) -> None:
        super().__init__()
        self.count = classes
        self.register_buffer("attributes", _random(seed, classes, size, np.random.Generator.random))

    def forward(self, task: Tensor) -> Tensor:
        """[m] long -> [m, d_t]."""
        return self.attributes[task]


class Compositions(nn.Module):
    """Tasks composed of words: is it this attribute on this object? Task `a * O + o`, and so on for three words.

    Args:
        counts: number of words at each place: attributes A and objects O, or subjects, predicates and objects.
        size: d_t, the size of the word vectors of all places together.
        seed: of random word vectors, used until others are loaded.
    """

    words: Tensor

    def __init__(self, counts: Sequence[int], size: int, seed: int) -> None:
        super().__init__()
        self.counts, self.count = tuple(counts), math.prod(counts)
        words = _random(seed, sum(counts), size // len(counts), np.random.Generator.standard_normal)
        self.register_buffer("words", words)  # place by place

    def forward(self, task: Tensor) -> Tensor:
        """[m] long -> [m, d_t]."""
        found, begin = [], len(self.words)
        for count in reversed(self.counts):
            begin -= count
            found.append(self.words[begin + task % count])
            task = task // count
        return torch.cat(found[::-1], 1)


def _random(seed: int, rows: int, size: int, draw: Callable[..., np.ndarray]) -> Tensor:
    return torch.tensor(draw(np.random.default_rng(seed), (rows, size)).astype(np.float32))


class MetaLearner(nn.Module):
    """From a task's embedding to the scales of every feature layer (MetaLearner in the authors' code).

    Args:
        size: d_t, of the embedding.
        hidden: width of the two hidden layers.
        widths: of the feature layers; T(t) is as wide as the last.
    """

    def __init__(self, size: int, hidden: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = len(widths)
        layers: list[nn.Module] = []
        for inputs in (size, hidden):
            layers += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        self.emb = nn.Sequential(*layers, nn.Linear(hidden, widths[-1]), nn.ReLU())
        for k, width in enumerate(widths):
            generator = nn.Linear(widths[-1], width)
            nn.init.ones_(generator.bias)  # ours: initially all tasks have nearly the same network
            self.add_module(f"generator_{k}", generator)

    def forward(self, t: Tensor) -> tuple[Scales, Tensor]:
        """t [m, d_t] -> scales, and T(t) [m, width]."""
        embedding = self.emb(t)
        return tuple(self.get_submodule(f"generator_{k}")(embedding) for k in range(self.layers)), embedding


class Generate(nn.Module):
    """From the number of a task to its scales.

    Args:
        tasks: number [m] -> embedding [m, d_t].
        meta: the meta-learner.
    """

    def __init__(self, tasks: nn.Module, meta: MetaLearner) -> None:
        super().__init__()
        self.tasks, self.meta = tasks, meta

    def forward(self, task: Tensor) -> Scales:
        """[m] long -> scales."""
        scales: Scales = self.meta(self.tasks(task))[0]
        return scales


class Prediction(nn.Module):
    """The prediction network after the first product: the scaled feature layers and the classifier.

    Args:
        linears: the feature layers without the first.
        classifier: of the task-aware features.
    """

    def __init__(self, linears: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.linears, self.classifier = nn.ModuleList(linears), classifier

    def embed(self, z: Tensor, scales: Scales | None) -> Tensor:
        """z = W_0 x + b_0 [m, width] -> z_3 [m, width], the task-aware feature embedding."""
        first, *others = scales or (None,) * (1 + len(self.linears))
        z = _scaled(z, first)
        for linear, scale in zip(self.linears, others, strict=True):
            z = _scaled(linear(F.relu(z)), scale)
        return z

    def classify(self, z: Tensor) -> Tensor:
        """z_3 [m, width] -> logits [m]."""
        y: Tensor = self.classifier(F.dropout(z, 0.5, self.training))
        return y.squeeze(1)

    def forward(self, pairs: Pairs, scales: Scales | None = None) -> Tensor:
        """The logits [m] of m pairs; without scales, by the task-independent shared weights alone."""
        _, image, z = pairs
        return self.classify(self.embed(z.value.index_select(0, image), scales))

    def special(self, scales: Scales) -> Callable[[Pairs], Tensor]:
        """For one task, with scales [width]; rows are still scaled after the product, no weights are copied."""
        return partial(self, scales=scales)


def _scaled(z: Tensor, scale: Tensor | None) -> Tensor:
    return z if scale is None else z * scale  # s o (W x + b) = (s o W) x + s o b


class SmallCNN(nn.Module):
    """A feature extractor in place of the paper's frozen ResNet-101: convolutions, all but the first of stride 2.

    Args:
        channels: of each convolution; the last is the number of features.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, (c_in, c_out) in enumerate(zip((3, *channels), channels, strict=False)):
            conv = nn.Conv2d(c_in, c_out, 3, stride=1 + (k > 0), padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, C]: mean plus maximum of each channel, so that small objects count."""
        y = self.layers(x)
        pooled: Tensor = y.mean((2, 3)) + y.amax((2, 3))
        return pooled


class TAFENet(nn.Module):
    """Task-aware feature embeddings for all tasks of each image.

    Args:
        tasks: number [m] -> embedding [m, d_t]; `count` is the number of tasks.
        size: d_t.
        features: number of features of an image.
        widths: of the feature layers.
        hidden: of the meta-learner.
        cnn: the frozen feature extractor; None: inputs are features.
    """

    linear_0: nn.Linear

    def __init__(
        self,
        tasks: Classes | Compositions,
        size: int,
        features: int,
        widths: Sequence[int],
        hidden: int,
        cnn: SmallCNN | None,
    ) -> None:
        super().__init__()
        self.features, self.tasks, self.cnn = features, tasks, cnn
        for k, (c_in, c_out) in enumerate(zip((features, *widths), widths, strict=False)):
            self.add_module(f"linear_{k}", nn.Linear(c_in, c_out))
        width = widths[-1]
        self.classifier = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.meta_learner = MetaLearner(size, hidden, widths)
        self.prediction = Prediction(
            [self.get_submodule(f"linear_{k}") for k in range(1, len(widths))], self.classifier
        )
        generate = Generate(tasks, self.meta_learner)
        self.pairs = Each(Weights("task", _the_task, generate, self.prediction, codes=tasks.count, together=True))
        if cnn is not None:
            cnn.requires_grad_(False)
        shared_once(self)

    def train(self, mode: bool = True) -> TAFENet:
        """Training mode; the frozen extractor stays in evaluation mode."""
        super().train(mode)
        if self.cnn is not None:
            self.cnn.eval()
        return self

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: an image or its features."""
        return (self.features,) if self.cnn is None else (3, *default[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 3, H, W], or their features [n, C] -> the logit of every task [n, T]."""
        if self.cnn is not None:
            x = self.cnn(x)
        n, tasks = x.shape[0], self.tasks.count
        task = torch.arange(tasks, device=x.device).repeat(n, 1)  # [n, T]
        image = torch.arange(n, device=x.device).unsqueeze(1).repeat(1, tasks)
        if current() is None:  # as published: every pair separately
            logits = self.published(x.repeat_interleave(tasks, 0), task.flatten())[0]
            return logits.view(n, tasks)
        z = self.linear_0(x)  # [n, width], once for all tasks
        answer: Tensor = self.pairs((task, image, Shared(z)))
        return answer

    def published(self, x: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """m pairs, each computed separately.

        Args:
            x: features [m, C].
            task: [m] long.

        Returns:
            Logits [m], and the similarity ReLU(cos(T(t), z_3)) [m] of the embedding loss.
        """
        return self.taught(self.linear_0(x), *self.meta_learner(self.tasks(task)))

    def taught(self, z: Tensor, scales: Scales, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """As `published`, from W_0 x + b_0 [m, width], scales and T(t) [m, width]."""
        z = self.prediction.embed(z, scales)
        return self.prediction.classify(z), F.relu(F.cosine_similarity(embedding, z, dim=1))


def _the_task(pairs: Pairs) -> Tensor:
    return pairs[0]


def tafenet_loss(logits: Tensor, similarity: Tensor, right: Tensor, beta: float = 0.1) -> Tensor:
    """Classification of each pair, and beta times the embedding loss.

    The paper has a hinge loss of a cosine; as in the code, the embedding loss is the squared error of
    ReLU(cos(T(t), z_3)) to 1 or 0, where a positive pair weighs as much as its negative ones together.

    Args:
        logits: [n, T] of T tasks.
        similarity: [n, T].
        right: [n, T], 1 for positive pairs, 0 for the others.
        beta: as in the configurations of the code, whose default argument is 1.

    Returns:
        Scalar.
    """
    weight = torch.where(right > 0, max(right.shape[1] - 1, 1), 1)
    embedding = (weight * (similarity - right) ** 2).mean()
    return F.binary_cross_entropy_with_logits(logits, right) + beta * embedding


def accounted_macs(model: TAFENet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """The execution as published: MACs per image."""
    return float(static_macs(model, shape)), "every pair of image and task by itself, meta-learner included"


class Classifier(nn.Module):
    """A plain classifier of pairs of attribute and object.

    Args:
        pairs: A and O.
        channels: of its `SmallCNN`.
        factors: one linear classifier for attributes and one for objects, whose log-probabilities are added; else one
            for pairs.
    """

    def __init__(self, pairs: Sequence[int], channels: Sequence[int], factors: bool) -> None:
        super().__init__()
        self.cnn, self.factors = SmallCNN(channels), factors
        attributes, objects = pairs
        if factors:
            self.attribute, self.object = nn.Linear(channels[-1], attributes), nn.Linear(channels[-1], objects)
        else:
            self.pair = nn.Linear(channels[-1], attributes * objects)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return (3, *default[1:])

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, H, W] -> logits of the pairs [n, A * O]."""
        if not self.factors:
            logits: Tensor = self.pair(self.cnn(x))
            return logits
        attribute, obj = (z.log_softmax(1) for z in self.apart(x))
        return (attribute.unsqueeze(2) + obj.unsqueeze(1)).flatten(1)

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, 3, H, W] -> logits of the attributes [n, A] and of the objects [n, O]; only with `factors`."""
        y = self.cnn(x)
        return self.attribute(y), self.object(y)


def tafenet(
    tasks: int | Sequence[int] = 50,
    embedding: int = 85,
    features: int = 2048,
    widths: Sequence[int] = (2048, 2048, 2048),
    hidden: int = 512,
    cnn: Sequence[int] = (),
    seed: int = 0,
) -> TAFENet:
    """A TAFE-Net; by default as configured for AwA2, whose 50 classes have 85 attributes each.

    Args:
        tasks: number of classes (zero-shot learning); or [attributes, objects], where each pair is a task, or three
            kinds of words: [subjects, predicates, objects].
        embedding: d_t, size of a task's description; that of a composed task consists of word vectors of equal size.
        features: of an image: 2048 for ResNet-101, 1024 for DLA-102, 512 for DLA-34; with a `cnn`, its own.
        widths: of the feature layers, one or more.
        hidden: of the meta-learner; 512 for AwA, else 2048.
        cnn: channels of a small feature extractor, so that inputs are images [n, 3, H, W]; none: inputs are features.
        seed: of random task embeddings.

    Raises:
        ValueError: no task, sizes below 1, or an embedding that is not a multiple of the number of words.
    """
    composed = not isinstance(tasks, int)
    numbers = [tasks] if isinstance(tasks, int) else list(tasks)
    if min(numbers, default=0) < 1 or (composed and len(numbers) < 2):
        raise ValueError(f"tasks={tasks!r}: a number of classes, or [attributes, objects], 1 or more each")
    sizes = {"embedding": [embedding], "features": [features], "widths": widths, "hidden": [hidden], "cnn": [1, *cnn]}
    for name, values in sizes.items():
        if min(values, default=0) < 1:
            raise ValueError(f"{name}={values if len(values) != 1 else values[0]}: 1 or more")
    if composed and embedding % len(numbers):
        raise ValueError(f"embedding={embedding}: a multiple of {len(numbers)}, the number of word vectors")
    described = Compositions(numbers, embedding, seed) if composed else Classes(numbers[0], embedding, seed)
    extractor = SmallCNN(cnn) if cnn else None
    return TAFENet(described, embedding, cnn[-1] if cnn else features, widths, hidden, extractor)


def tafenet_classifier(
    pairs: Sequence[int] = (6, 6), cnn: Sequence[int] = (32, 64, 128), factors: bool = True
) -> Classifier:
    """A classifier without tasks, for comparison.

    Args:
        pairs: [attributes, objects].
        cnn: channels of its feature extractor.
        factors: it classifies attribute and object separately, so that it can name pairs not seen in training; else it
            classifies pairs.

    Raises:
        ValueError: not two numbers of 1 or more, or no channels.
    """
    if len(pairs) != 2 or min(pairs) < 1 or min(cnn, default=0) < 1:
        raise ValueError(f"pairs={list(pairs)}, cnn={list(cnn)}: [attributes, objects] and channels, 1 or more each")
    return Classifier(pairs, cnn, factors)
