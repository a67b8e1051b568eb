"""Tasks about digits: labelled images, each with the tasks to solve for it as an additional channel.

The tasks are functions of the digit that is the image's label. Pixel k of the channel, in row order, is 1 if task k is
to be solved, and 0 otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError, suggestion

TASKS: dict[str, tuple[int, ...]] = {  # the answer for each digit from 0 to 9
    "digit": tuple(range(10)),
    "parity": tuple(d % 2 for d in range(10)),
    "above_five": tuple(int(d > 5) for d in range(10)),
    "holes": (1, 0, 0, 0, 1, 0, 1, 0, 2, 1),  # closed loops in its shape
    "prime": tuple(int(d in (2, 3, 5, 7)) for d in range(10)),
    "multiple_of_3": tuple(int(d % 3 == 0) for d in range(10)),
    **{f"is_{k}": tuple(int(d == k) for d in range(10)) for k in range(10)},
}


def load(
    split: Literal["train", "validation", "test"],
    *,
    of: str = "cluttered_digits",
    tasks: list[str] | int = 4,
    asked: int = 1,
    limit: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
    **options: Any,
) -> Dataset:
    """Images of digits [N, 3, H, W] -> [N, 4, H, W].

    The tasks of an image are a uniform random choice. If it is one task, the label is `task * K + answer`, where K is
    the greatest number of answers of a task; if it is more than one, the images are unlabelled.

    Args:
        split: 'train', 'validation' or 'test'.
        of: inputs whose labels are digits, by name.
        tasks: names of `TASKS`, or the number of them to use.
        asked: number of tasks for each image.
        limit: maximum number of images.
        seed: of the images, and of the choice of tasks.
        data_dir: folder of a data set that does not come with dynbench.
        **options: of the other inputs.

    Raises:
        UserError: an unknown task, more tasks than there are, or inputs whose labels are not digits.
    """
    from dynbench.data import load_inputs

    names = list(TASKS)[:tasks] if isinstance(tasks, int) else list(tasks)
    if unknown := [name for name in names if name not in TASKS]:
        raise UserError(f"inputs 'digit_tasks': unknown task {unknown[0]!r}; {suggestion(unknown[0], TASKS)}")
    if not names or (isinstance(tasks, int) and len(names) != tasks) or not 1 <= asked <= len(names):
        raise UserError(
            f"inputs 'digit_tasks': tasks={tasks!r}, asked={asked}; tasks are 1 to {len(TASKS)}, and asked is 1 to the "
            "number of tasks"
        )
    data = load_inputs(of, split, data_dir=data_dir, limit=limit, seed=seed, **options)
    if data.labels is None or data.classes != 10 or data.inputs.ndim != 4:
        raise UserError(f"inputs 'digit_tasks': of={of!r} are no images of digits")
    count, (_, _, height, width) = len(data), data.inputs.shape
    if len(names) > height * width:
        raise UserError(f"inputs 'digit_tasks': {len(names)} tasks do not fit into an image of {height} x {width}")
    rng = np.random.default_rng([seed, *split.encode(), len(names)])
    which = rng.random((count, len(names))).argsort(1)[:, :asked]  # [N, asked]
    plane = np.zeros((count, height * width), np.float32)
    np.put_along_axis(plane, which, 1, axis=1)
    answers = labels_of(names, data.labels)
    most = answers_per_task(names)
    labels = None
    if asked == 1:
        labels = which[:, 0] * most + np.take_along_axis(answers, which, 1)[:, 0]
    what = f"{data.description}; of each {asked} of {len(names)} tasks asked ({', '.join(names)})"
    inputs = np.concatenate([data.inputs, plane.reshape(count, 1, height, width)], axis=1)
    return Dataset(inputs, labels, what, len(names) * most)


def labels_of(names: list[str], digits: np.ndarray) -> np.ndarray:
    """The answers to each task: digits [N] -> [N, tasks]."""
    return np.array([TASKS[name] for name in names], np.int64).T[digits]


def answers_per_task(names: list[str]) -> int:
    """K: the greatest number of answers that one of the tasks has."""
    return max(max(TASKS[name]) + 1 for name in names)
