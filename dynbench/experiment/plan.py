"""From a prepared workload to groups of cells; cells that make no sense are kept with their reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dynbench import hooks
from dynbench.dynamic import actions, points
from dynbench.errors import UserError
from dynbench.experiment.build import Prepared, Source, sha256
from dynbench.experiment.tokens import study_tokens
from dynbench.experiment.weights import weight_files
from dynbench.reading import read_json
from dynbench.store.quantity import describe as describe_quantity
from dynbench.store.run import trace_path
from dynbench.store.schema import OWN_MODEL, Arm, Cell, DeclaredCost, WorkloadInfo
from dynbench.strategies import PREFERRED
from dynbench.strategies.controls import LEFT, Part, refuses_control

SWEEP_TIME_SHARE = 0.4  # a sweep group gets this share of a group's time limit


def group_id(p: Prepared, label: str, batch_size: int) -> str:
    """The group's address within a run."""
    o = p.options
    return f"{p.spec.name}/{label}/{o.device}/b{batch_size}/{p.dtype_name}/t{o.threads}"


def refusal(p: Prepared, strategy: str) -> str | None:
    """Why a strategy means nothing for this workload."""
    return p.strategy(strategy).refuses(p.model)


def _repeats(p: Prepared, strategy: str, batch_size: int) -> str | None:
    """Why measuring a strategy at this batch size would tell nothing new."""
    smallest = min(p.batch_sizes)
    if not p.parts.strategies[strategy].item_by_item or p.batch_scope or batch_size == smallest:
        return None
    return f"item by item the batch makes no difference to its time per item; measured at batch {smallest}"


def planned_cells(p: Prepared, source: Source, batch_size: int) -> list[Cell]:
    """A group's cells before anything is measured: status 'planned', or 'refused' with the reason.

    Raises:
        UserError: two arms would have the same name.
    """
    arms = [arm for engine in p.parts.engines for arm in _arms(p, source, engine)]
    arms += _controls(p, source, batch_size, arms)
    # as they are, whatever engine was asked for; nothing about them changes in a sweep
    names = () if source.sweep else p.opaque
    arms += [Arm(kind="opaque", baseline=name, load=p.parts.load.name) for name in names]
    keys = [key for arm in arms for key in (arm.key, arm.model_copy(update={"again": True}).key)]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"{p.spec.file}: two arms are both named {twice!r}; rename a baseline or a strategy")
    return [planned_cell(p, source, batch_size, arm) for arm in arms]


def _arms(p: Prepared, source: Source, engine: str) -> Iterator[Arm]:
    """Strategies, baselines, and for learned decisions one strategy that makes them itself."""
    way: dict[str, Any] = {"engine": engine, "load": p.parts.load.name}
    played = p.spec.model_kind == "points" and not p.options.automatic
    for name in p.parts.strategies if played else ():
        yield Arm(kind="strategy", strategy=name, **way)
    forms = {b.name: b.form for b in p.spec.baselines}
    for name in p.baselines:
        yield Arm(kind="baseline", baseline=name, form=forms.get(name, "plain"), **way)
    if source.decisions.source == "learned" and played and (control := control_strategy(p)):
        yield Arm(kind="control", strategy=control, live=True, **way)


def _controls(p: Prepared, source: Source, batch_size: int, arms: Iterable[Arm]) -> list[Arm]:
    """The controls of the strategies as written: of the preferred one, or of all."""
    if not controls_asked(p, source, batch_size):
        return []
    played = [a for a in arms if a.kind == "strategy" and _may_skip(p, a.strategy)]
    if p.options.controls == "all":
        return [control for arm in played for control in controls_of(p, arm)]
    preferred = next((kind.name for kind in PREFERRED if any(a.strategy == kind.name for a in played)), None)
    return [control for arm in played if arm.strategy == preferred for control in controls_of(p, arm)]


def _may_skip(p: Prepared, strategy: str | None) -> bool:
    """Whether there is something to explain: it computes batches, decides, and is not refused."""
    kind = p.parts.strategies[strategy or ""]
    return not (kind.static_twin or kind.item_by_item) and refusal(p, kind.name) is None


def controls_asked(p: Prepared, source: Source, batch_size: int) -> bool:
    """Whether a group has controls: outside the sweep, at the largest batch size or at all.

    Where nothing but the fastest way is to be measured, only if they were asked for.
    """
    asked = p.options.controls
    if asked == "none" or source.sweep:
        return False
    return asked == "all" or (batch_size == max(p.batch_sizes) and not p.options.automatic)


def controls_of(p: Prepared, arm: Arm) -> list[Arm]:
    """The controls of an arm; where all mean nothing, one of them, which is then refused.

    In a graph only gates can be left out: what is put back is copied there whatever the rows, and the host waits for
    nothing.
    """
    assert arm.strategy is not None
    parts: list[Part] = ["deciding"] if arm.control == "graph" else list(LEFT)
    if p.options.controls != "all":
        parts = [part for part in parts if part != "moving"]
    made = {part: arm.model_copy(update={"kind": "control", "live": False, "without": part}) for part in parts}
    meant = [control for part, control in made.items() if refuses_control(arm.strategy, part, p.model) is None]
    return meant or [made[parts[0]]]


def planned_cell(p: Prepared, source: Source, batch_size: int, arm: Arm) -> Cell:
    """The cell of an arm before it is measured: status 'planned', or 'refused' with the reason."""
    gid = group_id(p, source.decisions.label, batch_size)
    why, kind = None, None
    if arm.strategy is not None:
        kind = p.parts.strategies[arm.strategy]
        why = refusal(p, arm.strategy) or _repeats(p, arm.strategy, batch_size)
        if arm.without is not None:
            why = why or refuses_control(arm.strategy, arm.without, p.model)
    if arm.kind == "opaque" and source.decisions.source != "learned":
        why = "an opaque network decides for itself, so it is measured beside learned decisions only"
    return Cell(
        cell_id=f"{gid}/{arm.key}",
        group_id=gid,
        workload=p.spec.name,
        decisions=source.decisions,
        arm=arm,
        primary=arm.kind == "baseline" and arm.baseline == p.spec.primary.name,
        static_twin=_is_twin(p, arm) if kind is None else kind.static_twin,
        item_by_item=kind is not None and kind.item_by_item,
        device=p.options.device,
        batch_size=batch_size,
        dtype=p.dtype_name,
        threads=p.options.threads,
        stream_items=p.items,
        status="refused" if why else "planned",
        reason=why,
    )


def _is_twin(p: Prepared, arm: Arm) -> bool:
    """Whether a network is the static twin of the model: what a workload that names no baseline is compared with."""
    return arm.kind == "baseline" and not p.spec.baselines


def control_strategy(p: Prepared) -> str | None:
    """The strategy that also runs with its own decisions instead of their replay: the two should take the same time.

    The first that skips work and computes batches.
    """
    skipping = (n for n, kind in p.parts.strategies.items() if not (kind.fixed_work or kind.item_by_item))
    return next((name for name in skipping if refusal(p, name) is None), None)


def planned_groups(p: Prepared) -> Iterator[tuple[Source, int, list[Cell]]]:
    """The groups of a workload: every source at every batch size, the keep-rate sweep at the largest only."""
    for source in p.sources:
        for b in [max(p.batch_sizes)] if source.sweep else p.batch_sizes:
            yield source, b, planned_cells(p, source, b)


def groups(p: Prepared) -> list[dict[str, Any]]:
    """The groups of a workload, as the measuring process tells them."""
    return [
        {
            "group_id": group_id(p, source.decisions.label, b),
            "workload": p.spec.name,
            "label": source.decisions.label,
            "batch_size": b,
            "cells": [c.model_dump(mode="json") for c in cells],
            "estimate_s": (SWEEP_TIME_SHARE if source.sweep else 1.0) * p.options.time_limit_s,
        }
        for source, b, cells in planned_groups(p)
    ]


def describe(p: Prepared, run: Path | None) -> WorkloadInfo:
    """What a report says of the workload; also stores its traces where a run directory is given."""
    hashes = {}
    largest = max(p.batch_sizes)
    for source in p.sources:
        trace = p.trace(source, largest)
        hashes[source.decisions.label] = trace.hash()
        if run is not None:
            trace.save(trace_path(run, p.spec.name, source.decisions.label))
    own = hooks.of(p.model)
    files = [p.spec.weights, *p.spec.weights_by_part.values()]
    weights = [part for f in files if f is not None for part in weight_files(p.spec.folder / f)]
    if own.weights_file is not None:
        weights.append(own.weights_file)
    return WorkloadInfo(
        name=p.spec.name,
        title=p.spec.title,
        paper=own.paper,
        model=p.spec.model,
        model_args=p.spec.model_args,
        provenance=own.provenance or OWN_MODEL,
        opaque=list(p.opaque),
        notes=p.notes,
        points=dict(Counter(type(point).__name__ for point in points(p.model).values())),
        actions=actions(p.model),
        inputs=p.dataset.description,
        stream_hash=p.stream_hash,
        stream_items=p.items,
        weights=", ".join(w.name for w in weights) or None,
        weights_sha256=", ".join(sha256(w) for w in weights) or None,
        card=_card(weights),
        claims=p.spec.claims,
        declared=_declared(p, own),
        trace_hashes=hashes,
        quantities=[describe_quantity(q) for q in p.parts.quantities],
        varied=p.spec.varied,
        role=p.spec.role,
        tokens=study_tokens(p),
    )


def _declared(p: Prepared, own: hooks.ModelHooks) -> list[DeclaredCost]:
    """What the model's file declares of others that are asked."""
    size = max(p.batch_sizes)
    asked = [(s.decisions.label, own.declared_costs(p.trace(s, size))) for s in p.sources if not s.sweep]
    return [DeclaredCost(decisions=label, **row) for label, rows in asked for row in rows]


def _card(weights: list[Path]) -> dict[str, object]:
    cards = {w.stem: w.with_suffix(".json") for w in weights}
    read = {name: _table(c) for name, c in cards.items() if c.is_file()}
    return next(iter(read.values())) if len(read) == 1 else dict(read)


def _table(card: Path) -> dict[str, object]:
    found = read_json(card)
    if not isinstance(found, dict):
        raise UserError(f"model card {card}: a table is expected, found {type(found).__name__}")
    return found
