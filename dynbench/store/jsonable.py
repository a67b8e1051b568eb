"""Records as JSON that every reader accepts: no NaN, no infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, ValidationError

from dynbench.unavailable import Unavailable


def to_json(record: BaseModel, indent: int | None = None) -> str:
    """A record as a JSON document (one line unless `indent` is given).

    A number that is NaN or infinite becomes `Unavailable` where the field can hold that, null where it is optional or
    in a free table (hardware, software, ...). Numpy scalars and arrays become numbers and lists; what JSON does not
    know at all (paths, dtypes) becomes its text.

    Raises:
        ValueError: a field that must hold a number holds NaN or an infinity.
    """
    return json.dumps(to_table(record), allow_nan=False, ensure_ascii=False, indent=indent)


def to_table(record: BaseModel) -> dict[str, Any]:
    """As `to_json`, before it is text."""
    out = {}
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if isinstance(value, float) and not math.isfinite(value):
            accepted = get_args(field.annotation)
            if Unavailable in accepted:
                value = Unavailable(unavailable=f"not a finite number: {value}")
            elif type(None) in accepted:
                value = None
            else:
                raise ValueError(f"{type(record).__name__}.{name} is {value}; it must be a finite number")
        try:
            out[name] = _plain(value, free=field.annotation == dict[str, object])
        except ValueError as e:
            raise ValueError(f"{type(record).__name__}.{name}: {e}") from None
    return out


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a table: 'latency.item_ms: field required'."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key}: {message}" if key else message


def _plain(value: Any, free: bool) -> Any:
    if isinstance(value, BaseModel):
        return to_table(value)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), free)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, free) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, free) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        if free:
            return None
        raise ValueError(f"holds {value}, where a finite number must stand")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
