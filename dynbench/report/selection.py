"""Which cells belong together, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.analysis.gap import is_written
from dynbench.analysis.headline import SOURCES
from dynbench.report.palette import STRATEGIES
from dynbench.store.schema import Cell, Manifest, WorkloadInfo

KINDS = ("strategy", "control", "opaque", "baseline")  # of arms, in the order of a table's rows


@dataclass(frozen=True)
class View:
    """Cells of one workload that differ in arm and batch size only.

    Attributes:
        info: of the workload.
        name: what tells it from the workload's other views: 'synthetic', 'learned, bfloat16'.
        cells: by batch size, deployed ones first, then strategies, in the order of the palette.
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
    return cell.decisions.sweep


def views(info: WorkloadInfo, cells: Sequence[Cell]) -> list[View]:
    """The views of a workload, without the keep-rate sweep; the one it is judged by comes first.

    Arms with a part left out are not shown by themselves: what they say is in the waterfalls of others.
    """
    mine = [c for c in cells if c.workload == info.name and not is_sweep(c) and not c.arm.only_explains]
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in sorted(mine, key=_order):
        groups.setdefault((cell.decisions.label, *_setting(cell)), []).append(cell)
    return _named(info, groups)


def sweeps(info: WorkloadInfo, cells: Sequence[Cell]) -> list[View]:
    """Keep-rate sweeps of a workload, one per batch size and setting, by keep-rate."""
    mine = [c for c in cells if c.workload == info.name and is_sweep(c)]
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in sorted(mine, key=lambda c: (c.decisions.requested["keep_rate"], _order(c))):
        groups.setdefault((f"batch {cell.batch_size}", *_setting(cell)), []).append(cell)
    return _named(info, groups)


def _setting(cell: Cell) -> tuple[str, ...]:
    return cell.device, cell.dtype, f"{cell.threads} threads"


def _named(info: WorkloadInfo, groups: dict[tuple[str, ...], list[Cell]]) -> list[View]:
    """Names each group by those parts of its key in which the groups differ."""
    differ = [len(set(parts)) > 1 for parts in zip(*groups, strict=True)]
    return [
        View(info, ", ".join(part for part, differs in zip(key, differ, strict=True) if differs), cells)
        for key, cells in groups.items()
    ]


def _order(cell: Cell) -> tuple[object, ...]:
    known = STRATEGIES.index(cell.arm.strategy) if cell.arm.strategy in STRATEGIES else len(STRATEGIES)
    source = SOURCES.index(cell.decisions.source), cell.decisions.label
    return *source, cell.batch_size, not cell.deployed, KINDS.index(cell.arm.kind), known, not cell.primary


def primary_baseline(cells: Sequence[Cell], engine: str) -> Cell | None:
    """The measured primary baseline of an engine, as written, among cells of one group."""
    found = (c for c in cells if c.arm.kind == "baseline" and c.primary and c.status == "ok" and is_written(c))
    return next((c for c in found if c.arm.engine == engine), None)


def deployed_primary(cells: Sequence[Cell]) -> Cell | None:
    """The measured primary baseline in its fastest way, among cells of one group."""
    found = (c for c in cells if c.arm.kind == "baseline" and c.primary and c.status == "ok" and c.deployed)
    return next(found, None)


def role(cell: Cell) -> str:
    """'strategy', 'primary baseline', 'strategy, deployed', ..."""
    what = "primary baseline" if cell.arm.kind == "baseline" and cell.primary else cell.arm.kind
    return f"{what}, deployed" if cell.deployed else what


def device_phrase(manifest: Manifest, cells: Sequence[Cell]) -> str:
    """Where it ran, as a noun phrase: 'this CPU (AMD EPYC, 1 thread)'."""
    name = manifest.hardware.get("name")
    known = name if isinstance(name, str) else None
    first = next(iter(cells), None)
    if first is None:
        return known or "this machine"
    if (about := manifest.devices.get(first.device)) is not None:
        return f"{first.device} ({about['cpu']})" if about.get("cpu") else first.device
    if first.device.startswith("cuda"):
        return f"this GPU ({known})" if known else "this GPU"
    if first.device != "cpu":
        return f"this device ({known or first.device})"
    parts = [*([known] if known else []), f"{first.threads} thread{'s' if first.threads != 1 else ''}"]
    return f"this CPU ({', '.join(parts)})"
