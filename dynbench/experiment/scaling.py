"""What the cost model is made of, for one workload: T(n) in place, what each arm calls and moves, and constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dynbench import devices
from dynbench.analysis.cost_model import outside_us, products_us
from dynbench.analysis.pooling import Outside, Pooled, between_of, pooled
from dynbench.devices.base import Device
from dynbench.dynamic import Execution
from dynbench.dynamic.regions import Region
from dynbench.errors import UserError
from dynbench.experiment.arms import Call, running_arm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.plan import planned_cells
from dynbench.experiment.sizes import Sizes, merged, summed
from dynbench.experiment.walks import decided_call, first_line, nested_regions, regions_of
from dynbench.meters.graph_record import BETWEEN
from dynbench.meters.scaling import sizes_up_to
from dynbench.meters.watch import Watched, roles
from dynbench.store.scaling import Between, Counted, Network, Part, Rate, Scaling, Usage
from dynbench.store.schema import Arm, Cell, NotMeasured
from dynbench.store.walks import Walked
from dynbench.strategies import Dense, Masking

FEW = 16  # items of the stream that are watched where nothing is timed: at least so many


@dataclass(frozen=True)
class Seen:
    """An arm, and what it was seen to do.

    Attributes:
        arm: of engine 'eager'.
        source: of the decisions that it replayed.
        batch_size: in items.
        items: of the stream that were watched.
        watched: in one pass over them.
        decided: it calls regions with what was decided, no more.
    """

    arm: Arm
    source: Source
    batch_size: int
    items: int
    watched: Watched
    decided: bool


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
    walks = WatchedWalks.of(p, common)
    seen = _seen(p, device, missing)
    sizes = Sizes([*walks.whole.values(), *walks.decided.values(), *(one.watched for one in seen)])
    rate = _rate(p, common, walks)
    between = _between(common, walks, rate)
    between_decided = _between_decided(common, walks, between)
    return Scaling(
        workload=p.spec.name,
        machine=str(device.describe()["name"]),
        device=p.options.device,
        threads=p.options.threads,
        dtype=p.dtype_name,
        constants=common.constants,
        networks=_described(p, common.networks, walks, seen, sizes),
        fixed=[region.name for region in regions_of(p.model, p) if region.fixed],
        usages=[_usage(p, one, sizes) for one in seen],
        between=between,
        between_decided=between_decided,
        rate=_rate_of_decided(common, walks, between_decided, rate),
        paces=common.paces,
        missing=missing,
    )


@dataclass(frozen=True)
class WatchedWalks:
    """What walks over each number of items do.

    Attributes:
        whole: with all items in every region.
        decided: with what was decided; empty: T(n) was not taken so.
    """

    whole: dict[int, Watched]
    decided: dict[int, Watched]

    @classmethod
    def of(cls, p: Prepared, common: Pooled) -> WatchedWalks:
        """Of walks such as T(n) was taken in."""
        counts, regions = sizes_up_to(max(p.batch_sizes)), regions_of(p.model, p)

        def watch(call: Call, n: int) -> Watched:
            with Watched(p.model, regions) as watched:
                call(0, p.inputs[:n])
            return watched

        whole = Call(p.model, Execution(Masking()), p.items)
        decided = decided_call(p) if any(network.decided for network in common.networks) else None
        return cls(
            {n: watch(whole, n) for n in counts},
            {} if decided is None else {n: watch(decided, n) for n in counts},
        )


def _roles(p: Prepared) -> dict[str, str]:
    def run(profile: Any) -> Any:
        return Execution(Masking(), profile=profile).run(p.model, p.inputs[:1])

    return roles(p.model, regions_of(p.model, p), run)


def _parts(networks: Sequence[Network], *, decided: bool = False) -> dict[str, Part]:
    """Of the dynamic network as written, by name."""
    ours = (None, "eager", "plain", "host", False, decided)
    return {part.name: part for network in networks if network.key == ours for part in network.parts}


def _rate(p: Prepared, common: Pooled, walks: WatchedWalks) -> Rate | None:
    """What a FLOP takes within regions, or where these execute none, in a static network; None: in neither."""
    parts, found = _parts(common.networks), {}
    for watched in walks.whole.values():
        us, products = 0.0, watched.products
        for name, by_items in watched.calls.items():
            if name in parts and any(work.flops for work in watched.work[name].values()):
                us += sum(calls * _us(parts[name], items) for items, calls in by_items.items())
        if us:
            found[products.flops / products.operators] = us / products.flops
    if not found:
        static = next((n for n in common.networks if n.baseline is not None and n.engine == "eager"), None)
        if static is not None:
            for n, us in zip(static.parts[0].sizes, static.parts[0].us, strict=True):
                products = _watch_static(p, static, n).outside
                if products.operators:
                    found[products.flops / products.operators] = us / products.flops
    return _as_rate(found)


def _between_decided(common: Pooled, walks: WatchedWalks, between: Between | None) -> Between | None:
    """What a call and a byte take where what was decided executes FLOPs outside regions, such as with sliced weights.

    Bytes are then those of other operators than walks over all items show, and take what the device needs for them;
    what is left is told by what a FLOP takes. None: there is nothing like that.
    """
    whole, decided = ([w.outside.flops for w in seen.values()] for seen in (walks.whole, walks.decided))
    if between is None or any(whole) or not any(decided):
        return None
    return between.model_copy(update={"us_per_byte": 1e6 / common.constants.moved_bytes_per_s})


def _rate_of_decided(common: Pooled, walks: WatchedWalks, between: Between | None, rate: Rate | None) -> Rate | None:
    """What a FLOP takes outside regions, where it is executed there only if it was decided, as with sliced weights.

    It is what walks with what was decided take outside regions, less what calls, bytes and Python are reckoned to take.
    Of operators that execute fewer or more FLOPs than these do, and where nothing is left for it: as within regions.
    """
    part = _parts(common.networks, decided=True).get(BETWEEN)
    if part is None or any(watched.outside.flops for watched in walks.whole.values()):
        return rate
    found: dict[float, float] = {}
    for n, us in zip(part.sizes, part.us, strict=True):
        watched = walks.decided[n]
        if not watched.outside.flops:
            continue
        calls = sum(by_items.total() for by_items in watched.calls.values())
        rest_us = sum(outside_us(_counted(watched), calls, common.constants, between=between).values())
        if us > rest_us:
            found[watched.outside.flops / watched.outside.operators] = (us - rest_us) / watched.outside.flops
    if found and rate is not None:
        within = zip(rate.flops, rate.us_per_flop, strict=True)
        found |= {flops: us for flops, us in within if not min(found) <= flops <= max(found)}
    return _as_rate(found) or rate


def _as_rate(found: Mapping[float, float]) -> Rate | None:
    """found: us by FLOPs of an operator."""
    return Rate(flops=sorted(found), us_per_flop=[found[flops] for flops in sorted(found)]) if found else None


def _us(part: Part, items: int) -> float:
    return float(np.interp(items, part.sizes, part.us))


def _between(common: Pooled, walks: WatchedWalks, rate: Rate | None) -> Between | None:
    """What a call of a region and a byte take outside regions, from walks over one item and over many.

    None: walks were over one size alone, or show nothing above 0.
    """
    part = _parts(common.networks).get(BETWEEN)
    if part is None or len(part.sizes) == 1:
        return None
    few, many = (_outside(walks.whole[n], rate) for n in (min(walks.whole), max(walks.whole)))
    return between_of(part, few, many, common.constants)


def _outside(watched: Watched, rate: Rate | None) -> Outside:
    """What a walk does outside regions."""
    return Outside(
        movings=watched.movings,
        operators=watched.operators,
        bytes=watched.moved_bytes + watched.operator_bytes,
        calls=sum(sizes.total() for sizes in watched.calls.values()),
        products_us=products_us(watched.outside.flops, watched.outside.operators, rate),
    )


def _described(
    p: Prepared, networks: Sequence[Network], walks: WatchedWalks, seen: Sequence[Seen], sizes: Sizes
) -> list[Network]:
    """With whose time the time of each part is, how many operators it calls, and as how many items a call counts."""
    deciding, inside = _roles(p), _operators_inside(seen)
    inner = {region.name: outer for region, outer in nested_regions(p.model, p) if outer is not None}
    whole, decided = list(walks.whole.values()), list(walks.decided.values())
    in_graphs = [one.watched for one in seen if one.decided]
    found = []
    for network in networks:
        written = network.engine == "eager" and network.control == "host"
        if network.baseline is not None:
            operators, parts = {"": _operators(p, network)} if written else {}, network.parts
        else:
            operators = inside if written else {}
            passes = in_graphs if network.control == "graph" else decided if network.decided else whole
            parts = [sizes.part(part, passes) for part in _outermost(network, inner)]
        described = [
            part.model_copy(
                update={
                    "role": "decide" if network.baseline is None and deciding.get(part.name) == "decide" else part.role,
                    "operators": operators.get(part.name, 0),
                }
            )
            for part in parts
        ]
        found.append(network.model_copy(update={"parts": described}))
    of_all = _parts(found)
    return [
        network.model_copy(update={"parts": _completed(network.parts, of_all)}) if network.decided else network
        for network in found
    ]


def _outermost(network: Network, inner: Mapping[str, str]) -> list[Part]:
    """The parts of a dynamic network, those that another region calls as a part of that one.

    Args:
        network: a graph, whose nodes are named after the innermost modules, or one that the host calls.
        inner: by such a region, the one that calls it.
    """
    if network.control == "host":
        kept = [part for part in network.parts if part.name not in inner]
        # an older dynbench took the time of inner regions twice, so that what it says of the time between is too little
        return kept if len(kept) == len(network.parts) else [part for part in kept if part.name != BETWEEN]
    by_outer: dict[str, list[Part]] = {}
    for part in network.parts:
        by_outer.setdefault(inner.get(part.name, part.name), []).append(part)
    return [
        parts[0] if len(parts) == 1 and name == parts[0].name else summed(name, parts)
        for name, parts in by_outer.items()
    ]


def _completed(decided: Sequence[Part], of_all: Mapping[str, Part]) -> list[Part]:
    """The parts of a network that was called with what was decided, and of those with all what it does not show."""
    names = {part.name for part in decided}
    return [
        *(part if part.name == BETWEEN else merged(part, of_all.get(part.name)) for part in decided),
        *(part for name, part in of_all.items() if name not in names),
    ]


def _operators(p: Prepared, network: Network) -> int:
    """How many operators a static network calls."""
    watched = _watch_static(p, network, 1)
    return watched.operators + watched.movings


def _watch_static(p: Prepared, network: Network, items: int) -> Watched:
    """What a static network does for the first items, all of it outside regions."""
    written = p.network(Arm(kind="baseline", baseline=network.baseline, engine=network.engine, form=network.form))
    with Watched(written, []) as watched:
        Execution(Dense()).run(written, p.inputs[:items])
    return watched


def _operators_inside(seen: Sequence[Seen]) -> dict[str, int]:
    """Operators of a call of each region."""
    operators: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for watched in {id(one.watched): one.watched for one in seen}.values():
        operators.update(watched.inside)
        for name, by_items in watched.calls.items():
            calls[name] += by_items.total()
    return {name: round(operators[name] / n) for name, n in calls.items() if n}


def _seen(p: Prepared, device: Device, missing: list[NotMeasured]) -> list[Seen]:
    """What every arm as written does, at every batch size and with all decisions.

    Raises:
        UserError: nothing could be seen of any arm.
    """
    regions, found = regions_of(p.model, p), []
    known: dict[tuple[object, ...], Watched] = {}
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
                except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
                    failed[arm.name] = first_line(e)
                    continue
                found.append(Seen(arm, source, batch_size, items, known[key], not fixed))
    missing += [NotMeasured(what=f"what {name} calls and moves", why=why) for name, why in failed.items()]
    if not found:
        raise UserError(next(iter(failed.values()), "there is no arm with decision points"))
    return found


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


def _usage(p: Prepared, seen: Seen, sizes: Sizes) -> Usage:
    decisions = seen.source.decisions
    return Usage(
        arm=seen.arm,
        label=decisions.label,
        keep_rate=p.decisions(seen.source, seen.batch_size).keep_rate,
        made_up=decisions.source in ("synthetic", "published"),
        batch_size=seen.batch_size,
        items=seen.items,
        decided=seen.decided,
        calls=sizes.calls(seen.watched),
        **_counted(seen.watched).model_dump(),
    )


def _counted(watched: Watched) -> Counted:
    return Counted(
        movings=watched.movings,
        moved_bytes=watched.moved_bytes,
        operators=watched.operators,
        operator_bytes=watched.operator_bytes,
        products=watched.outside.operators,
        flops=watched.outside.flops,
        waits=watched.waits,
        points=watched.points,
    )
