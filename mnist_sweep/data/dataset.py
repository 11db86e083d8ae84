"""Load a dataset, split it, and serve it in batches."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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

    @cached_property
    def background(self) -> tuple[float, ...]:
        """Median of the border pixels of up to 10,000 training images, per channel, in 0..1."""
        images = self.train.images[:: max(1, len(self.train) // 5000)]
        sides = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
        border = torch.cat(sides, 2).transpose(0, 1).flatten(1)  # [C, n]
        return tuple((border.float().median(1).values / 255).tolist())

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
        arrays = _read(bind(cfg.source), cfg.root, cfg.source._target_)
    except DataMissingError as error:
        if cfg.on_missing != "embedded":
            raise
        log.warning(
            "WARNING: %s.\nUsing data=mnist5k instead of %s: the 5,000 embedded images, not the full "
            "dataset. Results will be worse. Set data.on_missing=error to stop here.",
            error,
            name,
        )
        arrays = _read(embedded_mnist, cfg.root, "embedded_mnist")
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


def _read(source: Callable[..., Arrays], root: str, name: str) -> Arrays:
    key = f"{source!r} {os.path.abspath(root)}"
    if key not in _cache:
        try:
            arrays = source(root=root)
        except UserError:
            raise
        except Exception as error:  # somebody else's code; HYDRA_FULL_ERROR=1 shows where it failed
            reason = " ".join([f"{type(error).__name__}:", *str(error).split()]).rstrip(":")
            raise UserError(f"data.source={name} failed: {reason}") from error
        check_arrays(arrays, f"data.source={name}")
        _cache.clear()
        _cache[key] = arrays
    return _cache[key]


def check_arrays(arrays: Arrays, source: str) -> None:
    """Raise UserError if a source returns something else than `Arrays` documents."""

    def need(condition: bool, expected: str, found: object) -> None:
        if not condition:
            raise UserError(f"{source}: expected {expected}, found {found}")

    def described(array: object) -> str:
        is_array = isinstance(array, np.ndarray)
        return f"{array.dtype} {list(array.shape)}" if is_array else type(array).__name__  # type: ignore[attr-defined]

    need(isinstance(arrays, Arrays), "mnist_sweep.data.Arrays", described(arrays))
    for half in ("train", "test"):
        images, labels = getattr(arrays, f"{half}_images"), getattr(arrays, f"{half}_labels")
        fits = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
        need(fits and images.size > 0, f"{half}_images uint8 [N, C, H, W]", described(images))
        fits = isinstance(labels, np.ndarray) and labels.dtype == np.int64
        need(
            fits and labels.shape == (len(images),),
            f"{half}_labels int64 [{len(images)}]",
            described(labels),
        )
        # more classes than images would be a mistake that takes all memory
        n_classes = len(arrays.classes or arrays.train_images)
        low, high = int(labels.min()), int(labels.max())
        need(
            low >= 0 and high < n_classes,
            f"{half}_labels in 0 to {n_classes - 1}",
            f"{low} to {high}",
        )
    shapes = [array.shape[1:] for array in (arrays.train_images, arrays.test_images)]
    need(shapes[0] == shapes[1], "test images of the training images' shape", shapes)


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
        UserError: the splits need more images than there are, or have too few for the classes.
    """
    n_images, n_classes = len(arrays.train_labels), len(np.unique(arrays.train_labels))
    for key, size in (("val_size", val_size), ("train_size", train_size)):
        if size is not None and size < n_classes:
            raise UserError(
                f"data.{key}={size}: expected at least {n_classes}, one image for each class of {name}"
            )
    if n_images - val_size < (train_size or n_classes):
        raise UserError(
            f"data.val_size={val_size} and data.train_size={train_size} need more than the "
            f"{n_images} training images of {name}; at least {n_classes} are for training"
        )
    in_val = stratified_mask(arrays.train_labels, val_size, split_seed, leave=1)
    train_indices, val_indices = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    if train_size is not None:
        labels = arrays.train_labels[train_indices]
        kept = stratified_mask(labels, train_size, split_seed, at_least=1)
        train_indices = train_indices[kept]
    train_images = arrays.train_images[train_indices]
    mean, std = _channel_stats(train_images)
    n_labels = int(max(arrays.train_labels.max(), arrays.test_labels.max())) + 1
    names = tuple(classes or arrays.classes or map(str, range(n_labels)))
    if len(names) < n_labels:
        raise UserError(
            f"data.classes={list(names)}: expected {n_labels} names, the labels of {name} are 0 to "
            f"{n_labels - 1}"
        )
    return Dataset(
        name=name,
        classes=names,
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
