"""Inputs with an expert's answers: the labels, but for stated errors, whatever the number of items."""

from __future__ import annotations

import numpy as np
import pytest

from dynbench.data import load_inputs
from dynbench.errors import UserError


def answers_and_labels(**options: object) -> tuple[np.ndarray, np.ndarray]:
    data = load_inputs("with_expert", "test", **options)  # type: ignore[arg-type]
    assert data.labels is not None and (data.inputs[:, -1] == data.inputs[:, -1, :1, :1]).all()
    return data.inputs[:, -1, 0, 0], data.labels


def test_an_expert_who_never_errs_names_the_label_and_the_images_are_the_same() -> None:
    answers, labels = answers_and_labels(of="digits", size=16)
    assert (answers == labels).all()
    both = [load_inputs(name, "test", limit=5, **o) for name, o in (("with_expert", {"of": "digits"}), ("digits", {}))]
    assert np.array_equal(both[0].inputs[:, :3], both[1].inputs)
    assert "wrong in 0 %" in both[0].description


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_errors_come_at_the_stated_rate_and_name_another_class(rate: float) -> None:
    answers, labels = answers_and_labels(of="cluttered_digits", size=16, limit=2000, error_rate=rate)
    wrong = answers != labels
    assert abs(wrong.mean() - rate) < 0.035
    assert set(np.unique(answers)) == set(range(10))
    assert len(np.unique((answers[wrong] - labels[wrong]) % 10)) == 9


def test_an_item_s_answer_is_a_function_of_seed_and_item() -> None:
    some, many = (answers_and_labels(of="digits", size=16, limit=n, error_rate=0.5)[0] for n in (20, 200))
    assert np.array_equal(some, many[:20])
    other = answers_and_labels(of="digits", size=16, limit=200, error_rate=0.5, seed=1)[0]
    assert not np.array_equal(many, other)


def test_what_an_expert_cannot_name_is_refused() -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        load_inputs("with_expert", "test", error_rate=2.0)
    with pytest.raises(UserError, match="no labelled images"):
        load_inputs("with_expert", "test", of="text", context=16)
