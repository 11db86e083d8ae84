"""Checks a dataset before training, draws its classes and sample images, and records both."""

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from mnist_sweep import config
from mnist_sweep.analysis import figures
from mnist_sweep.common import console, signals
from mnist_sweep.data.augment import affine, background_of
from mnist_sweep.data.checks import check_dataset, count_classes
from mnist_sweep.data.dataset import Dataset, load_dataset, to_float
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tools.output import make_output_directory
from mnist_sweep.tracking.factory import make_tracker
from mnist_sweep.tracking.run import check_store, store_uri
from mnist_sweep.training.device import describe

log = logging.getLogger(__name__)

SAMPLES = 25  # images to draw


def run(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Check the dataset of a training configuration; exit with code 1 if a check fails."""
    config.check(cfg)
    if cfg.tracking.enabled:
        check_store(store_uri(cfg.tracking.uri, cfg.store))
    cfg.data.train_size = None  # all training images
    data = load_dataset(cfg.data)
    checks = check_dataset(data, cfg.data.expected)
    rows = [(check.name, "ok" if check.passed else "FAILED", check.details) for check in checks]
    title = f"{data.name} (sha256 {data.digest[:12]})"
    table = console.table(("check", "", "details"), rows, title)
    log.info(table)
    write = partial(_write, data=data, cfg=cfg, table=table)
    directory = make_output_directory(cfg.store)
    write(directory)
    log.info("figures: %s", directory)
    tracker = make_tracker(
        cfg,
        name=f"data {data.name}",
        choices={},
        overrides=overrides,
        directory=directory,
        trial=Trial(),
    )
    tags = {"kind": "data", "data": data.name, "data.sha256": data.digest}
    tags["device"] = describe(torch.device("cpu"))
    with signals.obeyed(), tracker.run(tags):
        sizes = {name: len(split) for name, split in data.splits.items()}
        tracker.log_dataset(data.name, data.digest, cfg.data.root, sizes)
        tracker.log_artifacts(write)
    if failed := [check.name for check in checks if not check.passed]:
        log.error("failed: %s", ", ".join(failed))
        sys.exit(1)


def _write(folder: Path, *, data: Dataset, cfg: DictConfig, table: str) -> None:
    """Write the table, the class distribution, and sample images with and without augmentation."""
    (folder / "checks.txt").write_text(table + "\n")
    figure = figures.class_distribution(count_classes(data), data.classes, data.name)
    figure.savefig(folder / "class_distribution.png")
    generator = torch.Generator().manual_seed(cfg.seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:SAMPLES]
    images = data.train.images[chosen]
    captions = [data.classes[label] for label in data.train.labels[chosen]]
    samples = figures.image_grid(images.numpy(), captions, f"{data.name}: training images")
    samples.savefig(folder / "samples.png")
    title = f"{data.name}: the same images with data.augment=affine"
    strength = {**cfg.data.affine, "background": background_of(data)}
    augmented = affine(to_float(images), generator=generator, **strength)
    figures.image_grid(augmented.numpy(), captions, title).savefig(folder / "samples_augmented.png")
