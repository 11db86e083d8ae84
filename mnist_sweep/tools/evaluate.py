"""How good a trained model is on any data: `python -m mnist_sweep.evaluate [model=...] [data=...]`."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torchvision.transforms import functional as F

from mnist_sweep import app
from mnist_sweep.analysis import figures, metrics
from mnist_sweep.common import console
from mnist_sweep.common import signals as interrupt
from mnist_sweep.common.configs import flatten
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.tools.trained_model import check_fits, data_of, load
from mnist_sweep.tracking import run as tracking

log = logging.getLogger("mnist_sweep.evaluate")  # not __main__, of which Hydra shows nothing

Change = Callable[[torch.Tensor, float], torch.Tensor]  # images [N, C, H, W] in 0..1, strength


def _noisy(images: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(0, 1)


# What is done to the images, in which unit, and how much of it.
CHANGES: Mapping[str, tuple[str, Change, tuple[float, ...]]] = {
    "shifted": (
        "pixels to the right",
        lambda x, s: F.affine(x, 0, [int(s), 0], 1, [0, 0]),
        (1, 2, 4, 6),
    ),
    "rotated": ("degrees", F.rotate, (10, 20, 30, 45)),
    "noisy": ("standard deviation", _noisy, (0.1, 0.2, 0.4, 0.6)),
    "blurred": (
        "sigma in pixels",
        lambda x, s: F.gaussian_blur(x, [7, 7], [s, s]),
        (0.5, 1, 1.5, 2),
    ),
    "inverted": ("", lambda x, _: 1 - x, (1,)),
}
UNITS = {name: unit for name, (unit, _, _) in CHANGES.items()}
Robustness = list[tuple[str, float, float]]  # change, strength, accuracy


def evaluate(cfg: DictConfig) -> None:
    """Print and record what the model makes of the test images."""
    model = load(cfg)
    data = data_of(cfg, model)
    check_fits(model, data)
    labels = data.test.labels.numpy()

    def accuracy(images: torch.Tensor) -> float:
        pixels = (images * 255).round().to(torch.uint8).numpy()
        return metrics.accuracy(model.probabilities(pixels), labels)

    probabilities = model.probabilities(data.test.images.numpy())
    found = summary(probabilities, labels)
    log.info("%s on %s test images of %s", model.name, f"{len(labels):,}", data.name)
    percent, loss, ece = 100 * found["test/accuracy"], found["test/loss"], found["test/ece"]
    log.info("accuracy %.2f %%, loss %.4f, calibration error %.4f", percent, loss, ece)
    matrix = metrics.confusion_matrix(probabilities.argmax(1), labels, len(data.classes))
    log.info(_per_class(matrix, data))
    robustness: Robustness = []
    if cfg.robustness:
        images = data.test.images.float() / 255
        robustness = [
            (name, strength, accuracy(change(images, strength)))
            for name, (_, change, strengths) in CHANGES.items()
            for strength in strengths
        ]
        rows = [
            (name, f"{strength:g} {UNITS[name]}" if UNITS[name] else "", f"{100 * share:.2f}")
            for name, strength, share in robustness
        ]
        log.info(console.table(("test images", "", "accuracy %"), rows))
    uri = tracking.store_uri(cfg.tracking.uri, cfg.store)
    if not cfg.tracking.enabled:
        return
    experiment_id = tracking.prepare(uri, cfg.store, cfg.tracking.experiment)
    tags = {"kind": "evaluation", "data": data.name, "data.sha256": data.digest}
    tags |= {"of": model.name, "of.run_id": model.run_id or ""}
    produce = partial(
        _write, matrix=matrix, data=data, probabilities=probabilities, robustness=robustness
    )
    with (
        interrupt.obeyed(),
        tracking.start_run(
            uri, experiment_id, name=f"on {data.name}", tags=tags, params=flatten(cfg)
        ) as tracker,
    ):
        changed = {f"robustness/{name}/{strength:g}": a for name, strength, a in robustness}
        tracker.log_metrics({**found, **changed}, step=0)
        tracker.log_artifacts(produce)
        log.info("recorded as run %s", tracker.run_id)


def summary(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    true = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)
    return {
        "test/accuracy": metrics.accuracy(probabilities, labels),
        "test/loss": float(-np.log(true).mean()),
        "test/ece": metrics.calibration(probabilities, labels)[1],
    }


def _per_class(matrix: NDArray[np.int64], data: Dataset) -> str:
    scores, rows = metrics.per_class(matrix), []
    for i, name in enumerate(data.classes):
        row = matrix[i].copy()
        row[i] = 0
        other = f"{data.classes[int(row.argmax())]} ({row.max()})" if row.any() else ""
        shown = [f"{100 * values[i]:.1f}" for values in scores.values()]
        rows.append((name, str(matrix[i].sum()), *shown, other))
    columns = ("class", "images", *(f"{name} %" for name in scores), "most often taken for")
    return console.table(columns, rows)


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
    plain = metrics.accuracy(probabilities, labels)
    figures.robustness(robustness, UNITS, plain).savefig(folder / "robustness.png")
    table = pd.DataFrame(robustness, columns=["change", "strength", "accuracy"])
    table.to_csv(folder / "robustness.csv", index=False)


def main() -> None:
    app.name_the_model()
    app.tool("evaluate", evaluate)


if __name__ == "__main__":
    main()
