"""Metrics on small examples computed by hand."""

import numpy as np
import pytest

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
