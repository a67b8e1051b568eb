"""Damage to files: what editors, crashes, full disks, other tools and attackers leave."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e309", "1e-320", "9" * 40, "99999999999", "0x10", "1_000", "-0.0", "true")
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "x" * 100_000,
    "../../x",
    "\x00",
    "\x1b[31m",
    "[/b]",
    "<script>",
    "\ud800",
    "learned",
    [],
    {},
    [[]],
    {"": None},
    [1, "a", None],
)


def flip(r: random.Random, content: bytes) -> bytes:
    """A few bits turned over."""
    changed = bytearray(content)
    for _ in range(r.randint(1, 4)):
        if changed:
            changed[r.randrange(len(changed))] ^= 1 << r.randrange(8)
    return bytes(changed)


def cut(r: random.Random, content: bytes) -> bytes:
    """The end is missing."""
    return content[: r.randrange(len(content) + 1)]


def drop(r: random.Random, content: bytes) -> bytes:
    """A piece is missing."""
    begin = r.randrange(len(content) + 1)
    return content[:begin] + content[begin + r.randint(1, 200) :]


def repeat(r: random.Random, content: bytes) -> bytes:
    """A piece is there twice."""
    begin = r.randrange(len(content) + 1)
    end = begin + r.randint(1, 400)
    return content[:end] + content[begin:end] + content[end:]


def foreign(r: random.Random, content: bytes) -> bytes:
    """Bytes that are no text."""
    at = r.randrange(len(content) + 1)
    return content[:at] + r.choice([b"\xff\xfe", b"\x00" * 8, b"\xef\xbb\xbf", b"\r", b"\xed\xa0\x80"]) + content[at:]


def nested(r: random.Random, content: bytes) -> bytes:
    """Brackets without end."""
    at = r.randrange(len(content) + 1)
    return content[:at] + r.choice([b"[", b"{", b"(", b'{"a":']) * 5000 + content[at:]


def number(r: random.Random, content: bytes) -> bytes:
    """Another number."""
    found = list(re.finditer(rb"-?\d+\.?\d*(?:e[+-]?\d+)?", content))
    if not found:
        return flip(r, content)
    hit = r.choice(found)
    return content[: hit.start()] + r.choice(NUMBERS).encode() + content[hit.end() :]


def empty(r: random.Random, content: bytes) -> bytes:
    """Nothing, or something else altogether."""
    return r.choice([b"", b"\n", b"{}", b"[]", b"null", b"PK\x03\x04", b"\x80\x04", b"SQLite format 3\x00" + bytes(84)])


def json_value(r: random.Random, content: bytes) -> bytes:
    """Valid JSON in which one value is another, or a key is missing, or one too many; of JSON lines, in one line."""
    lines = content.split(b"\n")
    whole = len([line for line in lines if line.strip()]) < 2 or content.lstrip().startswith(b"{\n")
    parts = [content] if whole else lines
    at = r.choice([i for i, part in enumerate(parts) if part.strip()] or [0])
    try:
        table = json.loads(parts[at])
    except ValueError:
        return flip(r, content)
    parts[at] = json.dumps(_changed(r, table)).encode()
    return parts[0] if whole else b"\n".join(parts)


def toml_value(r: random.Random, content: bytes) -> bytes:
    """A line of TOML with another value."""
    lines = content.split(b"\n")
    places = [i for i, line in enumerate(lines) if b"=" in line]
    if not places:
        return flip(r, content)
    at = r.choice(places)
    key = lines[at].partition(b"=")[0]
    values = ["nan", "inf", "-1", "0", "true", '""', '"x"', "[]", "{}", "[[1]]", "9" * 30, "1979-05-27", '"\\u0000"']
    values += ['"../../../etc/passwd"', '"[/b]\\u001b[31m"', "'''\n'''", '"' + "x" * 5000 + '"', "[" * 2000]
    lines[at] = key + b"= " + r.choice(values).encode()
    return b"\n".join(lines)


def twice(r: random.Random, content: bytes) -> bytes:
    """A key of JSON or TOML that is there a second time, with another value."""
    found = list(re.finditer(rb'"\w+": ?|^\w+ ?= ?', content, re.MULTILINE))
    if not found:
        return repeat(r, content)
    hit = r.choice(found)
    separator = b"\n" if b"=" in hit[0] else b", "
    return content[: hit.start()] + hit[0] + r.choice(NUMBERS).encode() + separator + content[hit.start() :]


def gone(path: Path) -> None:
    """Nothing is there."""


def folder(path: Path) -> None:
    """A folder of that name."""
    path.mkdir()


def link_to_itself(path: Path) -> None:
    """A symbolic link that leads nowhere."""
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    """A symbolic link to a file that is not there."""
    path.symlink_to("not-there")


def endless(path: Path) -> None:
    """A symbolic link to a device without an end."""
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    """A named pipe into which nobody writes."""
    os.mkfifo(path)


BYTES: tuple[Mutation, ...] = (flip, cut, drop, repeat, foreign, empty)
TEXT: tuple[Mutation, ...] = (*BYTES, nested, number, twice)
PLACES: tuple[Callable[[Path], None], ...] = (gone, folder, link_to_itself, dangling, endless, pipe)
PLACE_SHARE = 0.06  # of the inputs: there are few of these, and they are always the same


def damage(r: random.Random, how: tuple[Mutation, ...], file: Path) -> str:
    """Damages a file, or puts something else in its place; says what was done."""
    if r.random() < PLACE_SHARE:
        place = r.choice(PLACES)
        remove(file)
        place(file)
        return place.__name__
    change = r.choice(how)
    file.write_bytes(change(r, file.read_bytes()))
    return change.__name__


def remove(path: Path) -> None:
    """Removes whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


JSON: tuple[Mutation, ...] = (*TEXT, json_value, json_value, json_value, json_value)
TOML: tuple[Mutation, ...] = (*TEXT, toml_value, toml_value, toml_value)


def _changed(r: random.Random, table: Any) -> Any:
    table = copy.deepcopy(table)
    places = list(_places(table))
    if not places:
        return r.choice(VALUES)
    owner, key = r.choice(places)
    action = r.randrange(5)
    if action == 0:
        del owner[key]
    elif action == 1 and isinstance(owner, dict):
        owner["unknown"] = r.choice(VALUES)
    else:
        owner[key] = r.choice(VALUES)
    return table


def _places(table: Any) -> list[tuple[Any, Any]]:
    keys = list(table) if isinstance(table, dict) else list(range(len(table))) if isinstance(table, list) else []
    return [(table, key) for key in keys] + [place for key in keys for place in _places(table[key])]
