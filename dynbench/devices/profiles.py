"""Device profiles: the peak rates of a device according to its data sheet."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from dynbench.paths import project_dir


def profile_of(device_name: str) -> dict[str, Any] | None:
    """The profile under `hardware/` whose regular expression `match` matches the whole device name; None: unknown.

    Returns:
        `name`, `source`, and `ceilings`: `memory_bytes_per_s` and `flops_per_s` by dtype, dense.
    """
    for path in sorted(project_dir("hardware").glob("*.toml")):
        profile = tomllib.loads(path.read_text(encoding="utf-8"))
        if re.fullmatch(profile.pop("match"), device_name):
            return profile
    return None
