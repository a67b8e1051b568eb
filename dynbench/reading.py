"""Reading files that somebody wrote by hand or that may be damaged: what they hold, or one sentence."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from dynbench.errors import UserError

MOST_BYTES = 1 << 26  # of a text file; none that dynbench writes is a tenth as long


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        UserError: it cannot be read or is not valid TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid TOML: {_why(e)}") from e


def read_json(path: Path) -> Any:
    """The value of a JSON file; NaN and infinities are not JSON.

    Raises:
        UserError: it cannot be read or is not valid JSON.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: the text.
        where: what messages call it.

    Raises:
        UserError: it is not valid JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not valid JSON: {_why(e)}") from e


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        UserError: it is not there, no ordinary file, too long, cannot be read, or is not UTF-8.
    """
    try:
        if ordinary(path).stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is longer than {MOST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not a text in UTF-8: {e.reason} at byte {e.start}") from e
    except (OSError, ValueError) as e:  # ValueError: a name with a null character
        raise UserError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e


def ordinary(path: Path) -> Path:
    """The path itself: no pipe, device or folder is there, with which reading would not end, or not begin.

    Raises:
        UserError: something is there that is no ordinary file.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
    except (OSError, ValueError) as e:  # a loop of symbolic links; a name with a null character
        raise UserError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    return path


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
