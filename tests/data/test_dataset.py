import gzip
import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from test_config import composed

from mnist_sweep.common.errors import UserError
from mnist_sweep.data import dataset as data
from mnist_sweep.data.dataset import Arrays, DataMissingError, load_dataset

RNG = np.random.default_rng(0)


def arrays_of(labels: list[int], channels: int = 1) -> Arrays:
    n = len(labels)
    images = RNG.integers(0, 256, (n, channels, 4, 4), dtype=np.uint8)
    return Arrays(images, np.array(labels), images[:5], np.array(labels[:5]))


def write_idx(folder: Path) -> dict[str, str]:
    """Four tiny gz files of the MNIST family; their checksums."""
    folder.mkdir(parents=True)
    md5 = {}
    for name, n in (("train", 20), ("t10k", 10)):
        header = bytes([0, 0, 8, 3]) + np.array([n, 4, 4], ">i4").tobytes()
        images = header + bytes(range(n)) * 16
        labels = bytes([0, 0, 8, 1]) + np.array([n], ">i4").tobytes() + bytes([0, 1] * (n // 2))
        for kind, content in (("images", images), ("labels", labels)):
            packed = gzip.compress(content, mtime=0)
            (folder / f"{name}-{kind}.gz").write_bytes(packed)
            md5[f"{name}-{kind}.gz"] = hashlib.md5(packed).hexdigest()
    return md5


def test_stratified_takes_each_class_in_its_share() -> None:
    labels = RNG.permutation(np.repeat([0, 1, 2], [600, 300, 101]))
    mask = data.stratified(labels, 100, seed=1)
    assert mask.sum() == 100
    # 100 * 600/1001 = 59.94, 29.97, 10.09: the two largest remainders get the two left over
    assert np.bincount(labels[mask]).tolist() == [60, 30, 10]


def test_stratified_follows_the_seed_alone() -> None:
    labels = RNG.integers(0, 10, 1000)
    same = data.stratified(labels, 100, seed=1)
    assert (same == data.stratified(labels, 100, seed=1)).all()
    assert (same != data.stratified(labels, 100, seed=2)).any()


def test_embedded_mnist_splits_as_promised() -> None:
    loaded = data.load(data.embedded_mnist, name="mnist5k", root="", val_size=500, split_seed=0)
    for split, n in ((loaded.train, 4000), (loaded.val, 500), (loaded.test, 500)):
        assert split.images.shape == (n, 1, 28, 28)
        assert split.images.dtype is torch.uint8
        assert torch.bincount(split.labels).tolist() == [n // 10] * 10
    assert set(loaded.train.indices).isdisjoint(loaded.val.indices)
    pixels = loaded.train.images / 255
    assert loaded.mean == pytest.approx([pixels.mean().item()], abs=1e-5)
    assert loaded.std == pytest.approx([pixels.std().item()], abs=1e-5)


def test_train_size_leaves_the_validation_split_alone() -> None:
    few, all_of = (
        data.load(
            data.embedded_mnist, name="x", root="", val_size=500, split_seed=3, train_size=size
        )
        for size in (100, None)
    )
    assert torch.bincount(few.train.labels).tolist() == [10] * 10
    assert (few.val.indices == all_of.val.indices).all()
    assert few.digest == all_of.digest  # of what was published, not of what was drawn


def test_digest_sees_contents_and_shape() -> None:
    arrays = arrays_of([0, 1] * 10)
    changed = arrays.train_images.copy()
    changed[0, 0, 0, 0] ^= 1
    assert arrays.digest != arrays._replace(train_images=changed).digest
    flat = arrays.train_images.reshape(20, 1, 2, 8)
    assert arrays.digest != arrays._replace(train_images=flat).digest
    assert arrays.digest == Arrays(*(a.copy() for a in arrays[:4])).digest


def test_channel_stats_are_exact_for_colour_and_constants() -> None:
    images = RNG.integers(0, 256, (2500, 3, 4, 4), dtype=np.uint8)
    images[:, 2] = 51
    mean, std = data._channel_stats(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)), abs=1e-12)
    assert std[:2] == pytest.approx((images / 255).std((0, 2, 3))[:2], abs=1e-12)
    assert std[2] == pytest.approx(1.0)  # a constant channel divides by one


@pytest.mark.parametrize(("val_size", "train_size"), [(20, None), (15, 6), (21, None)])
def test_load_refuses_more_than_there_is(val_size: int, train_size: int | None) -> None:
    arrays = arrays_of([0, 1] * 10)
    with pytest.raises(UserError, match="20 training images of toy"):
        data.load(
            lambda root: arrays,
            name="toy",
            root="",
            val_size=val_size,
            split_seed=0,
            train_size=train_size,
        )


def test_idx_files_reads_images_and_labels(tmp_path: Path) -> None:
    md5 = write_idx(tmp_path / "toy")
    names = [f"{split}-{kind}.gz" for split in ("train", "t10k") for kind in ("images", "labels")]
    arrays = data.idx_files(str(tmp_path), folder="toy", md5={n: md5[n] for n in names})
    assert arrays.train_images.shape == (20, 1, 4, 4)
    assert arrays.train_images.reshape(-1)[:20].tolist() == list(range(20))
    assert arrays.test_labels.tolist() == [0, 1] * 5


def test_idx_files_names_an_altered_file(tmp_path: Path) -> None:
    md5 = write_idx(tmp_path / "toy")
    path = tmp_path / "toy" / "train-labels.gz"
    path.write_bytes(path.read_bytes()[:-1])
    actual = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as caught:
        data.idx_files(str(tmp_path), folder="toy", md5=md5)
    for part in (str(path), actual, md5["train-labels.gz"]):
        assert part in str(caught.value)


def test_load_without_files_is_an_error_or_the_embedded_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def source(root: str) -> Arrays:
        return data.idx_files(root, folder="none", md5={"a.gz": "0" * 32})

    def load(fallback: bool) -> data.Dataset:
        return data.load(
            source,
            name="mnist",
            root=str(tmp_path),
            val_size=5000,
            split_seed=0,
            embedded_if_missing=fallback,
        )

    with pytest.raises(DataMissingError, match=r"a\.gz \(md5 0000"):
        load(fallback=False)
    with caplog.at_level(logging.WARNING):
        assert load(fallback=True).name == "mnist5k"
    assert "data=mnist5k" in caplog.text


@pytest.mark.mnist
def test_mnist_is_the_published_one() -> None:
    loaded = load_dataset(composed().data)
    assert [len(split) for split in loaded.splits.values()] == [55_000, 5_000, 10_000]
    # per-class counts of the 60,000 and the 10,000, as every publication gives them
    both = torch.cat([loaded.train.labels, loaded.val.labels])
    assert torch.bincount(both).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert loaded.mean == pytest.approx([0.1307], abs=1e-3)
    assert loaded.std == pytest.approx([0.3081], abs=1e-3)


def affine(images: torch.Tensor, seed: int = 0, **changes: float) -> torch.Tensor:
    strength = {"degrees": 0.0, "scale": 0.0, "shift_px": 0.0, **changes}
    return data.affine(images, generator=torch.Generator().manual_seed(seed), **strength)


def test_affine_of_no_strength_changes_nothing() -> None:
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(affine(images), images, atol=1e-5)


def test_affine_draws_for_each_image_by_the_generator() -> None:
    images = torch.rand(1, 1, 28, 28).repeat(8, 1, 1, 1)
    out = affine(images, degrees=10, scale=0.1, shift_px=2)
    assert out.shape == images.shape
    assert all(not torch.equal(out[0], other) for other in out[1:])
    assert torch.equal(out, affine(images, degrees=10, scale=0.1, shift_px=2))
    assert not torch.equal(out, affine(images, seed=1, degrees=10, scale=0.1, shift_px=2))


def test_affine_shifts_a_dot_by_at_most_so_many_pixels() -> None:
    dot = torch.zeros(200, 1, 29, 29)
    dot[:, :, 14, 14] = 1
    out = affine(dot, shift_px=3)
    rows, columns = torch.meshgrid(torch.arange(29.0), torch.arange(29.0), indexing="ij")
    weight = out.sum((1, 2, 3))
    moved = torch.stack([(out * axis).sum((1, 2, 3)) / weight - 14 for axis in (rows, columns)])
    assert 2.5 < moved.abs().max() <= 3.001
    assert moved.mean().abs() < 0.3


def test_affine_rotates_about_the_centre_by_at_most_so_many_degrees() -> None:
    bar = torch.zeros(200, 1, 29, 29)
    bar[:, :, 14, 14:] = 1  # from the centre to the right: at 0 degrees
    out = affine(bar, degrees=20)
    rows, columns = torch.meshgrid(torch.arange(29.0), torch.arange(29.0), indexing="ij")
    angle = torch.atan2((out * (rows - 14)).sum((1, 2, 3)), (out * (columns - 14)).sum((1, 2, 3)))
    degrees = angle.rad2deg().abs().max()
    assert 17 < degrees <= 20.5
