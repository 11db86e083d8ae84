import numpy as np

from mnist_sweep import metrics


def test_accuracy_is_the_share_of_largest_entries_at_the_label() -> None:
    probabilities = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]], np.float32)
    assert metrics.accuracy(probabilities, np.array([0, 1, 1])) == 2 / 3


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 2, 2]), np.array([0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_confusion_csv_quotes_class_names() -> None:
    text = metrics.confusion_csv(np.array([[1, 2], [3, 4]]), ["a,b", "c"])
    assert text == 'true \\ predicted,"a,b",c\n"a,b",1,2\nc,3,4\n'
