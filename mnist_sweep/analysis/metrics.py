"""Pure functions on probabilities and labels, as arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame


def accuracy(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of rows of `probabilities` [N, n_classes] whose largest entry is at the label [N]."""
    return float((probabilities.argmax(1) == labels).mean())


def confusion_matrix(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """[n_classes, n_classes] counts, true classes in rows, predicted ones in columns."""
    pairs = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes)


def confusion_table(matrix: NDArray[np.int64], classes: Sequence[str]) -> "DataFrame":
    """A `confusion_matrix` with the names of its rows and columns."""
    import pandas as pd

    return pd.DataFrame(matrix, pd.Index(classes, name="true \\ predicted"), classes)


def per_class(matrix: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 [n_classes] of a `confusion_matrix`; 0 where nothing can be said."""
    right = np.diag(matrix)
    said, there = np.maximum(matrix.sum(0), 1), np.maximum(matrix.sum(1), 1)
    f1 = 2 * right / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    return {"precision": right / said, "recall": right / there, "F1": f1}


class Bins(NamedTuple):
    """Images by the probability of their predicted class; only the bins that hold any."""

    centre: NDArray[np.float64]
    confidence: NDArray[np.float64]  # mean probability
    accuracy: NDArray[np.float64]
    n_images: NDArray[np.int64]


def calibration(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], n_bins: int = 15
) -> tuple[Bins, float]:
    """The reliability diagram and the expected calibration error in 0..1 (Guo et al. 2017)."""
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    place = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    held = np.flatnonzero(count)
    bins = Bins(
        (held + 0.5) / n_bins,
        np.bincount(place, confidence, n_bins)[held] / count[held],
        np.bincount(place, right, n_bins)[held] / count[held],
        count[held],
    )
    gap = np.abs(bins.confidence - bins.accuracy)
    return bins, float((gap * bins.n_images).sum() / len(labels))


NOISE = 0.05  # p-value above which a difference counts as noise


def mcnemar(right: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """p-value that two models are equally accurate, of the images [N] that only one gets right.

    The exact binomial form (McNemar 1947): also sound for the few discordant images of MNIST.
    """
    only_one, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    if not only_one + only_other:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_one, only_one + only_other).pvalue)


# --- several models: probabilities [M, N, n_classes] ---


def majority_vote(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """[N] the class that most models predict; among equals that of the largest mean probability."""
    n_classes = probabilities.shape[2]
    votes = np.eye(n_classes)[probabilities.argmax(2)].sum(0)  # [N, n_classes]
    chosen: NDArray[np.int64] = (votes + 0.5 * probabilities.mean(0)).argmax(1)
    return chosen


def greedy_selection(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], rounds: int
) -> NDArray[np.int64]:
    """[M] how often each model takes part: forward selection with replacement (Caruana et al. 2004).

    Every round adds the model whose addition makes the mean probability most accurate, among equals
    that of the smallest cross-entropy; the best round counts, the earliest among equals.
    """
    chosen: list[int] = []
    total = np.zeros(probabilities.shape[1:])
    scores: list[tuple[float, float]] = []
    true_class = np.arange(len(labels)), labels

    def score(mean: NDArray[np.floating]) -> tuple[float, float]:
        log_loss = -np.log(np.maximum(mean[true_class], 1e-12)).mean()
        return float((mean.argmax(1) == labels).mean()), -float(log_loss)

    for n in range(1, rounds + 1):
        candidates = [score((total + model) / n) for model in probabilities]
        best = max(range(len(candidates)), key=candidates.__getitem__)
        chosen.append(best)
        scores.append(candidates[best])
        total += probabilities[best]
    last = max(range(rounds), key=lambda i: (scores[i][0], -i))
    return np.bincount(chosen[: last + 1], minlength=len(probabilities))


def errors(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[M, N] which images each model gets wrong."""
    wrong: NDArray[np.bool_] = probabilities.argmax(2) != labels
    return wrong


def overlap(wrong: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[M, M] images that both models get wrong; a model's own errors on the diagonal."""
    counts = wrong.astype(np.int64)
    return counts @ counts.T


def ranked_confusions(matrix: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(true, predicted, count) of every confusion in a `confusion_matrix`, the most frequent first."""
    found = [(int(t), int(p), int(matrix[t, p])) for t, p in np.argwhere(matrix) if t != p]
    return sorted(found, key=lambda confusion: -confusion[2])
