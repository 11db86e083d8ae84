"""Checks of a dataset: sizes, shapes, labels, class balance, blank images, duplicates."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep.data.dataset import Dataset

MAX_IMBALANCE = 10.0  # images of the largest class / of the smallest


class Check(NamedTuple):
    """The result of one check."""

    name: str
    passed: bool
    details: str


def check_dataset(data: Dataset, expected: DictConfig) -> list[Check]:
    """Run all checks.

    Args:
        data: with all of its training images.
        expected: the published facts about the dataset, see `data.config.ExpectedConfig`.
    """
    return [
        _check_sizes(data, expected),
        _check_shapes(data, expected),
        _check_dtypes(data),
        _check_labels(data),
        _check_classes_present(data),
        _check_balance(data),
        _check_blank_images(data),
        _check_duplicates(data),
    ]


def count_classes(data: Dataset) -> dict[str, NDArray[np.int64]]:
    """Count the images of each class, [n_classes]: training and validation together, and test."""

    def count(labels: torch.Tensor) -> NDArray[np.int64]:
        return np.bincount(labels.numpy(), minlength=len(data.classes))

    train = count(data.train.labels) + count(data.val.labels)
    return {"training and validation": train, "test": count(data.test.labels)}


def _check_sizes(data: Dataset, expected: DictConfig) -> Check:
    sizes = {"train": len(data.train) + len(data.val), "test": len(data.test)}
    published = {
        name: f" ({expected[name]:,} published)" if expected[name] else "" for name in sizes
    }
    details = ", ".join(f"{n:,} {name}{published[name]}" for name, n in sizes.items())
    return Check("counts", all(expected[name] in (None, n) for name, n in sizes.items()), details)


def _check_shapes(data: Dataset, expected: DictConfig) -> Check:
    shapes = [tuple(split.images.shape[1:]) for split in data.splits.values()]
    shape = tuple(expected.shape) if expected.shape else data.shape
    details = " ".join("x".join(map(str, each)) for each in shapes)
    return Check("shapes", set(shapes) == {shape}, details)


def _check_dtypes(data: Dataset) -> Check:
    passed = all(
        split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        for split in data.splits.values()
    )
    details = f"{data.train.images.dtype} pixels, {data.train.labels.dtype} labels"
    return Check("dtypes", passed, details)


def _check_labels(data: Dataset) -> Check:
    labels = torch.cat([split.labels for split in data.splits.values()])
    low, high, n_classes = int(labels.min()), int(labels.max()), len(data.classes)
    passed = low >= 0 and high < n_classes
    return Check("labels", passed, f"{low} to {high}, {n_classes} classes")


def _check_classes_present(data: Dataset) -> Check:
    counts = count_classes(data)
    details = ", ".join(f"{np.count_nonzero(count)} in {name}" for name, count in counts.items())
    return Check("classes present", all(count.all() for count in counts.values()), details)


def _check_balance(data: Dataset) -> Check:
    ratio = max(count.max() / max(count.min(), 1) for count in count_classes(data).values())
    return Check("class balance", bool(ratio <= MAX_IMBALANCE), f"largest / smallest {ratio:.2f}")


def _check_blank_images(data: Dataset) -> Check:
    pixels = {name: split.images.flatten(1) for name, split in data.splits.items()}
    blank = {name: int((p.amin(1) == p.amax(1)).sum()) for name, p in pixels.items()}
    return Check("blank images", not any(blank.values()), _as_text(blank))


def _check_duplicates(data: Dataset) -> Check:
    digests = {name: _digests(split.images.numpy()) for name, split in data.splits.items()}
    shared = {
        f"{a}/{b}": len(digests[a] & digests[b])
        for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
    }
    return Check("duplicates between splits", not any(shared.values()), _as_text(shared))


def _digests(images: NDArray[np.uint8]) -> set[bytes]:
    return {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images}


def _as_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())
