"""Pure functions on probabilities and labels, as arrays."""

import csv
from collections.abc import Sequence
from io import StringIO

import numpy as np
from numpy.typing import NDArray


def accuracy(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of rows of `probabilities` [N, n_classes] whose largest entry is at the label [N]."""
    return float((probabilities.argmax(1) == labels).mean())


def confusion_matrix(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """[n_classes, n_classes] counts, true classes in rows, predicted ones in columns."""
    pairs = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return pairs.reshape(n_classes, n_classes)


def confusion_csv(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["true \\ predicted", *classes])
    for name, row in zip(classes, matrix, strict=True):
        writer.writerow([name, *row.tolist()])
    return out.getvalue()


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
