"""TAFE-Net: its equations by hand, what runs how often, the same answer under every strategy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, Trace
from dynbench.meters.required import PartCosts
from dynbench.models.accounting import static_macs
from dynbench.models.tafenet import (
    Compositions,
    TAFENet,
    accounted_macs,
    tafenet,
    tafenet_classifier,
    tafenet_loss,
)
from dynbench.strategies import STRATEGIES
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

SMALL: dict[str, Any] = {"tasks": [2, 3], "embedding": 8, "features": 7, "widths": [10, 12, 9], "hidden": 5}


def make(**args: Any) -> TAFENet:
    """A network whose answers differ from task to task, and whose batch norm does something."""
    torch.manual_seed(0)
    net = tafenet(**{**SMALL, **args}).eval()
    for p in net.parameters():
        nn.init.normal_(p, 0.1, 0.4)
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_()  # type: ignore[union-attr]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return net


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(1))


def by_hand(net: TAFENet, x: Tensor, task: int) -> Tensor:
    """One image [C], one task, by the equations: the rows of [W | b] are scaled, not what comes out."""
    w = net.state_dict()

    def norm(t: Tensor, i: int) -> Tensor:
        p = f"meta_learner.emb.{i}."
        y = (t - w[p + "running_mean"]) / (w[p + "running_var"] + 1e-5).sqrt()
        return torch.relu(y * w[p + "weight"] + w[p + "bias"])

    a, o = divmod(task, 3)
    t = torch.cat([w["tasks.words"][a], w["tasks.words"][2 + o]])
    t = norm(w["meta_learner.emb.0.weight"] @ t, 1)
    t = norm(w["meta_learner.emb.3.weight"] @ t, 4)
    t = torch.relu(w["meta_learner.emb.6.weight"] @ t + w["meta_learner.emb.6.bias"])
    z = x
    for k in range(3):
        s = w[f"meta_learner.generator_{k}.weight"] @ t + w[f"meta_learner.generator_{k}.bias"]
        z = (s[:, None] * w[f"linear_{k}.weight"]) @ z + s * w[f"linear_{k}.bias"]  # eq. 5
        z = torch.relu(z) if k < 2 else z
    y = torch.relu(w["classifier.0.weight"] @ z + w["classifier.0.bias"])
    return w["classifier.2.weight"] @ y + w["classifier.2.bias"]


@torch.inference_mode()
def test_every_pair_is_answered_by_the_equations() -> None:
    net, x = make(), images()
    want = torch.stack([torch.cat([by_hand(net, one, t) for t in range(6)]) for one in x])
    assert float(want.std(1).min()) > 1e-3  # tasks differ
    for y in (net(x), run(net, x, "compaction")[0], run(net, x, "specialised")[0]):
        assert torch.allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tasks", [6, [2, 3]])
@pytest.mark.parametrize("strategy", DYNAMIC)
def test_strategies_answer_alike(strategy: str, tasks: Any) -> None:
    net, x = make(tasks=tasks), images()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)
    if not STRATEGIES[strategy]().refuses(net):
        assert torch.allclose(run(net, x[1:2], strategy)[0], run(net, x, strategy)[0][1:2], rtol=1e-4, atol=1e-5)
    else:
        assert strategy in ("cascading", "batch_union")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    tasks=st.one_of(st.integers(1, 5), st.lists(st.integers(1, 3), min_size=2, max_size=3)),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    n=st.integers(1, 4),
)
@torch.inference_mode()
def test_any_size_answers_as_published(tasks: Any, widths: list[int], n: int) -> None:
    net = make(tasks=tasks, widths=widths, embedding=6)
    x = images(n)
    want = net(x)
    for strategy in ("masking", "compaction", "specialised", "per_sample"):
        assert torch.allclose(run(net, x, strategy)[0], want, rtol=1e-3, atol=1e-4), strategy


def rows_through(net: TAFENet, strategy: str, x: Tensor, calls: int = 1) -> tuple[int, int]:
    """Rows that go through the first product, and through the meta-learner."""
    rows = {"linear": 0, "meta": 0}
    hooks = [
        net.linear_0.register_forward_pre_hook(lambda _, a: rows.update(linear=rows["linear"] + len(a[0]))),
        net.meta_learner.register_forward_pre_hook(lambda _, a: rows.update(meta=rows["meta"] + len(a[0]))),
    ]
    ex = Execution(STRATEGIES[strategy]())
    with torch.inference_mode():
        for _ in range(calls):
            ex.run(net, x)
    for hook in hooks:
        hook.remove()
    return rows["linear"], rows["meta"]


def test_the_meta_learner_runs_per_pair_per_task_or_once_and_the_first_product_per_image() -> None:
    net, x = make(), images(4)
    pairs = 4 * 6
    assert rows_through(net, "dense", x) == (pairs, pairs)  # as published
    assert rows_through(net, "masking", x) == (4, pairs)
    assert rows_through(net, "compaction", x, calls=2) == (2 * 4, 2 * 6)
    assert rows_through(net, "specialised", x, calls=2) == (2 * 4, 6)
    assert rows_through(net, "per_sample", x) == (4, pairs)


def test_the_layer_is_applied_to_each_task_alone_or_to_all_pairs() -> None:
    net, x = make(), images(4)
    for strategy, sizes in (("compaction", [4] * 6), ("specialised", [24]), ("masking", [24])):
        seen: list[int] = []
        hook = net.classifier.register_forward_pre_hook(lambda _, a, seen=seen: seen.append(len(a[0])))
        run(net, x, strategy)
        hook.remove()
        assert seen == sizes, strategy


def test_required_work_counts_shared_work_once_and_is_what_one_image_alone_executes() -> None:
    net = make(tasks=3)
    pair = 2 * (10 * 12 + 12 * 9 + 9 * 9 + 9)  # FLOPs behind the first product
    meta = 2 * (8 * 5 + 5 * 5 + 5 * 9 + 9 * (10 + 12 + 9))
    for n in (1, 4):
        x = images(n)
        required = PartCosts(net, x).required(run(net, x, "per_sample")[1])
        assert required.region == n * (2 * 7 * 10 + 3 * pair)
        assert required.total == required.region + 3 * meta
        counter = FlopCounter()
        with counter, torch.inference_mode():
            Execution(STRATEGIES["per_sample"](), profile=counter).run(net, x)
        assert counter.flops == required.total + (n - 1) * 3 * meta


def test_sizes_are_those_of_the_configuration_for_awa2() -> None:
    with torch.device("meta"):
        net = tafenet()
    assert sum(p.numel() for p in net.parameters()) == 30_734_849
    with torch.device("meta"):
        one = tafenet(tasks=1)
    meta = 85 * 512 + 512**2 + 512 * 2048 + 3 * 2048**2
    assert static_macs(one, (2048,)) == 4 * 2048**2 + 2048 + meta  # 16.8 M and the meta-learner
    macs, rule = accounted_macs(net, Trace(), (2048,))
    assert macs == 50 * static_macs(one, (2048,)) and "meta-learner" in rule


def test_a_state_dictionary_has_the_names_of_the_authors_code() -> None:
    names = set(make().state_dict()) - {"tasks.words"}
    heads = {f"{m}.{i}.{p}" for m, i in (("classifier", 0), ("classifier", 2)) for p in ("weight", "bias")}
    linear = {
        f"{m}_{k}.{p}" for m in ("linear", "meta_learner.generator") for k in range(3) for p in ("weight", "bias")
    }
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    emb = {f"meta_learner.emb.{i}.{p}" for i in (1, 4) for p in norm}
    emb |= {f"meta_learner.emb.{i}.weight" for i in (0, 3, 6)} | {"meta_learner.emb.6.bias"}
    assert names == heads | linear | emb


def test_composed_tasks_are_the_words_at_their_places() -> None:
    tasks = Compositions([2, 3, 4], 6, seed=3)
    task = torch.arange(tasks.count)
    a, b, c = task // 12, task // 4 % 3, task % 4
    want = torch.cat([tasks.words[a], tasks.words[2 + b], tasks.words[5 + c]], 1)
    assert tasks.count == 24 and torch.equal(tasks(task), want) and len(want.unique(dim=0)) == 24


def test_the_loss_is_that_of_pairs_and_of_embeddings() -> None:
    z, s = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[0.9, 0.2, 0.4]])
    right = torch.tensor([[1.0, 0.0, 0.0]])
    pairs = (F.softplus(-z[0, 0]) + F.softplus(z[0, 1]) + F.softplus(z[0, 2])) / 3
    embedding = (2 * 0.1**2 + 0.2**2 + 0.4**2) / 3  # the right pair weighs as much as two wrong ones
    assert float(tafenet_loss(z, s, right, 0.5)) == pytest.approx(float(pairs) + 0.5 * embedding, abs=1e-6)


@torch.inference_mode()
def test_the_similarity_is_the_positive_cosine_of_task_and_features() -> None:
    net, x = make(), images(6)
    task = torch.arange(6)
    logits, similarity = net.published(x, task)
    scales, t = net.meta_learner(net.tasks(task))
    z = net.prediction.embed(net.linear_0(x), scales)
    cosine = (t * z).sum(1) / (t.norm(dim=1) * z.norm(dim=1)).clamp(min=1e-8)
    assert torch.allclose(similarity, cosine.clamp(min=0), atol=1e-6)
    assert float(cosine.min()) < 0 < float(cosine.max())
    assert torch.allclose(logits, net(x).diagonal(), rtol=1e-4, atol=1e-5)


def test_the_feature_extractor_is_frozen() -> None:
    net = make(cnn=[4, 7])
    x = torch.randn(3, 3, 16, 16)
    before = {k: v.clone() for k, v in net.cnn.state_dict().items()}  # type: ignore[union-attr]
    net.train()
    net(x).sum().backward()
    assert all(p.grad is None for p in net.cnn.parameters())  # type: ignore[union-attr]
    assert all(torch.equal(v, before[k]) for k, v in net.cnn.state_dict().items())  # type: ignore[union-attr]
    assert net.linear_0.weight.grad is not None
    assert net.input_shape((3, 20, 20)) == (3, 20, 20) and make().input_shape((3, 20, 20)) == (7,)


@torch.inference_mode()
def test_a_classifier_of_factors_names_pairs_by_both() -> None:
    torch.manual_seed(0)
    net, x = tafenet_classifier((2, 3), (4, 8)).eval(), torch.randn(5, 3, 16, 16)
    attribute, thing = net.apart(x)
    p = attribute.softmax(1)[:, :, None] * thing.softmax(1)[:, None]
    assert torch.allclose(net(x).exp(), p.flatten(1), atol=1e-6)
    assert tafenet_classifier((2, 3), (4, 8), factors=False)(x).shape == (5, 6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tasks": 0}, "a number of classes"),
        ({"tasks": [6]}, "attributes, objects"),
        ({"tasks": [6, 0]}, "1 or more each"),
        ({"embedding": 7}, "2, the number of word vectors"),
        ({"widths": []}, "widths"),
        ({"hidden": 0}, "hidden=0"),
        ({"cnn": [4, 0]}, "cnn"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_choices(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tafenet(**{**SMALL, **args})


@pytest.mark.parametrize("args", [{"pairs": [3]}, {"pairs": [3, 0]}, {"cnn": []}])
def test_a_classifier_there_is_not_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 or more each"):
        tafenet_classifier(**args)
