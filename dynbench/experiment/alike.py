"""For which items two passes decided the same, and how many decisions differ.

A network that makes its own decisions may decide otherwise in another form where two scores are equal up to rounding;
another answer is right then. Such decisions are counted, and only items that were decided alike are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from dynbench.dynamic import Trace
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
    if not a.is_floating_point():
        return (a == b).reshape(len(a), -1).all(1)
    finite = b.isfinite()
    largest = b[finite].abs().max() if finite.any() else torch.zeros((), dtype=b.dtype, device=b.device)
    return ((a == b) | ((a - b).abs() <= slack * largest)).reshape(len(a), -1).all(1)


def flipped(a: Trace, b: Trace, slack: float, choosing: Collection[str] = ()) -> tuple[int, int]:
    """How much two traces of a stream decide otherwise, and how much there is to decide.

    Args:
        a: decisions.
        b: others, of a stream as long.
        slack: as in `decided_alike`.
        choosing: names of points that choose k parts of each item; each part chosen counts as one decision.
    """
    different = total = 0
    mine, theirs = a.reached_only(), b.reached_only()
    for key in mine.keys() | theirs.keys():
        value, reached = (theirs if key in theirs else mine)[key]
        other, also = mine[key] if key in mine and key in theirs else (value, torch.zeros_like(reached))
        by_part = key[0] in choosing and value.dim() == 2 and other.shape == value.shape
        weight = value.shape[1] if by_part else 1
        differ = (~same_rows(other, value, slack)).long()
        if by_part:  # the parts that the other one does not choose; another order of the same is one
            missing = ~(value[:, :, None] == other[:, None, :]).any(2)
            differ = torch.maximum(differ, missing.sum(1))
        both = reached & also
        alone = int(((reached | also) & ~both).sum())  # only one of them asked anybody
        different += int(differ[both].sum()) + weight * alone
        total += weight * (int(both.sum()) + alone)
    return different, total


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
