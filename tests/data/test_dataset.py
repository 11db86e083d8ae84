"""Datasets: the splits, the digest, the channel statistics, the embedded stand-in."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_sweep.common.errors import UserError
from mnist_sweep.data import dataset
from mnist_sweep.data.sources import Arrays, DataMissingError, embedded_mnist
from tests.helpers.configs import composed

RNG = np.random.default_rng(0)


def toy_arrays() -> Arrays:
    images = RNG.integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    labels = np.array([0, 1] * 10)
    return Arrays(images, labels, images[:5], labels[:5])


def test_embedded_mnist_has_balanced_splits() -> None:
    data = dataset.split_arrays(embedded_mnist(), name="mnist5k", val_size=500, split_seed=0)
    for split, n in ((data.train, 4000), (data.val, 500), (data.test, 500)):
        assert split.images.shape == (n, 1, 28, 28)
        assert split.images.dtype is torch.uint8
        assert torch.bincount(split.labels).tolist() == [n // 10] * 10
    assert set(data.train.indices).isdisjoint(data.val.indices)
    pixels = data.train.images / 255
    assert data.mean == pytest.approx([pixels.mean().item()], abs=1e-5)
    assert data.std == pytest.approx([pixels.std().item()], abs=1e-5)


def test_train_size_does_not_change_the_validation_split() -> None:
    arrays = embedded_mnist()
    few, full = (
        dataset.split_arrays(arrays, name="x", val_size=500, split_seed=3, train_size=size)
        for size in (100, None)
    )
    assert torch.bincount(few.train.labels).tolist() == [10] * 10
    assert (few.val.indices == full.val.indices).all()
    assert few.digest == full.digest  # the digest covers the published arrays


def test_digest_covers_contents_and_shape() -> None:
    arrays = toy_arrays()
    changed = arrays.train_images.copy()
    changed[0, 0, 0, 0] ^= 1
    assert arrays.digest != replace(arrays, train_images=changed).digest
    reshaped = arrays.train_images.reshape(20, 1, 2, 8)
    assert arrays.digest != replace(arrays, train_images=reshaped).digest
    copies = [array.copy() for array in vars(arrays).values() if isinstance(array, np.ndarray)]
    assert arrays.digest == Arrays(*copies).digest


def test_channel_stats_are_exact_for_colour_and_constant_channels() -> None:
    images = RNG.integers(0, 256, (2500, 3, 4, 4), dtype=np.uint8)
    images[:, 2] = 51
    mean, std = dataset._channel_stats(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)), abs=1e-12)
    assert std[:2] == pytest.approx((images / 255).std((0, 2, 3))[:2], abs=1e-12)
    assert std[2] == pytest.approx(1.0)  # not 0: normalising divides by it


@pytest.mark.parametrize(
    ("overrides", "train", "val"),
    [
        ([], "0d8dc71fad3f", "20dfb7fa0c54"),
        (["data.train_size=600", "seed=3"], "2ae67e0783e1", "65f8a8ae9ceb"),
    ],
)
def test_splits_are_those_of_earlier_versions(overrides: list[str], train: str, val: str) -> None:
    data = dataset.load_dataset(composed("data=mnist5k", *overrides).data)
    for split, expected in ((data.train, train), (data.val, val)):
        assert hashlib.sha256(split.indices.tobytes()).hexdigest().startswith(expected)


def test_rare_class_keeps_an_image_for_training() -> None:
    arrays = toy_arrays()
    arrays.train_labels[:] = [0] * 9 + [1] * 9 + [2, 3]
    for seed in range(20):
        data = dataset.split_arrays(arrays, name="x", val_size=14, split_seed=seed, train_size=4)
        assert torch.bincount(data.train.labels).tolist() == [1, 1, 1, 1]
        assert torch.bincount(data.val.labels).tolist() == [7, 7]


def test_background_is_the_median_of_the_border() -> None:
    assert dataset.split_arrays(
        embedded_mnist(), name="x", val_size=500, split_seed=0
    ).background == (0.0,)
    images = np.full((20, 3, 4, 4), 255, np.uint8)
    images[:, 1] = 51
    images[:, :, 1:3, 1:3] = 0
    images[:3] = 0  # some have another background
    arrays = replace(toy_arrays(), train_images=images, test_images=images[:5])
    data = dataset.split_arrays(arrays, name="x", val_size=2, split_seed=0)
    assert data.background == pytest.approx((1.0, 0.2, 1.0))


@pytest.mark.parametrize(
    ("val_size", "train_size", "message"),
    [
        (
            20,
            None,
            "data.val_size=20 and data.train_size=None need more than the 20 training images",
        ),
        (19, None, "at least 2 are for training"),
        (15, 6, "data.val_size=15 and data.train_size=6 need more"),
        (10**9, None, "data.val_size=1000000000 and"),
        (5, 10**9, "data.train_size=1000000000 need more"),
        (1, None, "data.val_size=1: expected at least 2, one image for each class of toy"),
        (5, 1, "data.train_size=1: expected at least 2"),
    ],
)
def test_splits_that_do_not_fit_the_training_set_are_refused(
    val_size: int, train_size: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        dataset.split_arrays(
            toy_arrays(), name="toy", val_size=val_size, split_seed=0, train_size=train_size
        )


def test_too_few_class_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.classes=\['a'\]: expected 2 names"):
        dataset.split_arrays(toy_arrays(), name="x", val_size=2, split_seed=0, classes=["a"])


GREY, LABELS = np.zeros((20, 1, 4, 4), np.uint8), np.array([0, 1] * 10)


@pytest.mark.parametrize(
    ("changes", "expected", "found"),
    [
        ({"train_images": GREY / 255}, "train_images uint8 [N, C, H, W]", "float64 [20, 1, 4, 4]"),
        ({"train_images": GREY[:, 0]}, "train_images uint8 [N, C, H, W]", "uint8 [20, 4, 4]"),
        ({"train_images": GREY.tolist()}, "train_images uint8 [N, C, H, W]", "list"),
        ({"train_images": torch.tensor(GREY)}, "train_images uint8 [N, C, H, W]", "Tensor"),
        ({"train_images": GREY[:0]}, "train_images uint8 [N, C, H, W]", "uint8 [0, 1, 4, 4]"),
        ({"test_images": GREY[:, :, :0]}, "test_images uint8 [N, C, H, W]", "uint8 [20, 1, 0, 4]"),
        ({"test_images": GREY[..., :3]}, "test images of the training images' shape", "(1, 4, 3)"),
        ({"train_labels": LABELS[:19]}, "train_labels int64 [20]", "int64 [19]"),
        ({"train_labels": LABELS[:, None]}, "train_labels int64 [20]", "int64 [20, 1]"),
        ({"train_labels": LABELS * 1.0}, "train_labels int64 [20]", "float64 [20]"),
        ({"test_labels": LABELS * np.nan}, "test_labels int64 [20]", "float64 [20]"),
        ({"test_labels": LABELS.astype(str)}, "test_labels int64 [20]", "<U21 [20]"),
        ({"test_labels": None}, "test_labels int64 [20]", "NoneType"),
        ({"train_labels": LABELS - 1}, "train_labels in 0 to 19", "-1 to 0"),
        ({"train_labels": LABELS + 10**12}, "train_labels in 0 to 19", "1000000000000 to"),
        ({"test_labels": LABELS + 2, "classes": ("a", "b")}, "test_labels in 0 to 1", "2 to 3"),
    ],
)
def test_misshapen_source_is_refused(changes: dict[str, object], expected: str, found: str) -> None:
    arrays = replace(Arrays(GREY, LABELS, GREY, LABELS), **changes)
    with pytest.raises(UserError) as caught:
        dataset.check_arrays(arrays, "data.source=mine.read")
    assert str(caught.value).startswith(f"data.source=mine.read: expected {expected}, found ")
    assert found in str(caught.value)


def test_source_that_returns_no_arrays_is_refused() -> None:
    for result, found in ((None, "NoneType"), ((GREY, LABELS), "tuple"), (GREY, "uint8")):
        with pytest.raises(UserError, match=f"expected mnist_sweep.data.Arrays, found {found}"):
            dataset._read(lambda root, result=result: result, "root", "mine.read")


@pytest.mark.parametrize("error", [ValueError("two\nlines"), ZeroDivisionError(), MemoryError()])
def test_source_that_raises_is_one_line(error: Exception) -> None:
    def source(root: str) -> Arrays:
        raise error

    with pytest.raises(UserError) as caught:
        dataset._read(source, "root", "mine.read")
    assert str(caught.value).startswith(f"data.source=mine.read failed: {type(error).__name__}")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_missing_files_raise_or_fall_back_to_the_embedded_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = composed("data=mnist", f"data.root={tmp_path}").data
    cfg.source = {"_target_": "mnist_sweep.data.idx_files", "folder": "x", "md5": {"a.gz": "0000"}}
    cfg.on_missing = "error"
    with pytest.raises(DataMissingError, match=r"a\.gz \(md5 0000"):
        dataset.load_dataset(cfg)
    cfg.on_missing = "embedded"
    with caplog.at_level(logging.WARNING):
        data = dataset.load_dataset(cfg)
    assert (data.name, len(data.val)) == ("mnist5k", 500)
    assert "data=mnist5k" in caplog.text


def test_a_source_is_read_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("data=mnist5k").data
    first = dataset._read(dataset.bind(cfg.source), cfg.root, "x")
    assert dataset._read(dataset.bind(cfg.source), cfg.root, "x") is first
    monkeypatch.setitem(cfg, "root", "elsewhere")
    assert dataset._read(dataset.bind(cfg.source), cfg.root, "x") is not first


@pytest.mark.mnist
def test_mnist_has_the_published_counts_and_statistics() -> None:
    data = dataset.load_dataset(composed("data=mnist").data)
    assert [len(split) for split in data.splits.values()] == [55_000, 5_000, 10_000]
    labels = torch.cat([data.train.labels, data.val.labels])
    assert torch.bincount(labels).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert data.mean == pytest.approx([0.1307], abs=1e-3)
    assert data.std == pytest.approx([0.3081], abs=1e-3)
