"""What several trained models said of the same images, as their runs recorded it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mnist_sweep.analysis import figures, metrics
from mnist_sweep.analysis.figures import Figure
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.dataset import Dataset, load_dataset
from mnist_sweep.tracking import queries as recorded
from mnist_sweep.tracking.queries import Run

HARDEST = 25  # images in the picture of those that all models get wrong

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Members:
    """What M models said of the same test images, and of the same validation images if they share them."""

    run_ids: list[str]
    names: list[str]
    val_accuracy: NDArray[np.float64]  # [M] each on its own validation images
    test: NDArray[np.float32]  # [M, N, n_classes] probabilities
    test_labels: NDArray[np.int64]  # [N]
    val: NDArray[np.float32] | None  # [M, N_val, n_classes]; None: the validation images differ
    val_labels: NDArray[np.int64]

    @property
    def best(self) -> int:
        return int(self.val_accuracy.argmax())


def of_runs(uri: str, runs: Sequence[Run]) -> Members:
    """Raises UserError where a run left no predictions, or they were made of different data."""
    if len({run.data.tags.get("data.sha256") for run in runs}) > 1:
        raise UserError("the runs were made of different data: no comparison across them")
    stored = []
    for run in runs:
        with recorded.artifact(uri, run.info.run_id, "predictions.npz") as path:
            stored.append(dict(np.load(path)))
    shared = all(np.array_equal(s["val_indices"], stored[0]["val_indices"]) for s in stored)
    return Members(
        run_ids=[run.info.run_id for run in runs],
        names=_names([run.info.run_name for run in runs]),
        val_accuracy=np.array(
            [metrics.accuracy(s["val_probabilities"], s["val_labels"]) for s in stored]
        ),
        test=np.stack([s["test_probabilities"] for s in stored]),
        test_labels=stored[0]["test_labels"],
        val=np.stack([s["val_probabilities"] for s in stored]) if shared else None,
        val_labels=stored[0]["val_labels"],
    )


def _names(names: Sequence[str]) -> list[str]:
    """A name that several runs share is told apart by the run's place among all of them."""
    return [f"{n} #{i}" if names.count(n) > 1 else n for i, n in enumerate(names, start=1)]


def hardest(members: Members) -> NDArray[np.int64]:
    """The test images that all models get wrong, those first of which they are surest."""
    indices = np.flatnonzero(metrics.errors(members.test, members.test_labels).all(0))
    return indices[np.argsort(-members.test.mean(0)[indices].max(1), kind="stable")]


def picture_of_hardest(members: Members, data: Dataset) -> Figure:
    indices = hardest(members)
    shown = indices[:HARDEST]
    seen_as = members.test[:, shown].mean(0).argmax(1)
    captions = [
        f"{data.classes[true]} seen as {data.classes[k]}"
        for true, k in zip(members.test_labels[shown], seen_as, strict=True)
    ]
    title = f"{len(indices)} test images that all {len(members.names)} models get wrong"
    return figures.image_grid(data.test.images[shown].numpy(), captions, title)


def test_data(uri: str, members: Members) -> Dataset | None:
    """The data that the members were made of, for the pictures; None where its files are gone."""
    cfg = recorded.config_of(uri, members.run_ids[0])
    try:
        data = load_dataset(cfg.data)
    except UserError as error:
        log.warning("no pictures of the images: %s", error)
        return None
    return data if np.array_equal(data.test.labels.numpy(), members.test_labels) else None
