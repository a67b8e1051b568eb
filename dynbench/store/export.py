"""A run as flat tables (CSV) or one document (JSON), for other programs."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynbench.errors import UserError, suggestion
from dynbench.files import make_folder, write_aside
from dynbench.store.jsonable import to_json
from dynbench.store.quantities import quantities, stored
from dynbench.store.quantity import columns, flat
from dynbench.store.run import Run
from dynbench.store.schema import SCHEMA_VERSION, Cell, RoundSample, Speedup
from dynbench.unavailable import Unavailable

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "json")
DESCRIBED = ("key", "header", "unit", "scale", "definition", "is_not", "exact", "better")  # of a quantity, in the JSON


def _in_words(value: str | Unavailable) -> str:
    return f"unavailable: {value.unavailable}" if isinstance(value, Unavailable) else value


FACTS: dict[str, Callable[[Cell], object]] = {
    "schema_version": stored("schema_version"),
    "cell_id": stored("cell_id"),
    "group_id": stored("group_id"),
    "workload": stored("workload"),
    "decisions_source": stored("decisions.source"),
    "decisions_label": stored("decisions.label"),
    "decisions_sweep": stored("decisions.sweep"),
    "decisions_requested": lambda c: json.dumps(c.decisions.requested),
    "decisions_provenance": stored("decisions.provenance"),
    "arm": stored("arm.kind"),
    "name": stored("arm.name"),
    "strategy": stored("arm.strategy"),
    "engine": stored("arm.engine"),
    "form": stored("arm.form"),
    "control": stored("arm.control"),
    "live": stored("arm.live"),
    "again": stored("arm.again"),
    "load": stored("arm.load"),
    "primary": stored("primary"),
    "deployed": stored("deployed"),
    "candidates": lambda c: json.dumps(
        [{"arm": w.arm.title, "ratio": w.ratio, "reason": w.reason} for w in c.candidates]
    ),
    "static_twin": stored("static_twin"),
    "item_by_item": stored("item_by_item"),
    "device": stored("device"),
    "batch_size_items": stored("batch_size"),
    "dtype": stored("dtype"),
    "threads": stored("threads"),
    "status": stored("status"),
    "reason": stored("reason"),
    "stopped_by": stored("stopped_by"),
    "stream_items": stored("stream_items"),
    "speedup_baseline": lambda c: next((s.baseline for s in c.speedups or c.deployed_speedups if s.primary), None),
    "accounted_rule": stored("flops.accounted_rule"),
    "energy_sensor": stored("energy.sensor"),
    "accuracy_metric": stored("accuracy.metric"),
    "accuracy_unit": stored("accuracy.unit"),
    "accuracy_higher_is_better": stored("accuracy.higher_is_better"),
    "accuracy_items": stored("accuracy.items"),
    "startup_load_ms": stored("startup.load_ms"),
    "startup_first_run_ms": stored("startup.first_run_ms"),
    "startup_download_ms": stored("startup.download_ms"),
    "path_label": stored("path_label"),
    "batch_paths": lambda c: json.dumps(c.batch_paths),
    "witnesses_governor": lambda c: c.witnesses and _in_words(c.witnesses.governor),
    "compiled_graph_breaks": lambda c: (
        None if c.compiled is None else json.dumps([b.model_dump() for b in c.compiled.graph_breaks])
    ),
    "warnings": lambda c: "; ".join(f"{w.id}: {w.text}" for w in c.warnings),
}
"""The columns of `cells.csv` that are no quantities."""


def export(run: Run, formats: Sequence[str], out: Path) -> list[Path]:
    """Writes a run for other programs.

    Args:
        run: what to write.
        formats: 'csv': `cells.csv` (a row per cell, units in the headers, beside each quantity that may be missing a
            column `<quantity>_unavailable` with the reason), `speedups.csv` (a row per cell and baseline) and
            `samples.csv` (a row per timed batch). 'json': `run.json` with the keys `manifest`, `cells` and `warnings`,
            as stored, without the raw samples, and `quantities`: what each column of `cells.csv` is.
        out: folder; made if it is not there.

    Returns:
        The files written.

    Raises:
        UserError: an unknown format, corrupt samples, or a folder that cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"unknown export format {name!r}; {suggestion(name, FORMATS)}")
    out = Path(out)
    make_folder(out)
    written = []
    if "csv" in formats:
        written += [_cells_csv(run, out), _speedups_csv(run, out), _samples_csv(run, out)]
    if "json" in formats:
        written.append(_document(run, out))
    return written


def cells_frame(run: Run) -> pd.DataFrame:
    """A row per cell, the columns of `cells.csv`; what does not apply to a cell is missing."""
    import pandas as pd

    header, rows = _cell_rows(run)
    return pd.DataFrame(list(rows), columns=header)


def _cell_rows(run: Run) -> tuple[list[str], Iterable[list[object]]]:
    known = quantities(run.manifest.workloads.values())
    header = [*FACTS, *(name for quantity in known for name in columns(quantity))]
    rows = (
        [*(read(cell) for read in FACTS.values()), *(value for quantity in known for value in flat(quantity, cell))]
        for cell in run.cells
    )
    return header, rows


def _cells_csv(run: Run, out: Path) -> Path:
    return _csv(out / "cells.csv", *_cell_rows(run))


def _speedups_csv(run: Run, out: Path) -> Path:
    address = ("cell_id", "group_id", "workload", "arm", "name", "batch_size_items")
    fields = list(Speedup.model_fields)
    rows = (
        [*(FACTS[name](cell) for name in address), *(getattr(speedup, name) for name in fields), deployed]
        for cell in run.cells
        for deployed, speedups in ((False, cell.speedups), (True, cell.deployed_speedups))
        for speedup in speedups
    )
    return _csv(out / "speedups.csv", [*address, *fields, "deployed"], rows)


def _samples_csv(run: Run, out: Path) -> Path:
    header = ["group_id", *RoundSample.model_fields]
    with write_aside(out / "samples.csv") as file:
        file.write((",".join(header) + "\n").encode())
        for group in dict.fromkeys(c.group_id for c in run.cells):  # one at a time: they may be many
            file.write(_rows_of(group, run.samples(group)[header[1:]]))
    return out / "samples.csv"


def _rows_of(group_id: str, samples: pd.DataFrame) -> bytes:
    """Samples of a group as lines of CSV, by Arrow: pandas takes ten times as long."""
    import pyarrow as pa
    from pyarrow.csv import WriteOptions, write_csv

    if samples.empty:
        return b""
    table = pa.Table.from_pandas(samples.astype({"device_ns": "Int64"}), preserve_index=False)
    table = table.add_column(0, "group_id", pa.repeat(group_id, len(samples)))
    sink = io.BytesIO()
    write_csv(table, sink, WriteOptions(include_header=False))
    return sink.getvalue()


def _document(run: Run, out: Path) -> Path:
    """A line for every cell, so that the file can be read by people, too, and is written fast."""
    described = [{name: getattr(q, name) for name in DESCRIBED} for q in quantities(run.manifest.workloads.values())]
    with write_aside(out / "run.json") as file:
        text = codecs.getwriter("utf-8")(file, "backslashreplace")
        text.write(f'{{"schema_version": {SCHEMA_VERSION},\n"manifest": {to_json(run.manifest)},\n"cells": [')
        text.writelines(f"{',' if i else ''}\n{to_json(cell)}" for i, cell in enumerate(run.cells))
        warnings = ",".join(to_json(w) for w in run.warnings)
        text.write(f'],\n"warnings": [{warnings}],\n"quantities": {json.dumps(described, ensure_ascii=False)}}}\n')
    return out / "run.json"


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with write_aside(path) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path
