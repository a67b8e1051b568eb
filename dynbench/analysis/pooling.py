"""T(n) of a run from the walks in its groups: what is common to all, and how fast the machine was in each.

A machine is faster in one group than in another: its clock, its heat, its neighbours. Walks of the same regions at the
same sizes, in the rounds of the cells, show by how much (`paces`); with that taken out, T(n) is the median over groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from dynbench.store.scaling import Between, Constants, Network, Part, Role
from dynbench.store.walks import Walked

SLOWEST_BYTES = 20.0  # times what a byte takes in a large copy: what takes longer between regions is not bytes

Key = tuple[str | None, str, str, Literal["host", "graph"], bool, bool]  # of a network
Row = tuple[float, float, float]  # us: median, lower and upper quartile
Times = dict[tuple[Key, str, int], Row]  # by network, region and size


@dataclass(frozen=True)
class Pooled:
    """What the groups of a workload have in common.

    Attributes:
        networks: with T(n); the roles of their parts are as they were walked.
        constants: of the device.
        paces: by group id, the time of its walks over that of a middling group, 1 in the median; and by cell id.
    """

    networks: list[Network]
    constants: Constants
    paces: dict[str, float]


def pooled(walked: Sequence[Walked]) -> Pooled:
    """T(n) and constants over all groups, each group in its own pace.

    Args:
        walked: of the groups of one workload.

    Raises:
        ValueError: there is none.
    """
    if not walked:
        raise ValueError("no group was walked")
    by_group = {one.group_id: _times(one) for one in walked}
    middle = _middle(by_group, dict.fromkeys(by_group, 1.0))
    paces = {group: _pace(times, middle) for group, times in by_group.items()}
    centre = float(np.median(list(paces.values())))
    paces = {group: pace / centre for group, pace in paces.items()}
    found = _middle(by_group, paces)
    roles = {(n.key, part.name): part.role for one in walked for n in one.networks for part in n.parts}
    networks = [
        _network(
            key, {at[1:]: found[at] for at in of_network}, {at[1]: role for at, role in roles.items() if at[0] == key}
        )
        for key, of_network in groupby(sorted(found, key=_order), key=lambda at: at[0])
    ]
    constants = _constants(walked, paces)
    of_cells = {
        f"{one.group_id}/{arm}": paces[one.group_id] * pace for one in walked for arm, pace in one.paces.items()
    }
    return Pooled(networks, constants, paces | of_cells)


@dataclass(frozen=True)
class Outside:
    """What a walk does outside regions: operators that move rows, others, bytes of both; and its calls of regions.

    And what its products there take, in us.
    """

    movings: int
    operators: int
    bytes: int
    calls: int
    products_us: float = 0.0


def between_of(part: Part, few: Outside, many: Outside, constants: Constants) -> Between | None:
    """What a byte and a call of a region take between regions, in place.

    A byte is the slope of the time between regions over items, less what products take; of what is left over one item,
    each call has a part.

    Args:
        part: the time between regions, at two sizes or more.
        few: what a walk over the smallest of them does.
        many: the same of the largest.
        constants: of the device, for the calls of operators.

    Returns:
        None: no region is called, or nothing is left for the calls.
    """
    if not few.calls or many.bytes <= few.bytes:
        return None
    n, us = np.array(part.sizes, np.float64), np.array(part.us, np.float64)
    table = np.stack([np.ones_like(n), n], 1) / us[:, None]
    fixed, each = np.linalg.lstsq(table, np.ones_like(us), rcond=None)[0]  # relative errors
    products_each = (many.products_us - few.products_us) / (n[-1] - n[0])
    each, fixed = each - products_each, fixed - (few.products_us - products_each * n[0])
    us_per_byte = each * (n[-1] - n[0]) / (many.bytes - few.bytes)
    if not 0 < us_per_byte * constants.moved_bytes_per_s / 1e6 <= SLOWEST_BYTES:  # too few bytes to be seen
        us_per_byte, fixed, each = 1e6 / constants.moved_bytes_per_s, float(np.median(us)), 0.0
    called_us = few.movings * constants.gather_us + few.operators * constants.operator_us
    left_us = fixed + each * n[0] - us_per_byte * few.bytes - called_us
    call_us = left_us / max(few.calls, many.calls)  # some points call more regions for several items than for one
    return Between(call_us=float(call_us), us_per_byte=float(us_per_byte)) if call_us > 0 else None


def _order(at: tuple[Key, str, int]) -> tuple[tuple[str, ...], str, int]:
    return tuple(map(str, at[0])), at[1], at[2]


def _network(key: Key, times: Mapping[tuple[str, int], Row], roles: Mapping[str, Role]) -> Network:
    """times: by region and size, in order."""
    parts = []
    for name, of_part in groupby(times, key=lambda at: at[0]):
        sizes = [n for _, n in of_part]
        us, low, high = zip(*(times[name, n] for n in sizes), strict=True)
        times_us = {"us": list(us), "low_us": list(low), "high_us": list(high)}
        parts.append(Part(name=name, role=roles[name], sizes=sizes, **times_us))
    baseline, engine, form, control, single, decided = key
    return Network(
        baseline=baseline, engine=engine, form=form, control=control, single=single, decided=decided, parts=parts
    )


def _constants(walked: Sequence[Walked], paces: Mapping[str, float]) -> Constants:
    """Medians over groups; a rate is lower where the machine is slower."""

    def in_common(name: str) -> float:
        power = 1 if name.endswith("_per_s") else -1
        return float(np.median([getattr(w.constants, name) * paces[w.group_id] ** power for w in walked]))

    return Constants(**{name: in_common(name) for name in Constants.model_fields})


def _times(one: Walked) -> Times:
    found: Times = {}
    for network in one.networks:
        for part in network.parts:
            for n, us, low, high in zip(part.sizes, part.us, part.low_us, part.high_us, strict=True):
                found[network.key, part.name, n] = us, low, high
    return found


def _middle(by_group: Mapping[str, Times], paces: Mapping[str, float]) -> Times:
    """Medians over groups, each in its own pace."""
    rows: dict[tuple[Key, str, int], list[np.ndarray]] = {}
    for group, times in by_group.items():
        for at, row in times.items():
            rows.setdefault(at, []).append(np.array(row) / paces[group])
    found: Times = {}
    for at, several in rows.items():
        us, low, high = np.median(several, axis=0).tolist()
        found[at] = us, low, high
    return found


def _pace(times: Times, middle: Times) -> float:
    """Time of the walks of a group over that in the middle: for each network and size all regions, then the median."""
    sums: dict[tuple[Key, int], list[float]] = {}
    for (key, name, n), row in times.items():
        held = sums.setdefault((key, n), [0.0, 0.0])
        held[0] += row[0]
        held[1] += middle[key, name, n][0]
    ratios = [here / there for here, there in sums.values()]
    return float(np.exp(np.median(np.log(ratios)))) if ratios else 1.0
