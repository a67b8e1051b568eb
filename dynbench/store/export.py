"""A run as flat tables (CSV) or one document (JSON), for other programs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from dynbench.errors import UserError
from dynbench.store.files import make_folder, write_aside
from dynbench.store.jsonable import to_table
from dynbench.store.run import Run
from dynbench.store.schema import SCHEMA_VERSION, Cell, Record, RoundSample, Speedup, Unavailable

FORMATS = ("csv", "json")
HEADERS = {  # where a field's name does not carry its unit
    "batch_size": "batch_size_items",
    "ideal": "ideal_speedup",
    "efficiency": "efficiency_speedup_over_ideal",
    "bytes_touched": "bytes_touched_per_item",
    "operator_calls": "operator_calls_per_stream",
    "host_syncs": "host_syncs_per_stream",
    "kernel_launches": "kernel_launches_per_stream",
    "memory_peak_bytes": "peak_memory_bytes",
    **{f"flops_{n}": f"{n}_flops_per_item" for n in ("dense", "required_region", "required_total", "executed")},
    "flops_accounted": "accounted_flops_per_item",
    "flops_accounted_rule": "accounted_rule",
}


def export(run: Run, formats: Sequence[str], out: Path) -> list[Path]:
    """Writes a run for other programs.

    Args:
        run: what to write.
        formats: 'csv': `cells.csv` (a row per cell, units in the headers, beside each quantity that may be missing a
            column `<quantity>_unavailable` with the reason), `speedups.csv` (a row per cell and baseline) and
            `samples.csv` (a row per timed batch). 'json': `run.json` with the keys `manifest` and `cells`, as stored,
            without the raw samples.
        out: folder; made if it is not there.

    Returns:
        The files written.

    Raises:
        UserError: an unknown format, corrupt samples, or a folder that cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(FORMATS)}"
            raise UserError(f"unknown export format {name!r}; {hint}")
    out = Path(out)
    make_folder(out)
    written = []
    if "csv" in formats:
        written += [_cells_csv(run, out), _speedups_csv(run, out), _samples_csv(run, out)]
    if "json" in formats:
        written.append(_document(run, out))
    return written


def _cells_csv(run: Run, out: Path) -> Path:
    columns = list(_columns(Cell, None))
    return _csv(out / "cells.csv", [name for name, _ in columns], [dict(_columns(Cell, c)) for c in run.cells])


def _speedups_csv(run: Run, out: Path) -> Path:
    address = ["cell_id", "group_id", "workload", "arm", "name", "batch_size"]
    rows = [
        {**{HEADERS.get(k, k): getattr(c, k) for k in address}, **s.model_dump()} for c in run.cells for s in c.speedups
    ]
    return _csv(out / "speedups.csv", [*(HEADERS.get(k, k) for k in address), *Speedup.model_fields], rows)


def _samples_csv(run: Run, out: Path) -> Path:
    def write(aside: Path) -> None:
        header = ["group_id", *RoundSample.model_fields]
        aside.write_text(",".join(header) + "\n", encoding="utf-8")
        for group in dict.fromkeys(c.group_id for c in run.cells):  # one at a time: they may be many
            frame = run.samples(group).astype({"device_ns": "Int64"})
            frame.insert(0, "group_id", group)
            frame.to_csv(aside, mode="a", header=False, index=False, columns=header)

    write_aside(out / "samples.csv", write)
    return out / "samples.csv"


def _document(run: Run, out: Path) -> Path:
    document = {
        "schema_version": SCHEMA_VERSION,
        "manifest": to_table(run.manifest),
        "cells": [to_table(c) for c in run.cells],
        "warnings": [to_table(w) for w in run.warnings],
    }
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    write_aside(out / "run.json", lambda aside: _write_text(aside, text))
    return out / "run.json"


def _columns(kind: type[Record], record: Record | None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(header, value) for every field of `kind`, nested records unfolded; values None if there is no record."""
    for name, field in kind.model_fields.items():
        value = None if record is None else getattr(record, name)
        header = HEADERS.get(prefix + name, prefix + name)
        kinds = [field.annotation, *get_args(field.annotation)]
        nested = [k for k in kinds if isinstance(k, type) and issubclass(k, Record) and k is not Unavailable]
        if name == "speedups":
            primary = next((s for s in value or [] if s.primary), None)
            for key in ("value", "low", "high", "confidence", "baseline"):
                column = "speedup" if key == "value" else f"speedup_{key}"
                yield column, None if primary is None else getattr(primary, key)
        elif name == "warnings":
            yield header, "; ".join(f"{w.id}: {w.text}" for w in value or [])
        elif nested:
            yield from _columns(nested[0], value, f"{prefix}{name}_")
        elif Unavailable in kinds:
            why = value.unavailable if isinstance(value, Unavailable) else None
            yield header, value if why is None else None
            yield f"{header}_unavailable", why
        elif isinstance(value, list | dict):
            yield header, json.dumps(value)
        else:
            yield header, value


def _csv(path: Path, header: list[str], rows: list[dict[str, Any]]) -> Path:
    import pandas as pd  # imported late: it takes a second

    frame = pd.DataFrame(rows, columns=header, dtype=object)
    write_aside(path, lambda aside: frame.to_csv(aside, index=False))
    return path


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
