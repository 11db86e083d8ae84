"""Datasets: the splits, the digest, the channel statistics, the embedded stand-in."""

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


@pytest.mark.parametrize(("val_size", "train_size"), [(20, None), (15, 6), (21, None)])
def test_splits_larger_than_the_training_set_are_refused(
    val_size: int, train_size: int | None
) -> None:
    with pytest.raises(UserError, match="20 training images of toy"):
        dataset.split_arrays(
            toy_arrays(), name="toy", val_size=val_size, split_seed=0, train_size=train_size
        )


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
    first = dataset._read(dataset.bind(cfg.source), cfg.root)
    assert dataset._read(dataset.bind(cfg.source), cfg.root) is first
    monkeypatch.setitem(cfg, "root", "elsewhere")
    assert dataset._read(dataset.bind(cfg.source), cfg.root) is not first


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
