"""Neural module networks: the question determines which small networks are composed to answer it.

Andreas, Rohrbach, Darrell, Klein, "Neural Module Networks", CVPR 2016 (arXiv 1511.02799): `modules='cvpr16'`.
Hu, Andreas, Rohrbach, Darrell, Saenko, "Learning to Reason: End-to-End Module Networks for Visual Question Answering",
ICCV 2017: `modules='n2nmn'`, sizes as in the authors' code for SHAPES (ronghanghu/n2nmn, models_shapes/).

Layouts follow from a question's parse, which is part of SHAPES: leaves find, inner nodes transform or combine, the root
measures if the answer is yes or no and describes otherwise (section 4.2). N2NMN predicts layouts; here it is given
them, as when it clones experts.

Reconstructed: the hidden layer of `measure`, biases and ReLUs where the paper's figures leave them open, `combine` as a
1x1 convolution; N2NMN's `describe`, which its SHAPES task does not have, and its text vector, which is the word's
embedding instead of an attended question. The paper's LSTM beside the modules serves VQA and is left out. The authors
have no static counterpart: the static twin is ours, the largest layout for every question, in which a relation missing
from the question passes its attention on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Op, Program
from dynbench.dynamic.program import ARGUMENTS, MODULE, NONE, WORD
from dynbench.models.checks import check_least

PAPER = "Andreas et al., Neural Module Networks, CVPR 2016; N2NMN: Hu et al., ICCV 2017"
PROVENANCE = "paper, sections 4.1 and 4.2, and the authors' code of N2NMN; static twin and some details reconstructed"

ATTRIBUTES = ("red", "green", "blue", "circle", "square", "triangle")
RELATIONS = ("above", "below", "left_of", "right_of")
KINDS = ("color", "shape")  # properties that a root may describe
FIND, TRANSFORM, COMBINE, MEASURE, DESCRIBE = range(5)  # numbers of the modules
AND, OR = range(2)  # words of `combine`
What = tuple[Any, tuple[Tensor, ...], Tensor]  # features [m, C, S, S] or None, attentions [m, 1, S, S], word [m]


class ByWord(nn.Module):
    """A linear layer with separate weights for each word: y = W_c x + b_c."""

    def __init__(self, words: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(words, outputs, inputs) * math.sqrt(2 / inputs))
        self.bias = nn.Parameter(torch.zeros(words, outputs))

    def forward(self, x: Tensor, word: Tensor) -> Tensor:
        """x [m, inputs, k], word [m] -> [m, outputs, k]."""
        return torch.baddbmm(self.bias.index_select(0, word).unsqueeze(2), self.weight.index_select(0, word), x)


class Attend(nn.Module):
    """find, attend[c]: image -> attention, a 1x1 convolution with a weight vector per word, not normalised."""

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.conv = ByWord(words, channels, 1)

    def forward(self, what: What) -> Tensor:
        """Features [m, C, S, S] -> attention [m, 1, S, S]."""
        x, _, word = what
        return self.conv(x.flatten(2), word).unflatten(2, x.shape[2:])


class Reattend(nn.Module):
    """transform, re-attend[c]: attention -> attention, FC, ReLU, FC, ReLU with weights per word."""

    def __init__(self, words: int, side: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = ByWord(words, side * side, hidden), ByWord(words, hidden, side * side)
        nn.init.constant_(self.fc2.bias, 0.1)  # a map of zeros would have no gradient

    def forward(self, what: What) -> Tensor:
        """Attention [m, 1, S, S] -> attention [m, 1, S, S]."""
        _, (a,), word = what
        h = F.relu(self.fc1(a.flatten(1).unsqueeze(2), word))  # [m, hidden, 1]
        return F.relu(self.fc2(h, word)).view_as(a)


class Combine(nn.Module):
    """combine[c], c is and, or: two attentions -> attention, a convolution on the stack and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ByWord(2, 2, 1)
        nn.init.constant_(self.conv.weight, 0.5)
        nn.init.constant_(self.conv.bias, 0.1)

    def forward(self, what: What) -> Tensor:
        """Attentions 2 x [m, 1, S, S] -> attention [m, 1, S, S]."""
        _, (a, b), word = what
        stack = torch.cat([a, b], 1)  # [m, 2, S, S]
        return F.relu(self.conv(stack.flatten(2), word)).view_as(a)


class Measure(nn.Module):
    """measure: attention -> answer, FC, ReLU, FC."""

    def __init__(self, side: int, hidden: int, answers: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(side * side, hidden), nn.Linear(hidden, answers)

    def forward(self, what: What) -> Tensor:
        """Attention [m, 1, S, S] -> logits [m, answers]."""
        _, (a,), _ = what
        logits: Tensor = self.fc2(F.relu(self.fc1(a.flatten(1))))
        return logits


class Classify(nn.Module):
    """describe, classify[c]: image and attention -> answer, an FC per word on the attended features."""

    def __init__(self, words: int, channels: int, answers: int) -> None:
        super().__init__()
        self.fc = ByWord(words, channels, answers)

    def forward(self, what: What) -> Tensor:
        """Features [m, C, S, S], attention [m, 1, S, S] -> logits [m, answers]."""
        x, (a,), word = what
        mean = x.flatten(2) @ a.flatten(2).mT / a.shape[2:].numel()  # [m, C, 1]: average weighted by attention
        return self.fc(mean, word).squeeze(2)


class Text(nn.Module):
    """The text input of a module of N2NMN: the word's embedding, then a linear layer."""

    def __init__(self, words: int, embedding: int, outputs: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(words, embedding))
        self.fc = nn.Linear(embedding, outputs)

    def forward(self, word: Tensor) -> Tensor:
        """word [m] -> [m, outputs, 1, 1]."""
        out: Tensor = self.fc(self.table.index_select(0, word))
        return out[:, :, None, None]


class N2Find(nn.Module):
    """_Find: conv1x1(x) (*) FC(text), normalised over the channels, then a 1x1 convolution to one map."""

    def __init__(self, words: int, channels: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.image, self.text = nn.Conv2d(channels, hidden, 1), Text(words, embedding, hidden)
        self.conv = nn.Conv2d(hidden, 1, 1)

    def forward(self, what: What) -> Tensor:
        """Features [m, C, S, S] -> attention [m, 1, S, S]."""
        x, _, word = what
        attention: Tensor = self.conv(F.normalize(self.image(x) * self.text(word)))
        return attention


class N2Transform(nn.Module):
    """_Transform: conv3x3(attention) (*) FC(text), normalised over the channels, then a 1x1 convolution to one map."""

    def __init__(self, words: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.map, self.text = nn.Conv2d(1, hidden, 3, padding=1), Text(words, embedding, hidden)
        self.conv = nn.Conv2d(hidden, 1, 1)

    def forward(self, what: What) -> Tensor:
        """Attention [m, 1, S, S] -> attention [m, 1, S, S]."""
        _, (a,), word = what
        attention: Tensor = self.conv(F.normalize(self.map(a) * self.text(word)))
        return attention


class N2Combine(nn.Module):
    """_And: the smaller of two attentions; _Or: the larger."""

    def forward(self, what: What) -> Tensor:
        """Attentions 2 x [m, 1, S, S] -> attention [m, 1, S, S]."""
        _, (a, b), word = what
        return torch.where((word == OR)[:, None, None, None], torch.maximum(a, b), torch.minimum(a, b))


class N2Answer(nn.Module):
    """_Answer: the smallest, mean and largest of an attention -> FC."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, answers)

    def forward(self, what: What) -> Tensor:
        """Attention [m, 1, S, S] -> logits [m, answers]."""
        _, (a,), _ = what
        a = a.flatten(1)
        logits: Tensor = self.fc(torch.stack([a.amin(1), a.mean(1), a.amax(1)], 1))
        return logits


class N2Describe(nn.Module):
    """_Describe: features weighted by the attention's softmax, FC, (*) FC(text), normalised, FC (reconstructed)."""

    def __init__(self, words: int, channels: int, embedding: int, hidden: int, answers: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(channels, hidden), Text(words, embedding, hidden)
        self.fc = nn.Linear(hidden, answers)

    def forward(self, what: What) -> Tensor:
        """Features [m, C, S, S], attention [m, 1, S, S] -> logits [m, answers]."""
        x, (a,), word = what
        attended = (x.flatten(2) @ a.flatten(2).softmax(-1).mT).squeeze(2)  # [m, C]
        logits: Tensor = self.fc(F.normalize(self.image(attended) * self.text(word).flatten(1)))
        return logits


def lenet(hidden: tuple[int, int] = (20, 50)) -> nn.Sequential:
    """The convolutional part of a LeNet: [n, 3, 30, 30] -> [n, 50, 5, 5]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, *hidden)):
        layers += [nn.Conv2d(inputs, outputs, 5), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]
    return nn.Sequential(*layers)


def cells() -> nn.Sequential:
    """N2NMN's: one vector per cell of the grid, [n, 3, 30, 30] -> [n, 64, 3, 3]."""
    return nn.Sequential(nn.Conv2d(3, 64, 10, stride=10), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU())


class NMN(nn.Module):
    """p(y | w, x): the network composed by the layout P(w), on the image x (section 3).

    Args:
        stem: images -> features [n, C, S, S].
        ops: find, transform, combine.
        heads: measure, describe.
        side: S.
        image: side of an image, pixels.
        words: attributes, relations, kinds.
        largest: the question whose layout is run by the static twin; no question may have more nodes.
    """

    def __init__(
        self,
        stem: nn.Module,
        ops: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        side: int,
        image: int,
        words: tuple[Sequence[str], Sequence[str], Sequence[str]],
        largest: str,
    ) -> None:
        super().__init__()
        self.stem, self.image = stem, image
        for part in stem.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        attributes, relations, kinds = words
        self.find, self.transform, self.describe = (
            {w: i for i, w in enumerate(of)} for of in (attributes, relations, kinds)
        )
        self.joints = {"and": AND, "or": OR}
        find, transform, combine = ops
        measure, describe = heads
        rows = self.rows(largest)
        self.program = Program(
            "layout",
            self.parse,
            [Op(find, 0), Op(transform, 1, looks=False), Op(combine, 2, looks=False)],
            [Op(measure, 1, looks=False), Op(describe, 1)],
            (1, side, side),
            len(rows),
            static=self.padded,
        )
        self.largest = rows
        # caches: layouts of questions, the empty question having the largest; their words in the largest layout
        self.known: dict[bytes, Tensor] = {b"": torch.tensor(rows)}
        self.fitted: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 4, H, W]: red, green, blue, and the bytes of the question, then 0 -> logits [n, answers]."""
        logits: Tensor = self.program(self.stem(x[:, :3]), x[:, 3])
        return logits

    def input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return 4, self.image, self.image

    def parse(self, written: Tensor) -> Tensor:
        """Questions [n, H, W], a byte per pixel -> layouts [n, N, 4] long on the CPU; each is computed once."""
        n = written.shape[0]
        plain = written.reshape(n, -1).to(torch.uint8).cpu().numpy()
        return torch.stack([self._layout(q.tobytes().rstrip(b"\0")) for q in plain])

    def _layout(self, question: bytes) -> Tensor:
        found = self.known.get(question)
        if found is None:
            rows = self.rows(question.decode("ascii", "replace"))
            if len(rows) > self.program.nodes:
                raise ValueError(f"{question!r} has {len(rows)} nodes; there is room for {self.program.nodes}")
            empty = [[NONE] * 4] * (self.program.nodes - len(rows))
            found = torch.tensor([*rows, *empty])
            self.program.check(found)
            self.known[question] = found
        return found

    def rows(self, question: str) -> list[list[int]]:
        """A question's layout: rows of module, word and two arguments, in topological order.

        `(is A B)` asks whether A and B have something in common, `(is A)` whether there is an A, `(color A)` for the
        colour of A. Attributes, `(above A)`, `(and A B)` and `(or A B)` denote attention maps.

        Raises:
            ValueError: not a question in these words.
        """
        words = iter(question.replace("(", " ( ").replace(")", " ) ").split())
        tree = _tree(words)
        rows: list[list[int]] = []
        whole = question.count("(") == question.count(")") and next(words, None) is None
        if isinstance(tree, str) or not tree or not whole:
            raise ValueError(f"{question!r} is not a question such as (is red (above circle))")
        head, *args = tree
        places = [self._attend(a, rows, question) for a in args]
        if head == "is" and len(places) == 2:
            rows.append([COMBINE, AND, *places])
            places = [len(rows) - 1]
        if len(places) != 1 or not isinstance(head, str) or (head != "is" and head not in self.describe):
            raise ValueError(
                f"{question!r}: a question is (is A), (is A B) or of {', '.join(self.describe)}, (color A)"
            )
        kind = [MEASURE, 0] if head == "is" else [DESCRIBE, self.describe[head]]
        return [*rows, [*kind, places[0], NONE]]

    def _attend(self, tree: Any, rows: list[list[int]], question: str) -> int:
        """Adds the nodes of an attention map; returns the index of the last."""
        head, *args = [tree] if isinstance(tree, str) else tree or [""]
        places = [self._attend(a, rows, question) for a in args]
        ops = ((self.find, FIND, 0), (self.transform, TRANSFORM, 1), (self.joints, COMBINE, 2))
        for words, op, takes in ops:
            if head in words and len(places) == takes:
                rows.append([op, words[head], *places, *[NONE] * (2 - takes)])
                return len(rows) - 1
        known = ", ".join(word for words, _, _ in ops for word in words)
        raise ValueError(f"{question!r}: {head!r} with {len(places)} arguments is none of {known} with theirs")

    def padded(self, x: Tensor, layouts: Tensor) -> Tensor:
        """The static twin: the largest layout for all; a node missing from a question passes its argument on."""
        words = torch.stack([self._words(layout) for layout in layouts]).to(x.device)  # [n, N], -1: node missing
        values: list[Tensor] = []
        for j, (op, _, *args) in enumerate(self.largest):
            given = [values[a] for a in args if a != NONE]
            y = self.program.call(op, x, given, words[:, j].clamp(min=0))
            if op == TRANSFORM:
                y = torch.where((words[:, j] == NONE)[:, None, None, None], given[0], y)
            values.append(y)
        return values[-1]

    def _words(self, layout: Tensor) -> Tensor:
        key = layout.numpy().tobytes()
        if key not in self.fitted:
            words = [NONE] * len(self.largest)
            rows = [row for row in layout.tolist() if row[MODULE] != NONE]
            for node, own in self._pairs(len(self.largest) - 1, rows, len(rows) - 1):
                words[node] = rows[own][WORD]
            self.fitted[key] = torch.tensor(words)
        return self.fitted[key]

    def _pairs(self, node: int, rows: list[list[int]], own: int) -> Iterator[tuple[int, int]]:
        """Matches nodes of the largest layout with rows of a question's layout: (node, row)."""
        op, _, *args = self.largest[node]
        if op == rows[own][MODULE]:
            yield node, own
            for a, b in zip(args, rows[own][ARGUMENTS:], strict=True):
                if b != NONE:
                    yield from self._pairs(a, rows, b)
        elif op == TRANSFORM:
            yield from self._pairs(args[0], rows, own)
        else:
            raise ValueError("the static twin runs the largest layout, into which this question's does not fit")


def _tree(words: Iterator[str]) -> Any:
    """The next word, or the list that the next parentheses enclose."""
    word = next(words, ")")
    if word != "(":
        return word
    inside = []
    while (part := _tree(words)) != ")":
        inside.append(part)
    return inside


def nmn(
    modules: str = "cvpr16",
    stem: str | None = None,
    answers: int = 2,
    hidden: int | None = None,
    embedding: int = 300,
    image: int = 30,
    attributes: Sequence[str] = ATTRIBUTES,
    relations: Sequence[str] = RELATIONS,
    kinds: Sequence[str] = KINDS,
    largest: str | None = None,
) -> NMN:
    """A neural module network for questions such as those of SHAPES.

    Args:
        modules: 'cvpr16' or 'n2nmn'.
        stem: 'lenet' or 'cells' (a vector per cell of 10 x 10 pixels); default: that of the modules' paper.
        answers: number of answers.
        hidden: width inside the modules; default: 32 for 'cvpr16' (re-attend, as in the paper), 500 for 'n2nmn'.
        embedding: size of a word's embedding, 'n2nmn' only.
        image: side of the images, pixels; with 'cells' a multiple of 10.
        attributes: words of find.
        relations: words of transform.
        kinds: words of describe.
        largest: the question with the most nodes, whose layout is run by the static twin; default: a relation of a
            relation, the largest of SHAPES.

    Raises:
        ValueError: unknown modules or stem, a size that is too small, no words, or a `largest` that is no question.
    """
    if modules not in ("cvpr16", "n2nmn"):
        raise ValueError(f"modules={modules!r}: a neural module network has modules 'cvpr16' or 'n2nmn'")
    hidden = (32 if modules == "cvpr16" else 500) if hidden is None else hidden
    check_least(2, answers=answers)
    check_least(1, hidden=hidden, embedding=embedding)
    stem = {"cvpr16": "lenet", "n2nmn": "cells"}[modules] if stem is None else stem
    if stem not in ("lenet", "cells"):
        raise ValueError(f"stem={stem!r}: the stem of a neural module network is 'lenet' or 'cells'")
    step, smallest = (10, 10) if stem == "cells" else (1, 14)
    if image < smallest or image % step:
        raise ValueError(f"image={image}; with stem {stem!r} it is a multiple of {step} from {smallest} on")
    if not (attributes and relations and kinds):
        raise ValueError("a module has no words: attributes, relations and kinds have one or more each")
    first, step_ = attributes[0], relations[0]
    largest = f"(is {first} ({step_} ({step_} {first})))" if largest is None else largest
    sizes = len(attributes), len(relations), len(kinds)
    seeing, channels = (cells(), 64) if stem == "cells" else (lenet(), 50)
    side = image // 10 if stem == "cells" else _pooled(_pooled(image - 4) - 4)
    if modules == "cvpr16":
        ops = [Attend(sizes[0], channels), Reattend(sizes[1], side, hidden), Combine()]
        heads = [Measure(side, hidden, answers), Classify(sizes[2], channels, answers)]
    else:
        ops = [N2Find(sizes[0], channels, embedding, hidden), N2Transform(sizes[1], embedding, hidden), N2Combine()]
        heads = [N2Answer(answers), N2Describe(sizes[2], channels, embedding, hidden, answers)]
    return NMN(seeing, ops, heads, side, image, (attributes, relations, kinds), largest)


def _pooled(side: int) -> int:
    return math.ceil(side / 2)
