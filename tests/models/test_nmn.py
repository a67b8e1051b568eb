"""Neural module networks: layouts of questions, the modules' equations, the same answer in every way to run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.data import Dataset, load_inputs, shapes
from dynbench.dynamic import Execution
from dynbench.dynamic.program import MODULE, NONE
from dynbench.meters.required import PartCosts
from dynbench.models.nmn import COMBINE, DESCRIBE, FIND, MEASURE, NMN, TRANSFORM, Attend, Classify, nmn
from dynbench.strategies import STRATEGIES
from dynbench.training import train_workload
from tests.models.same_answer import assert_same_answer, decided_both_ways, forced, run

WAYS = ["masking", "compaction", "per_sample"]
SMALL: dict[str, dict[str, Any]] = {
    "cvpr16": {"modules": "cvpr16", "hidden": 8},
    "n2nmn": {"modules": "n2nmn", "hidden": 16, "embedding": 10},
    "mixed": {"modules": "cvpr16", "stem": "cells", "hidden": 8},
}
RED, BLUE, CIRCLE = 0, 2, 3
ABOVE, LEFT = 0, 2


def make(kind: str = "mixed", **args: Any) -> NMN:
    torch.manual_seed(0)
    return nmn(**{**SMALL[kind], **args}).eval()


def scenes(n: int = 12, split: Any = "test") -> Tensor:
    """Scenes with questions of 4, 5 and 6 modules."""
    return torch.from_numpy(load_inputs("shapes", split, limit=n).inputs)


def about(scene: Tensor, question: str) -> Tensor:
    """The scene [1, 4, 30, 30] with another question."""
    return torch.cat([scene[:, :3], torch.from_numpy(shapes.written([question]))[:, None]], 1)


@pytest.mark.parametrize(
    ("question", "rows"),
    [
        ("(is red circle)", [[FIND, RED], [FIND, CIRCLE], [COMBINE, 0, 0, 1], [MEASURE, 0, 2]]),
        (
            "(is red (above blue))",
            [[FIND, RED], [FIND, BLUE], [TRANSFORM, ABOVE, 1], [COMBINE, 0, 0, 2], [MEASURE, 0, 3]],
        ),
        (
            "(is blue (above (left_of circle)))",
            [
                [FIND, BLUE],
                [FIND, CIRCLE],
                [TRANSFORM, LEFT, 1],
                [TRANSFORM, ABOVE, 2],
                [COMBINE, 0, 0, 3],
                [MEASURE, 0, 4],
            ],
        ),
        ("(is red)", [[FIND, RED], [MEASURE, 0, 0]]),
        ("(is (or red circle))", [[FIND, RED], [FIND, CIRCLE], [COMBINE, 1, 0, 1], [MEASURE, 0, 2]]),
        ("(color (above circle))", [[FIND, CIRCLE], [TRANSFORM, ABOVE, 0], [DESCRIBE, 0, 1]]),
        ("(shape (and red blue))", [[FIND, RED], [FIND, BLUE], [COMBINE, 0, 0, 1], [DESCRIBE, 1, 2]]),
    ],
)
def test_a_question_s_layout_follows_its_parse(question: str, rows: list[list[int]]) -> None:
    net = make()
    wanted = [[*row, *[NONE] * (4 - len(row))] for row in rows] + [[NONE] * 4] * (6 - len(rows))
    plane = torch.from_numpy(shapes.written([question]))
    assert net.parse(plane)[0].tolist() == wanted


@pytest.mark.parametrize(
    "question",
    [
        "red",
        "(red)",
        "(is purple red)",
        "(is red",
        "(is red blue))",
        "(is red blue green)",
        "(is above red)",
        "(is (above red blue))",
        "(color red blue)",
        "()",
        "(is ())",
        "(is (and red))",
        "((is) red)",
    ],
)
def test_what_is_no_question_is_told(question: str) -> None:
    with pytest.raises(ValueError, match="is not a question|a question is|is none of"):
        make().rows(question)


def test_a_question_that_is_too_large_is_told() -> None:
    with pytest.raises(ValueError, match="room for 6"):
        make().parse(torch.from_numpy(shapes.written(["(is red (above (above (above red))))"])))
    large = make(largest="(is red (above (above (above red))))")
    assert large.program.nodes == 7
    assert large.parse(torch.from_numpy(shapes.written(["(is red (above (above (above red))))"]))).shape == (1, 7, 4)


def linear(layer: nn.Module, word: int, x: Tensor) -> Tensor:
    """What a layer of a word's own makes of a vector."""
    return layer.weight[word] @ x + layer.bias[word]


def cvpr16(net: NMN, scene: Tensor, tree: Any) -> Tensor:
    """The paper's equations, one cell and one word at a time."""
    find, transform, combine, measure, describe = net.program.experts
    h = net.stem(scene[:, :3])[0]  # [C, S, S]
    side = h.shape[1]

    def attention(tree: Any) -> Tensor:
        head, *args = tree
        if head in net.find:
            cells = [linear(find.conv, net.find[head], h[:, r, c]) for r in range(side) for c in range(side)]
            return torch.cat(cells).view(side, side)
        a = [attention(t) for t in args]
        if head in net.transform:
            hidden = linear(transform.fc1, net.transform[head], a[0].flatten()).clamp(min=0)
            return linear(transform.fc2, net.transform[head], hidden).clamp(min=0).view(side, side)
        w, b = combine.conv.weight[net.joints[head]], combine.conv.bias[net.joints[head]]
        return (w[0, 0] * a[0] + w[0, 1] * a[1] + b).clamp(min=0)

    head, *args = tree
    a = attention(args[0] if len(args) == 1 else ("and", *args))
    if head == "is":
        return measure.fc2(measure.fc1(a.flatten()).clamp(min=0))
    return linear(describe.fc, net.describe[head], (h * a).mean((1, 2)))


def n2nmn(net: NMN, scene: Tensor, tree: Any) -> Tensor:
    """The equations of N2NMN's modules, from its layers."""
    find, transform, _, answer, describe = net.program.experts
    h = net.stem(scene[:, :3])

    def unit(x: Tensor) -> Tensor:
        return x / x.square().sum(1, keepdim=True).sqrt()

    def text(module: nn.Module, word: int) -> Tensor:
        return F.linear(module.text.table[word], module.text.fc.weight, module.text.fc.bias).view(1, -1, 1, 1)

    def attention(tree: Any) -> Tensor:
        head, *args = tree
        if head in net.find:
            return find.conv(unit(find.image(h) * text(find, net.find[head])))
        a = [attention(t) for t in args]
        if head in net.transform:
            return transform.conv(unit(transform.map(a[0]) * text(transform, net.transform[head])))
        return torch.minimum(*a) if head == "and" else torch.maximum(*a)

    head, *args = tree
    a = attention(args[0] if len(args) == 1 else ("and", *args))
    if head == "is":
        return answer.fc(torch.stack([a.min(), a.mean(), a.max()]))
    weights = a.flatten().softmax(0)
    seen = describe.image((h.flatten(2)[0] * weights).sum(1))
    return describe.fc(unit((seen * text(describe, net.describe[head]).flatten())[None]))[0]


TREES: dict[str, Any] = {
    "(is red circle)": ("is", ("red",), ("circle",)),
    "(is blue (above (left_of square)))": ("is", ("blue",), ("above", ("left_of", ("square",)))),
    "(is (or red (below green)))": ("is", ("or", ("red",), ("below", ("green",)))),
    "(color (and square (right_of red)))": ("color", ("and", ("square",), ("right_of", ("red",)))),
    "(shape triangle)": ("shape", ("triangle",)),
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("question", TREES)
@torch.inference_mode()
def test_the_network_that_a_question_composes_computes_the_equations(question: str, kind: str) -> None:
    net = make(kind, answers=5)
    for p in net.parameters():  # biases that are zero would hide
        p.add_(0.1 * torch.randn_like(p))
    scene = scenes(1)
    want = (n2nmn if kind == "n2nmn" else cvpr16)(net, scene, TREES[question])
    got, _ = run(net, about(scene, question), "per_sample")
    assert got.shape == (1, 5) and torch.allclose(got[0], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("strategy", [*WAYS, "cascading"])
def test_every_strategy_gives_the_answer_of_per_sample(strategy: str, kind: str) -> None:
    net, x = make(kind), scenes()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


def test_cascading_is_refused_with_a_reason() -> None:
    assert "early" in str(STRATEGIES["cascading"]().refuses(make()))


@pytest.mark.parametrize("kind", SMALL)
@torch.inference_mode()
def test_the_static_twin_runs_one_layout_for_all_and_answers_alike(kind: str) -> None:
    net, x = make(kind), scenes(20, "train")
    nodes = (net.parse(x[:, 3])[:, :, MODULE] != NONE).sum(1)
    assert set(nodes.tolist()) == {4, 5, 6}
    calls: list[int] = []
    for module in net.program.experts:
        module.register_forward_hook(lambda m, given, y: calls.append(len(y)))
    twin = net(x)
    assert calls == [20] * 6
    assert torch.allclose(twin, run(net, x, "per_sample")[0], atol=1e-5)


def test_the_static_twin_refuses_what_does_not_fit_in() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        make()(about(scenes(1), "(color red)"))


def test_three_ways_to_execute_call_modules_for_as_many_items() -> None:
    questions = ["(is red blue)", "(is red circle)", "(is red (above blue))", "(is red (above (below blue)))"]
    x = torch.cat([about(scenes(1), q) for q in questions])
    modules = {"find": FIND, "transform": TRANSFORM, "combine": COMBINE, "measure": MEASURE}
    expected: dict[str, dict[str, list[int]]] = {
        # a call per node of each item
        "per_sample": {"find": [1] * 8, "transform": [1] * 3, "combine": [1] * 4, "measure": [1] * 4},
        # a call per depth and module
        "compaction": {"find": [8], "transform": [2, 1], "combine": [2, 1, 1], "measure": [2, 1, 1]},
        # three layouts, each on the whole batch
        "masking": {"find": [4] * 6, "transform": [4] * 3, "combine": [4] * 3, "measure": [4] * 3},
    }
    for strategy, wanted in expected.items():
        net, calls = make(), {name: list[int]() for name in modules}
        for name, op in modules.items():
            net.program.experts[op].register_forward_hook(lambda m, given, y, to=calls[name]: to.append(len(y)))
        run(net, x, strategy)
        assert calls == wanted, strategy


@pytest.mark.parametrize("kind", ["cvpr16", "n2nmn"])
def test_required_work_is_that_of_the_modules_a_question_names(kind: str) -> None:
    net, x = make(kind), scenes(10, "train")
    trace = run(net, x, "per_sample")[1]
    required = PartCosts(net, x).required(trace)
    op = net.parse(x[:, 3])[:, :, MODULE]
    counts = [int((op == e).sum()) for e in range(4)]
    if kind == "cvpr16":
        s, h, stem = 25, 8, 26 * 26 * 20 * 75 + 9 * 9 * 50 * 500  # positions of the map
        each = [50 * s, 2 * s * h, 2 * s, s * h + h * 2]
    else:
        s, h, e, stem = 9, 16, 10, 9 * 64 * 300 + 9 * 64 * 64
        each = [s * 64 * h + e * h + s * h, s * 9 * h + e * h + s * h, 0, 3 * 2]
    # convolutions, products of matrices and linear layers; what is added or multiplied element by element is less
    multiplied = 2 * (10 * stem + sum(c * m for c, m in zip(counts, each, strict=True)))
    assert required.region == required.total == pytest.approx(multiplied, rel=0.001)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    questions=st.lists(st.sampled_from([q for k in range(3) for q in shapes.every_question(k)]), min_size=1, max_size=6)
)
@torch.inference_mode()
def test_any_questions_in_a_batch_are_answered_alike(questions: list[str]) -> None:
    net, scene = make(), scenes(1)
    x = torch.cat([about(scene, q) for q in questions])
    want = net(x)
    for strategy in WAYS:
        assert torch.allclose(run(net, x, strategy)[0], want, atol=1e-5), strategy


def test_attention_is_not_normalised_and_describe_averages() -> None:
    torch.manual_seed(0)
    x, word = torch.randn(2, 5, 3, 3), torch.tensor([1, 0])
    attend = Attend(2, 5)
    a = attend((x, (), word))
    assert torch.allclose(attend((2 * x, (), word)), 2 * a, atol=1e-5) and a.shape == (2, 1, 3, 3)
    answer = Classify(2, 5, 4)((x, (torch.ones(2, 1, 3, 3),), word))
    assert answer.shape == (2, 4)
    mean = Classify(2, 5, 4)
    mean.load_state_dict({"fc.weight": torch.eye(4, 5).expand(2, 4, 5), "fc.bias": torch.zeros(2, 4)})
    assert torch.allclose(mean((x, (torch.ones(2, 1, 3, 3),), word)), x.mean((2, 3))[:, :4], atol=1e-6)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"modules": "nmn3"}, "'cvpr16' or 'n2nmn'"),
        ({"stem": "vgg"}, "'lenet' or 'cells'"),
        ({"answers": 1}, "answers=1: it is 2 or more"),
        ({"hidden": 0}, "hidden=0"),
        ({"embedding": 0}, "embedding=0"),
        ({"image": 35, "stem": "cells"}, "multiple of 10"),
        ({"image": 8}, "from 14 on"),
        ({"relations": ()}, "no word"),
        ({"largest": "(is purple)"}, "purple"),
    ],
)
def test_bad_arguments_are_answered_in_a_sentence(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        nmn(**args)


@pytest.mark.parametrize(
    "args",
    [
        {"modules": "n2nmn", "image": 60, "hidden": 8, "embedding": 4},
        {"modules": "n2nmn", "stem": "lenet", "hidden": 8, "embedding": 4},
        {"image": 47, "hidden": 3},
        {"attributes": ("cat", "dog"), "relations": ("near",), "kinds": ("name",), "answers": 9},
        {"largest": "(is (or red blue) (and circle (above green)))"},
    ],
)
@torch.inference_mode()
def test_other_variants_answer_the_same_in_every_way(args: dict[str, Any]) -> None:
    net = nmn(**args).eval()
    first, relation = next(iter(net.find)), next(iter(net.transform))
    kind = next(iter(net.describe))
    questions = [f"(is {first})", f"({kind} {first})", f"(is {first} ({relation} {first}))"]
    planes = torch.zeros(3, net.image, net.image)
    for plane, question in zip(planes.flatten(1), questions, strict=True):
        plane[: len(question)] = torch.tensor(list(question.encode()), dtype=torch.float)
    x = torch.cat([torch.randn(3, 3, net.image, net.image), planes[:, None]], 1)
    want, _ = run(net, x, "per_sample")
    for strategy in ("masking", "compaction"):
        assert torch.allclose(run(net, x, strategy)[0], want, atol=1e-5)


def test_without_a_question_it_is_the_largest() -> None:
    net = make()
    x = about(scenes(1), "(is red (above (above red)))")
    blank = torch.cat([x[:, :3], torch.zeros(1, 1, 30, 30)], 1)
    with torch.inference_mode():
        assert torch.equal(net(blank), net(x))


def test_edge_traces_are_programs_of_the_stream() -> None:
    net, x = make(), scenes()
    lengths = {kind: (trace.entries["layout", ()].value[:, :, MODULE] != NONE).sum(1) for kind, trace in forced(net, x)}
    assert lengths["all"].eq(6).all() and lengths["none"].eq(4).all() and lengths["one"].tolist() == [6] + [4] * 11


def test_modules_learn_several_questions_about_a_scene(tmp_path: Path) -> None:
    quick = {"epochs": 1, "items": 64, "questions": 2}
    table = {
        "name": "nmn_tiny",
        "inputs": {"name": "shapes"},
        "model_args": SMALL["mixed"],
        "train": {"recipe": "dynbench.training.nmn:train", "options": {"simple": quick, "all": quick}},
    }
    train_workload(table, tmp_path, progress=False)
    assert {p.name for p in tmp_path.iterdir()} == {"nmn_tiny.json", "nmn_tiny.safetensors"}
    card = json.loads((tmp_path / "nmn_tiny.json").read_text())
    assert set(card["stages"]) == {"simple", "all"} and card["args"] == SMALL["mixed"]
    assert 0 <= card["accuracy"] <= 1 and set(card["accuracy_by_modules"]) == {"4", "5", "6"}
    assert card["static_twin"]["accuracy"] == card["accuracy"] and 4 < card["modules_run"] < 6
    asked = card["stages"]["simple"]["settings"]
    assert asked["questions"] == 2 and asked["related"] == [0.6, 0.4, 0.0]


def test_the_loss_is_the_mean_over_scenes_and_questions() -> None:
    from dynbench.training.nmn import several

    net = make()
    data = load_inputs("shapes", "train", limit=3, questions=2)
    x, y = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    singles = [
        F.cross_entropy(net(torch.cat([x[i : i + 1, :3], x[i : i + 1, 3 + q : 4 + q]], 1)), y[i : i + 1, q])
        for i in range(3)
        for q in range(2)
    ]
    assert torch.allclose(several(net, x, y), torch.stack(singles).mean(), atol=1e-6)
    one = Dataset(data.inputs[:, :4], data.labels[:, 0], "", 2)
    assert torch.allclose(
        several(net, torch.from_numpy(one.inputs), torch.from_numpy(one.labels)),
        torch.stack(singles[::2]).mean(),
        atol=1e-6,
    )


def test_the_layout_is_recorded_and_replayed_in_any_batching() -> None:
    net, x = make(), scenes(8)
    want, trace = run(net, x, "per_sample")
    ex = Execution(STRATEGIES["compaction"](), replay=trace, record=True)
    with torch.inference_mode():
        got = [ex.run(net, x[i : i + 4], start=i, items=8) for i in (0, 4)]
    assert torch.allclose(torch.cat(got), want, atol=1e-5) and ex.trace == trace
