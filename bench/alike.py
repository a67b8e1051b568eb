"""What holds a cascade back: batches whose items all decide alike, against mixed ones, in the same graph.

Of a batch whose items all leave at the same exit nothing has to be moved, and no part is called with few items. The
time of such batches, each weighted by how many items of the stream decide so, is what the mixed ones could reach if
picking items out cost nothing. Beside what each way to decide saves of time stands what it saves of FLOPs, exits
included, which the ideal of a report leaves out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from bench.paired import Row, rounds
from dynbench.analysis.statistics import median_interval
from dynbench.dynamic import Trace
from dynbench.experiment import Options, load_spec
from dynbench.experiment.build import Prepared, prepare
from dynbench.graph import Feeds, Session, compiled, executed_flops, static_graph

WORKLOADS = ("idk_digits", "msdnet_digits", "epnet_digits")
BATCH = 32
Decided = tuple[float, ...]


def decided_alike(seconds: float, names: list[str] | None = None) -> Iterator[Row]:
    """Rows for each cascade: measured, possible without any picking out, and each way to decide.

    Args:
        seconds: inside timed samples, for each.
        names: only these workloads.
    """
    for name in WORKLOADS:
        if not names or name in names:
            yield from _of(name, seconds)


def _of(name: str, seconds: float) -> Iterator[Row]:
    p = prepare(load_spec(name), Options(batch_sizes=[BATCH]))
    example = p.inputs[:8]
    dynamic = Session(compiled(p.model, example, single=False), answers_only=True)
    static = Session(static_graph(p.baselines[p.spec.primary.name], example))
    groups = _groups(p, dynamic)
    streams = {"mixed": p.inputs, **{str(k): p.inputs[_filled(mine)] for k, mine in enumerate(groups.values())}}
    feeds = {k: [dynamic.feeds(x[i : i + BATCH]) for i in range(0, len(x), BATCH)] for k, x in streams.items()}
    plain = [static.feeds(p.inputs[i : i + BATCH]) for i in range(0, p.items, BATCH)]
    arms = {k: lambda _, __, mine=mine: [dynamic.answer(f) for f in mine] for k, mine in feeds.items()}
    arms["static"] = lambda _, __: [static.answer(f) for f in plain]
    ns = rounds(arms, p.inputs[:1], 1, seconds)
    item = {k: found / (len(feeds[k]) * BATCH if k in feeds else p.items) for k, found in ns.items()}
    shares = {k: len(mine) / p.items for k, mine in enumerate(groups.values())}
    possible = sum(share * item[str(k)] for k, share in shares.items())
    flops = {k: _flops_per_item(dynamic, mine) for k, mine in feeds.items()}
    dense = _flops_per_item(static, plain)
    fewer = {k: f"FLOPs, static over dynamic with its exits, {dense / own:.2f}" for k, own in flops.items()}
    how = f"{fewer['mixed']}; one ONNX Runtime graph each, {p.spec.primary.name} is the static net"
    yield Row(f"{name}, batch {BATCH}: as decided", median_interval(item["static"] / item["mixed"]), note=how)
    weighted = "batches of items that decide alike, weighted by their share"
    yield Row(f"{name}, batch {BATCH}: nothing picked out", median_interval(item["static"] / possible), note=weighted)
    for k, decisions in enumerate(groups):
        runs = [(value, sum(1 for _ in same)) for value, same in groupby(decisions)]
        what = ", ".join(f"{value:g}" + (f" ({times} times)" if times > 1 else "") for value, times in runs)
        found = median_interval(item["static"] / item[str(k)])
        yield Row("  all alike", found, note=f"{fewer[str(k)]}; {100 * shares[k]:.0f} % decide {what}")


def _flops_per_item(graph: Session, feeds: list[Feeds]) -> float:
    return executed_flops(graph.graph, feeds) / sum(len(f["x"]) for f in feeds)


def _groups(p: Prepared, graph: Session) -> dict[Decided, list[int]]:
    """Items of the stream by what is decided for them, asked points only."""
    found: dict[Decided, list[int]] = defaultdict(list)
    for start in range(0, p.items, BATCH):
        _, trace = graph.run(p.inputs[start : start + BATCH])
        for i, decisions in enumerate(_by_item(trace)):
            found[decisions].append(start + i)
    return dict(sorted(found.items()))


def _by_item(trace: Trace) -> list[Decided]:
    rows: list[Decided] = [()] * trace.items
    for _, entry in sorted(trace.entries.items()):
        values = entry.value.reshape(trace.items, -1).tolist()
        asked = entry.reached.reshape(trace.items, -1).tolist()
        for i, row in enumerate(rows):
            rows[i] = row + tuple(float(v) for v, there in zip(values[i], asked[i], strict=True) if there)
    return rows


def _filled(items: list[int]) -> Tensor:
    """A batch of these items, over and over."""
    return torch.tensor([items[i % len(items)] for i in range(BATCH)])
