"""The strategy layer against the same loop written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from bench import by_hand, decisions
from bench.paired import Call, Row, images, ratio, rounds, same_answer
from dynbench.dynamic import Execution, Trace
from dynbench.models.idk import idk_cascade
from dynbench.models.skipnet import skipnet
from dynbench.strategies import STRATEGIES

MOST = 1.03  # times the loop written by hand
ITEMS = 64


def layer(strategy: str, net: nn.Module, trace: Trace) -> Call:
    """The network under a strategy, on the device of the trace."""
    ex = Execution(STRATEGIES[strategy](), replay=trace)
    return lambda start, x: ex.run(net, x, start=start, items=trace.items)


def against_by_hand(seconds: float, device: str = "cpu") -> Iterator[Row]:
    """Rows for SkipNet-110 under compaction and a cascade under cascading, at batch 1 and 32."""
    skip, cascade = skipnet(110).eval(), idk_cascade((8, 20, 38)).eval()
    coins, halves = decisions.coins(skip, ITEMS, 0.5).to(device), decisions.halving(cascade, ITEMS).to(device)
    skip, cascade = skip.to(device), cascade.to(device)
    yield from _rows(
        "SkipNet-110",
        layer("compaction", skip, coins),
        by_hand.skipnet_compacted(skip, coins),
        by_hand.skipnet_with_if(skip, coins),
        seconds,
        device,
    )
    yield from _rows(
        "ResNet-8/20/38 cascade",
        layer("cascading", cascade, halves),
        by_hand.cascade_cascaded(cascade, halves),
        by_hand.cascade_with_if(cascade, halves),
        seconds,
        device,
    )


def _rows(
    what: str, layer: Call, hand: Call, plain_if: Callable[[int, Tensor], Tensor], seconds: float, device: str
) -> Iterator[Row]:
    stream = images(ITEMS).to(device)
    for batch in (1, 32):
        arms = {"layer": layer, "hand": hand} | ({"if": plain_if} if batch == 1 else {})
        same_answer(arms, stream, batch)
        ns = rounds(arms, stream, batch, seconds)
        name, note = f"{what}, batch {batch}: strategy layer", f"{len(ns['hand'])} rounds"
        yield Row(
            f"{what}, batch {batch}: strategy layer / loop by hand", ratio(ns["layer"], ns["hand"]), "<=", MOST, note
        )
        if "if" in ns:
            yield Row(f"{name} / plain if", ratio(ns["layer"], ns["if"]), note=note)
