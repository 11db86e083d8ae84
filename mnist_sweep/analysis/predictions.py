"""Predictions of several trained models on the same images, loaded from their MLflow runs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep.analysis import figures, metrics
from mnist_sweep.analysis.figures import Figure
from mnist_sweep.common.configs import plain_node
from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.data.dataset import Dataset, load_dataset
from mnist_sweep.tracking import queries
from mnist_sweep.tracking.queries import Run

N_HARDEST = 25  # images in the figure of the hardest images

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """Predictions of M models on the same test images.

    The models also share their validation images, unless their runs split the data differently.
    """

    run_ids: list[str]
    names: list[str]  # run names, made unique
    val_accuracy: NDArray[np.float64]  # [M] of each model on its own validation images
    test: NDArray[np.float32]  # [M, N, n_classes] probabilities
    test_labels: NDArray[np.int64]  # [N]
    val: NDArray[np.float32] | None  # [M, N_val, n_classes]; None if the images are not shared
    val_labels: NDArray[np.int64]  # [N_val] of the first model

    @property
    def best(self) -> int:
        """Index of the model with the highest validation accuracy."""
        return int(self.val_accuracy.argmax())


def load_predictions(uri: str, runs: Sequence[Run]) -> Predictions:
    """Load the predictions that `runs` recorded in the MLflow store `uri`.

    Raises:
        UserError: a run recorded no predictions, or the runs used different data.
    """
    if len({run.data.tags.get("data.sha256") for run in runs}) > 1:
        raise UserError("cannot compare these runs: they used different data")
    stored = []
    for run in runs:
        with queries.artifact(uri, run.info.run_id, "predictions.npz") as path:
            stored.append(_read(path, run.info.run_id))
    shared = all(np.array_equal(s["val_indices"], stored[0]["val_indices"]) for s in stored)
    return Predictions(
        run_ids=[run.info.run_id for run in runs],
        names=_unique([run.info.run_name for run in runs]),
        val_accuracy=np.array(
            [metrics.accuracy(s["val_probabilities"], s["val_labels"]) for s in stored]
        ),
        test=np.stack([s["test_probabilities"] for s in stored]),
        test_labels=stored[0]["test_labels"],
        val=np.stack([s["val_probabilities"] for s in stored]) if shared else None,
        val_labels=stored[0]["val_labels"],
    )


def _read(path: Path, run_id: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of a predictions.npz. Raises UserError if it is damaged or another file."""
    try:
        with np.load(path) as file:  # refuses pickles
            arrays = dict(file)
        for split in ("val", "test"):
            n, _ = arrays[f"{split}_probabilities"].shape
            if arrays[f"{split}_labels"].shape != (n,):
                raise ValueError(f"{split}_labels do not fit {split}_probabilities")
        if arrays["val_indices"].shape != arrays["val_labels"].shape:
            raise ValueError("val_indices do not fit val_labels")
    except Exception as error:  # numpy and zipfile raise many kinds
        reason = one_line(error, 200, with_kind=True)
        raise UserError(f"run {run_id}: its predictions.npz is damaged: {reason}") from error
    return arrays


def _unique(names: Sequence[str]) -> list[str]:
    """Append its position to each name that occurs more than once."""
    return [f"{n} #{i}" if names.count(n) > 1 else n for i, n in enumerate(names, start=1)]


def load_data(uri: str, predictions: Predictions) -> Dataset | None:
    """Load the dataset of the predictions; log a warning and return None if that is impossible."""
    run_id = predictions.run_ids[0]
    try:
        cfg = plain_node(queries.config_of(uri, run_id), "data", f"run {run_id}")
        data = load_recorded(cfg, f"run {run_id}")
    except UserError as error:
        log.warning("no figures of the test images: %s", error)
        return None
    same = data.digest == queries.data_digest(uri, run_id)
    return data if same and np.array_equal(data.test.labels, predictions.test_labels) else None


def load_recorded(cfg: DictConfig, origin: str) -> Dataset:
    """Load the dataset of a recorded configuration, which no schema has checked.

    Args:
        cfg: the configuration node `data`.
        origin: what recorded it, for the error.

    Raises:
        UserError: it does not load, for whatever reason.
    """
    try:
        return load_dataset(cfg)
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error, 200, with_kind=True)
        raise UserError(f"{origin}: its recorded data does not load: {reason}") from error


def hardest_images(predictions: Predictions) -> NDArray[np.int64]:
    """Indices of the test images that all models get wrong, most confident mistakes first."""
    wrong = metrics.errors(predictions.test, predictions.test_labels)
    indices = np.flatnonzero(wrong.all(0))
    confidence = predictions.test.mean(0)[indices].max(1)
    return indices[np.argsort(-confidence, kind="stable")]


def draw_hardest_images(predictions: Predictions, data: Dataset) -> Figure:
    """Draw the first of `hardest_images`, captioned with the true and the predicted class."""
    indices = hardest_images(predictions)
    shown = indices[:N_HARDEST]
    predicted = predictions.test[:, shown].mean(0).argmax(1)
    captions = [
        f"{data.classes[true]} as {data.classes[label]}"
        for true, label in zip(predictions.test_labels[shown], predicted, strict=True)
    ]
    title = f"{len(indices)} test images that all {len(predictions.names)} models get wrong"
    return figures.image_grid(
        data.test.images[shown].numpy(), captions, f"{title}: true as predicted"
    )
