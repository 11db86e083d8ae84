"""Load a dataset, split it, and serve it in batches."""

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
from mnist_sweep.data.sources import Arrays, DataMissingError, embedded_mnist, stratified_mask

log = logging.getLogger(__name__)

EMBEDDED_VAL_SIZE = 500  # largest validation split of the 4,500 embedded training images


@dataclass(frozen=True)
class Split:
    """Images and labels of one split, as whole tensors on one device."""

    images: torch.Tensor  # [N, C, H, W] uint8
    labels: torch.Tensor  # [N] int64
    indices: NDArray[np.int64]  # [N] positions in the published training or test set

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    name: str  # name of the data that was loaded, which may be the embedded stand-in
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str  # sha256 of the published arrays
    mean: tuple[float, ...]  # per channel, over the training split, pixels in 0..1
    std: tuple[float, ...]

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Dataset":
        train, val, test = (split.to(device) for split in self.splits.values())
        return replace(self, train=train, val=val, test=test)


def load_dataset(cfg: DictConfig) -> Dataset:
    """Load the dataset described by a DataConfig.

    If its files are missing and `on_missing` is "embedded", load the 5,000 embedded MNIST images
    instead and log a warning.

    Raises:
        DataMissingError: the files are missing and `on_missing` is "error".
        UserError: a file is damaged, or the splits need more images than there are.
    """
    name, val_size, train_size = cfg.name, cfg.val_size, cfg.train_size
    try:
        arrays = _read(bind(cfg.source), cfg.root)
    except DataMissingError as error:
        if cfg.on_missing != "embedded":
            raise
        log.warning(
            "WARNING: %s.\nUsing data=mnist5k instead of %s: the 5,000 embedded images, not the full "
            "dataset. Results will be worse. Set data.on_missing=error to stop here.",
            error,
            name,
        )
        arrays = _read(embedded_mnist, cfg.root)
        name, val_size, train_size = "mnist5k", min(val_size, EMBEDDED_VAL_SIZE), None
    return split_arrays(
        arrays,
        name=name,
        val_size=val_size,
        split_seed=cfg.split_seed,
        train_size=train_size,
        classes=cfg.classes,
    )


_cache: dict[str, Arrays] = {}  # the last source read in this process; its next trial reuses it


def _read(source: Callable[..., Arrays], root: str) -> Arrays:
    key = f"{source!r} {os.path.abspath(root)}"
    if key not in _cache:
        arrays = source(root=root)
        _cache.clear()
        _cache[key] = arrays
    return _cache[key]


def split_arrays(
    arrays: Arrays,
    *,
    name: str,
    val_size: int,
    split_seed: int,
    train_size: int | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Hold a stratified validation split out of the training set.

    Args:
        val_size: number of validation images.
        split_seed: seed of the validation split and of the choice of training images.
        train_size: number of training images; None uses all that are left.
        classes: class names in label order; None uses the names of the source, or 0, 1, 2, ...

    Raises:
        UserError: the splits need more images than there are.
    """
    n_train = len(arrays.train_labels) - val_size
    if n_train < (train_size or 1):
        raise UserError(
            f"data.val_size={val_size} and data.train_size={train_size} need more than the "
            f"{len(arrays.train_labels)} training images of {name}"
        )
    in_val = stratified_mask(arrays.train_labels, val_size, split_seed)
    train_indices, val_indices = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    if train_size is not None:
        kept = stratified_mask(arrays.train_labels[train_indices], train_size, split_seed)
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
        digest=arrays.digest,
        mean=mean,
        std=std,
    )


def _split(
    images: NDArray[np.uint8], labels: NDArray[np.int64], indices: NDArray[np.int64]
) -> Split:
    # torch.tensor copies: a tensor must not share the read-only memory of a file
    return Split(torch.tensor(images), torch.tensor(labels), indices)


def _channel_stats(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, pixels in 0..1, computed exactly from histograms."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        # in blocks, because bincount converts each pixel to eight bytes
        blocks = (images[i : i + 1000, channel].reshape(-1) for i in range(0, len(images), 1000))
        histogram = np.sum([np.bincount(block, minlength=256) for block in blocks], axis=0)
        mean = float(np.average(values, weights=histogram))
        std = math.sqrt(np.average((values - mean) ** 2, weights=histogram))
        means.append(mean)
        stds.append(std or 1.0)  # avoids dividing a constant channel by zero
    return tuple(means), tuple(stds)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Convert images [N, C, H, W] from uint8 to float32 in 0..1, in channels-last memory format."""
    return images.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


def batches(split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the split in order: images [B, C, H, W] float32 in 0..1, labels [B]."""
    for images, labels in zip(
        split.images.split(batch_size), split.labels.split(batch_size), strict=True
    ):
        yield to_float(images), labels
