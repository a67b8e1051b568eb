"""The run directory, the unit of truth.

    manifest.json              the machine, the software, what was asked (schema.Manifest)
    cells.jsonl                a line per cell (schema.Cell); of several for one cell the last one counts
    manifest.json.gz, cells.jsonl.gz   the same of a run that was published: it can be read, not resumed
    samples/<group>.parquet    a row per timed batch (schema.RoundSample)
    walks/<group>.json         T(n) in its rounds, where it was asked for (walks.Walked)
    scaling.jsonl              a line per workload, likewise (scaling.Scaling)
    traces/                    the decisions
    worker.log                 what models and libraries printed while they were measured
    run.lock                   names the process that writes here

Everything finished is on the disk: a line is appended and synced, a file is written aside, synced and renamed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from dynbench.errors import UserError
from dynbench.files import (
    append_line,
    make_folder,
    make_own_folder,
    remove_leftovers,
    write_aside,
    write_bytes,
    write_text,
)
from dynbench.reading import ordinary
from dynbench.store import migrate
from dynbench.store.jsonable import first_fault, to_json
from dynbench.store.schema import SCHEMA_VERSION, STORED, Cell, Manifest, RoundSample, Warning_

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

R = TypeVar("R", Cell, Manifest)
FINISHED = ("ok", "refused", "failed")  # not measured again by --resume; 'interrupted' is
MOST_BYTES = 1 << 28  # of what is unpacked
MANIFEST, CELLS = "manifest.json", "cells.jsonl"
LOG = "worker.log"
COLUMNS = tuple(RoundSample.model_fields)


@dataclass(frozen=True)
class Run:
    """A run directory as it was when it was read.

    Attributes:
        path: the directory.
        manifest: of the run.
        cells: the latest of each id, in the order they first appeared.
        warnings: what was wrong with the files, but could be helped.
        schema_version: of the files; what an older dynbench wrote is migrated while it is read.
    """

    path: Path
    manifest: Manifest
    cells: list[Cell]
    warnings: list[Warning_] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def open(cls, path: Path) -> Run:
        """Reads a run directory, also one that is still being written or was cut off.

        Raises:
            UserError: no run is there, a file is corrupt (named with its line), or a newer dynbench wrote it.
        """
        path = Path(path)
        file = stored_file(path, MANIFEST)
        manifest, version = _parse(Manifest, _read(file), str(file))
        file = stored_file(path, CELLS)
        lines, rest = cell_lines(path)
        cells: dict[str, Cell] = {}
        for number, line in enumerate(lines, start=1):
            cell = parse_cell(line, f"{file}:{number}")
            earlier = cells.get(cell.cell_id, cell)
            if (earlier.group_id, earlier.arm) != (cell.group_id, cell.arm):
                raise UserError(f"{file}:{number} is corrupt: an earlier line has the id {cell.cell_id!r}, too")
            cells[cell.cell_id] = cell
        warnings = []
        if rest:
            warnings.append(
                Warning_(
                    id="DB-STORE-01",
                    text=f"The last line of {file} is cut off: the run ended while writing it.",
                    remedy=f"That cell is left out; `dynbench run --resume {path}` measures it again.",
                )
            )
        return cls(path, manifest, list(cells.values()), warnings, version)

    def finished_cells(self, *, failed_too: bool = True) -> set[str]:
        """Ids of the cells that need not be measured again; `failed_too`: nor those that failed."""
        return {c.cell_id for c in self.cells if c.status in FINISHED and (failed_too or c.status != "failed")}

    def samples(self, group_id: str) -> pd.DataFrame:
        """The raw samples of a group, the columns of `schema.RoundSample`, `arm` as categories; none taken: no rows.

        Of a run that an older dynbench wrote, samples whose cell is missing (it was killed in between) are left out.

        Raises:
            UserError: the file is corrupt, or a newer dynbench wrote it.
        """
        import pandas as pd  # imported late: reading cells needs neither pandas nor pyarrow
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = samples_file(self.path, group_id)
        if not file.exists():
            return pd.DataFrame(columns=list(COLUMNS))
        try:
            table = pq.read_table(ordinary(file), columns=list(COLUMNS), read_dictionary=["arm"], partitioning=None)
            version = int((table.schema.metadata or {}).get(b"schema_version", SCHEMA_VERSION))
            _refuse_newer(version, str(file))
            for name, kind in zip(table.schema.names, table.schema.types, strict=True):
                if not (pa.types.is_dictionary(kind) if name == "arm" else pa.types.is_integer(kind)):
                    raise ValueError(f"column {name} holds {kind}")
            frame: pd.DataFrame = table.to_pandas()
            if version < migrate.NAMED_BY_ARM:
                keys = migrate.sample_arms(c for c in self.cells if c.group_id == group_id)
                frame = frame[frame["arm"].isin(keys)].reset_index(drop=True)
                frame["arm"] = frame["arm"].cat.remove_unused_categories().cat.rename_categories(keys)
        except (pa.ArrowException, OSError, ValueError) as e:
            raise UserError(f"{file} is corrupt: {str(e).splitlines()[0]}") from e
        return frame


class RunWriter:
    """Writes a run directory. One process writes, others may read meanwhile; samples come by `write_samples`.

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
        if any(stored_file(path, name).exists() for name in (MANIFEST, CELLS)):
            raise UserError(f"{path} holds another run; continue it with --resume {path}, or give another folder")
        for folder in ("samples", "traces"):
            make_own_folder(path / folder)
        writer = cls(path, manifest)
        writer.write_manifest(manifest)
        return writer

    @classmethod
    def resume(cls, path: Path) -> RunWriter:
        """Continues a run. A last line that was cut off is removed, so that the next one is not glued to it.

        Raises:
            UserError: as `Run.open`, an older dynbench wrote it, or the folder cannot be written.
        """
        run = Run.open(path)
        if packed := [f.name for f in (stored_file(path, MANIFEST), stored_file(path, CELLS)) if f.suffix == ".gz"]:
            raise UserError(f"{path} was published: it can be read, not resumed; unpack {' and '.join(packed)} first")
        if run.schema_version < SCHEMA_VERSION:
            raise UserError(
                f"{path} was begun by an older dynbench (schema version {run.schema_version}, this one writes "
                f"{SCHEMA_VERSION}): it can be read, but not resumed; measure it anew, or resume it with that version"
            )
        make_folder(run.path)
        for name in ("samples", "traces"):
            make_own_folder(run.path / name)
        remove_leftovers(run.path)
        cells = run.path / CELLS
        if cells.exists():
            write_bytes(cells, b"".join(line + b"\n" for line in cell_lines(run.path)[0]))
        return cls(run.path, run.manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replaces the manifest in one step.

        Raises:
            UserError: the folder cannot be written.
        """
        write_text(self.path / MANIFEST, to_json(manifest, indent=1) + "\n")
        self.manifest = manifest

    def append_cell(self, cell: Cell) -> None:
        """Adds a cell, or its later version; on the disk when this returns.

        Raises:
            UserError: the folder cannot be written.
            ValueError: nothing came of it yet, or a number that must be there is NaN or infinite.
        """
        if cell.status == "planned":
            raise ValueError(f"{cell.cell_id} is only planned; a cell is stored when something came of it")
        append_line(self.path / CELLS, to_json(cell))

    def forget(self, cell_ids: set[str]) -> None:
        """Removes cells, in one step: their group is measured again, and they might not be measured then.

        Raises:
            UserError: the folder cannot be written.
        """
        kept = [line for line in cell_lines(self.path)[0] if json.loads(line)["cell_id"] not in cell_ids]
        write_bytes(self.path / CELLS, b"".join(line + b"\n" for line in kept))


def write_samples(run: Path, group_id: str, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> Path:
    """Writes, or replaces, all samples of a group in one step; any process may.

    Args:
        run: the run directory.
        group_id: the group's.
        columns: the fields of `schema.RoundSample` by name, all [rows]; `device_ns` may hold None.

    Returns:
        The file.

    Raises:
        UserError: the folder cannot be written.
        ValueError: a column is missing, unknown, of another length, or holds something that does not belong there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if columns.keys() != set(COLUMNS):
        raise ValueError(f"the columns of samples are {', '.join(COLUMNS)}; given: {', '.join(columns)}")
    arrays = {name: pa.array(columns[name], pa.string() if name == "arm" else pa.int64()) for name in COLUMNS}
    if holes := [name for name, array in arrays.items() if array.null_count and name != "device_ns"]:
        raise ValueError(f"column {holes[0]} of the samples has rows without a value")
    arrays["arm"] = arrays["arm"].dictionary_encode()
    table = pa.table(arrays, metadata={"group_id": group_id, "schema_version": str(SCHEMA_VERSION)})
    path = samples_file(run, group_id)
    with write_aside(path) as file:
        pq.write_table(table, file, compression="zstd")
    return path


def parse_cell(text: str | bytes, where: str) -> Cell:
    """A cell from its stored line, also of an older dynbench.

    Args:
        text: JSON.
        where: what messages call the place it was stored in.

    Raises:
        UserError: it is corrupt, or a newer dynbench wrote it.
    """
    return _parse(Cell, text, where)[0]


def stored_file(run: Path, name: str) -> Path:
    """Where MANIFEST or CELLS of a run lies: by its name, or packed beside its place."""
    packed = run / f"{name}.gz"
    return packed if packed.exists() and not (run / name).exists() else run / name


def holds_run(folder: Path) -> bool:
    """Whether a run was begun there, one that was published included; False of what cannot be a folder, too."""
    return any(os.path.isfile(folder / (MANIFEST + suffix)) for suffix in ("", ".gz"))


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


def _read(file: Path) -> bytes:
    try:
        content = ordinary(file).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file.parent} holds no run: there is no {file.name}") from None
    except OSError as e:
        raise UserError(f"cannot read {file}: {e.strerror or e}") from e
    return _unpacked(file, content) if file.suffix == ".gz" else content


def _unpacked(file: Path, content: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
        try:
            found = packed.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"{file} is corrupt: {e}") from e
    if len(found) > MOST_BYTES:
        raise UserError(f"{file} holds more than {MOST_BYTES >> 20} MiB; unpack it first")
    return found


def cell_lines(run: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of a run's cells as they are stored, and what is left of a last one that was cut off.

    Raises:
        UserError: they cannot be read.
    """
    file = stored_file(run, CELLS)
    if not file.exists():
        return [], b""
    *lines, rest = _read(file).split(b"\n")
    try:  # cut off just before its end of line: whole
        json.loads(rest)
    except ValueError:
        return lines, rest
    return [*lines, rest], b""


def _parse(kind: type[R], text: str | bytes, where: str) -> tuple[R, int]:
    """A stored record in today's form, and the schema version it was stored with.

    Raises:
        UserError: it is corrupt, or a newer dynbench wrote it.
    """
    with contextlib.suppress(ValidationError):  # the common case, at four times the speed
        record = kind.model_validate_json(text, context=STORED)
        if record.schema_version == SCHEMA_VERSION:
            return record, SCHEMA_VERSION
    try:
        table = _json(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is corrupt: not JSON: {e}") from e
    if not isinstance(table, dict):
        raise UserError(f"{where} is corrupt: a table is expected, found {type(table).__name__}")
    version = table.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or version < 1:
        raise UserError(f"{where} is corrupt: schema_version: a whole number from 1 on is expected, found {version!r}")
    _refuse_newer(version, where)
    try:
        if version < SCHEMA_VERSION:
            table = migrate.cell(table) if kind is Cell else migrate.manifest(table)
        return kind.model_validate(table, context=STORED), version
    except ValidationError as e:
        raise UserError(f"{where} is corrupt: {first_fault(e)}") from e
    except ValueError as e:
        raise UserError(f"{where} is corrupt: {e}") from e


def _json(text: str | bytes) -> Any:
    """What JSON says; half of a surrogate pair, which no file can hold, is a ValueError like all that is no JSON."""
    found = json.loads(text)
    json.dumps(found, ensure_ascii=False).encode()
    return found


def _refuse_newer(version: int, where: str) -> None:
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{where} was written by a newer dynbench: it has schema version {version}, this one reads up to "
            f"{SCHEMA_VERSION}; update dynbench"
        )
