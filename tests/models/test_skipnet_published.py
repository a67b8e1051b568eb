"""SkipNet in its authors' form: the same answers and decisions as ours, more work, and the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynbench.counting.flops import FlopCounter
from dynbench.dynamic import Execution, points
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import load_spec
from dynbench.models.skipnet_published import PublishedSkipNet, skipnet_as_published
from dynbench.strategies import Masking
from tests.models.same_answer import decided_both_ways, run
from tests.models.test_skipnet import images, make


@pytest.fixture(scope="module")
def published() -> PublishedSkipNet:
    """With the weights of `make()`."""
    net = skipnet_as_published(14)
    net.load_state_dict(make().state_dict())
    return net.eval()


@pytest.mark.parametrize(("n", "size"), [(1, 32), (6, 16), (6, 48)])
def test_it_answers_and_decides_as_ours_does(published: PublishedSkipNet, n: int, size: int) -> None:
    ours, x = make(), images(n, size)
    y, trace = run(ours, x, "masking")
    with torch.inference_mode():
        logits, masks, probabilities = published(x)
        again, *_ = published(x)
    assert n == 1 or decided_both_ways(trace)
    torch.testing.assert_close(logits, y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))
    assert torch.equal(again, logits)  # every call begins with an empty state
    for skip, mask, p in zip(ours.skips, masks, probabilities, strict=True):
        assert torch.equal(trace.entries[skip.name, ()].value, mask > 0.5)
        assert torch.equal(p.flatten() > 0.5, mask > 0.5)
        torch.testing.assert_close(mask, mask.round(), rtol=0, atol=1e-6)


def test_it_has_the_weights_of_ours_by_name_and_no_decision_points(published: PublishedSkipNet) -> None:
    ours = make().state_dict()
    mine = published.state_dict()
    assert mine.keys() == ours.keys() and all(torch.equal(mine[name], ours[name]) for name in ours)
    assert not points(published)


def test_it_executes_every_block_and_computes_two_shortcuts_twice(published: PublishedSkipNet) -> None:
    x = images(2, 32)

    def flops(call: object) -> float:
        counter = FlopCounter()
        with counter, torch.inference_mode():
            call(x)  # type: ignore[operator]
        assert isinstance(counter.flops, float | int)
        return float(counter.flops)

    ours = make()
    more = flops(published) - flops(lambda x: Execution(Masking()).run(ours, x))
    shortcuts = 2 * 2 * (16 * 32 * 16 * 16 + 32 * 64 * 8 * 8)  # FLOPs of the two 1x1 convolutions, for two inputs
    assert more == pytest.approx(shortcuts, abs=1e-3 * shortcuts)


def test_gradients_pass_its_masks(published: PublishedSkipNet) -> None:
    net = skipnet_as_published(14)
    net.load_state_dict(published.state_dict())
    net(images(4))[0].sum().backward()
    gradient = net.control.proj.weight.grad
    assert isinstance(gradient, Tensor) and float(gradient.abs().max()) > 0


def test_the_workload_on_cifar_has_it_beside_ours_with_the_same_weights() -> None:
    spec = load_spec("skipnet38_cifar10")
    (opaque,) = spec.opaque
    assert (opaque.weights, opaque.same_answer_as) == (spec.weights, "dynamic")
    ours, theirs = (build_model(ref, spec.folder).eval() for ref in (spec, opaque))
    x = images(8, 32)
    y, trace = run(ours, x, "masking")
    assert decided_both_ways(trace)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x)[0], y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


def test_a_depth_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        skipnet_as_published(13)
