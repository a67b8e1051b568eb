"""Inputs: procedural generators and loaders of real data sets. A data set's module is imported when it is loaded."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynbench.data.dataset import Dataset, content_hash
from dynbench.data.inputs import Inputs, pad
from dynbench.errors import UserError, suggestion
from dynbench.paths import load_function

__all__ = ["INPUTS", "SPLITS", "Dataset", "Inputs", "content_hash", "load_inputs", "pad", "stream"]

INPUTS = {
    "cluttered_digits": "scenes composed from real handwritten digits, easy and hard ones",
    "digit_scenes": "one or two small handwritten digits in a large scene; of two, the label needs both",
    "digits": "scikit-learn's handwritten digits",
    "cifar10": "CIFAR-10, from a folder or downloaded",
    "photo": "grey crops of a photograph of a face, from scikit-image",
    "shapes": "SHAPES: questions about coloured shapes on a grid, generated, or released ones from a folder",
    "text": "bytes of a text, by default an excerpt of Shakespeare",
    "with_expert": "other labelled images, with the class an expert would name as an additional channel",
    "attribute_objects": "coloured shapes; some pairs of colour and shape do not occur in the training split",
    "image_features": "synthetic image features, like the output of a frozen network",
    "digit_tasks": "images of digits, with the tasks to solve for each as an additional channel",
}
SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


def load_inputs(
    name: str, split: Split, *, data_dir: Path | None = None, limit: int | None = None, seed: int = 0, **options: Any
) -> Dataset:
    """One split of a data set.

    Args:
        name: one of `INPUTS`, or a user's own `path/to/file.py:function` or `package.module:function`. It is called
            with those of `split`, `limit`, `seed`, `data_dir` and the options that its signature accepts, and returns
            what `dynbench.data.own.to_dataset` takes: inputs, `(inputs, labels)`, `Inputs`, or a torch data set.
        split: 'train', 'validation' or 'test'.
        data_dir: folder of a data set that does not come with dynbench (cifar10).
        limit: maximum number of items.
        seed: of generated data.
        **options: of the data set.

    Raises:
        UserError: an unknown data set, split or option, an option out of range, or data that cannot be read.
    """
    if split not in SPLITS:
        raise UserError(f"inputs {name!r}: split {split!r} is none of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise UserError(f"inputs {name!r}: limit={limit}; limit is 1 or more")
    given = {"split": split, "limit": limit, "seed": seed, "data_dir": data_dir}
    if ":" in name:
        return _own(name, load_function(name, Path.cwd()), given, options)
    if name not in INPUTS:
        raise UserError(f"no inputs {name!r}, nor is that file.py:function; {suggestion(name, INPUTS)}")
    load = importlib.import_module(f"dynbench.data.{name}").load
    dataset: Dataset = load(**_arguments(name, load, given, options))
    return dataset


def _arguments(name: str, load: Callable[..., Any], given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The arguments for `load`: those of `given` that it accepts, and all options, which it must accept."""
    parameters = inspect.signature(load).parameters
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = [p for p in parameters if p not in given]
    for option in options:
        if option not in own and not any_keyword:
            raise UserError(f"inputs {name!r}: unknown option {option!r}; {suggestion(option, own)}")
    return {**{k: v for k, v in given.items() if k in parameters or any_keyword}, **options}


def _own(name: str, function: Callable[..., Any], given: dict[str, Any], options: dict[str, Any]) -> Dataset:
    try:
        made = function(**_arguments(name, function, given, options))
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"inputs {name} raised {type(e).__name__}: {e}") from e
    from dynbench.data.own import to_dataset  # imports torch, which dynbench's own data sets do without

    return to_dataset(made, name, given["limit"], given["seed"])


def stream(dataset: Dataset, items: int, seed: int) -> Dataset:
    """A fixed random choice of items. If the data set has too few, items repeat, equally often up to one.

    Raises:
        UserError: the data set is empty.
    """
    if not len(dataset):
        raise UserError(f"no items to choose from: {dataset.description}")
    rng = np.random.default_rng(seed)
    rounds = -(-items // len(dataset))
    return dataset[np.concatenate([rng.permutation(len(dataset)) for _ in range(rounds)])[:items]]
