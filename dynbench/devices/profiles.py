"""Device profiles: the peak rates of a device according to its data sheet, or as `dynbench calibrate` measured them."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dynbench.errors import UserError, suggestion
from dynbench.files import make_folder, write_text
from dynbench.paths import own_hardware_dir, project_dir
from dynbench.reading import read_toml


class Figure(BaseModel):
    """One measured figure: median and 95 % interval, in `unit`, and the size that it was found at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(gt=0, allow_inf_nan=False)
    low: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)
    unit: Literal["flops/s", "bytes/s", "s"]
    at: str = ""


class Calibration(BaseModel):
    """What was measured, where and with what.

    Attributes:
        device: 'cpu', 'cuda:0'.
        threads: of the CPU.
        dtype: of products and convolutions.
        torch: its version.
        date: ISO 8601.
        figures: by name: 'matmul', 'convolution', 'copy', 'gather', 'scatter', 'gather call', 'operator call', 'region
            call', 'session call', 'point', 'wait'; of a kind that was measured at several sizes the best one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    threads: int = Field(ge=1)
    dtype: str
    torch: str
    date: str
    figures: dict[str, Figure]


class Profile(BaseModel):
    """A file under `hardware/`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    match: str = Field(exclude=True)  # regular expression of whole device names
    name: str
    source: str
    ceilings: dict[str, Any] = Field(default_factory=dict)
    calibration: Calibration | None = None

    @field_validator("ceilings")
    @classmethod
    def _are_rates(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, rate in value.items():
            if name == "flops_per_s" and isinstance(rate, dict):
                cls._are_rates({f"{name}.{dtype}": each for dtype, each in rate.items()})
            elif type(rate) not in (int, float) or not 0 < rate < math.inf:
                raise ValueError(f"{name} = {str(rate)[:60]!r}: a finite rate above 0 is expected")
        return value

    @field_validator("match")
    @classmethod
    def _is_expression(cls, value: str) -> str:
        try:
            with warnings.catch_warnings(action="ignore"):  # it may mean something else to a later Python
                re.compile(value)
        except (re.error, OverflowError, RecursionError) as e:
            raise ValueError(f"not a regular expression: {e}") from e
        return value


def load_profile(path: Path) -> Profile:
    """Reads and validates a profile.

    Raises:
        UserError: it cannot be read, or a key or value is not accepted.
    """
    try:
        return Profile.model_validate(read_toml(path))
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}") from e


def profile_of(device_name: str) -> dict[str, Any] | None:
    """The profile whose regular expression `match` matches the whole device name; None: unknown.

    Those that come with dynbench go before the user's own.

    Returns:
        `name`, `source`, and `ceilings`: `memory_bytes_per_s` and `flops_per_s` by dtype, dense.

    Raises:
        UserError: a profile cannot be read.
    """
    for path in profile_files().values():
        profile = load_profile(path)
        if re.fullmatch(profile.match, device_name):
            return profile.model_dump(exclude={"calibration"})
    return None


def profile_files() -> dict[str, Path]:
    """The files of all profiles by name; one that comes with dynbench goes before the user's own of that name."""
    folders = (project_dir("hardware"), own_hardware_dir())
    files = [path for folder in folders for path in sorted(folder.glob("*.toml"))]
    found: dict[str, Path] = {}
    for path in files:
        found.setdefault(path.stem, path)
    return found


def calibrated(name: str) -> Profile:
    """A profile with measured figures, by its name or file.

    Raises:
        UserError: there is none, it cannot be read, or it holds what a data sheet says only.
    """
    files = profile_files()
    if name not in files and not name.endswith(".toml"):
        raise UserError(f"unknown device profile {name!r}; {suggestion(name, sorted(files))}; or a file NAME.toml")
    path = files.get(name, Path(name))
    profile = load_profile(path)
    if profile.calibration is None:
        raise UserError(f"{path} was not calibrated: it says what a data sheet says; `dynbench calibrate` measures one")
    return profile


def calibration_of(machine: str, threads: int) -> Profile | None:
    """The calibrated profile of a machine with so many threads; None: there is none.

    Raises:
        UserError: a profile cannot be read.
    """
    for path in profile_files().values():
        profile = load_profile(path)
        if profile.calibration is None or not re.fullmatch(profile.match, machine):
            continue
        if profile.calibration.threads == threads:
            return profile
    return None


def write_profile(path: Path, profile: Profile) -> None:
    """Writes a calibrated profile as TOML, in one step.

    Raises:
        UserError: the folder cannot be written.
    """
    assert profile.calibration is not None
    lines = [f"{key} = {json.dumps(getattr(profile, key))}" for key in ("name", "match", "source")]
    for table, values in (("ceilings", profile.ceilings), ("calibration", profile.calibration.model_dump())):
        lines += _table(table, values)
    make_folder(path.parent)
    write_text(path, "\n".join(lines) + "\n")


def _table(name: str, values: dict[str, Any]) -> list[str]:
    """A table as TOML, tables within it after its own values."""
    lines = ["", f"[{name}]"]
    lines += [f"{_key(k)} = {json.dumps(v)}" for k, v in values.items() if not isinstance(v, dict)]
    for key, inner in values.items():
        if isinstance(inner, dict):
            lines += _table(f"{name}.{_key(key)}", inner)
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
