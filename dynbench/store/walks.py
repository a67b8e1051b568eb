"""`walks/` of a run directory: T(n) in place as it was in the rounds of each group, a file per group.

A group whose networks were walked has a file; it is written by the measuring process, as its samples are.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from dynbench.errors import UserError
from dynbench.files import make_own_folder, write_text
from dynbench.reading import ordinary
from dynbench.store.jsonable import first_fault, to_json
from dynbench.store.run import file_name
from dynbench.store.scaling import FORMAT, Constants, Network
from dynbench.store.schema import STORED, NotMeasured, Positive, Record

FOLDER = "walks"
LARGEST = 1 << 24  # bytes of such a file


class Walked(Record):
    """T(n) of the networks of one group, from walks between its rounds.

    Attributes:
        workload: of the group.
        group_id: whose rounds they were.
        networks: that were walked.
        constants: of the device, in the same rounds.
        paces: by the key of an arm, its time over what it would be in the pace in the middle of the group.
        missing: networks that could not be.
    """

    format: int = FORMAT
    workload: str
    group_id: str
    networks: list[Network]
    constants: Constants
    paces: dict[str, Positive] = Field(default_factory=dict)
    missing: list[NotMeasured] = Field(default_factory=list)


def write_walked(run: Path, walked: Walked) -> Path:
    """Writes, or replaces, what was walked in a group in one step.

    Raises:
        UserError: the folder cannot be written.
    """
    make_own_folder(run / FOLDER)
    path = run / FOLDER / f"{file_name(walked.group_id)}.json"
    write_text(path, to_json(walked) + "\n")
    return path


def read_walked(run: Path, workload: str) -> list[Walked]:
    """What was walked in the groups of a workload, in the order of their names; nothing was: empty.

    Raises:
        UserError: a file cannot be read, is corrupt, or a newer dynbench wrote it.
    """
    try:
        files = sorted((run / FOLDER).glob("*.json"))
    except OSError as e:
        raise UserError(f"cannot read {run / FOLDER}: {e}") from e
    return [walked for walked in map(_read, files) if walked.workload == workload]


def _read(path: Path) -> Walked:
    try:
        if ordinary(path).stat().st_size > LARGEST:
            raise UserError(f"{path} holds more than {LARGEST >> 20} MiB")
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"cannot read {path}: {e}") from e
    if isinstance(table, dict) and isinstance(table.get("format"), int) and table["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer dynbench (format {table['format']}); update dynbench")
    try:
        return Walked.model_validate(table, context=STORED)
    except ValidationError as e:
        raise UserError(f"{path} is corrupt: {first_fault(e)}") from e
