"""SkipNet-110 under compaction and the cascade under cascading, against plain networks and the fastest static form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from bench import decisions
from bench.paired import Call, Row, best_ns, images, ratio, rounds, same_answer
from dynbench.dynamic import Execution, Trace
from dynbench.engines import ENGINES, apply_form, prepared
from dynbench.engines.forms import micro_batched
from dynbench.meters.required import PartCosts
from dynbench.models.idk import idk_cascade
from dynbench.models.resnet import resnet
from dynbench.models.skipnet import skipnet
from dynbench.strategies import STRATEGIES, Masking

FORMS = ("plain", "folded", "channels_last", "folded+channels_last")
MICRO_BATCHES = (None, 32, 16, 8, 4)
SEARCH_S = 1.5  # for each way that is tried


@dataclass(frozen=True)
class Way:
    """A form, an engine and a micro-batch size (None: the whole batch)."""

    form: str = "plain"
    engine: str = "eager"
    micro_batch: int | None = None

    def __str__(self) -> str:
        parts = [self.form, *([] if self.engine == "eager" else [self.engine])]
        return ", ".join(parts + ([] if self.micro_batch is None else [f"{self.micro_batch} at a time"]))


class Subject:
    """A network that can be brought into any form, and how it is called.

    Args:
        net: static, or with decision points.
        strategy: None: static.
        trace: what is replayed.
    """

    def __init__(self, net: nn.Module, strategy: str | None = None, trace: Trace | None = None) -> None:
        self.net, self.strategy, self.trace = net.eval(), strategy, trace

    def call(self, way: Way, example: Tensor) -> Call:
        """The network's call in a form; inputs are brought into the form's layout on every call."""
        visit_all = (lambda m, x: m(x)) if self.strategy is None else (lambda m, x: Execution(Masking()).run(m, x))
        net, inputs = apply_form(way.form, self.net, example, visit_all)
        net = prepared(net, ENGINES[way.engine], lambda m: visit_all(m, inputs(example)))
        run = self._run(net, inputs)
        return run if way.micro_batch is None else micro_batched(run, way.micro_batch)

    def _run(self, net: nn.Module, inputs: Callable[[Tensor], Tensor]) -> Call:
        if self.strategy is None:
            return lambda start, x: net(inputs(x))
        trace = self.trace
        assert trace is not None
        ex = Execution(STRATEGIES[self.strategy](), replay=trace)
        return lambda start, x: ex.run(net, inputs(x), start=start, items=trace.items)


def fastest(subject: Subject, stream: Tensor, batch: int, compile_too: bool) -> Way:
    """The fastest form: of all combinations in eager mode, and of the best three compiled."""

    def tried(ways: list[Way]) -> list[Way]:
        found = {way: best_ns(subject.call(way, stream[:2]), stream, batch, SEARCH_S) for way in ways}
        return sorted(found, key=found.__getitem__)

    sizes = [m for m in MICRO_BATCHES if m is None or m < batch]
    ways = tried([Way(form, "eager", size) for form, size in itertools.product(FORMS, sizes)])[:3]
    if compile_too and ENGINES["compile"].refuses("cpu") is None:
        ways = tried(ways + [Way(way.form, "compile", way.micro_batch) for way in ways])
    return ways[0]


def compaction_of_skipnet(batch: int, seconds: float, compile_too: bool) -> Iterator[Row]:
    """SkipNet-110 at keep-rate 0.5: speed-up as a share of the ideal (dense / required region FLOPs)."""
    stream, net = images(max(batch, 64)), skipnet(110)
    trace = decisions.coins(net, stream.shape[0], 0.5)
    static, dynamic = Subject(resnet(110)), Subject(net, "compaction", trace)
    what = f"SkipNet-110, batch {batch}"
    yield from _rows(what, static, dynamic, trace, stream, batch, 0.85, seconds, compile_too)


def cascading_of_idk(batch: int, seconds: float, compile_too: bool) -> Iterator[Row]:
    """ResNet-8/20/38, half leaving at each level, against ResNet-38 alone."""
    stream, net = images(batch), idk_cascade((8, 20, 38))
    trace = decisions.halving(net, batch)
    static, dynamic = Subject(resnet(38)), Subject(net, "cascading", trace)
    what = f"ResNet-8/20/38 cascade, batch {batch}"
    yield from _rows(what, static, dynamic, trace, stream, batch, 0.95, seconds, compile_too)


def _rows(
    what: str,
    static: Subject,
    dynamic: Subject,
    trace: Trace,
    stream: Tensor,
    batch: int,
    target: float,
    seconds: float,
    compile_too: bool,
) -> Iterator[Row]:
    dense = PartCosts(static.net, stream).flops[None] * trace.items
    ideal = dense / PartCosts(dynamic.net, stream).required(trace).region
    ways = {
        "static": fastest(static, stream, batch, compile_too),
        "dynamic": fastest(dynamic, stream, batch, compile_too),
    }
    example = stream[:2]
    arms = {
        "static": static.call(Way(), example),
        "dynamic": dynamic.call(Way(), example),
        "fastest static": static.call(ways["static"], example),
        "dynamic, same form": dynamic.call(ways["static"], example),
        "fastest dynamic": dynamic.call(ways["dynamic"], example),
    }
    for kind in ("static", "dynamic"):
        same_answer({name: call for name, call in arms.items() if kind in name}, stream, batch)
    ns = rounds(arms, stream, batch, seconds)

    def row(name: str, of: str, against: str, note: str, goal: float | None = None) -> Row:
        share = ratio(ns[against], ns[of], 1 / ideal)
        sense = None if goal is None else ">="
        note = f"{note}; {share.value * ideal:.2f}x of {ideal:.2f}x, {len(ns[of])} rounds"
        return Row(f"{what}: efficiency against {name}", share, sense, goal, note)

    fast, also = ways["static"], ways["dynamic"]
    yield row("the plain static net", "dynamic", "static", "both plain", target)
    yield row("the fastest static form", "dynamic", "fastest static", f"plain against {fast}")
    yield row("the same, in that form too", "dynamic, same form", "fastest static", f"both {fast}")
    yield row("the same, in its own fastest form", "fastest dynamic", "fastest static", f"{also} against {fast}")
