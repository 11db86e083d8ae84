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
