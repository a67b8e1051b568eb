"""Inputs: procedural generators and loaders of real data sets. Naming them imports none of them."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynbench.data.dataset import Dataset, content_hash
from dynbench.errors import UserError
from dynbench.paths import load_function

__all__ = ["INPUTS", "SPLITS", "Dataset", "content_hash", "load_inputs", "stream"]

INPUTS = {
    "cluttered_digits": "scenes composed from real handwritten digits, easy and hard ones",
    "digit_scenes": "one or two small handwritten digits in a large scene; of two, the label needs both",
    "digits": "scikit-learn's handwritten digits",
    "cifar10": "CIFAR-10, from a folder or downloaded",
    "photo": "grey crops of a photograph of a face, from scikit-image",
    "shapes": "SHAPES: questions about coloured shapes on a grid, generated, or released ones from a folder",
    "text": "bytes of a text, by default an excerpt of Shakespeare",
    "with_expert": "other labelled images, with what an expert would say of each as one more plane",
    "attribute_objects": "coloured shapes; some pairs of colour and shape are never in the training part",
    "image_features": "made-up features of images, as a frozen network would give them",
    "digit_tasks": "images of digits, with which questions are asked about each as one more plane",
}
SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


def load_inputs(
    name: str, split: Split, *, data_dir: Path | None = None, limit: int | None = None, seed: int = 0, **options: Any
) -> Dataset:
    """A part of a data set.

    Args:
        name: one of `INPUTS`, or a user's own `path/to/file.py:function` or `package.module:function`, called as
            `function(split=..., limit=..., seed=..., **options)` with those of these arguments it takes; it returns a
            `Dataset`, `(inputs, labels)` or inputs, as arrays.
        split: 'train', 'validation' or 'test'.
        data_dir: folder of a data set that is not part of dynbench (cifar10).
        limit: at most so many items.
        seed: of what is generated.
        **options: of the data set.

    Raises:
        UserError: no such data set, split or option, an option out of range, or data that cannot be had.
    """
    if split not in SPLITS:
        raise UserError(f"inputs {name!r}: split {split!r} is none of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise UserError(f"inputs {name!r}: limit={limit}; limit is 1 or more")
    given = {"split": split, "limit": limit, "seed": seed, "data_dir": data_dir}
    if ":" in name:
        return _own(name, load_function(name, Path.cwd()), given, options, limit)
    if name not in INPUTS:
        near = difflib.get_close_matches(name, INPUTS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(INPUTS)}"
        raise UserError(f"no inputs {name!r}, nor is that file.py:function; {hint}")
    load = importlib.import_module(f"dynbench.data.{name}").load
    dataset: Dataset = load(**_arguments(name, load, given, options))
    return dataset


def _arguments(name: str, load: Callable[..., Any], given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What of `given` the function takes, and the options, which it must take."""
    takes = inspect.signature(load).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    own = [p for p in takes if p not in given]
    for option in options:
        if option not in own and not anything:
            near = difflib.get_close_matches(option, own, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(own) or 'none'}"
            raise UserError(f"inputs {name!r}: unknown option {option!r}; {hint}")
    return {**{k: v for k, v in given.items() if k in takes or anything}, **options}


def _own(
    name: str, function: Callable[..., Any], given: dict[str, Any], options: dict[str, Any], limit: int | None
) -> Dataset:
    try:
        made = function(**_arguments(name, function, given, options))
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"inputs {name} raised {type(e).__name__}: {e}") from e
    if isinstance(made, Dataset):
        return made
    inputs, labels = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    inputs, labels = np.asarray(inputs), None if labels is None else np.asarray(labels)
    if inputs.dtype.kind not in "fiu" or inputs.ndim == 0:
        raise UserError(f"inputs {name} gave {type(made).__name__}; wanted: inputs, or (inputs, labels), as arrays")
    if labels is not None and labels.shape[:1] != inputs.shape[:1]:
        raise UserError(f"inputs {name} gave {len(inputs)} inputs and {labels.size} labels")
    inputs, labels = inputs[:limit], None if labels is None else labels[:limit]
    inputs = inputs.astype(np.float32 if inputs.dtype.kind == "f" else np.int64, copy=False)
    classes = 0
    if labels is not None:
        labels = labels.astype(np.int64, copy=False)
        classes = int(labels.max(initial=-1)) + 1
    return Dataset(inputs, labels, f"{len(inputs)} items from {name}", classes)


def stream(dataset: Dataset, items: int, seed: int) -> Dataset:
    """A fixed, seeded list of items; where there are too few, each comes as often as any other, or once more.

    Raises:
        UserError: the data set is empty.
    """
    if not len(dataset):
        raise UserError(f"no items to choose from: {dataset.description}")
    rng = np.random.default_rng(seed)
    rounds = -(-items // len(dataset))
    return dataset[np.concatenate([rng.permutation(len(dataset)) for _ in range(rounds)])[:items]]
