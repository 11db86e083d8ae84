"""A look at the data before training: `python -m mnist_sweep.data data=mnist`."""

import hashlib
import logging
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep import app, config
from mnist_sweep.analysis import figures
from mnist_sweep.common import console
from mnist_sweep.common import signals as interrupt
from mnist_sweep.common.configs import flatten
from mnist_sweep.data.augment import build_augment
from mnist_sweep.data.dataset import Dataset, load_dataset, to_float
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import make_tracker
from mnist_sweep.training.device import describe

log = logging.getLogger(__name__)

MAX_IMBALANCE = 10.0  # largest class / smallest class of a split
SAMPLES = 25


class Check(NamedTuple):
    name: str
    passed: bool
    found: str


def inspect(data: Dataset, expected: DictConfig) -> list[Check]:
    """What can be wrong with a dataset, `expected` being a config.ExpectedConfig."""
    splits = data.splits
    published = {"train": len(data.train) + len(data.val), "test": len(data.test)}
    counts = class_counts(data)
    pixels = {name: split.images.flatten(1) for name, split in splits.items()}
    blank = {name: int((p.amin(1) == p.amax(1)).sum()) for name, p in pixels.items()}
    ratio = max(count.max() / max(count.min(), 1) for count in counts.values())
    labels = torch.cat([split.labels for split in splits.values()])
    digests = {name: _digests(split.images.numpy()) for name, split in splits.items()}
    shared = {
        f"{a}/{b}": len(digests[a] & digests[b])
        for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
    }
    shape = tuple(expected.shape) if expected.shape else data.shape
    return [
        Check(
            "counts",
            all(expected[name] in (None, n) for name, n in published.items()),
            ", ".join(
                f"{n:,} {name}" + (f" ({expected[name]:,} published)" if expected[name] else "")
                for name, n in published.items()
            ),
        ),
        Check(
            "shapes",
            {tuple(split.images.shape[1:]) for split in splits.values()} == {shape},
            " ".join("x".join(map(str, s.images.shape[1:])) for s in splits.values()),
        ),
        Check(
            "dtypes",
            all(
                s.images.dtype == torch.uint8 and s.labels.dtype == torch.int64
                for s in splits.values()
            ),
            f"{data.train.images.dtype} pixels, {data.train.labels.dtype} labels",
        ),
        Check(
            "labels",
            bool(labels.min() >= 0) and bool(labels.max() < len(data.classes)),
            f"{labels.min()} to {labels.max()}, {len(data.classes)} classes",
        ),
        Check(
            "classes present",
            all(count.all() for count in counts.values()),
            ", ".join(f"{np.count_nonzero(count)} in {name}" for name, count in counts.items()),
        ),
        Check("class balance", ratio <= MAX_IMBALANCE, f"largest / smallest {ratio:.2f}"),
        Check("blank images", not any(blank.values()), _per_split(blank)),
        Check("duplicates between splits", not any(shared.values()), _per_split(shared)),
    ]


def class_counts(data: Dataset) -> dict[str, NDArray[np.int64]]:
    """Images of each class [n_classes] in the published training set and in the test set."""
    n = len(data.classes)

    def count(labels: torch.Tensor) -> NDArray[np.int64]:
        return np.bincount(labels.numpy(), minlength=n)

    train = count(data.train.labels) + count(data.val.labels)
    return {"training and validation": train, "test": count(data.test.labels)}


def _digests(images: NDArray[np.uint8]) -> set[bytes]:
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images}


def _per_split(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def write(folder: Path, *, data: Dataset, cfg: DictConfig, table: str) -> None:
    """The table, the class distribution, and samples as they are and as a training run sees them."""
    (folder / "checks.txt").write_text(table + "\n")
    figure = figures.class_distribution(class_counts(data), data.classes, data.name)
    figure.savefig(folder / "class_distribution.png")
    generator = torch.Generator().manual_seed(cfg.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:SAMPLES]
    images = data.train.images[chosen]
    captions = [data.classes[label] for label in data.train.labels[chosen]]
    samples = figures.image_grid(images.numpy(), captions, f"{data.name}: training images")
    samples.savefig(folder / "samples.png")
    augment = build_augment(cfg.data)
    assert augment is not None  # set by `look`
    augmented = augment(to_float(images), generator)
    title = f"{data.name}: the same with data.augment=affine"
    figures.image_grid(augmented.numpy(), captions, title).savefig(folder / "samples_augmented.png")


def look(cfg: DictConfig) -> None:
    """Check, draw and record; exit code 1 where a check fails."""
    config.check(cfg)
    cfg.data.train_size = None  # all of it
    cfg.data.augment = "affine"  # as it would be
    data = load_dataset(cfg.data)
    checks = inspect(data, cfg.data.expected)
    rows = [(check.name, "ok" if check.passed else "FAILED", check.found) for check in checks]
    title = f"{data.name} (sha256 {data.digest[:12]})"
    table = console.table(("check", "", "found"), rows, title)
    log.info(table)
    directory = Path(HydraConfig.get().runtime.output_dir)
    produce = partial(write, data=data, cfg=cfg, table=table)
    produce(directory)
    log.info("pictures: %s", directory)
    cfg.tracking.run_name = cfg.tracking.run_name or f"data {data.name}"
    tracker = make_tracker(
        cfg,
        model=str(HydraConfig.get().runtime.choices.get("model")),
        overrides=list(HydraConfig.get().overrides.task),
        directory=directory,
        trial=Trial(),
    )
    tags = {"kind": "data", "data": data.name, "data.sha256": data.digest}
    tags["device"] = describe(torch.device("cpu"))
    with interrupt.obeyed(), tracker.run(tags, flatten(cfg)):
        sizes = {name: len(split) for name, split in data.splits.items()}
        tracker.log_dataset(data.name, data.digest, cfg.data.root, sizes)
        tracker.log_artifacts(produce)
    if failed := [check.name for check in checks if not check.passed]:
        log.error("failed: %s", ", ".join(failed))
        sys.exit(1)


def main() -> None:
    app.tool("config", look)
