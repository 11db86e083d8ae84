"""More sources of data beside the four gz files of MNIST: functions (root, ...) -> Arrays."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_sweep.data import Arrays, parse_idx, stratified, verified_files
from mnist_sweep.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
SPLIT_SEED = 0  # of a test split of our own: the same for every seed of a run


def emnist(root: str, *, split: str, folder: str, md5: Mapping[str, str]) -> Arrays:
    """One split of the zip that holds them all (Cohen et al. 2017), images turned upright.

    Args:
        split: digits, letters, balanced, ...
        md5: name of the zip -> checksum.

    Raises:
        DataMissingError, UserError: as `data.idx_files`.
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
    from mnist_sweep.images import DIGITS, read  # imports Pillow

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
