"""Metrics on small examples computed by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_sweep.analysis import metrics


def test_accuracy_is_the_share_of_correct_predictions() -> None:
    probabilities = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]], np.float32)
    assert metrics.accuracy(probabilities, np.array([0, 1, 1])) == 2 / 3


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 2, 2]), np.array([0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_confusion_table_quotes_class_names_as_csv() -> None:
    text = metrics.confusion_table(np.array([[1, 2], [3, 4]]), ["a,b", "c"]).to_csv()
    assert text == 'true \\ predicted,"a,b",c\n"a,b",1,2\nc,3,4\n'


def test_per_class_precision_recall_f1() -> None:
    matrix = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    scores = metrics.per_class(matrix)
    assert scores["precision"].tolist() == [8 / 9, 9 / 11, 0]
    assert scores["recall"].tolist() == [0.8, 0.9, 0]
    assert scores["F1"].tolist() == pytest.approx([16 / 19, 18 / 21, 0])


def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.3, 0.7]] * 10, np.float32)
    labels = np.array([0] * 8 + [1] * 2 + [1] * 7 + [0] * 3)
    bins, error = metrics.calibration(probabilities, labels)
    assert bins.n_images.tolist() == [10, 10]
    assert bins.accuracy.tolist() == pytest.approx([0.7, 0.8])
    assert error == pytest.approx(0.05)


def test_mcnemar_uses_only_discordant_images() -> None:
    first, second = np.ones(100, bool), np.ones(100, bool)
    assert metrics.mcnemar(first, second) == 1
    second[:6] = False
    assert metrics.mcnemar(first, second) == pytest.approx(2 / 2**6)


def one_hot(*rows: list[int], strength: float = 0.9) -> NDArray[np.float32]:
    """Return probabilities [M, N, 2] of models that give `strength` to the classes of each row."""
    chosen = np.eye(2, dtype=bool)[np.array(rows)]
    return np.where(chosen, strength, 1 - strength).astype(np.float32)


def test_majority_vote_counts_and_breaks_ties_by_the_mean() -> None:
    three = one_hot([0, 1], [0, 1], [1, 1])
    assert metrics.majority_vote(three).tolist() == [0, 1]
    confident, doubtful = one_hot([1], strength=0.99), one_hot([0], strength=0.6)
    assert metrics.majority_vote(np.concatenate([doubtful, confident])).tolist() == [1]


def test_greedy_selection_prefers_models_that_complement_each_other() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0])
    models = one_hot([0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1])
    models[0, 4:], models[1, :2] = (0.4, 0.6), (0.4, 0.6)  # less confident where they are wrong
    assert metrics.greedy_selection(models, labels, rounds=10).tolist() == [1, 1, 0]
    assert metrics.greedy_selection(models[[2, 0]], labels, rounds=3).tolist() == [0, 1]


def test_overlap_and_ranked_confusions() -> None:
    labels = np.array([0, 1, 0, 1])
    wrong = metrics.errors(one_hot([0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]), labels)
    assert metrics.overlap(wrong).tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    matrix = np.array([[9, 1, 0], [4, 9, 0], [0, 2, 9]])
    assert metrics.ranked_confusions(matrix) == [(1, 0, 4), (2, 1, 2), (0, 1, 1)]
