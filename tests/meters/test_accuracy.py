"""Answers are judged by the task that they are answers to, and not at all where that is left open."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dynbench.meters.accuracy import CannotJudge, Rules, judged, recognised

LONG = torch.long


def test_classes_are_recognised_and_judged_by_the_highest_score() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    found = judged(None, scores, torch.tensor([0, 1, 1, 1]))
    assert (found.value, found.items, found.metric, found.unit) == (0.75, 4, "top-1 accuracy", "%")
    assert found.in_percent and found.share_of_items


def test_bytes_of_a_text_are_judged_in_bits() -> None:
    found = judged(None, torch.zeros(3, 5, 256), torch.randint(256, (3, 5)), Rules(token="byte"))
    assert found.value == pytest.approx(8.0) and found.metric == "bits per byte" and not found.higher_is_better
    assert not found.in_percent


def test_padding_is_left_out_of_token_accuracy_and_of_bits() -> None:
    scores = torch.eye(4)[torch.tensor([[0, 1, 2], [3, 0, 0]])] * 9
    labels = torch.tensor([[0, 1, -100], [2, -100, -100]])
    found = judged(None, scores, labels)
    assert found.metric == "token accuracy" and found.value == pytest.approx(2 / 3)
    even = judged("language", torch.zeros(2, 3, 4), labels)
    assert even.metric == "bits per token" and even.value == pytest.approx(2.0)


def test_pixels_have_their_classes_in_dimension_one_and_a_label_to_ignore() -> None:
    labels = torch.randint(3, (2, 4, 5))
    scores = torch.eye(3)[labels].movedim(-1, 1)
    assert judged(None, scores, labels).value == 1.0
    labels[0, 0, :] = 255
    assert judged("pixels", scores, labels, Rules(ignore=255)).metric == "pixel accuracy"
    with pytest.raises(CannotJudge, match="pixels are judged by scores"):
        judged("pixels", scores, labels)


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        (torch.zeros(6, 1), torch.rand(6)),  # a price, or a probability
        (torch.zeros(6, 1), torch.zeros(6, dtype=LONG)),  # one logit for yes and no
        (torch.zeros(6, 20), torch.zeros(6, 20)),  # many yes or no
        (torch.zeros(6, 20), torch.zeros(6, 20, dtype=LONG)),  # or a mask
        (torch.zeros(6, 3), torch.full((6,), 3)),  # a class too many
        (torch.zeros(6, 3), torch.full((6,), -100)),  # nothing to judge
        (torch.zeros(6, 5, 5), torch.zeros(6, 5, dtype=LONG)),  # classes in either dimension
        (torch.zeros(6, 3, dtype=LONG), torch.zeros(6, dtype=LONG)),  # no scores
        (torch.zeros(6, 4, 4, 4), torch.zeros(6, 3, 4, dtype=LONG)),
    ],
)
def test_what_is_open_to_doubt_is_not_judged(answers: Tensor, labels: Tensor) -> None:
    with pytest.raises(CannotJudge, match=r"leave open how they are judged; \[task\] kind"):
        recognised(answers, labels)


def test_values_of_the_labels_say_why_they_are_no_classes() -> None:
    with pytest.raises(CannotJudge, match=r"answers \[3, 3\] float32 and labels \[3\] int64 \(0 to 9\) leave open how"):
        recognised(torch.zeros(3, 3), torch.tensor([0, 9, 2]))


def test_one_logit_of_yes_and_no_is_right_by_its_sign() -> None:
    answers = torch.tensor([[3.0], [-2.0], [1.0], [-1.0]])
    found = judged("binary", answers, torch.tensor([1, 0, 0, 0]))
    assert (found.value, found.metric) == (0.75, "binary accuracy")
    assert judged("binary", answers[:, 0], torch.tensor([[True], [False], [True], [False]])).value == 1.0


def test_probabilities_are_not_taken_for_logits() -> None:
    answers, labels = torch.tensor([0.2, 0.9]), torch.tensor([0, 1])
    with pytest.raises(CannotJudge, match="threshold = 0.5"):
        judged("binary", answers, labels)
    assert judged("binary", answers, labels, Rules(threshold=0.5)).value == 1.0
    assert judged("binary", answers, labels, Rules(threshold=0.0)).value == 0.5


def test_many_yes_or_no_are_judged_by_f1() -> None:
    answers = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    found = judged("multilabel", answers, labels)
    assert found.value == pytest.approx(2 * 2 / (2 * 2 + 2)) and found.metric == "micro F1"
    assert not found.share_of_items  # so that nobody gives it the error of a share of items


def test_numbers_are_judged_by_their_distance_which_is_no_percentage() -> None:
    found = judged("regression", torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 1.0]))
    assert found.value == 1.5 and found.metric == "mean absolute error"
    assert not found.in_percent and not found.higher_is_better
    partly = judged("regression", torch.tensor([1.0, 3.0]), torch.tensor([math.nan, 1.0]))
    assert partly.value == 2.0


@pytest.mark.parametrize(
    ("kind", "answers", "labels", "says"),
    [
        ("classes", torch.zeros(4), torch.zeros(4, dtype=LONG), r"scores \[n, C\].*answers are \[4\] float32"),
        ("classes", torch.zeros(4, 3), torch.tensor([0, 1, 2, 7]), "0 to the last class"),
        ("tokens", torch.zeros(4, 3), torch.zeros(4, dtype=LONG), r"scores \[n, T, V\]"),
        ("binary", torch.zeros(4, 2), torch.zeros(4), "a real number for each label"),
        ("binary", torch.tensor([1.0, -1.0]), torch.tensor([0, 5]), "labels go from 0 to 5"),
        ("binary", torch.zeros(4, 2), torch.zeros(4, 2), "one number for each item"),
        ("regression", torch.zeros(4, 3), torch.zeros(4), "a real number for each label"),
        ("regression", torch.full((4,), math.inf), torch.zeros(4), "not all finite"),
        ("regression", torch.zeros(4), torch.full((4,), math.nan), "no item has a label"),
        ("multilabel", torch.full((2, 2), -1.0), torch.zeros(2, 2), "neither answers nor labels say yes"),
        ("language", torch.zeros(4, 3), torch.zeros(4, dtype=LONG), r"scores \[n, T, V\]"),
    ],
)
def test_answers_that_do_not_fit_the_task_are_a_reason_and_no_metric(
    kind: str, answers: Tensor, labels: Tensor, says: str
) -> None:
    with pytest.raises(CannotJudge, match=says):
        judged(kind, answers, labels)
