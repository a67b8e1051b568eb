"""Time and temperature of devices under load that lasts: a curve for each network, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from dynbench.analysis.formatting import significant
from dynbench.report.columns import Column
from dynbench.report.layout import (
    TOP,
    around,
    colour_of,
    even_ticks,
    log_axes,
    marker_of,
    names_beside,
    new_axes,
    new_figure,
    room_left,
    room_right,
    set_titles,
    short,
    time_ticks,
)
from dynbench.report.palette import SERIES
from dynbench.report.tables import Row
from dynbench.report.values import missing, number, ratio, words
from dynbench.store.schema import Manifest, WorkloadInfo

SUSTAINED_FIGURES = (
    "sustained",
    "Under load that lasts",
    "Each network by itself, one after the other, from the beginning of its own load. A point is the mean of a minute, "
    "or of a tenth of a load of less than ten minutes; beneath it the hottest reading. Where a curve rises, the device "
    "gets slower as it gets hot.",
)
NO_SENSOR = "no temperature can be read there"
TIMES, DEGREES = 150.0, 80.0  # heights of the two parts
LOAD_S = Column("load_s", "load", "s", "How long each network ran without a pause.")
FIRST_MS = Column("sustained_first_ms", "at its beginning", "ms per item", "Mean of the first point of the figure.")
LAST_MS = Column("sustained_last_ms", "at its end", "ms per item", "Mean of the last point.")
SLOWER = Column("sustained_slower", "end / beginning", "x", "Above 1 it got slower under load.", stays=True)
HOTTEST = Column("sustained_c", "hottest", "C", "Hottest reading of any thermal zone under this load.", stays=True)


@dataclass(frozen=True)
class Load:
    """A network under load: ends of the points in s, ms per item, and temperatures in C, None where there is none."""

    name: str
    ends_s: list[float]
    item_ms: list[float]
    celsius: list[float | None]


@dataclass(frozen=True)
class Sustained:
    """All networks of a workload under load on a device."""

    device: str
    loads: list[Load]

    @property
    def has_temperatures(self) -> bool:
        """Whether any could be read."""
        return any(c is not None for load in self.loads for c in load.celsius)


def sustained_loads(manifest: Manifest, info: WorkloadInfo) -> Iterator[Sustained]:
    """Of each device that measured a workload under load that lasts."""
    for device, table in manifest.devices.items():
        jobs = table.get("jobs")
        job = jobs.get(info.name) if isinstance(jobs, dict) else None
        kept = job.get("sustained") if isinstance(job, dict) else None
        arms: dict[str, Any] = kept.get("arms", {}) if isinstance(kept, dict) else {}
        loads = [_load(name, points) for name, points in arms.items() if not name.endswith(", again")]
        if found := [load for load in loads if load.item_ms]:
            yield Sustained(device, found)


def _load(name: str, points: Sequence[Sequence[Any]]) -> Load:
    good = [p for p in points if len(p) == 3 and isinstance(p[0], int | float) and isinstance(p[1], int | float)]
    called = {"dynamic": "dynamic network", "dynamic, decisions known ahead": "decisions known ahead"}.get(name, name)
    celsius = [float(p[2]) if isinstance(p[2], int | float) else None for p in good]
    return Load(called, [float(p[0]) for p in good], [float(p[1]) for p in good], celsius)


def sustained_rows(found: Sustained, device: str, network: str) -> Iterator[Row]:
    """A row for each network.

    Args:
        found: of a device.
        device: key of the column with its name.
        network: key of the column with the network's.
    """
    for load in found.loads:
        degrees = [c for c in load.celsius if c is not None]
        yield {
            device: words(found.device),
            network: words(load.name),
            LOAD_S.key: number(load.ends_s[-1]),
            FIRST_MS.key: number(load.item_ms[0]),
            LAST_MS.key: number(load.item_ms[-1]),
            SLOWER.key: ratio(load.item_ms[-1] / load.item_ms[0]),
            HOTTEST.key: number(max(degrees)) if degrees else missing(NO_SENSOR),
        }


def in_words(found: Sustained) -> tuple[str, str]:
    """A caption, and the content of the figure as text."""
    caption = "" if found.has_temperatures else f"{NO_SENSOR[0].upper()}{NO_SENSOR[1:]}."
    said = []
    for load in found.loads:
        points = zip(load.ends_s, load.item_ms, load.celsius, strict=True)
        parts = [f"{significant(ms)} ms{'' if c is None else f' ({c:.0f} C)'} at {s:g} s" for s, ms, c in points]
        said.append(f"{load.name}: {', '.join(parts)}")
    return caption, f"Under load on {found.device}. {'; '.join(said)}."


def sustained_figure(d: Sustained) -> Figure:
    """Times above, temperatures below where there are some."""
    limits = around(v for load in d.loads for v in load.item_ms)
    if limits[1] < 1.2 * limits[0]:  # or noise would fill the figure
        middle = float(np.sqrt(limits[0] * limits[1]))
        limits = (middle / 1.1, middle * 1.1)
    tones = {load.name: SERIES[i % len(SERIES)] for i, load in enumerate(d.loads)}
    labels = [(load.item_ms[-1], short(load.name), tones[load.name]) for load in d.loads]
    ticks = time_ticks(*limits)
    degrees = [c for load in d.loads for c in load.celsius if c is not None]
    below = DEGREES + 14 if degrees else 0.0
    figure = new_figure(TOP + TIMES + below + 44)
    room = {"left": room_left(ticks), "right": room_right(labels)}
    axes = log_axes(figure, limits, ticks, labels, bottom=44 + below, **room)
    seconds = max(load.ends_s[-1] for load in d.loads)
    in_minutes = seconds >= 120
    scale = 60.0 if in_minutes else 1.0
    parts = [(axes, "item_ms")]
    if degrees:
        lower = new_axes(figure, bottom=44, top=figure.bbox.height - 44 - DEGREES, **room)
        low, high = min(degrees) - 1, max(degrees) + 1
        lower.set_ylim(low, high)
        lower.set_yticks(even_ticks(low, high, 4))
        lower.grid(axis="y")
        sns.despine(ax=lower)
        parts.append((lower, "celsius"))
    for place, what in parts:
        place.set_xlim(0, seconds / scale * 1.02)
        for load in d.loads:
            tone = tones[load.name]
            y = [np.nan if v is None else v for v in getattr(load, what)]
            x = [s / scale for s in load.ends_s]
            place.plot(x, y, color=colour_of(tone), linewidth=1.4, **marker_of(tone, 4, hollow=False))
    names_beside(axes, labels)
    even = even_ticks(0, seconds / scale)
    for place, _ in parts:
        place.set_xticks(even, [f"{t:g}" if place is parts[-1][0] else "" for t in even])
    set_titles(axes, "", "ms per item")
    set_titles(
        parts[-1][0], f"{'minutes' if in_minutes else 'seconds'} under load", "ms per item" if not degrees else "C"
    )
    return figure
