"""Metrics of predictions: functions of probabilities and labels, without side effects."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame

SIGNIFICANCE_LEVEL = 0.05  # a smaller p-value means that a difference is more than noise


def accuracy(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of correct predictions in 0..1, from probabilities [N, n_classes] and labels [N]."""
    return float((probabilities.argmax(1) == labels).mean())


def confusion_matrix(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Counts [n_classes, n_classes], with true classes in rows and predicted classes in columns."""
    pairs = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes)


def confusion_table(matrix: NDArray[np.int64], classes: Sequence[str]) -> "DataFrame":
    """Label the rows and columns of a confusion matrix with class names."""
    import pandas as pd

    return pd.DataFrame(matrix, pd.Index(classes, name="true \\ predicted"), classes)


def ranked_confusions(matrix: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """List the confusions of a confusion matrix as (true, predicted, count), most frequent first."""
    confusions = [(int(t), int(p), int(matrix[t, p])) for t, p in np.argwhere(matrix) if t != p]
    return sorted(confusions, key=lambda confusion: -confusion[2])


def per_class(matrix: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 [n_classes] from a confusion matrix; 0 where they are undefined."""
    correct = np.diag(matrix)
    n_predicted, n_true = matrix.sum(0), matrix.sum(1)
    return {
        "precision": correct / np.maximum(n_predicted, 1),
        "recall": correct / np.maximum(n_true, 1),
        "F1": 2 * correct / np.maximum(n_predicted + n_true, 1),
    }


class Bins(NamedTuple):
    """Non-empty bins of a reliability diagram: images grouped by the confidence of the prediction."""

    centre: NDArray[np.float64]  # [n_bins] middle of the bin, in 0..1
    confidence: NDArray[np.float64]  # mean probability of the predicted class
    accuracy: NDArray[np.float64]
    n_images: NDArray[np.int64]


def calibration(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], n_bins: int = 15
) -> tuple[Bins, float]:
    """Reliability diagram, and expected calibration error in 0..1 (Guo et al. 2017).

    Args:
        probabilities: [N, n_classes].
        labels: [N].
        n_bins: bins of equal width in 0..1.
    """
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    bin_of_image = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(bin_of_image, minlength=n_bins)
    filled = np.flatnonzero(count)
    bins = Bins(
        (filled + 0.5) / n_bins,
        np.bincount(bin_of_image, confidence, n_bins)[filled] / count[filled],
        np.bincount(bin_of_image, correct, n_bins)[filled] / count[filled],
        count[filled],
    )
    gap = np.abs(bins.confidence - bins.accuracy)
    return bins, float((gap * bins.n_images).sum() / len(labels))


def mcnemar(correct: NDArray[np.bool_], other_correct: NDArray[np.bool_]) -> float:
    """p-value of the hypothesis that two models are equally accurate (McNemar 1947).

    The exact binomial form stays valid for the few images on which two MNIST models disagree.

    Args:
        correct: [N] whether the first model predicts each image correctly.
        other_correct: [N] the same for the second model.
    """
    only_first = int((correct & ~other_correct).sum())
    only_second = int((other_correct & ~correct).sum())
    if not only_first + only_second:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue)


# Functions of several models: probabilities [M, N, n_classes].


def majority_vote(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class [N] that most models predict. A tie goes to the largest mean probability."""
    n_classes = probabilities.shape[2]
    votes = np.eye(n_classes)[probabilities.argmax(2)].sum(0)  # [N, n_classes]
    predicted: NDArray[np.int64] = (votes + 0.5 * probabilities.mean(0)).argmax(1)
    return predicted


def greedy_selection(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], rounds: int
) -> NDArray[np.int64]:
    """Select an ensemble by forward selection with replacement (Caruana et al. 2004).

    Each round adds the model that makes the mean probability most accurate. The smaller
    cross-entropy decides a tie. The result is the ensemble after the most accurate round, the
    earliest of equal rounds.

    Returns:
        [M] how many times each model was added.
    """
    added: list[int] = []
    total = np.zeros(probabilities.shape[1:])
    scores: list[tuple[float, float]] = []
    true_class = np.arange(len(labels)), labels

    def score(mean: NDArray[np.floating]) -> tuple[float, float]:
        cross_entropy = -np.log(np.maximum(mean[true_class], 1e-12)).mean()
        return float((mean.argmax(1) == labels).mean()), -float(cross_entropy)

    for n in range(1, rounds + 1):
        candidates = [score((total + model) / n) for model in probabilities]
        best = max(range(len(candidates)), key=candidates.__getitem__)
        added.append(best)
        scores.append(candidates[best])
        total += probabilities[best]
    last = max(range(rounds), key=lambda i: (scores[i][0], -i))
    return np.bincount(added[: last + 1], minlength=len(probabilities))


def errors(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each model predicts each image wrong: [M, N]."""
    wrong: NDArray[np.bool_] = probabilities.argmax(2) != labels
    return wrong


def overlap(wrong: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of images that two models both get wrong: [M, M], own errors on the diagonal."""
    counts = wrong.astype(np.int64)
    return counts @ counts.T
