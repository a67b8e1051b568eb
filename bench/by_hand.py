"""The loops that the strategy layer stands for, as somebody would write them for one network.

Same gates, same decisions (replayed, on the device, waited for), same gather and scatter; no recording, no phases.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bench.paired import Call
from dynbench.dynamic import Trace
from dynbench.dynamic.items import blank, put_, take
from dynbench.models.idk import IDKCascade
from dynbench.models.skipnet import HIDDEN, SkipNet


def skipnet_compacted(net: SkipNet, trace: Trace) -> Call:
    """SkipNet under compaction."""
    decisions = [trace.entries[skip.name, ()].value for skip in net.skips]

    def call(start: int, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = F.relu(net.bn1(net.conv1(x)))
        zero = x.new_zeros(n, HIDDEN)
        carry = (zero, zero)
        x = net.group1_layer0(x)
        for skip, decided in zip(net.skips, decisions, strict=True):
            scores, carry = skip.gate(x, carry)
            _ = scores > 0
            keep = decided[start : start + n]
            x = skip.begun(x)
            if n == 1:
                if keep.item():
                    x = skip.body(x)
                elif skip.otherwise is not None:
                    x = skip.otherwise(x)
                continue
            rows = keep.nonzero().squeeze(1)
            active = rows.shape[0]
            if active == n:
                x = skip.body(x)
            elif active == 0:
                x = x if skip.otherwise is None else skip.otherwise(x)
            elif skip.otherwise is None:
                put_(x, rows, skip.body(take(x, rows)))
            else:
                y = skip.body(take(x, rows))
                rest = (~keep).nonzero().squeeze(1)
                z = skip.otherwise(take(x, rest))
                x = put_(put_(blank(y, n), rows, y), rest, z)
        return net.fc(x.mean((2, 3)))

    return call


def skipnet_with_if(net: SkipNet, trace: Trace) -> Call:
    """SkipNet on one item, by a plain `if` on decisions the host knows."""
    decisions = [trace.entries[skip.name, ()].value.tolist() for skip in net.skips]

    def call(start: int, x: Tensor) -> Tensor:
        x = F.relu(net.bn1(net.conv1(x)))
        zero = x.new_zeros(1, HIDDEN)
        carry = (zero, zero)
        x = net.group1_layer0(x)
        for skip, decided in zip(net.skips, decisions, strict=True):
            _, carry = skip.gate(x, carry)
            x = skip.begun(x)
            if decided[start]:
                x = skip.body(x)
            elif skip.otherwise is not None:
                x = skip.otherwise(x)
        return net.fc(x.mean((2, 3)))

    return call


def cascade_cascaded(net: IDKCascade, trace: Trace) -> Call:
    """An IDK cascade whose batch shrinks as items leave."""
    levels = len(net.classifiers)
    decided = trace.entries["cascade", (levels,)].value.view(-1, levels)

    def call(start: int, x: Tensor) -> Tensor:
        n = x.shape[0]
        live, answer = None, None
        for k, classifier in enumerate(net.classifiers):
            logits = classifier(x)
            answer = logits if live is None else put_(answer, live, logits)
            if k == levels - 1:
                break
            net.policy(logits, (x, logits), k)
            knows = decided[start : start + n, k]
            if n == 1:
                if knows.item():
                    break
                continue
            if live is not None:
                knows = knows.index_select(0, live)
            stay = (~knows).nonzero().squeeze(1)
            if stay.shape[0] == 0:
                break
            if stay.shape[0] < x.shape[0]:
                x = take(x, stay)
                answer, live = (answer.clone(), stay) if live is None else (answer, live.index_select(0, stay))
        return answer

    return call


def cascade_with_if(net: IDKCascade, trace: Trace) -> Call:
    """An IDK cascade on one item, by a plain `if` on decisions the host knows."""
    levels = len(net.classifiers)
    decided = trace.entries["cascade", (levels,)].value.view(-1, levels).tolist()

    def call(start: int, x: Tensor) -> Tensor:
        for k, classifier in enumerate(net.classifiers):
            logits = classifier(x)
            if k == levels - 1:
                break
            net.policy(logits, (x, logits), k)
            if decided[start][k]:
                break
        return logits

    return call
