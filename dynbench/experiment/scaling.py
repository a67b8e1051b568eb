"""What the cost model is made of, for one workload: T(n) in place, what each arm calls and moves, and constants."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from dynbench import devices
from dynbench.analysis.pooling import Outside, Pooled, between_of, pooled
from dynbench.devices.base import Device
from dynbench.dynamic import Execution
from dynbench.dynamic.regions import Region
from dynbench.errors import UserError
from dynbench.experiment.arms import Call, running_arm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.plan import planned_cells
from dynbench.experiment.walks import first_line, regions_of
from dynbench.meters.graph_record import BETWEEN
from dynbench.meters.watch import Watched, roles
from dynbench.store.scaling import Between, Network, Scaling, Usage
from dynbench.store.schema import Arm, Cell, NotMeasured
from dynbench.store.walks import Walked
from dynbench.strategies import Dense, Masking

FEW = 16  # items of the stream that are watched where nothing is timed: at least so many


@torch.inference_mode()
def scaling_of(p: Prepared, walked: Sequence[Walked]) -> Scaling:
    """What T(n) of the groups is in common, what each arm does, and what the device takes.

    Args:
        p: the workload, with decision points.
        walked: in the rounds of its groups.

    Raises:
        UserError: the network was not walked in any group, or nothing can be seen of any arm.
    """
    device = devices.device(p.options.device)
    missing = list({(m.what, m.why): m for one in walked for m in one.missing}.values())
    if not walked:
        raise UserError("no group of it was measured, so no network was walked")
    common = pooled(walked)
    if not any(network.baseline is None for network in common.networks):
        raise UserError(missing[-1].why if missing else "no network was walked")
    seen, inside = _usages(p, device, missing)
    deciding = _roles(p)
    return Scaling(
        workload=p.spec.name,
        machine=str(device.describe()["name"]),
        device=p.options.device,
        threads=p.options.threads,
        dtype=p.dtype_name,
        constants=common.constants,
        networks=[_with_roles(p, network, deciding, inside) for network in common.networks],
        usages=seen,
        between=_between(p, common),
        paces=common.paces,
        missing=missing,
    )


def _roles(p: Prepared) -> dict[str, str]:
    def run(profile: Any) -> Any:
        return Execution(Masking(), profile=profile).run(p.model, p.inputs[:1])

    return roles(p.model, regions_of(p.model, p), run)


def _between(p: Prepared, common: Pooled) -> Between | None:
    """What a call of a region and a byte take outside regions, from walks over one item and over many.

    None: walks were over one size alone, or show nothing above 0.
    """
    written = next((n for n in common.networks if (n.baseline, n.engine, n.control) == (None, "eager", "host")), None)
    part = None if written is None else next((part for part in written.parts if part.name == BETWEEN), None)
    if part is None or len(part.sizes) == 1:
        return None
    few, many = (_outside(p, n) for n in (part.sizes[0], part.sizes[-1]))
    return between_of(part, few, many, common.constants)


def _outside(p: Prepared, n: int) -> Outside:
    """What a walk over n items does outside regions."""
    with Watched(p.model, regions_of(p.model, p)) as watched:
        Execution(Masking()).run(p.model, p.inputs[:n])
    return Outside(
        movings=watched.movings,
        operators=watched.operators,
        bytes=watched.moved_bytes + watched.operator_bytes,
        calls=sum(sizes.total() for sizes in watched.calls.values()),
    )


def _with_roles(p: Prepared, network: Network, deciding: dict[str, str], inside: dict[str, int]) -> Network:
    """With whose time the time of each part is, and how many operators it calls."""
    dynamic, written = network.baseline is None, network.engine == "eager" and network.control == "host"
    operators = (inside if dynamic else {"": _operators(p, network)}) if written else {}
    parts = [
        part.model_copy(
            update={
                "role": "decide" if dynamic and deciding.get(part.name) == "decide" else part.role,
                "operators": operators.get(part.name, 0),
            }
        )
        for part in network.parts
    ]
    return network.model_copy(update={"parts": parts})


def _operators(p: Prepared, network: Network) -> int:
    """How many operators a static network calls."""
    written = p.network(Arm(kind="baseline", baseline=network.baseline, engine=network.engine, form=network.form))
    with Watched(written, []) as watched:
        Execution(Dense()).run(written, p.inputs[:1])
    return watched.operators + watched.movings


def _usages(p: Prepared, device: Device, missing: list[NotMeasured]) -> tuple[list[Usage], dict[str, int]]:
    """What every arm as written does, at every batch size and with all decisions; and operators by region.

    Raises:
        UserError: nothing could be seen of any arm.
    """
    regions, found = regions_of(p.model, p), []
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
                least = p.items if timed and not fixed else FEW  # a control is compared with its strategy: same items
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
                    failed[arm.name] = first_line(e)
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
