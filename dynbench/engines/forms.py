"""Forms: other ways to write down the same network. A form applies to the dynamic side and to its baselines alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dynbench.dynamic.items import Arguments, called, cat, map_items, tensors

Run = Callable[[nn.Module, Any], Any]  # a network on a batch
TOLERANCE = 1e-4  # of the answer's largest value: folding rounds otherwise


class Form(NamedTuple):
    """One way to write a network down.

    Attributes:
        model: `(model, example, run) -> a model` with the same answers.
        inputs: what to do with every input.
    """

    model: Callable[[nn.Module, Any, Run], nn.Module]
    inputs: Callable[[Any], Any]


def fold_batchnorm(model: nn.Module, example: Any, run: Run = called) -> nn.Module:
    """A copy of a model in evaluation mode whose batch norms are part of the convolutions before them.

    Pairs are found by watching one pass: a batch norm is folded when all it ever saw was what one and the same
    convolution had just returned, and that convolution fed no other. A convolution that is given its kernel, and a norm
    that keeps no statistics, stay. Bodies that the pass does not reach keep their
    batch norms: let `run` reach all (masking does).

    Args:
        model: on any device, float.
        example: an input, batch first.
        run: `(model, example) -> answer`.

    Raises:
        ValueError: the copy answers otherwise by more than 1e-4 of the largest value (a convolution's output was used
            apart from its batch norm).
    """
    folded = copy.deepcopy(model).eval()
    with torch.no_grad():
        before, pairs = _watch(folded, example, run)
        for conv, norm in pairs:
            _replace(folded, conv, fuse_conv_bn_eval(conv, norm))
            _replace(folded, norm, nn.Identity())
        after = run(folded, example)
    for a, b in zip(tensors(before), tensors(after), strict=True):
        scale = a.abs().max().clamp(min=1e-30)
        if not bool(((a - b).abs().max() / scale) <= TOLERANCE):
            raise ValueError("folding changed the answer: a convolution's output is used apart from its batch norm")
    return folded


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _watch(model: nn.Module, example: Any, run: Run) -> tuple[Any, list[tuple[Any, Any]]]:
    """The answer, and the (convolution, batch norm) pairs that can be folded."""
    made_by: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps outputs alive, so that their ids stay theirs
    feeds: dict[nn.Module, set[nn.Module | None]] = {}

    def made(conv: nn.Module, args: Any, out: Tensor) -> None:
        if conv.weight is not None and len(args) == 1:  # one that is given its kernel has nothing to fold into
            made_by[id(out)] = (conv, out)

    def met(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        found = made_by.get(id(args[0]))
        feeds.setdefault(norm, set()).add(None if found is None else found[0])

    hooks = [m.register_forward_hook(made) for m in model.modules() if isinstance(m, _CONVS)]
    norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    hooks += [m.register_forward_pre_hook(met) for m in norms]
    try:
        answer = run(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    users: dict[nn.Module | None, int] = {}
    for convs in feeds.values():
        for conv in convs:
            users[conv] = users.get(conv, 0) + 1
    pairs = []
    for norm, convs in feeds.items():
        conv = next(iter(convs))
        if len(convs) == 1 and conv is not None and users[conv] == 1:
            pairs.append((conv, norm))
    return answer, pairs


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def channels_last(model: nn.Module, example: Any, run: Run = called) -> nn.Module:
    """A copy of a model whose image weights lie in memory channel by channel (NHWC)."""
    moved: nn.Module = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def to_channels_last(x: Any) -> Any:
    """Images [n, C, H, W] with the channel last in memory; anything else as it is."""
    return map_items(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, x)


def _same(x: Any) -> Any:
    return x


FORMS: dict[str, Form] = {
    "plain": Form(lambda model, example, run: model, _same),
    "folded": Form(fold_batchnorm, _same),
    "channels_last": Form(channels_last, to_channels_last),
}


def applicable(model: nn.Module) -> list[str]:
    """The forms that can make a difference to a model: 'plain', and others and pairs of them by its layers."""
    images = any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in model.modules())
    norms = any(isinstance(m, _NORMS) for m in model.modules())
    found = ["plain", *(["folded"] if norms else []), *(["channels_last"] if images else [])]
    return [*found, "folded+channels_last"] if images and norms else found


def apply_form(name: str, model: nn.Module, example: Any, run: Run = called) -> tuple[nn.Module, Callable[[Any], Any]]:
    """A model in a form, and what to do with its inputs before every call.

    Args:
        name: of `FORMS`; several joined by '+', e.g. 'folded+channels_last'.
        model: is left as it is.
        example: an input, batch first.
        run: `(model, example) -> answer`, see `fold_batchnorm`.

    Raises:
        ValueError: an unknown form.
    """
    for part in name.split("+"):
        if part not in FORMS:
            raise ValueError(
                f"unknown form {part!r}: it is one of {', '.join(FORMS)}, or several joined by '+'; of a static "
                "network micro_batches_N may come last"
            )
        model = FORMS[part].model(model, example, run)
    steps = [FORMS[part].inputs for part in name.split("+")]
    return model, lambda x: reduce(lambda y, step: step(y), steps, x)


class MicroBatches(nn.Module):
    """A static network that works on a few items at a time, so that what it computes on stays in the cache.

    Args:
        model: answers with tensors [n, ...], or tuples, lists and dicts of these, to inputs [n, ...].
        size: items at a time, at least 1.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, *inputs: Any, **by_name: Any) -> Any:
        """The model's answer to a batch of any size."""
        x = Arguments(*inputs, **by_name)
        if len(x) <= self.size:
            return self.model(*inputs, **by_name)
        return cat([x[i : i + self.size].call(self.model) for i in range(0, len(x), self.size)])


def micro_batched(call: Callable[[int, Tensor], Tensor], size: int) -> Callable[[int, Tensor], Tensor]:
    """A call that works on `size` items at a time, so that what it computes on stays in the cache.

    Args:
        call: `(stream index of the first item, inputs [n, ...]) -> answers [n, ...]`.
        size: items at a time, at least 1.

    Raises:
        ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"micro-batch size {size}: at least 1 item at a time")

    def in_parts(start: int, x: Tensor) -> Tensor:
        return torch.cat([call(start + i, x[i : i + size]) for i in range(0, x.shape[0], size)])

    return in_parts
