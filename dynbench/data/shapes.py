"""SHAPES: questions about coloured shapes on a 3 x 3 grid, answered yes or no (Andreas et al., CVPR 2016).

The scenes are generated; the validation and test splits may be the released ones, read from a folder. The original
generator was not released: scenes and the meaning of questions are reconstructed from the released files, which have 64
images for each of 244 questions. No question is in two splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynbench.data.dataset import Dataset
from dynbench.errors import UserError

ITEMS = {"train": 13568, "validation": 1024, "test": 1024}  # as released
RELEASED = {"validation": "val", "test": "test"}  # the training images were not released
GRID, CELL = 3, 10  # cells, pixels
SIZE = GRID * CELL
COLORS = ("red", "green", "blue")
SHAPES = ("circle", "square", "triangle")
RELATIONS = {"above": (-1, 0), "below": (1, 0), "left_of": (0, -1), "right_of": (0, 1)}  # (row, column) of one step
OCCUPIED = 0.8
HALF_SIDES = (2.5, 3.75)  # of a shape, pixels, +- 10 %
TINT = 50  # greatest deviation of a channel from the pure colour
RELATED = (0.142, 0.599, 0.259)  # share of the released training questions with 0, 1 and 2 relations
MEAN, STD = 0.0875, 0.245  # of all channels of the released images, 0 to 1
CHUNK = 2000  # scenes drawn at once, to bound memory
HELD_OUT = {  # the questions of the released splits
    "validation": """(is blue (above green)) (is blue (right_of circle)) (is blue (right_of red)) (is blue red)
        (is circle (below (below red))) (is circle (below square)) (is green (above (below square)))
        (is green (above square)) (is green (below blue)) (is green (right_of (right_of green))) (is green red)
        (is green triangle) (is red red) (is square (left_of (right_of green))) (is triangle (above (right_of square)))
        (is triangle (above blue))""",
    "test": """(is blue (above red)) (is blue (below blue)) (is blue (left_of (right_of square)))
        (is blue (right_of triangle)) (is circle (left_of triangle)) (is circle (right_of blue))
        (is circle (right_of circle)) (is green (below circle)) (is green (left_of square)) (is green (right_of blue))
        (is red (below (below green))) (is red (left_of blue)) (is red (right_of (left_of circle))) (is red green)
        (is red square) (is square (below (left_of square)))""",
}


def load(
    split: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    questions: int = 1,
    related: Sequence[float] = RELATED,
) -> Dataset:
    """Scenes with a question each, [N, 4, 30, 30]: red, green and blue, normalised; the bytes of the question, then 0.

    The training questions are all questions of the grammar except those of the other splits.

    Args:
        split: 'train', 'validation' or 'test'.
        data_dir: folder with the released `{val,test}.{input.npy,query,output}`, itself or in `shapes/`; without them,
            and always for training, scenes are generated.
        limit: number of scenes; default: as many as released.
        seed: of generated scenes.
        questions: number Q of questions per scene; more than one: generated, inputs [N, 3 + Q, 30, 30], labels [N, Q].
        related: share of the training questions with 0, 1 and 2 relations.

    Raises:
        UserError: an option out of range, or a released file that cannot be read.
    """
    if questions < 1:
        raise UserError(f"inputs 'shapes': questions={questions}; it is 1 or more")
    if len(related) != len(RELATED) or min(related) < 0 or abs(sum(related) - 1) > 1e-6:
        raise UserError(f"inputs 'shapes': related={list(related)}; the shares of 0, 1 and 2 relations add up to 1")
    folder = None if data_dir is None or split not in RELEASED or questions > 1 else _folder(data_dir, RELEASED[split])
    if folder is not None:
        return _released(folder, split, limit)
    total = ITEMS[split] if limit is None else limit
    rng = np.random.default_rng([seed, *split.encode()])
    colors, shapes = draw_cells(rng, total)
    asked = _draw_questions(rng, split, total * questions, related)
    inputs = np.empty((total, 3 + questions, SIZE, SIZE), np.float32)
    for start in range(0, total, CHUNK):
        rows = slice(start, start + CHUNK)
        inputs[rows, :3] = _normalised(paint(rng, colors[rows], shapes[rows]))
    inputs[:, 3:] = written(asked).reshape(total, questions, SIZE, SIZE)
    at = np.arange(total).repeat(questions)
    labels = np.array([answer(q, colors[i], shapes[i]) for i, q in zip(at, asked, strict=True)], np.int64)
    if questions > 1:
        labels = labels.reshape(total, questions)
    each = f"{questions} questions each" if questions > 1 else "questions"
    what = f"SHAPES, {total} generated scenes with {each} of the {split} part, seed {seed}"
    return Dataset(inputs, labels, what, 2)


def _folder(data_dir: Path, part: str) -> Path | None:
    return next((f for f in (data_dir, data_dir / "shapes") if (f / f"{part}.input.npy").is_file()), None)


def _released(folder: Path, split: str, limit: int | None) -> Dataset:
    part = RELEASED[split]
    try:
        images = np.load(folder / f"{part}.input.npy")
        asked = (folder / f"{part}.query").read_text(encoding="ascii").splitlines()
        answers = (folder / f"{part}.output").read_text(encoding="ascii").split()
    except (OSError, ValueError) as e:
        raise UserError(f"SHAPES in {folder} cannot be read: {e}") from e
    if images.shape != (len(asked), SIZE, SIZE, 3) or len(answers) != len(asked):
        raise UserError(
            f"{folder} has {part} images {images.shape}, {len(asked)} questions and {len(answers)} answers: that is "
            "not SHAPES"
        )
    rows = np.random.default_rng(0).permutation(len(asked))[:limit]  # the files are sorted by question
    inputs = np.empty((len(rows), 4, SIZE, SIZE), np.float32)
    inputs[:, :3] = _normalised(images[rows][..., ::-1].transpose(0, 3, 1, 2))  # stored as BGR
    inputs[:, 3] = written([asked[i] for i in rows])
    labels = np.array([answers[i] == "true" for i in rows], np.int64)
    return Dataset(inputs, labels, f"SHAPES, {len(rows)} released images and questions of the {split} part", 2)


def every_question(related: int) -> list[str]:
    """All questions `(is A B)` where B has `related` relations; A and the innermost part of B are attributes."""
    bodies = [*COLORS, *SHAPES]
    for _ in range(related):
        bodies = [f"({relation} {b})" for relation in RELATIONS for b in bodies]
    return [f"(is {a} {b})" for a in (*COLORS, *SHAPES) for b in bodies]


def held_out(split: str) -> list[str]:
    """The questions of the released validation or test split."""
    return ["(is " + q.strip() for q in HELD_OUT[split].split("(is ")[1:]]


def _draw_questions(rng: np.random.Generator, split: str, total: int, related: Sequence[float]) -> list[str]:
    if split in HELD_OUT:
        pool = held_out(split)
        return [pool[i] for i in rng.integers(len(pool), size=total)]
    others = {*held_out("validation"), *held_out("test")}
    pools = [[q for q in every_question(k) if q not in others] for k in range(len(RELATED))]
    which = rng.choice(len(pools), size=total, p=related)
    at = rng.random(total)
    return [pools[k][int(u * len(pools[k]))] for k, u in zip(which, at, strict=True)]


def written(asked: list[str]) -> np.ndarray:
    """Questions as planes [N, 30, 30]: their bytes, row by row, then 0."""
    planes = np.zeros((len(asked), SIZE * SIZE), np.uint8)
    for plane, question in zip(planes, asked, strict=True):
        text = question.encode("ascii")
        plane[: len(text)] = np.frombuffer(text, np.uint8)
    return planes.reshape(-1, SIZE, SIZE).astype(np.float32)


def answer(question: str, colors: np.ndarray, shapes: np.ndarray) -> bool:
    """The answer to a question about a scene.

    An attribute denotes the cells that have it; `(above X)` the cells directly above a cell of X, and so on for the
    other relations. `(is A B)` is true if A and B have a cell in common.

    Args:
        question: such as `(is red (above circle))`.
        colors: [3, 3] int, -1: empty.
        shapes: [3, 3] int, -1: empty.

    Raises:
        ValueError: not a question.
    """
    words = question.replace("(", " ").replace(")", " ").split()
    if len(words) < 3 or words[0] != "is":
        raise ValueError(f"not a question: {question!r}")
    cells = _having(words[-1], colors, shapes)
    for relation in reversed(words[2:-1]):
        down, right = RELATIONS[relation]
        around = np.zeros((GRID + 2, GRID + 2), bool)
        around[1 + down : 1 + down + GRID, 1 + right : 1 + right + GRID] = cells
        cells = around[1:-1, 1:-1]
    return bool((_having(words[1], colors, shapes) & cells).any())


def _having(attribute: str, colors: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    if attribute in COLORS:
        return np.asarray(colors == COLORS.index(attribute))
    return np.asarray(shapes == SHAPES.index(attribute))


def draw_cells(rng: np.random.Generator, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours and shapes [N, 3, 3] int; -1: an empty cell."""
    colors, shapes = rng.integers(3, size=(2, total, GRID, GRID))
    empty = rng.random((total, GRID, GRID)) >= OCCUPIED
    colors[empty] = shapes[empty] = -1
    return colors, shapes


def paint(rng: np.random.Generator, colors: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Cells [n, 3, 3] -> images [n, 3, 30, 30] uint8.

    Each shape is in the middle of its cell, small or large, with smooth edges.
    """
    n = len(colors)
    side = rng.choice(HALF_SIDES, size=(n, GRID, GRID)) * rng.uniform(0.9, 1.1, (n, GRID, GRID))
    half = side.astype(np.float32)[..., None, None]
    at = np.arange(CELL, dtype=np.float32) + 0.5 - CELL / 2  # position of a pixel relative to the cell's middle
    y, x = at[:, None], at[None, :]
    square = _covered(half - np.abs(x)) * _covered(half - np.abs(y))
    circle = _covered(half - np.hypot(x, y))
    triangle = _covered((y + half) / 2 - np.abs(x)) * _covered(half - y)  # as wide as high, on its base
    drawn = np.select([(shapes == k)[..., None, None] for k in range(3)], [circle, square, triangle], np.float32(0))
    pure = 255 * (np.arange(3) == colors[..., None])
    color = np.clip(pure + rng.integers(-TINT, TINT + 1, (n, GRID, GRID, 3)), 0, 255).astype(np.float32)
    cells = np.rint(drawn[:, :, :, None] * color[..., None, None])  # [n, row, column, 3, 10, 10]
    return np.asarray(cells, np.uint8).transpose(0, 3, 1, 4, 2, 5).reshape(n, 3, SIZE, SIZE)


def _normalised(images: np.ndarray) -> np.ndarray:
    return np.asarray((images.astype(np.float32) / 255 - MEAN) / STD, np.float32)


def _covered(inside: np.ndarray) -> np.ndarray:
    """Coverage of a pixel whose middle is this far inside an edge."""
    return np.clip(inside + 0.5, 0, 1)
