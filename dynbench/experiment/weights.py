"""Weights of a model from a file: what the file is, which of its entries is which of the model's, and whether all fit.

Only safetensors files are read here, alone or as shards with an index: reading them runs no code. What else people keep
weights in is recognised by its first bytes, so that the sentence says what the file is and what to do with it.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dynbench.errors import UserError
from dynbench.reading import ordinary, parse_json, read_text

PYTORCH = "a PyTorch file"
SAFETENSORS = "safetensors"
INDEX = "an index of shards"

_ZIP = "a zip archive without weights of PyTorch in it"
_OTHER = "neither a safetensors nor a PyTorch file"
_ELSEWHERE = "load it in the function that makes the model, or write its tensors as safetensors"
_REMEDIES = {
    PYTORCH: "`dynbench convert {file}` makes a safetensors file of it",
    "a TorchScript archive": "which is code: save the state dict of what torch.jit.load gives, as safetensors",
    "a pointer of Git LFS, not the weights": "fetch them with `git lfs pull`",
    "a web page, not weights": "download it again",
    "empty": "download or save it again",
    "compressed": "unpack it first",
    "a GGUF file, whose tensors are quantised for llama.cpp": "take the model's safetensors files",
    "an HDF5 file, as Keras writes them": _ELSEWHERE,
    "a NumPy archive": _ELSEWHERE,
    _ZIP: _ELSEWHERE,
    _OTHER: _ELSEWHERE,
}
_MAGIC = {
    b"version https://git-lfs": "a pointer of Git LFS, not the weights",
    b"GGUF": "a GGUF file, whose tensors are quantised for llama.cpp",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes them",
    b"\x93NUMPY": "a NumPy archive",
    b"\x1f\x8b": "compressed",
    b"\xfd7zXZ": "compressed",
    b"\x28\xb5\x2f\xfd": "compressed",
    b"BZh": "compressed",
}
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that wrappers add: DataParallel, torch.compile, FSDP, activation checkpointing."""

COUNTERS = frozenset({"total_ops", "total_params", "n_averaged", "num_batches_tracked"})
"""What thop, weight averaging and batch norm count beside the weights; no answer in evaluation mode depends on them."""


class NotThere(UserError):
    """A file has weights of which the model has none, as before a first pass that makes them; the others are loaded."""


def kind_of(file: Path) -> str:
    """What a file is, by its content: SAFETENSORS, PYTORCH, INDEX, or something that holds no weights we read.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with ordinary(file).open("rb") as opened:
            start = opened.read(512)
    except OSError as e:
        raise UserError(f"weights file {file} cannot be read: {e.strerror or e}") from e
    if not start:
        return "empty"
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    if start.startswith(b"PK"):
        return _kind_of_zip(file)
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{":
        return PYTORCH  # pickled, as before torch 1.6
    if start[8:9] == b"{":
        return SAFETENSORS
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page, not weights"
    if text.startswith(b"{"):
        return INDEX
    return PYTORCH if tarfile.is_tarfile(file) else _OTHER


def _kind_of_zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):  # what zipfile makes of damaged ones
        return PYTORCH  # cut short: converting it says so
    if "constants.pkl" in names:
        return "a TorchScript archive"
    if "data.pkl" in names:
        return PYTORCH
    return "a NumPy archive" if any(n.endswith(".npy") for n in names) else _ZIP


def not_weights(file: Path, kind: str) -> UserError:
    """The error about a file whose kind is none that is read here."""
    return UserError(f"weights file {file} cannot be read: it is {kind}; {_REMEDIES[kind].format(file=file)}")


def weight_files(file: Path) -> list[Path]:
    """The files that a file of weights stands for: the shards of an index, after it; else the file alone.

    Raises:
        UserError: it cannot be read, or is a malformed index.
    """
    return [file, *shards(file)] if kind_of(file) == INDEX else [file]


def shards(index: Path) -> list[Path]:
    """The files that an index names, each once.

    Raises:
        UserError: it is no index, or names a file that is not beside it.
    """
    try:
        table = parse_json(read_text(index), str(index))
        names = list(dict.fromkeys(table["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"weights file {index} is neither a safetensors file nor an index of such: it has no table 'weight_map' "
            "of names and files"
        ) from e
    for name, file in zip(names, files, strict=True):
        if Path(name).name != name or not file.is_file():
            raise UserError(f"weights file {index} names {name!r}; there is no such file beside it")
        if kind_of(file) == INDEX:  # it might name itself
            raise UserError(f"weights file {index} names {name!r}, which is an index as well; an index names shards")
    return files


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of all shards of an index, by name.

    Raises:
        UserError: it is something else, cut short, or cannot be read; the sentence says what it is and what to do.
    """
    kind = kind_of(file)
    if kind == INDEX:
        return {name: value for shard in shards(file) for name, value in read_weights(shard).items()}
    if kind != SAFETENSORS:
        raise not_weights(file, kind)
    _check_length(file)
    try:
        return load_file(str(file))
    except (OSError, SafetensorError, KeyError, ValueError) as e:
        raise UserError(f"weights file {file} cannot be read: {e}") from e


def _check_length(file: Path) -> None:
    """Raises where the header promises more bytes than there are; a header that is wrong otherwise is not judged."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size, _LONGEST_HEADER):
            wanted = 8 + length
            if length > _LONGEST_HEADER:
                raise not_weights(file, _OTHER)
        else:
            try:
                header = json.loads(opened.read(length))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
                wanted = 8 + length + max(ends, default=0)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
                return
    if size < wanted:
        raise UserError(
            f"weights file {file} is cut short: it has {size:,} of {wanted:,} bytes; download or save it again"
        )


def load_weights(module: nn.Module, file: Path) -> None:
    """Reads a file of weights into a module; values take the types that the module was built with.

    A name that the file lacks may be that of a tensor which shares its memory with another one that is there (tied
    weights). Names may carry or lack what wrappers add (`WRAPPERS`, or one prefix before all names). Counters of other
    tools are left out, and so are buffers that the module computes itself, where they are the same.

    Raises:
        NotThere: it has entries of which the module has none.
        UserError: the file cannot be read, or its entries are not those of the module, in one sentence.
    """
    own = module.state_dict()
    state = renamed(read_weights(file), own)
    for name, wanted in own.items():
        if name in state and (why := _misfit(name, state[name], wanted)) is not None:
            raise UserError(f"weights file {file}: {why}")
        if name not in state and not isinstance(wanted, Tensor):
            raise UserError(
                f"weights file {file} lacks {name}, which is {type(wanted).__name__} in the model, not a tensor: "
                "load the weights in the function that makes the model"
            )
    if (twice := _torn(own, state)) is not None:
        raise UserError(
            f"weights file {file}: {twice[0]} and {twice[1]} differ, but are one tensor in the model (tied weights)"
        )
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except Exception as e:
        raise UserError(f"weights file {file} does not fit: {' '.join(str(e).split())}") from e
    for name in missing:
        if _last(name) != "num_batches_tracked" and not _is_shared(name, own, state):
            shape = "" if name not in own or is_lazy(own[name]) else f" {tuple(own[name].shape)}"
            raise UserError(f"weights file {file} lacks {name}{shape}, which the model has")
    computed = dict(module.named_buffers())
    for name in sorted(unexpected):
        if _last(name) in COUNTERS and state[name].numel() == 1:
            continue
        if name not in computed:
            raise NotThere(f"weights file {file} has {name}, which the model lacks")
        if not _near(state[name], computed[name]):
            raise UserError(f"weights file {file} has {name} with other values than the model computes for it itself")


def renamed(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The entries of a file under the names that a module gives them, as far as that is unmistakable.

    Args:
        state: by the file's names.
        own: the module's names.
    """
    own = list(own)
    known, twice = {_bare(name): name for name in own}, Counter(map(_bare, own))

    def ours(name: str) -> str:
        return known[_bare(name)] if name not in own_names and twice[_bare(name)] == 1 else name

    own_names = set(own)
    prefix = _common_prefix(state)
    if prefix and not any(ours(name) in own_names for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    found: dict[str, Tensor] = {name: value for name, value in state.items() if name in own_names}
    for name, value in state.items():
        if name not in own_names:
            found[name if ours(name) in found else ours(name)] = value
    return found


def _bare(name: str) -> str:
    """A name without what wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _common_prefix(names: Iterable[str]) -> str:
    """The first part of all names, with its dot: 'model.'; '' where they begin otherwise, or some have one part."""
    firsts = {name.partition(".")[0] + "." if "." in name else "" for name in names}
    return firsts.pop() if len(firsts) == 1 else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _misfit(name: str, value: Tensor, wanted: Any) -> str | None:
    """Why a tensor of the file cannot become one of the model; None: it can."""
    if not isinstance(wanted, Tensor):
        return f"{name} is a tensor, the model has {type(wanted).__name__} there: load it where the model is made"
    if is_lazy(wanted):  # takes the shape of what is loaded
        return None
    if value.shape != wanted.shape:
        return f"{name} has shape {tuple(value.shape)}, the model wants {tuple(wanted.shape)}"
    if _number(value) != _number(wanted):
        return f"{name} holds {_number(value)} numbers ({value.dtype}), the model wants {_number(wanted)} ones"
    return None


def _number(t: Tensor) -> str:
    if t.is_complex():
        return "complex"
    return "floating-point" if t.is_floating_point() else "whole"


def _span(t: Any) -> tuple[int, int, int] | None:
    """Where a tensor lies: (its storage, first byte, byte after the last); None: nowhere yet, or it has no element."""
    if not isinstance(t, Tensor) or is_lazy(t) or t.layout is not torch.strided or not t.numel():
        return None
    storage = t.untyped_storage().data_ptr()
    if not storage:  # without values, as on the device 'meta'
        return None
    elements = 1 + sum((int(size) - 1) * int(stride) for size, stride in zip(t.shape, t.stride(), strict=True))
    start = int(t.storage_offset()) * t.element_size()
    return storage, start, start + elements * t.element_size()


def _is_shared(name: str, own: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor of the model lies within another one that the file has."""
    if (mine := _span(own.get(name))) is None:
        return False
    for other in own.keys() & state.keys():
        theirs = _span(own[other])
        if theirs is None or theirs[0] != mine[0] or not own[other].is_contiguous():
            continue
        if theirs[1] <= mine[1] and mine[2] <= theirs[2]:
            return True
    return False


def _torn(own: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Two names of one tensor of the model to which the file gives different values."""
    seen: dict[Any, str] = {}
    for name, value in own.items():
        if name not in state or (place := _span(value)) is None:
            continue
        other = seen.setdefault((place, value.shape, value.stride()), name)
        if other != name and not _same(state[other], state[name]):
            return other, name
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of a file hold the same bytes."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))


def _near(value: Tensor, computed: Tensor) -> bool:
    """Whether a file's values are those of a buffer, rounded to the file's type."""
    if value.shape != computed.shape or _number(value) != _number(computed):
        return False
    if _number(value) == "whole":
        return torch.equal(value.long(), computed.cpu().long())
    return torch.allclose(value, computed.cpu().to(value.dtype), rtol=1e-5, atol=1e-8, equal_nan=True)
