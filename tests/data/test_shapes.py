"""SHAPES: what questions mean and what scenes look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynbench.data import Dataset, load_inputs, shapes
from dynbench.errors import UserError

EMPTY = -1
COLORS, FORMS = ("red", "green", "blue"), ("circle", "square", "triangle")
STEPS = {"above": (-1, 0), "below": (1, 0), "left_of": (0, -1), "right_of": (0, 1)}


def seen(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours and shapes [N, 3, 3] of images [N, 3, 30, 30], 0 to 255, by eye: -1 where a cell is dark."""
    cells = images.reshape(-1, 3, 3, 10, 3, 10).transpose(0, 2, 4, 1, 3, 5).astype(float)  # [N, 3, 3, rgb, 10, 10]
    light = cells.max(3)
    peak = light.max((3, 4), keepdims=True)
    covered = light / np.maximum(peak, 1)
    width = covered.sum(4).max(3)
    filled = covered.sum((3, 4)) / np.maximum(width, 1) ** 2  # a square 1, a circle pi / 4
    above, below = covered[..., :5, :].sum((3, 4)), covered[..., 5:, :].sum((3, 4))
    form = np.where(above < 0.7 * below, 2, np.where(filled > 0.9, 1, 0))
    dark = peak[..., 0, 0] < 100
    return np.where(dark, EMPTY, cells.sum((4, 5)).argmax(3)), np.where(dark, EMPTY, form)


def pixels(data: Dataset) -> np.ndarray:
    return np.rint((data.inputs[:, :3] * shapes.STD + shapes.MEAN) * 255)


def asked(data: Dataset) -> list[str]:
    return [bytes(plane.astype(np.uint8).ravel()).rstrip(b"\0").decode() for plane in data.inputs[:, 3]]


def means(words: list[str], colors: np.ndarray, forms: np.ndarray) -> set[tuple[int, int]]:
    """The cells that `above left_of red` means, cell by cell."""
    head, *rest = words
    if rest:
        (down, right), inside = STEPS[head], means(rest, colors, forms)
        return {(r + down, c + right) for r, c in inside if 0 <= r + down < 3 and 0 <= c + right < 3}
    table, names = (colors, COLORS) if head in COLORS else (forms, FORMS)
    return {(r, c) for r in range(3) for c in range(3) if table[r, c] == names.index(head)}


def scene(rows: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Two letters per cell, colour and shape, such as 'rc', or '..'."""
    table = np.array([row.split() for row in rows])
    colors = np.array([["rgb".find(cell[0]) for cell in row] for row in table])
    return colors, np.array([["cst".find(cell[1]) for cell in row] for row in table])


@pytest.mark.parametrize(
    ("question", "true"),
    [
        ("(is red circle)", True),
        ("(is red square)", False),
        ("(is green (above blue))", True),  # the green triangle stands on the blue square
        ("(is red (above blue))", False),  # two above, with a cell between, is not above
        ("(is blue (below triangle))", True),
        ("(is circle (left_of green))", True),
        ("(is green (left_of circle))", False),
        ("(is red (above (left_of green)))", False),
        ("(is blue (below (right_of circle)))", True),
        ("(is square (below (below circle)))", False),
        ("(is red (left_of (above square)))", True),
        ("(is circle (left_of (above square)))", True),
        ("(is red red)", True),
    ],
)
def test_questions_mean_one_step(question: str, true: bool) -> None:
    colors, forms = scene([".. .. ..", "rc gt ..", ".. bs .."])
    assert shapes.answer(question, colors, forms) is true


@given(
    cells=st.lists(st.integers(0, 9), min_size=9, max_size=9),
    a=st.sampled_from((*shapes.COLORS, *shapes.SHAPES)),
    relations=st.lists(st.sampled_from(list(shapes.RELATIONS)), max_size=3),
    b=st.sampled_from((*shapes.COLORS, *shapes.SHAPES)),
)
def test_an_answer_is_what_going_from_cell_to_cell_gives(cells: Any, a: str, relations: Any, b: str) -> None:
    table = np.array(cells).reshape(3, 3)
    colors, forms = (np.where(table == 9, EMPTY, part) for part in (table // 3, table % 3))
    question = f"(is {a} {''.join(f'({r} ' for r in relations)}{b}{')' * len(relations)})"
    expected = bool(means([a], colors, forms) & means([*relations, b], colors, forms))
    assert shapes.answer(question, colors, forms) is expected


def test_what_is_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="not a question"):
        shapes.answer("(red circle)", *scene([".. .. .."] * 3))


def test_a_painted_scene_shows_its_cells() -> None:
    rng = np.random.default_rng(0)
    colors, forms = shapes.draw_cells(rng, 300)
    got_colors, got_forms = seen(shapes.paint(rng, colors, forms))
    assert np.array_equal(got_colors, colors) and np.array_equal(got_forms, forms)
    assert abs((colors == EMPTY).mean() - 0.2) < 0.02
    assert np.bincount(colors[colors >= 0]).min() > 600 and np.bincount(forms[forms >= 0]).min() > 600


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_generated_labels_answer_what_is_written_about_what_is_seen(split: str) -> None:
    data = load_inputs("shapes", split, limit=200)
    assert data.inputs.shape == (200, 4, 30, 30) and data.inputs.dtype == np.float32
    colors, forms = seen(pixels(data))
    answers = [shapes.answer(q, c, s) for q, c, s in zip(asked(data), colors, forms, strict=True)]
    assert answers == data.labels.astype(bool).tolist() and 0.2 < data.labels.mean() < 0.5


def test_several_questions_about_a_scene_have_an_answer_each() -> None:
    data = load_inputs("shapes", "train", limit=50, questions=3, related=[0.0, 0.0, 1.0])
    assert data.inputs.shape == (50, 6, 30, 30) and data.labels.shape == (50, 3)
    colors, forms = seen(pixels(data))
    for k in range(3):
        one = Dataset(data.inputs[:, [0, 1, 2, 3 + k]], None, "", 2)
        assert [shapes.answer(q, c, s) for q, c, s in zip(asked(one), colors, forms, strict=True)] == list(
            data.labels[:, k]
        )
        assert all(q.count("(") == 3 for q in asked(one))


def test_no_question_is_in_two_parts_and_the_grammar_has_them_all() -> None:
    everything = [q for k in range(3) for q in shapes.every_question(k)]
    assert [len(shapes.every_question(k)) for k in range(3)] == [36, 144, 576] and len(set(everything)) == 756
    validation, test = (set(shapes.held_out(split)) for split in ("validation", "test"))
    assert len(validation) == len(test) == 16 and validation | test <= set(everything)
    parts = [set(asked(load_inputs("shapes", split, limit=3000))) for split in shapes.ITEMS]
    assert parts[1] == validation and parts[2] == test and len(parts[0]) > 500
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_a_seed_draws_the_same_scenes_and_another_others() -> None:
    same, again, other = (load_inputs("shapes", "test", limit=20, seed=s) for s in (3, 3, 4))
    assert same.content_hash == again.content_hash != other.content_hash


@pytest.mark.parametrize(
    ("options", "says"),
    [({"questions": 0}, "1 or more"), ({"related": [0.5, 0.5]}, "add up to 1"), ({"related": [2.0, -1.0, 0.0]}, "add")],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_inputs("shapes", "train", limit=2, **options)


def write(folder: Path, part: str, images: np.ndarray, questions: list[str], answers: list[str]) -> None:
    np.save(folder / f"{part}.input.npy", images)
    (folder / f"{part}.query").write_text("\n".join(questions) + "\n")
    (folder / f"{part}.output").write_text("\n".join(answers) + "\n")


def test_files_in_the_released_form_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    folder.mkdir()
    images = np.zeros((2, 30, 30, 3), np.uint8)
    images[0, :10, :10, 2] = 255  # BGR: a red square
    images[1, 20:, 20:, 0] = 255
    write(folder, "test", images, ["(is red square)", "(is red blue)"], ["true", "false"])
    for place in (folder, tmp_path):
        data = load_inputs("shapes", "test", data_dir=place)
        by_question = dict(zip(asked(data), zip(data.labels, *seen(pixels(data)), strict=True), strict=True))
        label, colors, _ = by_question["(is red square)"]
        assert label == 1 and colors[0, 0] == 0 and (colors == EMPTY).sum() == 8
        label, colors, _ = by_question["(is red blue)"]
        assert label == 0 and colors[2, 2] == 2
        assert "released" in data.description and len(load_inputs("shapes", "test", data_dir=place, limit=1)) == 1
    for split, place in (("train", tmp_path), ("validation", tmp_path), ("test", tmp_path.parent)):
        assert "generated" in load_inputs("shapes", split, data_dir=place, limit=2).description


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "test", np.zeros((2, 30, 30, 3), np.uint8), ["(is red blue)"], ["true"])
    with pytest.raises(UserError, match="not SHAPES"):
        load_inputs("shapes", "test", data_dir=tmp_path)
    (tmp_path / "test.input.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot be read"):
        load_inputs("shapes", "test", data_dir=tmp_path)
