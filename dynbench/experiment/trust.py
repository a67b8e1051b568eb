"""Has a network a right answer at all? The same for the same input, and for an item whatever else is in its batch.

Both are asked of the network alone, before any strategy is compared with another: a network that draws random numbers,
or that looks over the batch, answers differently under every strategy, and no tolerance makes that right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Execution, Strategy, Trace, current, points, widest_scope
from dynbench.dynamic.items import count, map_items, row, tensors
from dynbench.dynamic.sources import edge
from dynbench.experiment.oracle import Precision, answers, left_out, output_error, precision_of
from dynbench.strategies import Masking, PerSample

ITEMS = 8  # that are looked at together
FEW = 4  # of them, where each is computed alone
DRAWS = 8  # of rounding errors, to see which decisions they change

BatchNorm = nn.modules.batchnorm._BatchNorm
Dropout = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class Finding:
    """Why a network has no right answer.

    Attributes:
        name: what is wrong.
        text: which module or point does it, and how it shows.
    """

    name: Literal["not deterministic", "depends on the batch", "writes into its input", "answers no number"]
    text: str

    def __str__(self) -> str:
        """Both, as one sentence."""
        return f"{self.name}: {self.text}"


def inspect(model: nn.Module, x: Any, others: Any) -> Finding | None:
    """Looks for what leaves a network without a right answer; not to be called where gradients are recorded.

    Args:
        model: as it is measured.
        x: inputs [n, ...].
        others: different inputs [n, ...].

    Returns:
        The first thing found; None: the network answers the same twice, and each item as if it were alone. Of one whose
        points couple the batch by its own definition only the first is asked.
    """
    n = min(count(x), count(others), ITEMS)
    x, others = _rows(x, slice(n)), _rows(others, slice(n))
    left_out(model, x)  # while there are several items to tell it by
    return next(_found(model, x, others), None)


def _found(model: nn.Module, x: Any, others: Any) -> Iterator[Finding]:
    """All findings, one after the other."""
    before = map_items(torch.clone, x)
    answer = run(model, x, Masking()).answer
    yield from _writes(x, before)
    yield from _no_number(model, x, answer)
    precision = precision_of(model, x)
    few = _rows(x, slice(FEW))
    for replay in (None, *_edges(model, few)):
        yield from _not_deterministic(model, few, Masking(), precision, replay)
    item_by_item = widest_scope(model) != "batch"
    if item_by_item:
        for replay in (None, *_edges(model, x)):
            yield from _looks_over(model, x, others, precision, replay)
    # one by one at last: a network that looks over the batch may not even run on a single item
    yield from _not_deterministic(model, few, PerSample(), precision)
    if item_by_item:
        yield from _depends_on_its_size(model, x, precision)


@dataclass
class Pass:
    """One pass over a batch.

    Attributes:
        answer: its tensors.
        trace: what was decided.
        scores: what the points were given to decide by, addressed as decisions are.
    """

    answer: list[Tensor]
    trace: Trace
    scores: Trace


def run(
    model: nn.Module,
    x: Any,
    strategy: Strategy,
    *,
    replay: Trace | None = None,
    start: int = 0,
    items: int | None = None,
    decided: Callable[[DecisionPoint, Tensor], None] | None = None,
) -> Pass:
    """Runs a model on x [n, ...], items `start` and following of a stream of `items` (default: x is the stream).

    `decided` is called with every point that decides, and its scores.
    """
    items = start + count(x) if items is None else items
    scores = Trace(items=items)

    def observe(point: DecisionPoint, given: Tensor, _: Tensor) -> None:
        ex = current()
        assert ex is not None
        scores.record(point.name, ex.frame.extent, ex.frame.ids, ex.frame.live, given)
        if decided is not None:
            decided(point, given)

    ex = Execution(strategy, replay=replay, record=True, observe=observe)
    without = left_out(model, x)
    answer = answers(lambda at, batch: ex.run(model, batch, start=at, items=items), [(start, x)], without)
    assert ex.trace is not None
    return Pass(answer, ex.trace, scores)


# --- the findings ----------------------------------------------------------------------------------------------------


def _writes(x: Any, before: Any) -> Iterator[Finding]:
    """A pass changed its inputs, which are then put back."""
    if output_error(list(tensors(x)), list(tensors(before))) == 0:
        return
    for now, then in zip(tensors(x), tensors(before), strict=True):
        now.copy_(then)
    yield Finding("writes into its input", "the next pass over the same batch is given something else")


def _no_number(model: nn.Module, x: Any, answer: list[Tensor]) -> Iterator[Finding]:
    """Nothing but NaN and infinities: every answer would equal every other one."""
    answer = [t.dequantize() if t.is_quantized else t for t in answer]
    real = [t for t in answer if t.numel() and (t.is_floating_point() or t.is_complex())]
    if len(real) != len([t for t in answer if t.numel()]) or not real or any(bool(t.isfinite().any()) for t in real):
        return
    events = _watched(model, x, Masking())
    bad = (e for e in events if not _finite(e.made) and _finite(e.given))
    text = f"{_blame(model, next(bad, None), 'makes NaN or inf of numbers')}; no item has any other answer"
    yield Finding("answers no number", text)


def _finite(found: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in found if t.is_floating_point() or t.is_complex())


def _not_deterministic(
    model: nn.Module, x: Any, strategy: Strategy, precision: Precision, replay: Trace | None = None
) -> Iterator[Finding]:
    """Two passes over the same items."""
    before = _random_state()
    first = run(model, x, strategy, replay=replay)
    draws = before != _random_state()
    second = run(model, x, strategy, replay=replay)
    error = output_error(second.answer, first.answer)
    decided = differing(first.trace, second.trace, precision.floor)
    if error <= precision.floor and not decided:
        return
    watched = _watched(model, x, strategy, replay), _watched(model, x, strategy, replay)
    culprit = _first_difference(*watched, None, precision.floor)
    how = "draws random numbers" if draws else "gives something else each time"
    shows = f"the same items were {_shown(error, decided)} in a second pass"
    yield Finding("not deterministic", f"{_blame(model, culprit, how)}; {shows}")


def _edges(model: nn.Module, x: Any) -> list[Trace]:
    """The decisions that switch everything on, and off; none where they cannot be made up, or there is no point."""
    named = points(model)
    if not named or not all(point.can_be_made_up for point in named.values()):
        return []
    everywhere = run(model, x, Masking()).trace
    return [edge(everywhere, model, kind) for kind in ("all", "none")]


def _looks_over(model: nn.Module, x: Any, others: Any, precision: Precision, replay: Trace | None) -> Iterator[Finding]:
    """The same items in the same places of a batch, beside others: not even rounding differs."""
    quantised = precision.name == "int8"  # 8 bits are shared out over all numbers of a tensor, so over the batch
    slack = precision.ceiling if quantised else precision.floor
    whole = run(model, x, Masking(), replay=replay)
    for keep in (torch.arange(count(x)) % 2 == 0, torch.arange(count(x)) % 2 == 1):
        mixed = _mixed(keep, x, others)
        beside = run(model, mixed, Masking(), replay=replay)
        error = _rows_error(whole.answer, beside.answer, keep)
        decided = {} if quantised else differing(whole.trace, beside.trace, slack, keep)
        scored = {} if quantised else differing(whole.scores, beside.scores, slack, keep)
        if error > slack or decided or scored:
            watched = _watched(model, x, Masking(), replay), _watched(model, mixed, Masking(), replay)
            culprit = _first_difference(*watched, keep, slack)
            shows = f"an item is {_shown(error, decided, scored)} beside other items"
            yield Finding("depends on the batch", f"{_blame(model, culprit, 'looks over the batch')}; {shows}")


def _depends_on_its_size(model: nn.Module, x: Any, precision: Precision) -> Iterator[Finding]:
    """Items together, then each alone."""
    n = count(x)
    whole = run(model, x, Masking())
    ex = Execution(Masking(), replay=whole.trace)
    items = [(i, row(x, i)) for i in range(n)]
    alone = answers(lambda i, one: ex.run(model, one, start=i, items=n), items, left_out(model, x))
    error = _rows_error(whole.answer, alone, torch.ones(n, dtype=torch.bool))
    if error <= precision.ceiling:
        return
    shows = f"an item is {_shown(error)} where it is alone"
    yield Finding("depends on the batch", f"{type(model).__name__} looks at its size; {shows}")


def _shown(error: float, decided: Iterable[str] = (), scored: Iterable[str] = ()) -> str:
    """How a difference shows: 'decided otherwise at ..', 'given other scores at ..', 'answered otherwise (by ..)'."""
    for names, what in ((list(decided), "decided otherwise"), (list(scored), "given other scores")):
        if names:
            return f"{what} at {', '.join(map(repr, names))}"
    return f"answered otherwise (by {error:.1e} of the largest value)" if error < math.inf else "answered otherwise"


# --- comparing passes ------------------------------------------------------------------------------------------------


def differing(a: Trace, b: Trace, slack: float = 0.0, keep: Tensor | None = None) -> dict[str, int]:
    """At which points how many decisions differ, in the order in which the points were reached.

    Args:
        a: decisions.
        b: others, of a stream as long.
        slack: up to which share of the largest real numbers that were decided may differ.
        keep: [items] bool; which items count. Default: all.
    """
    found: dict[str, int] = {}
    mine, theirs = a.reached_only(), b.reached_only()
    for key in dict.fromkeys([*a.entries, *b.entries]):
        if key not in mine and key not in theirs:
            continue
        differ = _entries_differ(mine.get(key), theirs.get(key), slack)
        per_item = differ.view(a.items, -1)[keep if keep is not None else slice(None)]
        if number := int(per_item.sum()):
            found[key[0]] = found.get(key[0], 0) + number
    return found


def _entries_differ(a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None, slack: float) -> Tensor:
    """[rows] bool."""
    if a is None or b is None:
        one = a or b
        assert one is not None
        return one[1]
    differ = (a[1] != b[1]) | ~equal_rows(a[0], b[0], slack)
    return differ & (a[1] | b[1])


def equal_rows(a: Tensor, b: Tensor, slack: float) -> Tensor:
    """Which rows [n] of two tensors [n, ...] are equal; real numbers up to a share of the largest, NaN to NaN."""
    if a.shape != b.shape:
        return torch.zeros(a.shape[0], dtype=torch.bool)
    same = a == b
    if a.is_floating_point() or a.is_complex():
        same |= a.isnan() & b.isnan()
        largest = torch.where(b.isfinite(), b, torch.zeros_like(b)).abs().max() if b.numel() else b.new_zeros(())
        same |= (a - b).abs() <= slack * largest
    return same.reshape(a.shape[0], -1).all(1)


def _rows_error(a: list[Tensor], b: list[Tensor], keep: Tensor) -> float:
    if len(a) != len(b):
        return math.inf
    pairs = [(s, t) for s, t in zip(a, b, strict=True) if s.shape[0] == t.shape[0] == len(keep)]
    keep = keep.to(pairs[0][0].device) if pairs else keep
    return output_error([t[keep] for _, t in pairs], [s[keep] for s, _ in pairs])


# --- where it begins -------------------------------------------------------------------------------------------------


@dataclass
class Event:
    """A module that was done, or a point that decided.

    Attributes:
        name: path of the module in the model; name of the point.
        is_point: which of the two.
        given: the tensors that the module took, or the point.
        made: the tensors that the module answered with; the scores of the point.
    """

    name: str
    is_point: bool
    given: list[Tensor]
    made: list[Tensor]


def _watched(model: nn.Module, x: Any, strategy: Strategy, replay: Trace | None = None) -> list[Event]:
    """What every module took and gave in a pass, innermost first, with the decisions in between."""
    events: list[Event] = []
    calls: list[tuple[nn.Module, list[Tensor]]] = []  # that are not done yet
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append((module, [t.clone() for t in tensors((args, kwargs))]))

    def after(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        events.append(Event(names[module], False, calls.pop()[1], [t.clone() for t in tensors(made)]))

    def decided(point: DecisionPoint, scores: Tensor) -> None:
        given = [taken for module, taken in calls if module is point] or [taken for _, taken in calls[-1:]]
        events.append(Event(point.name, True, given[-1] if given else [], [scores.clone()]))

    handles = []
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):  # the calls inside one are not Python's
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        run(model, x, strategy, replay=replay, decided=decided)
    finally:
        for handle in handles:
            handle.remove()
    return events


def _first_difference(first: list[Event], second: list[Event], keep: Tensor | None, slack: float) -> Event | None:
    """The first that was given the same in two passes and made something else of it; None: it cannot be told.

    `keep` [n] bool: only the rows of these items count.
    """
    for one, other in zip(first, second, strict=False):
        if (one.name, one.is_point) != (other.name, other.is_point):
            return None
        if not _alike(one.made, other.made, keep, slack) and _alike(one.given, other.given, keep, slack):
            return one
    return None


def _alike(a: list[Tensor], b: list[Tensor], keep: Tensor | None, slack: float) -> bool:
    return len(a) == len(b) and output_error([_kept(t, keep) for t in b], [_kept(t, keep) for t in a]) <= slack


def _kept(t: Tensor, keep: Tensor | None) -> Tensor:
    """The rows of these items, which may be several for each; none where the rows are something else than items."""
    if keep is None:
        return t
    n = len(keep)
    return t.reshape(n, -1)[keep.to(t.device)] if t.dim() and t.numel() and t.shape[0] % n == 0 else t.new_empty(0)


def _blame(model: nn.Module, culprit: Event | None, how: str) -> str:
    if culprit is None or culprit.name == "":
        return f"{type(model).__name__} {how}"
    if culprit.is_point:
        return f"what {type(points(model)[culprit.name]).__name__} {culprit.name!r} decides by {how}"
    module = model.get_submodule(culprit.name)
    around = _point_around(model, culprit.name)
    who = f"{type(module).__name__} {culprit.name!r}" + (f" of {around}" if around else "")
    if isinstance(module, (BatchNorm, Dropout)) and module.training:
        return f"{who} is in training mode"
    if isinstance(module, BatchNorm) and module.running_mean is None:
        return f"{who} has no running statistics, so it normalises over the batch"
    return f"{who} {how}"


def _point_around(model: nn.Module, path: str) -> str | None:
    """The innermost decision point around a module: "Skip 'block0'"."""
    parts = path.split(".")
    for end in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        if isinstance(module, DecisionPoint):
            return f"{type(module).__name__} {module.name!r}"
    return None


# --- rounding at a threshold -----------------------------------------------------------------------------------------


def beyond_rounding(model: nn.Module, x: Any, mine: Pass, right: Pass, precision: Precision) -> list[str]:
    """The points at which a pass would decide otherwise, by more than rounding.

    Both passes were forced to the same decisions, so that every point was given the same. Where it decides by real
    numbers (scores), these may differ as far as rounding explains; where its decision is all that is seen, such as that
    of an exit policy, it has to change under errors of that size.

    Args:
        model: of both.
        x: the inputs of both, [n, ...].
        mine: the pass of a strategy.
        right: that of `per_sample`.
        precision: of the model.
    """
    found: dict[str, None] = {}
    unsteady: dict[Any, Tensor] | None = None
    for key, (value, reached) in right.scores.reached_only().items():
        other = mine.scores.entries.get(key)
        if other is None:
            continue
        real = value.is_floating_point()
        both = reached & other.reached.cpu()
        differ = both & ~equal_rows(other.value.cpu(), value, precision.ceiling if real else 0.0)
        if not bool(differ.any()):
            continue
        if not real:
            unsteady = _unsteady(model, x, right, precision) if unsteady is None else unsteady
            differ &= ~unsteady[key]
        if bool(differ.any()):
            found[key[0]] = None
    return list(found)


def _unsteady(model: nn.Module, x: Any, right: Pass, precision: Precision) -> dict[Any, Tensor]:
    """Which decisions [rows] by anything but real numbers change where everything is slightly wrong."""
    known = {k: value for k, (value, _) in right.scores.reached_only().items() if not value.is_floating_point()}
    found = {key: torch.zeros(len(value), dtype=torch.bool) for key, value in known.items()}
    draw = torch.Generator().manual_seed(0)

    def shaken(t: Tensor) -> Tensor:
        noise = torch.rand(t.shape, generator=draw, dtype=torch.float64).mul_(2).sub_(1).mul_(precision.floor).add_(1)
        return (t * noise.to(t.device)).to(t.dtype) if t.is_floating_point() else t

    def after(module: nn.Module, args: Any, made: Any) -> Any:
        try:
            return map_items(shaken, made)
        except TypeError:  # no state, such as a packed sequence
            return made

    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    handles = [m.register_forward_hook(after) for m in leaves if not isinstance(m, torch.jit.ScriptModule)]
    try:
        for _ in range(DRAWS):
            scores = run(model, map_items(shaken, x), PerSample(), replay=right.trace).scores
            for key, value in known.items():
                found[key] |= ~equal_rows(scores.entries[key].value.cpu(), value, 0.0)
    finally:
        for handle in handles:
            handle.remove()
    return found


# --- tensors ---------------------------------------------------------------------------------------------------------


def _rows(x: Any, rows: slice) -> Any:
    return map_items(lambda t: t[rows], x)


def _mixed(keep: Tensor, x: Any, others: Any) -> Any:
    """The items of x [n, ...] where `keep` [n], else the others."""
    return map_items(lambda a, b: torch.where(keep.to(a.device).view(-1, *[1] * (a.dim() - 1)), a, b), x, others)


def _random_state() -> tuple[Any, ...]:
    """Of all generators that a model may draw from without one of its own."""
    of_numpy = np.random.get_state(legacy=False)  # the global one is what is looked at
    on_gpu = torch.cuda.get_rng_state().numpy().tobytes() if torch.cuda.is_initialized() else b""
    return torch.get_rng_state().numpy().tobytes(), on_gpu, str(of_numpy), random.getstate()
