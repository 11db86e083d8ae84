"""Measures a trained model on test images, also on changed ones, and records the result."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torchvision.transforms import functional as F

from mnist_sweep.analysis import figures, metrics
from mnist_sweep.common import console
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.tools.output import open_run
from mnist_sweep.tools.trained_model import TrainedModel, load_data_for, load_model

log = logging.getLogger(__name__)

Fill = list[float] | None  # value of the pixels from outside the image, per channel; None: 0
# (images [N, C, H, W] in 0..1, strength, fill) -> changed images
Change = Callable[[torch.Tensor, float, Fill], torch.Tensor]


def _add_noise(images: torch.Tensor, strength: float, _: Fill) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(0, 1)


# {name: (unit of the strength, function, strengths)}
CHANGES: Mapping[str, tuple[str, Change, tuple[float, ...]]] = {
    "shifted": (
        "pixels to the right",
        lambda x, s, fill: F.affine(x, 0, [int(s), 0], 1, [0, 0], fill=fill),
        (1, 2, 4, 6),
    ),
    "rotated": ("degrees", lambda x, s, fill: F.rotate(x, s, fill=fill), (10, 20, 30, 45)),
    "noisy": ("standard deviation", _add_noise, (0.1, 0.2, 0.4, 0.6)),
    "blurred": (
        "sigma in pixels",
        lambda x, s, _: F.gaussian_blur(x, [7, 7], [s, s]),
        (0.5, 1, 1.5, 2),
    ),
    "inverted": ("", lambda x, _strength, _fill: 1 - x, (1,)),
}
UNITS = {name: unit for name, (unit, _, _) in CHANGES.items()}
Robustness = list[tuple[str, float, float]]  # change, strength, accuracy


def run(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Print and record how good the model of `cfg` is."""
    model = load_model(cfg)
    data = load_data_for(model, cfg, overrides)
    labels = data.test.labels.numpy()
    probabilities = model.probabilities(data.test.images.numpy())
    scores = summary(probabilities, labels)
    log.info("%s on %s test images of %s", model.name, f"{len(labels):,}", data.name)
    percent, loss, ece = 100 * scores["test/accuracy"], scores["test/loss"], scores["test/ece"]
    log.info("accuracy %.2f %%, loss %.4f, calibration error %.4f", percent, loss, ece)
    matrix = metrics.confusion_matrix(probabilities.argmax(1), labels, len(data.classes))
    log.info(_class_table(matrix, data))
    robustness: Robustness = []
    if cfg.robustness:
        robustness = measure_robustness(model, data)
        log.info(_robustness_table(robustness))
    if not cfg.tracking.enabled:
        return
    write = partial(
        _write, matrix=matrix, data=data, probabilities=probabilities, robustness=robustness
    )
    tags = {"kind": "evaluation", "data": data.name, "data.sha256": data.digest}
    tags |= {"of": model.name, "of.run_id": model.run_id or ""}
    with open_run(cfg, f"on {data.name}", tags) as run:
        changed = {f"robustness/{name}/{strength:g}": a for name, strength, a in robustness}
        run.log_metrics({**scores, **changed}, step=0)
        run.log_artifacts(write)
        log.info("recorded as run %s", run.run_id)


def measure_robustness(model: TrainedModel, data: Dataset) -> Robustness:
    """Measure the accuracy on the test images after each change of CHANGES, at each strength."""
    images, labels = data.test.images.float() / 255, data.test.labels.numpy()
    fill = list(data.background) if any(data.background) else None

    def accuracy(changed: torch.Tensor) -> float:
        pixels = (changed * 255).round().to(torch.uint8).numpy()
        return metrics.accuracy(model.probabilities(pixels), labels)

    return [
        (name, strength, accuracy(change(images, strength, fill)))
        for name, (_, change, strengths) in CHANGES.items()
        for strength in strengths
    ]


def summary(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy, loss and expected calibration error of probabilities [N, n_classes]."""
    true = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)
    return {
        "test/accuracy": metrics.accuracy(probabilities, labels),
        "test/loss": float(-np.log(true).mean()),
        "test/ece": metrics.calibration(probabilities, labels)[1],
    }


def _class_table(matrix: NDArray[np.int64], data: Dataset) -> str:
    scores, rows = metrics.per_class(matrix), []
    for i, name in enumerate(data.classes):
        row = matrix[i].copy()
        row[i] = 0
        other = f"{data.classes[int(row.argmax())]} ({row.max()})" if row.any() else ""
        shown = [f"{100 * values[i]:.1f}" for values in scores.values()]
        rows.append((name, str(matrix[i].sum()), *shown, other))
    columns = ("class", "images", *(f"{name} %" for name in scores), "most often taken for")
    return console.table(columns, rows)


def _robustness_table(robustness: Robustness) -> str:
    rows = [
        (name, f"{strength:g} {UNITS[name]}" if UNITS[name] else "", f"{100 * accuracy:.2f}")
        for name, strength, accuracy in robustness
    ]
    return console.table(("test images", "", "accuracy %"), rows)


def _write(
    folder: Path,
    *,
    matrix: NDArray[np.int64],
    data: Dataset,
    probabilities: NDArray[np.float32],
    robustness: Robustness,
) -> None:
    title = figures.confusion_title(matrix, data.name)
    figures.confusion_matrix(matrix, data.classes, title).savefig(folder / "confusion_matrix.png")
    labels = data.test.labels.numpy()
    figures.calibration(probabilities, labels).savefig(folder / "calibration.png")
    metrics.confusion_table(matrix, data.classes).to_csv(folder / "confusion_matrix.csv")
    if not robustness:
        return
    unchanged = metrics.accuracy(probabilities, labels)
    figures.robustness(robustness, UNITS, unchanged).savefig(folder / "robustness.png")
    table = pd.DataFrame(robustness, columns=["change", "strength", "accuracy"])
    table.to_csv(folder / "robustness.csv", index=False)
