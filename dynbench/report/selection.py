"""Which cells belong together, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.analysis.gap import primary_speedup
from dynbench.analysis.resolution import call
from dynbench.report.palette import STRATEGIES
from dynbench.store.schema import Cell, Manifest, Speedup, WorkloadInfo

SOURCES = ("learned", "replay", "published", "synthetic")  # the first that is there is what a workload is judged by


@dataclass(frozen=True)
class View:
    """Cells of one workload that differ in arm and batch size only.

    Attributes:
        name: what tells it from the workload's other views: 'synthetic', 'learned, bfloat16'.
        cells: by batch size, strategies first, in the order of the palette.
    """

    info: WorkloadInfo
    name: str
    cells: list[Cell]

    @property
    def batch_sizes(self) -> list[int]:
        """Of cells that were measured."""
        return sorted({c.batch_size for c in self.cells if c.status == "ok"})

    def at(self, batch_size: int) -> list[Cell]:
        """The measured cells of a batch size."""
        return [c for c in self.cells if c.status == "ok" and c.batch_size == batch_size]


def is_sweep(cell: Cell) -> bool:
    """Whether the cell belongs to the keep-rate sweep."""
    return cell.decisions.source == "synthetic" and "keep_rate" in cell.decisions.requested


def views(info: WorkloadInfo, cells: Sequence[Cell]) -> list[View]:
    """The views of a workload, without the keep-rate sweep; the one it is judged by comes first."""
    mine = [c for c in cells if c.workload == info.name and not is_sweep(c)]
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in sorted(mine, key=_order):
        groups.setdefault((cell.decisions.label, *_setting(cell)), []).append(cell)
    return [View(info, _name(key, list(groups)), group) for key, group in groups.items()]


def sweeps(info: WorkloadInfo, cells: Sequence[Cell]) -> list[View]:
    """Keep-rate sweeps of a workload, one per batch size and setting."""
    mine = [c for c in cells if c.workload == info.name and is_sweep(c)]
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in sorted(mine, key=lambda c: (c.decisions.requested["keep_rate"], _order(c))):
        groups.setdefault((f"batch {cell.batch_size}", *_setting(cell)), []).append(cell)
    return [View(info, _name(key, list(groups)), group) for key, group in groups.items()]


def _setting(cell: Cell) -> tuple[str, ...]:
    return cell.device, cell.dtype, f"{cell.threads} threads", cell.engine


def _order(cell: Cell) -> tuple[object, ...]:
    arms = ("strategy", "control", "baseline")
    known = STRATEGIES.index(cell.name) if cell.name in STRATEGIES else len(STRATEGIES)
    source = SOURCES.index(cell.decisions.source), cell.decisions.label
    return *source, cell.batch_size, arms.index(cell.arm), known, not cell.primary


def _name(key: tuple[str, ...], keys: list[tuple[str, ...]]) -> str:
    return ", ".join(part for i, part in enumerate(key) if len({k[i] for k in keys}) > 1)


def fastest(cells: Sequence[Cell]) -> tuple[Cell, Speedup] | None:
    """The strategy to speak of among cells of one group: a certain gain counts before how large it is."""
    timed = [
        (c, s)
        for c in cells
        if c.arm == "strategy" and c.name != "dense" and c.status == "ok" and (s := primary_speedup(c)) is not None
    ]
    return max(timed, key=lambda pair: (call(pair[1]), pair[1].value), default=None)


def headline(info: WorkloadInfo, cells: Sequence[Cell]) -> tuple[Cell, Speedup] | None:
    """The cell a workload is judged by: its first view with a timed strategy, there the largest batch size."""
    mine = [c for c in cells if c.workload == info.name and c.arm == "strategy" and c.name != "dense"]
    timed = [c for c in mine if c.status == "ok" and primary_speedup(c) is not None]
    if not timed:
        return None
    source = min((c.decisions for c in timed), key=lambda d: SOURCES.index(d.source))
    chosen = [c for c in timed if c.decisions.label == source.label]
    largest = max(c.batch_size for c in chosen)
    return fastest([c for c in chosen if c.batch_size == largest])


def primary_baseline(cells: Sequence[Cell]) -> Cell | None:
    """The measured primary baseline among cells of one group."""
    return next((c for c in cells if c.arm == "baseline" and c.primary and c.status == "ok"), None)


def display_name(cell: Cell) -> str:
    """What a cell is called; the form is told where it is not the plain one."""
    return cell.name if cell.form == "plain" else f"{cell.name}, {cell.form}"


def role(cell: Cell) -> str:
    """'strategy', 'primary baseline', ..."""
    return "primary baseline" if cell.arm == "baseline" and cell.primary else cell.arm


def device_phrase(manifest: Manifest, cells: Sequence[Cell]) -> str:
    """Where it ran, as a noun phrase: 'this CPU (AMD EPYC, 1 thread)'."""
    name = manifest.hardware.get("name")
    known = name if isinstance(name, str) else None
    first = next(iter(cells), None)
    if first is None:
        return known or "this machine"
    if first.device.startswith("cuda"):
        return f"this GPU ({known})" if known else "this GPU"
    if first.device != "cpu":
        return f"this device ({known or first.device})"
    parts = [*([known] if known else []), f"{first.threads} thread{'s' if first.threads != 1 else ''}"]
    return f"this CPU ({', '.join(parts)})"
