"""Device profiles: the peak rates of a device according to its data sheet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dynbench.errors import UserError
from dynbench.paths import project_dir
from dynbench.reading import read_toml


class Profile(BaseModel):
    """A file under `hardware/`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    match: str = Field(exclude=True)  # regular expression of whole device names
    name: str
    source: str
    ceilings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("match")
    @classmethod
    def _is_expression(cls, value: str) -> str:
        try:
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
    """The profile under `hardware/` whose regular expression `match` matches the whole device name; None: unknown.

    Returns:
        `name`, `source`, and `ceilings`: `memory_bytes_per_s` and `flops_per_s` by dtype, dense.

    Raises:
        UserError: a profile cannot be read.
    """
    for path in sorted(project_dir("hardware").glob("*.toml")):
        profile = load_profile(path)
        if re.fullmatch(profile.match, device_name):
            return profile.model_dump()
    return None
