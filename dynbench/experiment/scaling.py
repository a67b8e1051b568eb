"""What the cost model is made of, for one workload: T(n) in place, what each arm calls and moves, and constants."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from dynbench import devices
from dynbench.devices.base import Device
from dynbench.dynamic import Execution
from dynbench.dynamic.regions import Region, find_regions
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.arms import Call, running_arm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.plan import planned_cells
from dynbench.meters.calibration import measure, overheads
from dynbench.meters.scaling import Walker, sizes_up_to, walk_all
from dynbench.meters.watch import Watched, roles
from dynbench.store.scaling import Constants, Network, Part, Scaling, Usage
from dynbench.store.schema import Arm, Cell, NotMeasured
from dynbench.strategies import Dense, Masking

Way = tuple[str | None, str, str]  # baseline, engine, form
FEW = 16  # items of the stream that are watched where nothing is timed: at least so many
SOME = 32  # and of controls


@torch.inference_mode()
def scaling_of(p: Prepared, ways: Sequence[Way]) -> Scaling:
    """Measures and counts everything of one workload.

    Args:
        p: the workload, with decision points.
        ways: the networks whose T(n) is measured; what cannot be is left out, with the reason.

    Raises:
        UserError: the network cannot be walked at all, or nothing can be seen of any arm.
    """
    device = devices.device(p.options.device)
    missing: list[NotMeasured] = []
    seen, inside = _usages(p, device, missing)
    walkers: dict[Way, Walker] = {}
    for way in ways:
        try:
            walkers[way] = _walker(p, way)
            walkers[way].once(1, device, keep=False)
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            walkers.pop(way, None)
            missing.append(NotMeasured(what=f"T(n) of {_in_words(way)}", why=_first_line(e)))
    if not any(baseline is None for baseline, _, _ in walkers):
        raise UserError(missing[-1].why if missing else "no network to walk")
    walk_all(list(walkers.values()), sizes_up_to(max(p.batch_sizes)), device)
    deciding = _roles(p)
    networks = [
        Network(
            baseline=way[0],
            engine=way[1],
            form=way[2],
            parts=_parts(walker, way, deciding, inside if way[0] is None else {"": _operators(p, way)}),
        )
        for way, walker in walkers.items()
    ]
    return Scaling(
        workload=p.spec.name,
        machine=str(device.describe()["name"]),
        device=p.options.device,
        threads=p.options.threads,
        dtype=p.dtype_name,
        constants=constants(p.device, device),
        networks=networks,
        usages=seen,
        missing=missing,
    )


def constants(where: torch.device, device: Device) -> Constants:
    """What this device takes for calls, points, waits and moved rows, in this process."""
    return Constants.of({rate.name: rate.value for rate in measure(overheads(where), device)})


def _walker(p: Prepared, way: Way) -> Walker:
    """Walks a network prepared by its engine: the dynamic one under masking, which calls every region with all items.

    Raises:
        CannotPrepare: its engine cannot prepare it.
        UserError: it cannot be brought into its form.
    """
    baseline, engine, form = way
    kind: Literal["strategy", "baseline"] = "strategy" if baseline is None else "baseline"
    network = p.network(Arm(kind=kind, baseline=baseline, engine=engine, form=form))
    whole = baseline is not None
    execution = Execution(Dense() if whole else Masking())

    def walk(n: int) -> Any:
        return execution.run(network, p.inputs[:n])

    return Walker([] if whole else _regions(network, p), walk, whole=whole)


def _regions(network: nn.Module, p: Prepared) -> list[Region]:
    return find_regions(network, lambda net: Execution(Masking()).run(net, p.inputs[:1]))


def _roles(p: Prepared) -> dict[str, str]:
    def run(profile: Any) -> Any:
        return Execution(Masking(), profile=profile).run(p.model, p.inputs[:1])

    return roles(p.model, _regions(p.model, p), run)


def _operators(p: Prepared, way: Way) -> int:
    """How many operators a static network calls."""
    network = p.network(Arm(kind="baseline", baseline=way[0], engine=way[1], form=way[2]))
    with Watched(network, []) as watched:
        Execution(Dense()).run(network, p.inputs[:1])
    return watched.operators + watched.movings


def _parts(walker: Walker, way: Way, deciding: dict[str, str], inside: dict[str, int]) -> list[Part]:
    return [
        Part(
            name=name,
            role="decide" if way[0] is None and deciding.get(name) == "decide" else "body",
            operators=inside.get(name, 0) if way[1] == "eager" else 0,
            sizes=times.sizes,
            us=times.us,
            low_us=times.low_us,
            high_us=times.high_us,
        )
        for name, times in sorted(walker.times().items())
    ]


def _usages(p: Prepared, device: Device, missing: list[NotMeasured]) -> tuple[list[Usage], dict[str, int]]:
    """What every arm as written does, at every batch size and with all decisions; and operators by region.

    Raises:
        UserError: nothing could be seen of any arm.
    """
    regions, found = _regions(p.model, p), []
    known: dict[tuple[object, ...], Watched] = {}
    operators: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    failed: dict[str, str] = {}
    for source in p.sources:
        for batch_size in p.batch_sizes:
            for cell in planned_cells(p, source, batch_size):
                arm = cell.arm
                told = arm.kind in ("strategy", "control") and not arm.live and arm.engine == p.options.engines[0]
                if not told or cell.status != "planned" or arm.name in failed:
                    continue
                arm = arm.model_copy(update={"engine": "eager", "form": "plain"})
                kind = p.parts.strategies[str(arm.strategy)]
                fixed = (kind.fixed_work or kind.static_twin) and arm.without is None
                timed = not source.sweep or batch_size == max(p.batch_sizes)
                least = SOME if arm.without is not None else p.items if timed and not fixed else FEW
                items = min(max(least, batch_size), p.items)
                items -= items % batch_size
                key = (arm, batch_size, items, None if fixed else source.decisions.label)
                try:
                    if key not in known:
                        known[key] = _watch(p, source, cell.model_copy(update={"arm": arm}), device, regions, items)
                        operators.update(known[key].inside)
                        for name, sizes in known[key].calls.items():
                            calls[name] += sizes.total()
                except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
                    failed[arm.name] = _first_line(e)
                    continue
                found.append(_usage(p, source, batch_size, arm, known[key], items))
    missing += [NotMeasured(what=f"what {name} calls and moves", why=why) for name, why in failed.items()]
    if not found:
        raise UserError(next(iter(failed.values()), "there is no arm with decision points"))
    return found, {name: round(operators[name] / n) for name, n in calls.items() if n}


def _watch(p: Prepared, source: Source, cell: Cell, device: Device, regions: list[Region], items: int) -> Watched:
    """One pass over the first items of the stream; what a control learns in its first pass is known before."""
    running = running_arm(p, source, cell, device)
    assert isinstance(running.call, Call)
    batches = running.batches[: items // cell.batch_size]
    if cell.arm.without is not None:
        for start, x in batches:
            running.call(start, x)
    with Watched(p.model, regions) as watched:
        for start, x in batches:
            running.call(start, x)
    return watched


def _usage(p: Prepared, source: Source, batch_size: int, arm: Arm, watched: Watched, items: int) -> Usage:
    calls: dict[str, dict[int, int]] = defaultdict(dict)
    for name, sizes in watched.calls.items():
        calls[name] = dict(sorted(sizes.items()))
    return Usage(
        arm=arm,
        label=source.decisions.label,
        keep_rate=p.decisions(source, batch_size).keep_rate,
        made_up=source.decisions.source in ("synthetic", "published"),
        batch_size=batch_size,
        items=items,
        calls=calls,
        movings=watched.movings,
        moved_bytes=watched.moved_bytes,
        operators=watched.operators,
        operator_bytes=watched.operator_bytes,
        waits=watched.waits,
        points=watched.points,
    )


def _in_words(way: Way) -> str:
    baseline, engine, form = way
    return f"{baseline or 'the dynamic network'} in {engine}" + ("" if form == "plain" else f", {form}")


def _first_line(e: Exception) -> str:
    text = str(e) if isinstance(e, DynbenchError) else f"{type(e).__name__}: {e}"
    return text.splitlines()[0]
