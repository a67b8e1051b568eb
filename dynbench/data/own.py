"""From what a function of a user's own returns to a data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dynbench.data.dataset import Dataset, arrays, map_arrays
from dynbench.data.inputs import Inputs, as_array
from dynbench.errors import UserError

MOST_ITEMS = 5000  # that are read of a torch data set: more than any stream and its accuracy need
LABELS = ("label", "labels", "target", "targets")  # names under which a dict may hold labels
SAY = "return dynbench.Inputs(x, labels=y)"
KINDS = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_, "c": np.complex64}


def to_dataset(made: Any, name: str, limit: int | None, seed: int) -> Dataset:
    """What a function returned, as a data set.

    Args:
        made: a `Dataset`; an array or tensor of inputs; a pair of inputs and labels (or None); `Inputs`; a dict of
            inputs by name; or a torch `Dataset` or `DataLoader` whose items or batches are one of these.
        name: of the function, for messages.
        limit: maximum number of items.
        seed: of the choice, where a torch data set has too many items to read them all.

    Raises:
        UserError: it is none of these, or open to more than one reading.
    """
    if isinstance(made, Dataset):
        return made
    source = ""
    if isinstance(made, (TorchDataset, DataLoader)):
        made, source = _read(made, name, limit or MOST_ITEMS, seed)
    inputs, labels, pair = _inputs_and_labels(made, name)
    inputs, labels = _converted(inputs, name, "inputs"), _converted(labels, name, "labels")
    _check(inputs, labels, name)
    inputs, labels = (map_arrays(lambda a: a[:limit], part) for part in (inputs, labels))
    one_each = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind == "i"
    classes = int(labels.max(initial=-1)) + 1 if one_each else 0
    items = len(next(arrays(inputs)))
    return Dataset(inputs, labels, f"{source or items} items from {name}", classes, pair=pair)


def _inputs_and_labels(made: Any, name: str) -> tuple[Any, Any, bool]:
    """Inputs, labels, and whether they came as a pair of arrays, of which the second may be an input, too."""
    if isinstance(made, Inputs):
        return made.x, made.labels, False
    if isinstance(made, tuple) and len(made) == 2:
        inputs, labels = made
        if not isinstance(inputs, (tuple, dict)):
            return inputs, labels, labels is not None
        if labels is None or (not isinstance(labels, (tuple, dict)) and _dims(labels) == 1):
            return inputs, labels, False
        raise UserError(f"inputs {name} returned a pair of which the second part may be labels or an input: {SAY}")
    if isinstance(made, tuple) and len(made) != 1:
        raise UserError(
            f"inputs {name} returned {len(made)} parts, of which it does not say what they are: for several inputs "
            "return dynbench.Inputs((a, b), labels=y), labels=None where there are none"
        )
    if isinstance(made, dict) and (found := next((key for key in LABELS if key in made), None)):
        raise UserError(f"inputs {name} returned a dict with {found!r} among the inputs; if it is labels, {SAY}")
    return (made[0] if isinstance(made, tuple) else made), None, False


def _dims(labels: Any) -> int:
    try:
        return as_array(labels).ndim
    except ValueError:
        return 0


def _converted(parts: Any, name: str, what: str) -> Any:
    """The arrays of inputs or labels in the types that models take: float32, int64, bool, complex64."""

    def plain(part: Any) -> np.ndarray:
        try:
            array = as_array(part)
        except ValueError as e:
            way = "; dynbench.pad(sequences) gives an array and its mask" if "different" in str(e) else ""
            raise UserError(
                f"inputs {name} returned {what} that cannot be taken: {e}{way}. Expected: inputs, (inputs, labels) or "
                "dynbench.Inputs, as arrays"
            ) from e
        return array.astype(KINDS[array.dtype.kind], copy=False)

    if isinstance(parts, dict) and not all(isinstance(key, str) for key in parts):
        raise UserError(f"inputs {name} returned a dict with keys that are no names")
    return map_arrays(plain, parts)


def _check(inputs: Any, labels: Any, name: str) -> None:
    """Raises where there is no array, or not each has as many items."""
    found = list(arrays(inputs))
    if not found:
        raise UserError(f"inputs {name} returned no array of inputs")
    if any(array.ndim == 0 for array in (*found, *arrays(labels))):
        raise UserError(f"inputs {name} returned a single number; expected: inputs or (inputs, labels), as arrays")
    counts = [len(array) for array in found]
    if len(set(counts)) > 1:
        each = ", ".join(map(str, counts))
        raise UserError(f"inputs {name} returned arrays of {each} items; the first dimension of each is the item")
    for array in arrays(labels):
        if len(array) != counts[0]:
            raise UserError(f"inputs {name} returned {counts[0]} inputs and {len(array)} labels")


def _read(source: Any, name: str, most: int, seed: int) -> tuple[Any, str]:
    """The items of a torch data set or loader, up to `most`, put together; and how many, in words."""
    try:
        if isinstance(source, DataLoader):
            batches, count = [], 0
            for batch in source:
                batches.append(tuple(batch) if isinstance(batch, list) else batch)
                count += len(next(arrays(map_arrays(as_array, batches[-1]))))
                if count >= most:
                    break
            return _joined(batches), ""
        if not hasattr(source, "__len__"):
            return _stacked(list(itertools.islice(iter(_iterable(source)), most))), ""
        total = len(source)
        if total <= most:
            return _stacked([source[i] for i in range(total)]), ""
        chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
        return _stacked([source[int(i)] for i in chosen]), f"{most} of {total}"
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"inputs {name}: reading its {type(source).__name__} raised {type(e).__name__}: {e}") from e


def _iterable(source: Any) -> Iterable[Any]:
    if not hasattr(source, "__iter__"):
        raise UserError(f"{type(source).__name__} has neither a length nor an order to read its items in")
    items: Iterable[Any] = source
    return items


def _stacked(items: list[Any]) -> Any:
    """Items put together, each a tuple, a dict or an array alike."""
    if items and isinstance(items[0], tuple):
        return tuple(_stacked(list(column)) for column in zip(*items, strict=True))
    if items and isinstance(items[0], dict):
        return {key: _stacked([item[key] for item in items]) for key in items[0]}
    return items


def _joined(batches: list[Any]) -> Any:
    """Batches one after the other, each a tuple, a dict or an array alike."""
    if batches and isinstance(batches[0], (tuple, list)):
        return tuple(_joined(list(column)) for column in zip(*batches, strict=True))
    if batches and isinstance(batches[0], dict):
        return {key: _joined([batch[key] for batch in batches]) for key in batches[0]}
    parts = [as_array(batch) for batch in batches]
    if len({part.shape[1:] for part in parts}) > 1:
        raise UserError("its batches have items of different shapes; dynbench.pad(sequences) gives an array and a mask")
    return np.concatenate(parts) if parts else np.zeros((0,))
