"""What was measured on devices, side by side: each device is compared with itself, and never judged by another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dynbench.analysis.deciding import Taken, taken_by_deciding
from dynbench.analysis.formatting import bytes_, percent, times_with_interval
from dynbench.analysis.gap import deployed_speedup
from dynbench.analysis.headline import by_device
from dynbench.report.columns import COLUMNS, Column
from dynbench.report.sustained import FIRST_MS, HOTTEST, LAST_MS, LOAD_S, SLOWER, sustained_loads, sustained_rows
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import Value, count, missing, number, quantity, ratio, with_interval, words
from dynbench.store.run import Run
from dynbench.store.schema import Cell, Manifest, WorkloadInfo

TEXT = (
    "The same files on every device, each measured by an agent there; a network is one graph and has one way to run. "
    "Speed-ups compare networks on one device in the same rounds. Times of different devices come from different "
    "minutes and clocks, so what is said of two of them has no interval."
)
MOST_PATHS = 4  # rows of depths; more are put together in quarters of the inputs
MINE = Column(
    "on_device", "device", "", "Its name, and in a browser which one and what executes the graph.", kind="name"
)
NETWORK = Column(
    "network_there", "network", "", "The dynamic network, or a static one by its name.", kind="text", stays=True
)
NATIVE = Column(
    "over_native",
    "time",
    "of this machine's",
    "Time per item / that of the same file by the native runtime on this machine, where the run has it.",
    "Not paired: the two were not measured in the same rounds.",
)
LOAD = Column("load_ms", "load", "ms", "Making a session of the graph, once: reading and optimising it.", stays=True)
FIRST = Column("first_run_ms", "first run", "ms", "The first batch after loading, once.", stays=True)
DOWNLOAD = Column("download_ms", "download", "ms", "Of the graph, from the machine that serves it, once.", stays=True)
PATH = Column("path", "path", "", "How deep the inputs of a row went, counted as it says.", kind="text", stays=True)
INPUTS = Column("inputs_of_path", "inputs", "items", "How many inputs went so deep.")
PATH_MS = Column(
    "path_ms", "dynamic network", "ms (median)", "Median time of these inputs over all rounds, at batch 1, deployed."
)
STATIC_MS = Column("static_ms", "primary baseline", "ms (median)", "The same inputs in the same rounds.")
DECIDING = Column(
    "deciding_there",
    "deciding",
    "% of time (95 % CI)",
    "By how much of its own time it takes longer than with decisions that are known ahead, where gates and what only "
    "decides are left out of the graph; paired by round.",
    "Not how often it decides. In brackets where it is within what the device can tell apart.",
    stays=True,
)
KNOWN_MS = Column(
    "known_ms", "decisions known ahead", "ms (median)", "The same inputs in the same rounds, without deciding."
)
WHAT = Column("what_of_device", "what", kind="text")
NOTE = Column("note_of_agent", "what the agent says", kind="prose")


def devices_section(run: Run, infos: Sequence[WorkloadInfo], mine: dict[str, list[Cell]]) -> list[Section]:
    """Every arm on every device, by path where there are paths, and what the agents say; nothing without devices."""
    if not run.manifest.devices:
        return []
    blocks = []
    for info in infos:
        cells = mine[info.name]
        known = _deciding(run, cells)
        shown = [cell for device in by_device(cells) for cell in device if not cell.arm.only_explains]
        rows = [_row(cell, cells, run.manifest) | known.get(cell.cell_id, {}) for cell in shown]
        if not rows:
            blocks.append(Block(info.title, ["No device sent a result."]))
            continue
        speed = [COLUMNS["latency_item_ms"], COLUMNS["deployed_speedup"], NATIVE, LOAD, FIRST, DOWNLOAD]
        columns = [MINE, NETWORK, COLUMNS["batch"], *speed[:2], DECIDING, *speed[2:], COLUMNS["energy_item_j"]]
        table = make_table(f"devices {info.name}", "On devices", columns, rows, block=MINE.key)
        blocks.append(Block(info.title, table=table))
        if paths := [row for device in by_device(cells) for row in _paths(run, device)]:
            columns = [MINE, PATH, INPUTS, PATH_MS, KNOWN_MS, STATIC_MS]
            table = make_table(f"device paths {info.name}", "By path", columns, paths, block=MINE.key)
            blocks.append(Block(f"By path: {info.title}", table=table))
        loads = list(sustained_loads(run.manifest, info))
        if loaded := [row for load in loads for row in sustained_rows(load, MINE.key, NETWORK.key)]:
            columns = [MINE, NETWORK, LOAD_S, FIRST_MS, LAST_MS, SLOWER, HOTTEST]
            table = make_table(f"device load {info.name}", "Under load that lasts", columns, loaded, block=MINE.key)
            blocks.append(Block(f"Under load that lasts: {info.title}", table=table))
        if notes := list(_notes(run.manifest, info.name)):
            table = make_table(f"device notes {info.name}", "Agents", [MINE, WHAT, NOTE], notes, block=MINE.key)
            blocks.append(Block(f"What the agents say: {info.title}", table=table, folded=len(notes) > 2 * MOST_PATHS))
    return [Section("on-devices", "On devices", TEXT, blocks)]


def devices_overview(run: Run, infos: Sequence[WorkloadInfo], mine: dict[str, list[Cell]]) -> list[Section]:
    """The dynamic network of every workload on every device; nothing without devices."""
    if not run.manifest.devices:
        return []
    rows = [
        {"workload": words(info.title), **_row(cell, mine[info.name], run.manifest), **known.get(cell.cell_id, {})}
        for info in infos
        for known in [_deciding(run, mine[info.name])]
        for device in by_device(mine[info.name])
        for cell in device
        if cell.arm.kind == "strategy"
    ]
    keys = ["workload", "batch", "latency_item_ms", "deployed_speedup", "energy_item_j"]
    workload, batch, *figures = (COLUMNS[key] for key in keys)
    columns = [workload, MINE, batch, *figures[:2], DECIDING, NATIVE, figures[2]]
    block = Block(table=make_table("devices", "On devices", columns, rows, block="workload"))
    return [Section("devices", "On devices", TEXT, [block] if rows else [Block(text=["No device sent a result."])])]


def elsewhere(cells: Sequence[Cell]) -> str | None:
    """What the dynamic network gives on the devices that the verdict is not about; None: there are none."""
    dynamic = [c for c in cells if c.arm.kind == "strategy"]
    judged = next((c.device for c in cells if c.status == "ok"), None)
    said = []
    for device in by_device(dynamic):
        if device[0].device == judged:
            continue
        found = [f"{times_with_interval(s)} at batch {c.batch_size}" for c in device if (s := deployed_speedup(c))]
        said.append(f"on {device[0].device} {', '.join(found) or f'nothing was timed: {device[0].reason}'}")
    return f"Elsewhere, deployed against deployed: {'; '.join(said)}." if said else None


def _row(cell: Cell, cells: Sequence[Cell], manifest: Manifest) -> Row:
    """An arm on a device.

    Args:
        cell: of the arm.
        cells: of its workload, on all devices.
        manifest: of the run.
    """
    row: Row = {
        MINE.key: words(cell.device),
        NETWORK.key: words(cell.arm.baseline or "dynamic network"),
        "batch": count(cell.batch_size),
    }
    if cell.startup is not None:
        for column in (LOAD, FIRST, DOWNLOAD):
            row[column.key] = number(getattr(cell.startup, column.key))
    if cell.latency is None:
        return row | {"latency_item_ms": missing(cell.reason or cell.status)}
    row["latency_item_ms"] = number(cell.latency.item_ms)
    speedup = deployed_speedup(cell)
    if speedup is not None:
        row["deployed_speedup"] = with_interval(speedup)
    elif cell.primary:
        row["deployed_speedup"] = Value("1 (reference)", 1.0)
    if cell.energy is not None:
        row["energy_item_j"] = quantity(cell.energy.item_j)
    native = _native(cell, cells, manifest)
    if native is not None:
        row[NATIVE.key] = ratio(cell.latency.item_ms / native)
    return row


def _deciding(run: Run, cells: Sequence[Cell]) -> dict[str, Row]:
    """What deciding takes, by `cell_id` of the dynamic network; or why it is not known."""
    found: dict[str, Row] = {}
    for cell in cells:
        known = next((c for c in cells if c.group_id == cell.group_id and c.arm.without == "deciding"), None)
        if cell.arm.kind != "strategy" or cell.status != "ok" or known is None:
            continue
        if known.status != "ok":
            found[cell.cell_id] = {DECIDING.key: missing(known.reason or known.status)}
            continue
        samples = run.samples(cell.group_id)
        totals = samples.groupby(["arm", "round"], observed=True)["duration_ns"].sum()
        taken = taken_by_deciding(totals[cell.arm.key].to_numpy(), totals[known.arm.key].to_numpy())
        found[cell.cell_id] = {DECIDING.key: _in_percent(taken, cell)}
    return found


def _in_percent(taken: Taken, cell: Cell) -> Value:
    """'12 % (11 to 13)'; in brackets where the device cannot tell it from nothing."""
    tells = max((s.resolution for s in cell.deployed_speedups if s.resolution is not None), default=0.0)
    low, high = (f"{100 * v:.3g}" for v in (taken.low, taken.high))
    text = f"{percent(taken.share)} ({low} to {high})"
    unclear = taken.low <= 0 <= taken.high or abs(taken.share) <= tells
    return Value(f"({text})" if unclear else text, taken.share)


def _native(cell: Cell, cells: Sequence[Cell], manifest: Manifest) -> float | None:
    """ms per item of the same file on this machine; None: it is this machine, or it was not measured there."""
    here = {name for name, table in manifest.devices.items() if table.get("kind") == "local"}
    if cell.device in here:
        return None
    same = (c for c in cells if c.device in here and (c.arm, c.batch_size) == (cell.arm, cell.batch_size))
    return next((c.latency.item_ms for c in same if c.latency is not None), None)


def _paths(run: Run, cells: Sequence[Cell]) -> Iterator[Row]:
    """Rows by depth of the dynamic network on a device, at batch 1."""
    cell = next((c for c in cells if c.arm.kind == "strategy" and c.status == "ok" and c.batch_size == 1), None)
    if cell is None or len(set(cell.batch_paths)) < 2:
        return
    static = next((c for c in cells if c.primary and c.status == "ok" and c.group_id == cell.group_id), None)
    same = (c for c in cells if c.group_id == cell.group_id and c.arm.without == "deciding" and c.status == "ok")
    ahead = next(same, None)
    samples = run.samples(cell.group_id)
    depths = np.array(cell.batch_paths)
    times = samples[samples["arm"] == cell.arm.key]
    beside = None if static is None else samples[samples["arm"] == static.arm.key]
    known = None if ahead is None else samples[samples["arm"] == ahead.arm.key]
    for low, high in _bins(depths):
        ids = np.flatnonzero((low <= depths) & (depths <= high))
        span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        row: Row = {
            MINE.key: words(cell.device),
            PATH.key: Value(f"{span} {cell.path_label}", float(low)),
            INPUTS.key: count(len(ids)),
        }
        for key, frame in ((PATH_MS.key, times), (KNOWN_MS.key, known), (STATIC_MS.key, beside)):
            if frame is not None and len(chosen := frame[frame["batch_id"].isin(ids)]):
                row[key] = number(float(chosen["duration_ns"].median()) / 1e6)
        yield row


def _bins(depths: np.ndarray) -> list[tuple[float, float]]:
    """Ranges of depths, both ends included: each depth, or if there are many, quarters of the inputs."""
    known = np.unique(depths)
    if len(known) <= MOST_PATHS:
        return [(float(d), float(d)) for d in known]
    ends = np.unique(np.quantile(depths, np.linspace(0, 1, MOST_PATHS + 1)[1:], method="higher"))
    starts = [known[0], *(known[known > end][0] for end in ends[:-1])]
    return [(float(a), float(b)) for a, b in zip(starts, ends, strict=True)]


def _notes(manifest: Manifest, workload: str) -> Iterator[Row]:
    for device, table in manifest.devices.items():
        jobs = table.get("jobs")
        job = jobs.get(workload) if isinstance(jobs, dict) else None
        if not isinstance(job, dict):
            continue
        parts = [str(table[key]) for key in ("cpu", "architecture", "os", "browser") if table.get(key)]
        said = [("device", ", ".join(parts))] if parts else []
        runtime = [str(table[key]) for key in ("agent", "runtime", "runtime_version", "provider") if table.get(key)]
        said += [("agent", " ".join(runtime))] if runtime else []
        if isinstance(memory := job.get("memory_bytes"), int | float):
            said.append(("peak memory of the agent", f"{bytes_(memory)}, with all networks of the workload loaded"))
        if job.get("clock_jumps"):
            said.append(("clock", f"the wall clock jumped {job['clock_jumps']} times; no time is taken from it"))
        if job.get("reason"):
            said.append(("failure", str(job["reason"])))
        said += [("note", str(note)) for note in job.get("notes") or []]
        for what, text in said:
            yield {MINE.key: words(device), WHAT.key: words(what), NOTE.key: words(text)}
