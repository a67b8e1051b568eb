"""DynamicViT and ToMe: which tokens are left, that the rest makes no difference, and the published amounts of work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynbench.dynamic import Trace, outside, points
from dynbench.dynamic.trace import Entry
from dynbench.experiment.alike import flipped
from dynbench.meters.cost import cost
from dynbench.models import dynvit as dynvit_file
from dynbench.models import tome as tome_file
from dynbench.models.dynvit import DynamicViT, dynvit
from dynbench.models.tome import ToMe, match, merge, schedule, tome
from dynbench.models.vit import vit
from tests.models.same_answer import DYNAMIC, assert_same_answer, decided_both_ways, run

SMALL: dict[str, Any] = {"image": 24, "patch": 4, "classes": 5, "width": 16, "depth": 4, "heads": 2, "mlp_ratio": 2}


def lively(net: Any) -> Any:
    """Weights large enough that tokens differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.normal_(std=0.25)
    return net.eval()


def pruned(**args: Any) -> DynamicViT:
    net: DynamicViT = lively(dynvit(**{**SMALL, "places": (1, 2, 3), **args}))
    return net


def merging(r: Any = 4, **args: Any) -> ToMe:
    net: ToMe = lively(tome(**{**SMALL, "r": r, **args}))
    return net


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strategy", DYNAMIC)
@pytest.mark.parametrize("make", [pruned, merging])
def test_every_strategy_answers_alike(make: Any, strategy: str) -> None:
    net, x = make(), images()
    assert decided_both_ways(run(net, x, "per_sample")[1])
    assert_same_answer(net, x, strategy)


@pytest.mark.parametrize("make", [pruned, merging])
@torch.inference_mode()
def test_without_decisions_it_is_the_plain_network(make: Any) -> None:
    net, x = make(), images()
    assert torch.allclose(net(x), net.vit(x), atol=1e-5)
    assert not torch.allclose(run(net, x, "compaction")[0], net.vit(x), atol=1e-3)


# -- DynamicViT


@pytest.mark.parametrize(
    ("image", "patch", "ratio", "left"),
    [
        (224, 16, 0.7, [137, 96, 67]),
        (224, 16, 0.5, [98, 49, 24]),
        (224, 16, 0.9, [176, 158, 142]),
        (384, 16, 0.7, [403, 282, 197]),
        (24, 4, 0.01, [1, 1, 1]),
    ],
)
def test_as_many_tokens_are_left_as_the_authors_code_leaves(image: int, patch: int, ratio: float, left: Any) -> None:
    assert pruned(image=image, patch=patch, ratio=ratio, depth=4).left == left


@torch.inference_mode()
def test_pruning_is_what_it_is_by_hand() -> None:
    net, x = pruned(), images()
    want = []
    for i in range(len(x)):
        t = net.vit.tokens(x[i : i + 1])
        for k, block in enumerate(net.vit.blocks):
            if k in net.places:
                s = net.places.index(k)
                predictor = net.predictors[s]
                z = predictor.enter(t[:, 1:])  # type: ignore[operator]
                z = torch.cat([z[..., :8], z[..., 8:].mean(1, keepdim=True).expand(-1, z.shape[1], -1)], -1)
                score = predictor.out(z)[0, :, 0]  # type: ignore[operator]
                keep = score.sort(descending=True).indices[: net.left[s]] + 1
                t = torch.cat([t[:, :1], t[:, sorted(keep.tolist())]], 1)
            t = block(t)
        want.append(net.vit.classify(t))
    assert torch.allclose(run(net, x, "compaction")[0], torch.cat(want), atol=1e-5)


@torch.inference_mode()
def test_a_token_that_was_dropped_makes_no_difference_to_masking() -> None:
    net, x = pruned(), images(1)
    y, trace = run(net, x, "masking")
    kept = trace.entries["prune0", ()].value[0].tolist()
    gone = torch.tensor([1 + patch for patch in range(36) if patch not in kept])
    hook = net.vit.blocks[1].register_forward_pre_hook(lambda m, a: (a[0].index_fill(1, gone, 1e4), *a[1:]))
    again = run(net, x, "masking", trace)[0]
    hook.remove()
    assert float((again - y).abs().max()) < 1e-5


def test_the_training_form_agrees_with_what_is_left_when_the_predictors_are_sure() -> None:
    net, x = pruned(ratio=0.7), images()
    for predictor in net.predictors:
        nn.init.zeros_(predictor.out[-2].weight)  # type: ignore[index]
        with torch.no_grad():
            predictor.out[-2].bias.copy_(torch.tensor([50.0, -50.0]))  # type: ignore[index]
    with outside(), torch.no_grad():
        logits, _, left, decided = net.masked(x)
        assert bool(left.bool().all()) and len(decided) == 3
        assert torch.allclose(logits, net.vit(x), atol=1e-4)  # but for the code's epsilon


def test_gradients_reach_the_predictors_through_the_mask() -> None:
    net = pruned().train()
    torch.manual_seed(0)
    net.masked(images())[0].square().sum().backward()
    for predictor in net.predictors:
        assert all(p.grad is not None and bool(p.grad.any()) for p in predictor.out.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0])
def test_pruning_accounts_for_what_is_required(ratio: float) -> None:
    net = pruned(ratio=ratio)
    macs, rule = dynvit_file.accounted_macs(net, Trace(), net.input_shape(()))
    assert macs == cost(net, images())["required_macs"] and "predictors" in rule


# -- ToMe


def test_which_pairs_are_merged_is_decided_not_in_which_order() -> None:
    torch.manual_seed(0)
    scores = torch.rand(3, 8, 7) / 2
    scores[:, 2, 3], scores[:, 5, 1], scores[:, 6, 6] = 0.9, 0.9 + 1e-6, 0.9 - 1e-6
    others = scores.clone()
    others[:, 2, 3], others[:, 5, 1] = 0.9 + 1e-6, 0.9  # as another order of additions may round them
    assert torch.equal(match(3, scores), match(3, others))
    assert match(3, scores)[0].tolist() == [2 * 7 + 3, 5 * 7 + 1, 6 * 7 + 6]


def test_each_pair_that_is_merged_is_a_decision() -> None:
    net, x = merging(), images(2)
    _, trace = run(net, x, "compaction")
    value, reached = trace.entries["merge0", ()]
    other = value.clone()
    other[0, 1] += 1  # the same token goes into another one
    changed = Trace({**trace.entries, ("merge0", ()): Entry(other, reached)}, trace.items, covers=trace.covers)
    assert value.shape == (2, 4) and flipped(changed, trace, 0.0, points(net)) == (1, 2 * 4 * len(points(net)))


def merged_by_hand(x: Tensor, size: Tensor, keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """One image, tokens in a list: x [T, d], size [T], keys [h, T, c]."""
    k = keys.mean(0)
    a, b = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    best = {}
    for i in a[1:]:
        similar = [float(k[i] @ k[j] / k[i].norm() / k[j].norm()) for j in b]
        best[i] = (max(similar), b[similar.index(max(similar))])
    gone = sorted(best, key=lambda i: -best[i][0])[:r]
    groups = {j: [j, *(i for i in gone if best[i][1] == j)] for j in b}
    rows = [[i] for i in a if i not in gone] + [groups[j] for j in b]
    sizes = torch.stack([size[g].sum() for g in rows])
    return torch.stack([(x[g] * size[g, None]).sum(0) for g in rows]) / sizes[:, None], sizes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(tokens=st.integers(3, 12), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_merging_is_what_it_is_by_hand(tokens: int, share: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    r = round(share * ((tokens - 1) // 2))
    x, keys = torch.randn(2, tokens, 3, generator=g), torch.randn(2, 2, tokens, 4, generator=g)
    size = torch.randint(1, 5, (2, tokens), generator=g).float()
    if r == 0:
        return
    y, sizes = merge(x, size, match(r, tome_file.Similarity()(keys)))
    for i in range(2):
        want, new = merged_by_hand(x[i], size[i], keys[i], r)
        assert torch.allclose(y[i], want, atol=1e-5) and torch.equal(sizes[i], new)


@torch.inference_mode()
def test_every_patch_is_counted_once_and_the_class_token_is_alone_and_first() -> None:
    net, sizes = merging(), list[Tensor]()
    for block in net.merging:
        block.register_forward_hook(lambda m, args, out: sizes.append(out[1]))
    run(net, images(), "compaction")
    assert [s.shape[1] for s in sizes] == [33, 29, 25, 21]
    for size in sizes:
        assert torch.equal(size.sum(1), torch.full((3,), 37.0)) and torch.equal(size[:, 0], torch.ones(3))


@torch.inference_mode()
def test_attention_to_a_token_is_as_to_all_it_stands_for() -> None:
    """A block on tokens of which two are alike says the same as with these two as one of size 2."""
    block = merging().vit.blocks[0]
    x = torch.randn(1, 5, 16)
    twice = torch.cat([x, x[:, 4:]], 1)
    size = torch.tensor([[1.0, 1, 1, 1, 2]])
    assert torch.allclose(block(x, size.log()[:, None, None]), block(twice)[:, :5], atol=1e-5)


@torch.inference_mode()
def test_other_matches_are_other_answers_and_replayed_alike() -> None:
    net, x = merging(), images(2)
    y, trace = run(net, x, "compaction")
    value, reached = trace.entries["merge0", ()]
    trace.entries["merge0", ()] = Entry(value.flip(0), reached)  # each image by the other's match
    a, b = (run(net, x, s, trace)[0] for s in ("compaction", "per_sample"))
    assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, y, atol=1e-4)


@pytest.mark.parametrize(("r", "left"), [(4, 21), (0, 37), (99, 4), ([8, 0, 2, 1], 26)])
def test_at_most_half_of_what_may_be_merged_is(r: Any, left: int) -> None:
    net = merging(r)
    assert net.vit.patches + 1 - sum(b.r for b in net.merging) == left
    assert len(points(net)) == sum(b.r > 0 for b in net.merging)
    assert run(net, images(1), "compaction")[0].shape == (1, 5)


@pytest.mark.parametrize(("inflect", "wanted"), [(0, [13] * 12), (-1, [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0])])
def test_the_schedule_is_the_authors(inflect: float, wanted: list[int]) -> None:
    assert schedule(12, 13, inflect) == wanted


@pytest.mark.parametrize("r", [1, 4, [5, 0, 3, 2]])
def test_merging_accounts_for_what_is_required_but_the_matching(r: Any) -> None:
    net = merging(r)
    found = cost(net, images())
    gates = sum(p["gate_macs"] for p in found["decision_points"])
    macs, _ = tome_file.accounted_macs(net, Trace(), net.input_shape(()))
    assert macs == found["required_macs"] - gates and gates > 0


# -- arguments


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (vit, {"variant": "deit_x"}, "known are deit_ti, deit_256"),
        (vit, {"heads": 5}, "heads=5"),
        (vit, {"image": 230}, "image=230"),
        (vit, {"depth": 0}, "depth=0"),
        (vit, {"stem": "cnn"}, "stem='cnn'"),
        (vit, {"stem": "conv", "patch": 14}, "patch=14 is not a power of 2"),
        (dynvit, {"ratio": 0.0}, "ratio=0.0"),
        (dynvit, {"ratio": 1.2}, "ratio=1.2"),
        (dynvit, {"places": (6, 3)}, r"places=\[6, 3\]"),
        (dynvit, {"places": (3, 12)}, "from 0 to 11"),
        (dynvit, {"places": ()}, "places"),
        (tome, {"r": -1}, "0 pairs or more"),
        (tome, {"r": [1, 2]}, "12 blocks"),
        (tome, {"inflect": 2.0}, "inflect=2.0"),
    ],
)
def test_a_network_there_is_not_is_refused_with_the_reason(make: Any, args: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make(**args)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_a_stem_of_convolutions_gives_a_token_per_patch(patch: int) -> None:
    net = vit(**{**SMALL, "patch": patch}, stem="conv").eval()
    assert net.tokens(images(2)).shape == (2, 1 + (24 // patch) ** 2, 16)
