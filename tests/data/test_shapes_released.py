"""The released SHAPES files, in the folder `DYNBENCH_SHAPES`, agree with the questions and scenes generated here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.data import load_inputs, shapes
from tests.data.test_shapes import EMPTY, asked, pixels, seen

FOLDER = Path(os.environ["DYNBENCH_SHAPES"])


@pytest.mark.parametrize("split", ["validation", "test"])
def test_released_answers_follow_from_released_images(split: Any) -> None:
    data = load_inputs("shapes", split, data_dir=FOLDER)
    assert "released" in data.description and len(data) == 1024 and data.labels is not None
    colors, forms = seen(pixels(data))
    answers = [shapes.answer(q, c, s) for q, c, s in zip(asked(data), colors, forms, strict=True)]
    assert answers == data.labels.astype(bool).tolist()
    assert set(asked(data)) == set(shapes.held_out(split))
    assert abs((colors == EMPTY).mean() - 0.2) < 0.02


def test_generated_scenes_look_like_released_ones() -> None:
    real, made = (load_inputs("shapes", "test", data_dir=folder).inputs[:, :3] for folder in (FOLDER, None))
    assert abs(real.mean()) < 0.05 and abs(real.std() - 1) < 0.05
    assert np.allclose(real.mean((0, 2, 3)), made.mean((0, 2, 3)), atol=0.05) and abs(real.std() - made.std()) < 0.05
    brightest = [np.sort(x.max((1, 2, 3)))[[10, 500]] for x in (real, made)]
    assert np.allclose(*brightest, atol=0.05)


def test_all_released_questions_are_of_the_grammar() -> None:
    folder = next(f for f in (FOLDER, FOLDER / "shapes") if (f / "train.large.query").is_file())
    questions = set((folder / "train.large.query").read_text().splitlines())
    assert len(questions) == 212 and questions <= {q for k in range(3) for q in shapes.every_question(k)}
    assert not questions & {*shapes.held_out("validation"), *shapes.held_out("test")}
