"""For which items two passes decided the same, and how many decisions differ.

A network that makes its own decisions may decide otherwise in another form where two scores are equal up to rounding;
another answer is right then. Such decisions are counted, and only items that were decided alike are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dynbench.dynamic import DecisionPoint, Trace
from dynbench.dynamic.trace import Entry


def decided_alike(a: Trace, b: Trace, slack: float) -> Tensor:
    """For which items [n] all decisions are the same and were asked for in both; on the CPU.

    Args:
        a: decisions.
        b: others, of a stream as long.
        slack: share of the largest real number that was decided, up to which real numbers are the same.
    """
    mine, theirs = a.reached_only(), b.reached_only()
    alike = torch.ones(b.items, dtype=torch.bool)
    for key in mine.keys() | theirs.keys():
        if key in mine and key in theirs:
            same = (mine[key][1] == theirs[key][1]) & same_rows(mine[key][0], theirs[key][0], slack)
        else:  # only one of them asked anybody
            same = ~(mine if key in mine else theirs)[key][1]
        alike &= same.reshape(b.items, -1).all(1)
    return alike


def same_rows(a: Tensor, b: Tensor, slack: float) -> Tensor:
    """Which rows [n] of two tensors [n, ...] are the same; real numbers up to a share of the largest finite one."""
    if a.shape != b.shape:
        return torch.zeros(len(b), dtype=torch.bool, device=b.device)
    if not a.is_floating_point():
        return (a == b).reshape(len(a), -1).all(1)
    finite = b.isfinite()
    largest = b[finite].abs().max() if finite.any() else torch.zeros((), dtype=b.dtype, device=b.device)
    return ((a == b) | ((a - b).abs() <= slack * largest)).reshape(len(a), -1).all(1)


def flipped(a: Trace, b: Trace, slack: float, points: Mapping[str, DecisionPoint]) -> tuple[int, int]:
    """How much two traces of a stream decide otherwise, and how much there is to decide.

    Args:
        a: decisions.
        b: others, of a stream as long.
        slack: as in `decided_alike`.
        points: the model's, by name: they know how many decisions a row holds.
    """
    different = total = 0
    mine, theirs = a.reached_only(), b.reached_only()
    for key in mine.keys() | theirs.keys():
        value, reached = (theirs if key in theirs else mine)[key]
        other, also = mine[key] if key in mine and key in theirs else (value, torch.zeros_like(reached))
        choices = points[key[0]].choices(value.shape[1:])
        both, either = reached & also, reached | also
        alone = int((either & ~both).sum())  # only one of them asked anybody
        different += int(_differing(other, value, slack, choices)[both].sum()) + choices * alone
        total += choices * int(either.sum())
    return different, total


def _differing(a: Tensor, b: Tensor, slack: float, choices: int) -> Tensor:
    """How many decisions [n] of the rows [n, ...], each of which holds so many, are others."""
    differ = (~same_rows(a, b, slack)).long()
    if choices == 1:
        return differ
    if a.shape != b.shape:
        return choices * differ
    missing = ~(b[:, :, None] == a[:, None, :]).any(2)
    return torch.maximum(differ, missing.sum(1))  # another order of the same is one


def joined(traces: Sequence[Trace]) -> Trace:
    """The decisions about the batches of a stream, in their order, as those about the stream."""
    first, *_ = traces
    entries = {
        key: Entry(
            torch.cat([t.entries[key].value for t in traces]), torch.cat([t.entries[key].reached for t in traces])
        )
        for key in first.entries
    }
    return Trace(entries, sum(t.items for t in traces), covers=first.covers)
