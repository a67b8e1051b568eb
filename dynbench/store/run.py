"""The run directory, the unit of truth.

    manifest.json              the machine, the software, what was asked (schema.Manifest)
    cells.jsonl                a line per cell (schema.Cell); of several for one cell the last one counts
    samples/<group>.parquet    a row per batch that was timed (schema.RoundSample)
    traces/                    the decisions

Everything finished is on the disk: a line is appended and synced, a file is written aside, synced and renamed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from dynbench.errors import UserError
from dynbench.store.files import append_line, make_folder, write_aside
from dynbench.store.jsonable import to_json
from dynbench.store.schema import SCHEMA_VERSION, Cell, Manifest, Record, RoundSample, Warning_

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound=Record)
FINISHED = ("ok", "refused", "failed")  # not measured again by --resume; 'interrupted' is


@dataclass(frozen=True)
class Run:
    """A run directory as it was when it was read.

    Attributes:
        path: the directory.
        manifest: of the run.
        cells: the latest of each id, in the order they first appeared.
        warnings: what was wrong with the files, but could be helped.
    """

    path: Path
    manifest: Manifest
    cells: list[Cell]
    warnings: list[Warning_] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Reads a run directory, also one that is still being written or was cut off.

        Raises:
            UserError: no run is there, a file is corrupt (named with its line), or a newer dynbench wrote it.
        """
        path = Path(path)
        manifest = _parse(Manifest, _read(path / "manifest.json"), str(path / "manifest.json"))
        lines, rest = _lines(path / "cells.jsonl")
        cells: dict[str, Cell] = {}
        for number, line in enumerate(lines, start=1):
            cell = _parse(Cell, line, f"{path / 'cells.jsonl'}:{number}")
            cells[cell.cell_id] = cell
        warnings = []
        if rest:
            warnings.append(
                Warning_(
                    id="DB-STORE-01",
                    text=f"The last line of {path / 'cells.jsonl'} is cut off: the run ended while writing it.",
                    remedy=f"That cell is left out; `dynbench run --resume {path}` measures it again.",
                )
            )
        return cls(path, manifest, list(cells.values()), warnings)

    def finished_cells(self) -> set[str]:
        """Ids of the cells that need not be measured again."""
        return {c.cell_id for c in self.cells if c.status in FINISHED}

    def samples(self, group_id: str) -> pd.DataFrame:
        """The raw samples of a group, the columns of `schema.RoundSample`; no rows where none were taken.

        Raises:
            UserError: the file is corrupt.
        """
        import pandas as pd  # imported late: reading cells needs neither pandas nor pyarrow
        import pyarrow as pa

        file = samples_file(self.path, group_id)
        if not file.exists():
            return pd.DataFrame(columns=list(RoundSample.model_fields))
        try:
            return pd.read_parquet(file, columns=list(RoundSample.model_fields))
        except (pa.ArrowException, OSError, ValueError) as e:
            raise UserError(f"{file} is corrupt: {str(e).splitlines()[0]}") from e


class RunWriter:
    """Writes a run directory. One process writes; others may read meanwhile.

    Attributes:
        path: the directory.
        manifest: as last written.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> RunWriter:
        """Begins a run.

        Raises:
            UserError: another run is there already, or the folder cannot be written.
        """
        path = Path(path)
        make_folder(path)
        if (path / "manifest.json").exists() or (path / "cells.jsonl").exists():
            raise UserError(f"{path} holds another run; go on with it by --resume {path}, or give another folder")
        for folder in ("samples", "traces"):
            make_folder(path / folder)
        writer = cls(path, manifest)
        writer.write_manifest(manifest)
        return writer

    @classmethod
    def resume(cls, path: Path) -> RunWriter:
        """Goes on with a run. A last line that was cut off is removed, so that the next one is not glued to it.

        Raises:
            UserError: as `Run.open`, or the folder cannot be written.
        """
        run = Run.open(path)
        for folder in (run.path, run.path / "samples", run.path / "traces"):
            make_folder(folder)
        cells = run.path / "cells.jsonl"
        if cells.exists():
            whole = b"".join(line + b"\n" for line in _lines(cells)[0])
            write_aside(cells, lambda aside: _write_bytes(aside, whole))
        return cls(run.path, run.manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replaces the manifest in one step.

        Raises:
            UserError: the folder cannot be written.
        """
        text = to_json(manifest, indent=1)
        write_aside(self.path / "manifest.json", lambda aside: _write_bytes(aside, text.encode() + b"\n"))
        self.manifest = manifest

    def append_cell(self, cell: Cell) -> None:
        """Adds a cell, or its later version; on the disk when this returns.

        Raises:
            UserError: the folder cannot be written.
            ValueError: a number that must be there is NaN or infinite.
        """
        append_line(self.path / "cells.jsonl", to_json(cell))

    def write_samples(self, group_id: str, samples: Sequence[RoundSample]) -> None:
        """Writes, or replaces, all samples of a group.

        Raises:
            UserError: the folder cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            name: pa.array([getattr(s, name) for s in samples], pa.string() if name == "arm" else pa.int64())
            for name in RoundSample.model_fields
        }
        table = pa.table(columns).replace_schema_metadata({"group_id": group_id, "schema_version": str(SCHEMA_VERSION)})
        file = samples_file(self.path, group_id)
        write_aside(file, lambda aside: pq.write_table(table, aside, compression="zstd"))

    def finished_cells(self) -> set[str]:
        """Ids of the cells on the disk that need not be measured again."""
        return Run.open(self.path).finished_cells()


def samples_file(run: Path, group_id: str) -> Path:
    """Where the samples of a group lie."""
    return run / "samples" / f"{file_name(group_id)}.parquet"


def trace_path(run: Path, workload: str, label: str) -> Path:
    """Where the trace of a workload's decisions lies, without suffix."""
    return run / "traces" / file_name(f"{workload}/{label}")


def file_name(name: str) -> str:
    """A name that any file system takes: readable, bounded, and different for different names."""
    readable = re.sub(r"[^A-Za-z0-9_.=-]+", "_", name.replace("/", "__")).lstrip(".")[:100]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file.parent} holds no run: there is no {file.name}") from None
    except OSError as e:
        raise UserError(f"cannot read {file}: {e.strerror or e}") from e


def _lines(file: Path) -> tuple[list[bytes], bytes]:
    """Whole lines of a JSONL file, and what is left of a last one that was cut off."""
    if not file.exists():
        return [], b""
    *lines, rest = _read(file).split(b"\n")
    try:  # cut off just before its end of line: whole
        json.loads(rest)
    except ValueError:
        return lines, rest
    return [*lines, rest], b""


def _parse(kind: type[R], text: bytes, where: str) -> R:
    try:
        table: Any = json.loads(text)
    except ValueError as e:
        raise UserError(f"{where} is corrupt: not JSON: {e}") from e
    if not isinstance(table, dict):
        raise UserError(f"{where} is corrupt: a table is expected, found {type(table).__name__}")
    version = table.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"{where} was written by a newer dynbench: it has schema version {version}, this one reads up to "
            f"{SCHEMA_VERSION}; update dynbench"
        )
    try:
        return kind.model_validate(table)
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} is corrupt: {key}: {first['msg'][0].lower()}{first['msg'][1:]}") from e
