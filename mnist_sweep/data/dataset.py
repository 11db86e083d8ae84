"""Datasets as uint8 tensors on the device: read and checked, split, batched, augmented."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep.common.build import bind
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.sources import Arrays, DataMissingError, embedded_mnist, stratified

log = logging.getLogger(__name__)

EMBEDDED_VAL_SIZE = 500


@dataclass(frozen=True)
class Split:
    images: torch.Tensor  # [N, C, H, W] uint8
    labels: torch.Tensor  # [N] int64
    indices: NDArray[np.int64]  # [N] positions in the published set that this split is part of

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    name: str  # of the data really used
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str  # sha256 of the published arrays
    mean: tuple[float, ...]  # a channel, of the training split, pixels in 0..1
    std: tuple[float, ...]

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Dataset":
        train, val, test = (split.to(device) for split in self.splits.values())
        return replace(self, train=train, val=val, test=test)


# --- from a source to a Dataset ---


def load_dataset(cfg: DictConfig) -> Dataset:
    """The dataset that the node `data` of a configuration describes. Raises as `load`."""
    return load(
        bind(cfg.source),
        name=cfg.name,
        root=cfg.root,
        val_size=cfg.val_size,
        split_seed=cfg.split_seed,
        train_size=cfg.train_size,
        classes=cfg.classes,
        embedded_if_missing=cfg.on_missing == "embedded",
    )


_read: dict[
    str, tuple[Arrays, str]
] = {}  # the last source read in this process, for the next trial


def load(
    source: Callable[..., Arrays],
    *,
    name: str,
    root: str,
    val_size: int,
    split_seed: int,
    train_size: int | None = None,
    classes: Sequence[str] | None = None,
    embedded_if_missing: bool = False,
) -> Dataset:
    """Read a source and hold a stratified validation split out of its training set.

    With `embedded_if_missing` the 5,000 embedded images stand in for files that are not at hand,
    with a warning; the returned Dataset carries the name of what was really used.

    Raises:
        DataMissingError: no files and no stand-in.
        UserError: a damaged file, or more images asked for than there are.
    """
    try:
        arrays, digest = _read_once(source, root)
    except DataMissingError as error:
        if not embedded_if_missing:
            raise
        log.warning(
            "WARNING: %s.\nGoing on with data=mnist5k, the 5,000 embedded images, instead of all of "
            "%s: results will be worse. data.on_missing=error stops here.",
            error,
            name,
        )
        arrays, digest = _read_once(embedded_mnist, root)
        name, val_size, train_size = "mnist5k", min(val_size, EMBEDDED_VAL_SIZE), None

    n_train = len(arrays.train_labels) - val_size
    if n_train < (train_size or 1):
        raise UserError(
            f"data.val_size={val_size} and data.train_size={train_size} ask for more than the "
            f"{len(arrays.train_labels)} training images of {name}"
        )
    in_val = stratified(arrays.train_labels, val_size, split_seed)
    train_indices, val_indices = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    if train_size is not None:
        kept = stratified(arrays.train_labels[train_indices], train_size, split_seed)
        train_indices = train_indices[kept]
    train_images = arrays.train_images[train_indices]
    mean, std = _channel_stats(train_images)
    n_classes = int(max(arrays.train_labels.max(), arrays.test_labels.max())) + 1
    return Dataset(
        name=name,
        classes=tuple(classes or arrays.classes or map(str, range(n_classes))),
        train=_split(train_images, arrays.train_labels[train_indices], train_indices),
        val=_split(arrays.train_images[val_indices], arrays.train_labels[val_indices], val_indices),
        test=_split(arrays.test_images, arrays.test_labels, np.arange(len(arrays.test_labels))),
        digest=digest,
        mean=mean,
        std=std,
    )


def _read_once(source: Callable[..., Arrays], root: str) -> tuple[Arrays, str]:
    key = f"{source!r} {os.path.abspath(root)}"
    if key not in _read:
        arrays = source(root=root)
        _read.clear()
        _read[key] = arrays, arrays.digest
    return _read[key]


def _split(
    images: NDArray[np.uint8], labels: NDArray[np.int64], indices: NDArray[np.int64]
) -> Split:
    # copies, so that no tensor aliases the read-only bytes of a file
    return Split(torch.tensor(images), torch.tensor(labels), indices)


def _channel_stats(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in 0..1, exact from the histogram."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        # block by block: bincount makes eight bytes of every pixel it is given
        blocks = (images[i : i + 1000, channel].reshape(-1) for i in range(0, len(images), 1000))
        weights = np.sum([np.bincount(block, minlength=256) for block in blocks], axis=0)
        mean = float(np.average(values, weights=weights))
        std = math.sqrt(np.average((values - mean) ** 2, weights=weights))
        means.append(mean)
        stds.append(std or 1.0)  # a constant channel stays finite
    return tuple(means), tuple(stds)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] uint8 -> float32 in 0..1, channels last."""
    return images.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


def batches(split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The whole split in order, for evaluation: images [B, C, H, W] float32 in 0..1, labels [B]."""
    for images, labels in zip(
        split.images.split(batch_size), split.labels.split(batch_size), strict=True
    ):
        yield to_float(images), labels
